"""Find sound events in recordings of any length.

Flow: audio file → 16 kHz mono → windows of 10 s → **network** → frame scores → median filter or cSEBBs → events.
Run:  python -m task4_sed.detect FILE.wav --weights cpjku_2024_atst_stage2 --download --out FOLDER
      python -m task4_sed.detect FILE.wav --weights mine.ckpt --network "build_fusion('beats')"
      python -m task4_sed.detect FILE.wav --untrained          (no weights at hand: a look at the output, not at events)

Three files for each recording appear: FOLDER/scores/NAME.tsv (frame scores, or boxes, in sed_scores_eval's format: the
folder is what `python -m task4_sed.evaluate folder` takes), FOLDER/events/NAME.tsv (onset, offset in s, event_label,
score) and FOLDER/pictures/NAME.png (spectrogram, scores, events).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.audio.cache import ClipFormat
from common.audio.windows import Windows
from common.config import ConfigError
from common.files import write_atomically, write_text
from common.metrics.sed_scores import FrameScores
from common.progress import progress
from task4_sed.csebbs import Csebbs
from task4_sed.labels import decode, sound_classes
from task4_sed.model import DEFAULT_NETWORK, Detector, detectors, load_detector, untrained_detector
from task4_sed.postprocess import median_filter

PLOTTED_CLASSES = 12
ROWS_AT_A_TIME = 4096
AUDIOSET_MEDIAN_FRAMES = 9  # of 40 ms, the published length for AudioSet Strong
CLIP_HEAD = ("weak_head",)  # not needed for frame scores: weights may lack it
UNTRAINED = "UNTRAINED network with random weights: these events mean nothing"


@dataclass(frozen=True)
class Detection:
    """What was found in one recording.

    Attributes:
        scores: of the one clip "recording", between 0 and 1, behind the median filter where one is used.
        events: columns onset, offset (s), event_label, score; by onset.
    """

    scores: FrameScores
    events: pd.DataFrame

    def surest_classes(self, n: int = PLOTTED_CLASSES) -> list[int]:
        """Return the places of the `n` classes with the highest scores anywhere, in the order of the classes."""
        return sorted(np.argsort(-self.scores.values[0].max(0), kind="stable")[:n])


def frame_probabilities(
    detector: Detector, waveform: torch.Tensor, overlap: float = 0.5, batch_size: int = 4, title: str = ""
) -> np.ndarray:
    """Return probabilities (N, K) over a whole recording, its windows averaged where they overlap.

    Args:
        waveform: (1, T) at the detector's rate, any length.
        overlap: share of a window that the next one covers too, 0 up to 0.95.
        batch_size: windows at a time.
    """
    if not 0 <= overlap <= 0.95:
        raise ValueError(f"overlap {overlap} must be 0 up to 0.95 of a window.")
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1 window.")
    windows = Windows(
        window_samples=round(detector.clip_s * detector.sample_rate),
        frame_samples=round(detector.grid.frame_s * detector.sample_rate),
        n_frames=detector.grid.n_frames,
        hop_frames=round((1 - overlap) * detector.grid.n_frames),
    )
    device = next(detector.parameters()).device
    n_windows = len(windows.starts(waveform.shape[-1]))

    def network(batch: torch.Tensor) -> torch.Tensor:
        return detector(batch.to(device))["strong_logits"].float().sigmoid()

    with torch.inference_mode(), progress(total=n_windows, desc=title, unit="window", disable=n_windows < 3) as bar:
        return windows.run(waveform, network, batch_size, bar.update).numpy()


def detect(
    detector: Detector,
    waveform: torch.Tensor,
    threshold: float | Sequence[float] = 0.5,
    median_frames: int | Sequence[int] | None = None,
    csebbs: Csebbs | None = None,
    **windowing,
) -> Detection:
    """Return what is in one recording.

    Args:
        waveform: (1, T) at the detector's rate, any length.
        threshold: score above which a frame, or a box, is an event.
        median_frames: length of the median filter, one or one per class (K,); None = no filter.
        csebbs: boxes instead of the median filter.
        windowing: overlap, batch_size, title of `frame_probabilities`.
    """
    scores = frame_probabilities(detector, waveform, **windowing)
    duration_s = waveform.shape[-1] / detector.sample_rate
    boundaries_s = np.arange(len(scores) + 1) * detector.grid.frame_s
    if csebbs is not None:
        boxes = csebbs.boxes(scores[None], boundaries_s, ["recording"], detector.classes)
        events = boxes[(boxes["score"] > threshold) & (boxes["onset"] < duration_s)].drop(columns="filename")
        table = csebbs.tables(scores[None], boundaries_s, ["recording"], detector.classes)["recording"]
        table = table[table["onset"] < duration_s]
        boundaries_s = np.append(table["onset"], table["offset"].iloc[-1])
        scores = table[list(detector.classes)].to_numpy()
    else:
        scores = scores if median_frames is None else median_filter(scores, median_frames)
        events = decode(scores, boundaries_s, detector.classes, threshold)
    events = events.assign(offset=events["offset"].clip(upper=duration_s))  # the last frame may reach further
    events = events.sort_values(["onset", "offset"], ignore_index=True)
    boundaries_s = np.minimum(boundaries_s, duration_s)
    return Detection(FrameScores(["recording"], detector.classes, boundaries_s, scores[None]), events)


def published_median(detector: Detector) -> np.ndarray | int:
    """Return the published lengths of the median filter, frames: one per class of the task, 9 for AudioSet Strong."""
    own = sound_classes()
    return own.median_frames if detector.classes == own.names else AUDIOSET_MEDIAN_FRAMES


def plot(path: Path, waveform: np.ndarray, sample_rate: int, detection: Detection, title: str) -> None:
    """Write a picture of `waveform` (T,) and of what was found in it; the classes with the highest scores."""
    from matplotlib.figure import Figure  # here, not above: slow to load, and no window system is needed

    from common.results import sound_plots

    duration_s = len(waveform) / sample_rate
    columns, scores = detection.surest_classes(), detection.scores
    classes = [scores.classes[k] for k in columns]
    figure = Figure(figsize=(min(24.0, max(9.0, 0.4 * duration_s)), 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 0.9))
    sound_plots.spectrogram(axes[0], waveform, sample_rate)
    sound_plots.frame_scores(axes[1], scores.boundaries_s, scores.values[0][:, columns], classes)
    sound_plots.events(axes[2], {"found": detection.events}, classes, duration_s)
    figure.suptitle(title, fontsize="medium")
    write_atomically(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def detect_file(path: Path, out: Path, detector: Detector, remark: str = "", **settings) -> Detection:
    """Write scores/NAME.tsv, events/NAME.tsv and pictures/NAME.png of one audio file below `out`.

    Args:
        remark: put into the picture's title.
        settings: of `detect`.

    Raises:
        AudioError: the file cannot be used.
    """
    any_length = ClipFormat(detector.sample_rate, clip_s=None, resample=True, downmix=True)
    waveform = any_length.read(path)
    found = detect(detector, torch.from_numpy(waveform)[None], title=path.name, **settings)
    write_scores(out / "scores" / f"{path.stem}.tsv", found.scores)
    events = found.events.to_csv(sep="\t", index=False, float_format="%.4f")
    write_text(out / "events" / f"{path.stem}.tsv", events)
    n_classes, n_shown = len(found.scores.classes), len(found.surest_classes())
    title = f"{path.name}: {len(found.events)} events"
    title += f", the {n_shown} surest of {n_classes} classes shown" if n_shown < n_classes else ""
    title += f"\n{remark}" if remark else ""
    plot(out / "pictures" / f"{path.stem}.png", waveform, detector.sample_rate, found, title)
    return found


def write_scores(path: Path, scores: FrameScores) -> None:
    """Write the first clip of `scores` as sed_scores_eval does, a few rows at a time: hours of 447 classes are big."""
    starts, stops = scores.boundaries_s[:-1, None], scores.boundaries_s[1:, None]

    row = "\t".join(["%.9g"] * (2 + len(scores.classes))) + "\n"  # 9 digits keep a float32 as it is

    def write(part: Path) -> None:
        with open(part, "w", encoding="utf-8") as file:
            file.write("\t".join(["onset", "offset", *scores.classes]) + "\n")
            for begin in range(0, len(starts), ROWS_AT_A_TIME):
                rows = slice(begin, begin + ROWS_AT_A_TIME)
                table = np.concatenate([starts[rows], stops[rows], scores.values[0, rows]], axis=1)
                file.write(row * len(table) % tuple(table.ravel().tolist()))

    write_atomically(path, write)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m task4_sed.detect", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="recordings (WAV, FLAC, Ogg), any rate")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--weights", metavar="NAME|FILE", help="a name of common/nn/published.py, or a checkpoint")
    which.add_argument("--untrained", action="store_true", help="random weights: shows the output, finds nothing")
    which.add_argument("--list-weights", action="store_true", help="names and networks of registered weights")
    parser.add_argument("--network", help=f"expression that builds it, like {DEFAULT_NETWORK}; default: as registered")
    parser.add_argument("--like", metavar="NAME", help="registered weights that a file under another name is like")
    parser.add_argument("--inner", help="which dict of the checkpoint, such as teacher")
    parser.add_argument("--encoder-weights", metavar="NAME|FILE", help="for weights without an encoder (the baseline)")
    parser.add_argument("--download", action="store_true", help="fetch registered weights that are not there yet")
    parser.add_argument("--weights-folder", type=Path, default=Path("downloads"), help="where they are kept")
    parser.add_argument("--classes", type=Path, help="text file with one class name per line")
    parser.add_argument("--threshold", type=float, default=0.5, help="score from which something is an event")
    parser.add_argument("--no-median", action="store_true", help="leave the scores unfiltered")
    parser.add_argument("--csebbs", type=Path, metavar="JSON", help="tuned boxes instead of the median filter")
    parser.add_argument("--overlap", type=float, default=0.5, help="of two windows, 0 up to 0.95 (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, gpu or auto (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/detect"), help="folder (default %(default)s)")
    return parser


def _device(name: str) -> str:
    from common.training.loop import Hardware  # here, not above: slow to load

    try:
        return "cuda" if Hardware(name).on_gpu else "cpu"
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _detector(options: argparse.Namespace) -> Detector:
    device, names = _device(options.device), None
    if options.classes:
        try:
            names = [line.strip() for line in options.classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{options.classes}: no such text file; give UTF-8, a class name per line.") from None
    if options.untrained:
        detector = untrained_detector(options.network or DEFAULT_NETWORK, class_names=names)
        print(f"{UNTRAINED}.")
    else:
        detector, reports = load_detector(
            options.weights, options.network, options.encoder_weights, names, options.inner, options.like,
            untrained=CLIP_HEAD, folder=options.weights_folder, download=options.download,
        )  # fmt: skip
        for report in reports:
            print(report.text())
    return detector.to(device)


def _check(options: argparse.Namespace) -> None:
    """Raise a ConfigError for options that cannot be meant, before a network is built."""
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f"--threshold {options.threshold:g}: scores lie between 0 and 1.")
    if options.untrained and (options.inner or options.encoder_weights or options.like):
        raise ConfigError("--untrained takes no weights: leave --inner, --encoder-weights and --like out.")
    if options.csebbs and options.no_median:
        raise ConfigError("--csebbs uses no median filter: leave --no-median out.")
    if not options.files:
        raise ConfigError("give at least one recording.")
    stems = [path.stem for path in options.files]
    if twice := next((path for path in options.files if stems.count(path.stem) > 1), None):
        raise ConfigError(f"{twice}: another recording is called {twice.stem} too; detect them one after the other.")


def _post_processing(options: argparse.Namespace, detector: Detector) -> dict:
    if options.csebbs:
        own = sound_classes()
        return {"csebbs": Csebbs.read(options.csebbs, cell_classes=own.where(own.maestro))}
    return {"median_frames": None if options.no_median else published_median(detector)}


def _say(path: Path, found: Detection, out: Path, shown: int = 40) -> None:
    borders_s = found.scores.boundaries_s
    print(f"\n{path.name}: {borders_s[-1]:.2f} s in {len(borders_s) - 1} frames, {len(found.events)} events")
    if len(found.events):
        print(found.events.head(shown).to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if len(found.events) > shown:
        print(f"… {len(found.events) - shown} more")
    print(f"written: {out}/scores/{path.stem}.tsv, events/{path.stem}.tsv, pictures/{path.stem}.png", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Detect events in files; return 1 if any of them could not be used."""
    options, failed = _parser().parse_args(argv), 0
    if options.list_weights:
        print("\n".join(f"{name:44} {entry.architecture}" for name, entry in detectors().items()))
        return 0
    try:
        _check(options)
        detector = _detector(options)
        settings = {"threshold": options.threshold, "overlap": options.overlap, "batch_size": options.batch_size}
        settings |= _post_processing(options, detector)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in options.files:
        try:
            found = detect_file(path, options.out, detector, UNTRAINED if options.untrained else "", **settings)
            _say(path, found, options.out)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
