"""MAESTRO Real: soft labels of long recordings, cut into overlapping crops of 10 s.

Flow: development_audio/, development_annotation/ → **crops: names, times, labels** → manifest (data.py).
Run:  python -m task4_sed.maestro DATA        write the crops as files, as the challenge's recipe does (optional)

The crops need not be written: a manifest names the recording and where in it a crop starts, and the decoded recording
is stored once. A crop is called {recording}-{start}-{end}, start and end in hundredths of a second.

Source: MAESTRO Real, Zenodo 7244360; cutting rules of the DCASE 2024 task 4 baseline (33 recordings at a hop of 1 s
give its 7,503 crops).
"""
import argparse
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from common.audio.files import AudioError, read_audio
from common.data.manifest import DataError, read_table
from common.files import write_atomically, write_text
from common.metrics.sed_scores import clip_name
from common.progress import progress
from task4_sed.labels import sound_classes
from task4_sed.tables import ALL_COLUMNS, LabelTable, audio_files, label_table

SCENES = ("cafe_restaurant", "city_center", "grocery_store", "metro_station", "residential_area")
SOFT_COLUMNS = ("onset", "offset", "event_label", "confidence")
WINDOW_S = 10.0
HOPS_S = {"train": 1.0, "validation": 5.0}
LISTS = {"train": ("metadata/train_split.csv", "train"), "validation": ("metadata/validation_split.csv", "val")}
RECORDINGS, AUDIO, ANNOTATION = "maestro_real", "development_audio", "development_annotation"


# ---------------------------------------------------------------- names and times


def crop_name(recording: str, start_s: float, end_s: float) -> str:
    """Return the name of a crop, without ending; times are cut to hundredths of a second."""
    return f"{recording}-{int(start_s * 100):06d}-{int(end_s * 100):06d}"


def parse_crop_name(name: str) -> tuple[str, float, float]:
    """Return recording, start and end in s of a crop's file name.

    Raises:
        DataError: the name is not that of a crop.
    """
    match = re.fullmatch(r"(.+)-(\d{6,})-(\d{6,})", clip_name(name))
    if match is None or int(match[3]) <= int(match[2]):
        raise DataError(f"{name}: not the name of a crop, expected RECORDING-START-END with start and end in "
                        "hundredths of a second, such as cafe_restaurant_00-000100-001100.wav.")
    return match[1], int(match[2]) / 100, int(match[3]) / 100


def scene_of(recording: str) -> str:
    """Return the scene of a recording: its name without the number."""
    return recording.rpartition("_")[0]


def crop_times(duration_s: float, hop_s: float, window_s: float = WINDOW_S) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of the crops of a recording, s; the last one may be shorter than the window."""
    n_crops = int(np.ceil(max(duration_s - window_s, 0) / hop_s)) + 1
    start_s = np.arange(n_crops) * hop_s
    return start_s, np.minimum(start_s + window_s, duration_s)


def recording_durations(crops: Iterable[str]) -> dict[str, float]:
    """Return recording → duration in s: where the last of its crops ends, to a hundredth of a second."""
    durations: dict[str, float] = {}
    for recording, _, end_s in map(parse_crop_name, crops):
        durations[recording] = max(end_s, durations.get(recording, 0.0))
    return durations


# ---------------------------------------------------------------- labels


def read_soft_labels(path: str | Path, allow_unknown: bool = False) -> LabelTable:
    """Return the soft labels of one long recording: no header; onset, offset, label, confidence, separated by tabs.

    Raises:
        DataError: see `task4_sed.tables.label_table`.
    """
    rows = read_table(path, SOFT_COLUMNS, may_be_empty=SOFT_COLUMNS, unique=False, header=False)
    rows.insert(0, "filename", clip_name(Path(path).stem))
    return label_table(rows, sound_classes().names, str(path), allow_unknown)


def cut_labels(labels: pd.DataFrame, start_s: np.ndarray, end_s: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the rows that overlap each crop, moved and clipped to it, by crop and onset; and each row's crop.

    Args:
        labels: onset, offset, … of a recording. start_s, end_s: of its crops (C,).
    """
    onset, offset = labels.onset.to_numpy(), labels.offset.to_numpy()
    crop, row = np.nonzero((onset < end_s[:, None]) & (offset > start_s[:, None]))
    cut = labels.iloc[row].assign(onset=np.maximum(onset[row] - start_s[crop], 0),
                                  offset=np.minimum(offset[row], end_s[crop]) - start_s[crop])
    order = np.lexsort((np.arange(len(crop)), cut.onset.to_numpy(), crop))
    return crop[order], cut.iloc[order].reset_index(drop=True)


# ---------------------------------------------------------------- recordings


def read_split_list(path: str | Path, column: str) -> list[str]:
    """Return the recordings of a list with one column (`train` or `val`), without the ending `.txt`."""
    return [name.removesuffix(".txt") for name in read_table(path, (column,), ",")[column]]


