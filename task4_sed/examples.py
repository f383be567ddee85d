"""A few clips to look at: picture of the sound, true events, scores before and after post-processing, pseudo-labels.

Flow: prediction files + audio → **examples** → results/examples/task4_sed.json → notebook.
Run:  python -m task4_sed.examples --run RUN --pseudo-labels FOLDER --data data/builtin/task4_sed
        --out results/examples/task4_sed.json

Shown are the first clips, by name, with events of several classes, whatever the network makes of them. The file holds
features of recordings, so it is made of the built-in data alone unless --allow-other-data says that theirs may be
passed on.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchaudio.functional import resample

from common.audio.encoder_frontends import AtstMel
from common.audio.files import fit_length, read_audio
from common.data.event_plan import EventOptions, plan_clips
from common.data.events import clip_name
from common.data.manifest import DataError
from common.files import write_text
from task4_sed.clip_audio import SAMPLE_RATE
from task4_sed.data import Manifest, dataset_name, load_set
from task4_sed.labels import FrameGrid, sound_classes
from task4_sed.postprocess import median_filter
from task4_sed.predictions import PredictionFile, open_pseudo_labels, prediction_files, prediction_folder
from task4_sed.reporting import BUILT_IN
from task4_sed.scoring import TunedBoxes, read_boxes

GRID = FrameGrid()
SCORED, TRAINING = ("devtest", "eval_public"), ("weak_train", "unlabeled_train")
PICTURE = {"f_min_hz": 60.0, "f_max_hz": 7800.0, "duration_s": GRID.clip_s, "unit": "dB below the loudest cell"}
RANGE_DB = 70
SURE, MAX_CLASSES = 0.1, 6  # classes that are shown: those there, and those whose score reaches this anywhere
DECIMALS = 3
MAX_BYTES = 200_000
GENERATOR = "common.data.soundscapes task4_sed"


def picture(waveform: np.ndarray) -> list[list[int]]:
    """Return 64 mel bands × 156 frames of a clip (T,) of 10 s at 16 kHz, dB below its loudest cell, up to RANGE_DB."""
    front_end = AtstMel()
    log_mel = front_end(torch.from_numpy(waveform)[None, None])[0, 0]
    level_db = log_mel * (front_end.data_max_db - front_end.data_min_db) / 2
    level_db = F.adaptive_avg_pool1d(level_db, GRID.n_frames)
    return (level_db.max() - level_db).clamp(0, RANGE_DB).round().int().tolist()


def read_clip(manifest: Manifest, row: int) -> np.ndarray:
    """Return a clip (T,) as a network hears it: 16 kHz, mono, 10 s, zeros behind its end."""
    waveform, sample_rate = read_audio(manifest.root / manifest.clips.path.iloc[row])
    mono = resample(torch.from_numpy(waveform.mean(0, keepdims=True)), sample_rate, SAMPLE_RATE).numpy()
    return fit_length(mono, round(GRID.clip_s * SAMPLE_RATE))[0]


def first_with_several(names: Sequence[str], events: Mapping[str, Sequence], n: int) -> list[str]:
    """Return the first `n` names whose events are of two classes or more; where they are fewer, others behind them.

    Args:
        events: name → (onset, offset, label) of its events.
    """
    several = [name for name in names if len({label for *_, label in events.get(name, ())}) > 1]
    others = [name for name in names if events.get(name) and name not in several]
    return [*several, *others, *(name for name in names if not events.get(name))][:n]


def shown_classes(there: Sequence[str], values: np.ndarray, classes: Sequence[str]) -> list[int]:
    """Return places of the classes to show, in their order: those there, then the surest, at most MAX_CLASSES.

    Args:
        there: labels of the clip's events. values: (N, K) scores.
    """
    own = [k for k, name in enumerate(classes) if name in there]
    surest = [int(k) for k in np.argsort(-values.max(0), kind="stable") if values[:, k].max() >= SURE and k not in own]
    return sorted([*own, *surest][:MAX_CLASSES])


def events_of(manifest: Manifest) -> dict[str, list[tuple[float, float, str]]]:
    """Return file name → events with times, as the tables have them."""
    found: dict[str, list] = {}
    timed = manifest.events.dropna(subset=["onset", "offset"])
    for row in timed.sort_values(["onset", "event_label"]).itertuples():
        found.setdefault(row.filename, []).append((float(row.onset), float(row.offset), row.event_label))
    return found


def planned_events(data: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Return file name → events of all clips of the built-in data, labelled or not; {} for data from elsewhere."""
    card = data / "dataset.json"
    content = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if not str(content.get("generator", "")).startswith(GENERATOR):
        return {}
    options = EventOptions(**{name: content[name] for name in vars(EventOptions())})
    return {clip.filename: [(e.onset_s, e.offset_s, e.label) for e in clip.events] for clip in plan_clips(options)}


