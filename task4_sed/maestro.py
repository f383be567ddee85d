"""MAESTRO Real: soft labels of long recordings, cut into overlapping crops of 10 s.

Flow: development_audio/, development_annotation/ → **crops: names, times, labels** → manifest (data.py).
Run:  python -m task4_sed.maestro DATA        write the crops as files, as the challenge's recipe does (optional)

The crops need not be written: a manifest names the recording and where in it a crop starts, and the decoded recording
is stored once. A crop is called {recording}-{start}-{end}, start and end in hundredths of a second.

Source: MAESTRO Real, Zenodo 7244360; cutting rules of the DCASE 2024 task 4 baseline (33 recordings at a hop of 1 s
give its 7,503 crops).
"""
import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from common.audio.files import AudioError, read_audio
from common.data.events import SOFT_COLUMNS, Crop, clip_name, read_recording_labels, recording_of_labels
from common.data.manifest import DataError, read_table
from common.files import write_atomically, write_text
from common.progress import progress
from task4_sed.labels import sound_classes
from task4_sed.tables import LabelTable, audio_files, label_table

SCENES = ("cafe_restaurant", "city_center", "grocery_store", "metro_station", "residential_area")
WINDOW_S, MIN_HOP_S = 10.0, 0.01
HOPS_S = {"train": 1.0, "validation": 5.0}
LABEL_GRID_S = 1.0  # labels of a recording may end that much later than it
LISTS = {"train": ("metadata/train_split.csv", "train"), "validation": ("metadata/validation_split.csv", "val")}
RECORDINGS, AUDIO, ANNOTATION = "maestro_real", "development_audio", "development_annotation"


# ---------------------------------------------------------------- names and times


def recording_of(name: str) -> str | None:
    """Return the recording that a crop's file name says; None if it is not the name of a crop."""
    try:
        return Crop.parse(name).recording
    except DataError:
        return None


def scene_of(recording: str) -> str:
    """Return the scene of a recording: its name without the number."""
    return recording.rpartition("_")[0]


def scenes(recordings: Iterable[str]) -> list[str]:
    """Return the scenes of recordings: those of the challenge in its order, then others by name."""
    found = set(map(scene_of, recordings))
    return [scene for scene in SCENES if scene in found] + sorted(found - set(SCENES))


def crop_times(duration_s: float, hop_s: float, window_s: float = WINDOW_S) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of the crops of a recording, s; the last one may be shorter than the window."""
    if not MIN_HOP_S <= hop_s <= window_s:
        raise DataError(f"a hop of {hop_s:g} s; crops are named in hundredths of a second and last {window_s:g} s, "
                        f"give {MIN_HOP_S} to {window_s:g}.")
    n_crops = int(np.ceil(max(duration_s - window_s, 0) / hop_s)) + 1
    start_s = np.arange(n_crops) * hop_s
    return start_s, np.minimum(start_s + window_s, duration_s)


def hop_of(crops: Iterable[str]) -> float | None:
    """Return the smallest step between crops of one recording, s, by their names; None if no recording has two."""
    places = [Crop.parse(name) for name in crops]
    starts = pd.DataFrame({"recording": [crop.recording for crop in places], "s": [crop.onset_s for crop in places]})
    steps = starts.sort_values("s").groupby("recording").s.diff()
    smallest = steps[steps > 0].min()
    return None if np.isnan(smallest) else round(smallest, 2)


# ---------------------------------------------------------------- labels


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

    What label files are called: see `common.data.events.recording_of_labels`.
    """
    root = Path(root)
    folders = sorted({path.parent for path in (root / AUDIO).rglob("*")})
    audio = {name: folder / file for folder in folders for name, file in audio_files(folder).items()}
    labels = {recording_of_labels(path): path for path in sorted((root / ANNOTATION).rglob("*.txt"))}
    return audio, labels