def find_recordings(root: str | Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return recording → audio file, and recording → label file, of a folder with the unpacked archives.

    Label files are called RECORDING.txt, or soft_labels_RECORDING.txt.
    """
    root = Path(root)
    folders = sorted({path.parent for path in (root / AUDIO).rglob("*")})
    audio = {name: folder / file for folder in folders for name, file in audio_files(folder).items()}
    labels = {path.stem.removeprefix("soft_labels_").removesuffix("_soft_labels"): path
              for path in sorted((root / ANNOTATION).rglob("*.txt"))}
    return audio, labels


def cut_recordings(root: str | Path, recordings: Sequence[str], hop_s: float, ending: str = ".wav",
                   allow_unknown: bool = False) -> tuple[pd.DataFrame, LabelTable, list[str]]:
    """Return the crops of long recordings without reading their samples.

    Args:
        root: folder with development_audio/ and development_annotation/.
        recordings: names; those without audio or labels are left out.
        hop_s: from one crop to the next.
    Returns:
        clips: filename, path (relative to `root`), start_s and duration, by recording; labels of all crops; files that
        are missing.
    """
    root = Path(root)
    audio, label_files = find_recordings(root)
    clips, events, notes = [], [], []
    missing = [f"{AUDIO}/…/{name}.wav" for name in recordings if name not in audio]
    missing += [f"{ANNOTATION}/…/{name}.txt" for name in recordings if name not in label_files]
    for name in sorted(set(recordings) & set(audio) & set(label_files)):
        try:
            info = soundfile.info(audio[name])
        except soundfile.LibsndfileError:  # the decoder says what is wrong with it
            missing.append(str(audio[name].relative_to(root)))
            continue
        labels = read_soft_labels(label_files[name], allow_unknown)
        start_s, end_s = crop_times(info.frames / info.samplerate, hop_s)
        names = np.array([crop_name(name, *times) + ending for times in zip(start_s, end_s)], object)
        crop, rows = cut_labels(labels.events, start_s, end_s)
        events.append(rows.assign(filename=names[crop]))
        clips.append(pd.DataFrame({"filename": names, "path": str(audio[name].relative_to(root)), "start_s": start_s,
                                   "duration": end_s - start_s}))
        notes += labels.notes
    if not clips:
        raise DataError(f"{root}: none of the {len(recordings)} recordings is there with its labels; unpack "
                        f"{AUDIO}.zip and {ANNOTATION}.zip of Zenodo 7244360 there (python -m task4_sed.download).")
    table = pd.concat(clips, ignore_index=True)
    return table, LabelTable(list(table.filename), pd.concat(events, ignore_index=True)[ALL_COLUMNS], notes), missing


def split_recordings(recordings: Sequence[str], fraction: float = 0.9, seed: int = 42,
                     sort: bool = True) -> tuple[list[str], list[str]]:
    """Return recordings to train with and recordings to validate with, scene by scene.

    In each scene the names are shuffled and the first int(fraction · n) train. The shuffle depends on the order of the
    names: they are sorted first, so that any table of the same recordings gives the same split (`sort` False keeps the
    order given, as the published code does).

    Source: DCASE 2024 task 4, NumPy's legacy generator seeded once.
    """
    rng, names = np.random.RandomState(seed), list(dict.fromkeys(recordings))
    names = sorted(names) if sort else names
    others = sorted({scene_of(name) for name in names} - set(SCENES))
    train, validation = [], []
    for scene in (*SCENES, *others):
        mine = np.array([name for name in names if scene_of(name) == scene], object)
        rng.shuffle(mine)
        n_train = int(fraction * len(mine))
        train += list(mine[:n_train])
        validation += list(mine[n_train:])
    return train, validation


# ---------------------------------------------------------------- crops as files


def write_crops(root: str | Path, part: str) -> int:
    """Write the crops of the recordings of `part` ("train" or "validation") and their table; return how many.

    They go where the challenge's recipe puts them: audio/maestro_real_{part}/ (at the recordings' rate, 24 bit) and
    metadata/maestro_real_{part}.tsv.
    """
    root = Path(root)
    path, column = LISTS[part]
    recordings = read_split_list(root / path, column)
    clips, labels, missing = cut_recordings(root / RECORDINGS, recordings, HOPS_S[part])
    if missing:
        raise DataError(f"{root / RECORDINGS}: {len(missing)} files are missing, the first is {missing[0]}; unpack the "
                        "archives again (python -m task4_sed.download).")
    folder = root / "audio" / f"maestro_real_{part}"
    folder.mkdir(parents=True, exist_ok=True)
    for recording, crops in progress(clips.groupby("path"), desc=f"cut {part}", unit="recording"):
        waveform, rate = read_audio(root / RECORDINGS / recording)
        for clip in crops.itertuples():
            first = round(clip.start_s * rate)
            samples = waveform[:, first:first + round(clip.duration * rate)].T
            write_atomically(folder / clip.filename, partial(_write_wav, samples=samples, rate=rate))
    write_text(root / "metadata" / f"maestro_real_{part}.tsv", labels.events.to_csv(sep="\t", index=False))
    return len(clips)


def _write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    soundfile.write(path, samples, rate, subtype="PCM_24", format="WAV")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help=f"data folder; {RECORDINGS}/ in it holds the unpacked archives")
    parser.add_argument("--part", choices=tuple(HOPS_S), action="append", help="default: both")
    args = parser.parse_args(argv)
    try:
        for part in args.part or HOPS_S:
            print(f"{part}: {write_crops(args.data, part)} crops")
    except (DataError, AudioError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