# ---------------------------------------------------------------- clips


def scored_clips(data: Path, run: Path, n: int) -> tuple[list[dict], Mapping]:
    """Return `n` clips of the first scored set that a run has predicted, and what the predictions say of themselves."""
    files = prediction_files(run)
    names = [name for name in SCORED if name in files]
    if not names:
        raise DataError(f"{prediction_folder(run)}: no predictions of {' or '.join(SCORED)}; make them with "
                        "python -m task4_sed.evaluate predict.")  # fmt: skip
    predictions, manifest = PredictionFile(files[names[0]]), load_set(data, names[0], exclude_overlap=False)
    boxes, truth, known = read_boxes(run).get("csebbs"), events_of(manifest), set(predictions.filenames)
    rows = {name: row for row, name in enumerate(manifest.clips.filename) if clip_name(name) in known}
    chosen = first_with_several(sorted(rows), truth, n)
    clips = [_scored_clip(manifest, rows[name], predictions, boxes, truth.get(name, [])) for name in chosen]
    return clips, predictions.about


def _scored_clip(
    manifest: Manifest, row: int, predictions: PredictionFile, boxes: TunedBoxes | None, events: list
) -> dict:
    sounds, filename = sound_classes(), manifest.clips.filename.iloc[row]
    classes = sounds.where(sounds.desed)
    columns = [predictions.classes.index(name) for name in classes]
    raw = predictions.targets([filename])[0][:, columns]
    shown = shown_classes([label for *_, label in events], raw, classes)
    windows = sounds.median_frames[[sounds.names.index(name) for name in classes]]
    median = median_filter(raw, windows) if len(raw) == GRID.n_frames else None
    own = [classes[k] for k in shown]
    found = None
    if boxes is not None:
        table = boxes.csebbs.boxes(raw[None], predictions.boundaries_s, [filename], classes)
        rows = table[table.event_label.isin(own)][["onset", "offset", "event_label", "score"]]
        found = [_rounded(values) for values in rows.values.tolist()]
    return {
        **_about_clip(manifest, row),
        "classes": own,
        "events": [_rounded(event) for event in events],
        "raw": _scores(raw, shown),
        "median": None if median is None else _scores(median, shown),
        "boxes": found,
    }


def training_clips(data: Path, folder: Path) -> tuple[list[dict], Mapping]:
    """Return a clip of each training set without times that has pseudo-labels, and what these say of themselves."""
    clips, about, planned = [], {}, planned_events(data)
    for name in TRAINING:
        if name not in prediction_files(folder):
            continue
        predictions, manifest = open_pseudo_labels(folder, name), load_set(data, name, exclude_overlap=False)
        weak, known = manifest.events.groupby("filename").event_label.unique(), set(predictions.filenames)
        rows = {name: row for row, name in enumerate(manifest.clips.filename) if clip_name(name) in known}
        guide = planned or {clip: [(0.0, 0.0, label) for label in own] for clip, own in weak.items()}
        for filename in first_with_several(sorted(rows), guide, 1):
            about, values = predictions.about, predictions.targets([filename])[0]
            events = planned.get(filename) if planned else None
            labels = sorted(weak[filename]) if filename in weak else None
            there = [label for *_, label in events or ()] + (labels or [])
            shown = shown_classes(there, values, predictions.classes)
            clips.append({
                **_about_clip(manifest, rows[filename]),
                "classes": [predictions.classes[k] for k in shown],
                "weak_labels": labels,
                "events": None if events is None else [_rounded(event) for event in events],
                "probabilities": _scores(values, shown),
            })  # fmt: skip
    if not clips:
        raise DataError(f"{folder}: no pseudo-labels of {' or '.join(TRAINING)}; leave --pseudo-labels out.")
    return clips, about