def cut_recordings(root: str | Path, recordings: Sequence[str], hop_s: float, ending: str = ".wav",
                   allow_unknown: bool = False) -> tuple[pd.DataFrame, LabelTable, list[str]]:
    """Return the crops of long recordings without reading their samples.

    Args:
        root: folder with development_audio/ and development_annotation/.
        recordings: names; those without audio or labels are left out.
        hop_s: from one crop to the next.
    Returns:
        clips: filename, path (relative to `root`), start_s and duration, by scene and recording; labels of all crops;
        files that are missing, in whole or in part.
    """
    root = Path(root)
    audio, label_files = find_recordings(root)
    missing = [f"{AUDIO}/{scene_of(name)}/{name}.wav" for name in recordings if name not in audio]
    missing += [f"{ANNOTATION}/soft_labels_{scene_of(name)}/{name}.txt" for name in recordings
                if name not in label_files]
    place = {scene: i for i, scene in enumerate(scenes(recordings))}
    clips, events, notes = [], [], []
    for name in sorted(set(recordings) & set(audio) & set(label_files), key=lambda name: (place[scene_of(name)], name)):
        file = str(audio[name].relative_to(root))
        if (duration_s := _duration_s(audio[name])) == 0:
            missing.append(f"{file} (cannot be decoded)")
            continue
        table = read_recording_labels(label_files[name])
        labels = label_table(table, sound_classes().names, str(label_files[name]), allow_unknown)
        notes += labels.notes
        start_s, end_s = crop_times(duration_s, hop_s)
        last_s = labels.events.offset.max()
        if last_s > duration_s + LABEL_GRID_S:
            missing.append(f"{file} (after {duration_s:g} s)")
            n_more = len(crop_times(last_s, hop_s)[0]) - len(start_s)
            notes.append(f"{audio[name]}: lasts {duration_s:g} s, but its labels go on to {last_s:g} s ({n_more} crops "
                         "more); it is cut off, get it again.")
        names = np.array([Crop(name, *times).name + ending for times in zip(start_s, end_s)], object)
        crop, rows = cut_labels(labels.events, start_s, end_s)
        events.append(rows.assign(filename=names[crop]))
        clips.append(pd.DataFrame({"filename": names, "path": file, "start_s": start_s, "duration": end_s - start_s}))
    if not clips:
        raise DataError(f"{root}: none of the {len(recordings)} recordings is there with its labels; unpack "
                        f"{AUDIO}.zip and {ANNOTATION}.zip of Zenodo 7244360 there (python -m task4_sed.download).")
    table = pd.concat(clips, ignore_index=True)
    labels = LabelTable(list(table.filename), pd.concat(events, ignore_index=True)[list(SOFT_COLUMNS)], notes)
    return table, labels, missing


def _duration_s(path: Path) -> float:
    """Return what the header of an audio file says; 0 if it cannot be read."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError):
        return 0.0
    return info.frames / info.samplerate


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
    train, validation = [], []
    for scene in scenes(names):
        mine = np.array([name for name in names if scene_of(name) == scene], object)
        rng.shuffle(mine)
        n_train = int(fraction * len(mine))
        train += list(mine[:n_train])
        validation += list(mine[n_train:])
    return train, validation


# ---------------------------------------------------------------- crops as files


def write_crops(root: str | Path, part: str, hop_s: float | None = None) -> int:
    """Write the crops of the recordings of `part` ("train" or "validation") and their table; return how many.

    They start every `hop_s`; None: as HOPS_S has it.

    Raises:
        DataError: recordings that are missing or cut off; a folder with crops at another hop.

    Crops go where the challenge's recipe puts them: audio/maestro_real_{part}/ (at the recordings' rate, 24 bit) and
    metadata/maestro_real_{part}.tsv.
    """
    root = Path(root)
    path, column = LISTS[part]
    recordings, hop_s = read_split_list(root / path, column), HOPS_S[part] if hop_s is None else hop_s
    clips, labels, missing = cut_recordings(root / RECORDINGS, recordings, hop_s)
    if missing:
        raise DataError(f"{root / RECORDINGS}: {len(missing)} files are missing, the first is {missing[0]}; unpack the "
                        "archives again (python -m task4_sed.download).")
    folder = root / "audio" / f"maestro_real_{part}"
    wanted = set(map(clip_name, clips.filename))
    others = [name for name in audio_files(folder) if recording_of(name) in recordings and name not in wanted]
    if others:
        raise DataError(f"{folder}: holds {len(others)} crops that a hop of {hop_s:g} s does not give, the first is "
                        f"{others[0]}; take them away, they would count as clips without events.")
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
    parser.add_argument("--hop", type=float, metavar="S", help="from one crop to the next; default: train 1 s, "
                        "validation 5 s")
    args = parser.parse_args(argv)
    try:
        for part in args.part or HOPS_S:
            print(f"{part}: {write_crops(args.data, part, args.hop)} crops")
    except (DataError, AudioError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