def _about_clip(manifest: Manifest, row: int) -> dict:
    return {
        "filename": manifest.clips.filename.iloc[row],
        "set": manifest.info.name,
        "picture": picture(read_clip(manifest, row)),
    }


def _scores(values: np.ndarray, shown: Sequence[int]) -> list[list[float]]:
    """Return one row (N,) a class that is shown."""
    return [_rounded(row) for row in values.T[list(shown)].tolist()]


def _rounded(values: Sequence) -> list:
    """Return values of which numbers have DECIMALS digits; whole ones are int, which is shorter as text."""
    short = (round(v, DECIMALS) if isinstance(v, float) else v for v in values)
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in short]


# ---------------------------------------------------------------- command


def examples(data: Path, run: Path, pseudo_labels: Path | None = None, n_scored: int = 3) -> dict:
    """Return all that the file holds."""
    scored, about = scored_clips(data, run, n_scored)
    keys = ("recipe", "seed", "smoke", "commit", "dirty")
    content = {
        "task": "task4_sed",
        "dataset": dataset_name(data),
        **{key: about.get(key) for key in keys},
        "frame_s": GRID.frame_s,
        "picture": PICTURE,
        "scored": scored,
    }
    if pseudo_labels:
        clips, about = training_clips(data, pseudo_labels)
        members = [member.get("recipe") for member in about.get("members") or ()]
        content["pseudo_labels"] = {key: about.get(key) for key in keys} | {"members": members}
        content["training"] = clips
    return content


def as_text(content: Mapping) -> str:
    """Return JSON with one line for each entry and clip, so that a difference of two files can be read."""
    def short(value) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    def entry(value) -> str:
        return "[\n" + ",\n".join(map(short, value)) + "\n]" if isinstance(value, list) else short(value)

    return "{\n" + ",\n".join(f"{short(key)}: {entry(value)}" for key, value in content.items()) + "\n}\n"


def write_examples(args: argparse.Namespace) -> None:
    """Write the file of examples."""
    if (name := dataset_name(args.data)) != BUILT_IN and not args.allow_other_data:
        raise DataError(f"{args.data}: is {name!r}, and the file would hold features of its recordings; take the "
                        "built-in data, or give --allow-other-data where they may be passed on.")  # fmt: skip
    text = as_text(examples(args.data, args.run, args.pseudo_labels, args.n_scored))
    if (size := len(text.encode())) > MAX_BYTES:
        raise DataError(f"{args.out}: would have {size:,} bytes, more than {MAX_BYTES:,}; lower --n-scored "
                        f"{args.n_scored}.")  # fmt: skip
    write_text(args.out, text)
    print(f"wrote {args.out}: {size:,} bytes")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder or ensemble, with predictions")
    parser.add_argument("--pseudo-labels", type=Path, metavar="FOLDER", help="predictions of the training clips")
    parser.add_argument("--data", type=Path, required=True, help="data folder with tables and audio")
    parser.add_argument("--out", type=Path, required=True, help="file to write, results/examples/task4_sed.json")
    parser.add_argument("--n-scored", type=int, default=3, metavar="N", help="clips of the scored set (%(default)s)")
    parser.add_argument("--allow-other-data", action="store_true", help="recordings whose features may be passed on")
    args = parser.parse_args(argv)
    try:
        write_examples(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
