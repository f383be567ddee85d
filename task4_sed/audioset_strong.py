"""AudioSet with strong labels: the data of the pre-training of frame-wise taggers.

Flow: the release's tables + audio files → **events of 447 classes** → manifest (data.py) → targets on 40 ms frames.

Tables, separated by tabs: audioset_{train,eval}_strong.tsv with segment_id, start_time_seconds, end_time_seconds, label
(a machine id such as /m/09x0r), and mid_to_display_name.tsv (id, name; no header). A segment_id is the YouTube id and
the clip's start in ms: s9d-2nhuJCQ_30000. Audio files are called Y{YouTube id}, as AudioSet's usually are, or by the
segment_id, with any audio ending; clips that YouTube has lost are listed as missing.

Classes are the display names that occur in a table, in alphabetical order: 447 for training (the order of published
heads), 416 for evaluation, 407 in both, which the metrics use.
Source: research.google.com/audioset/download_strong.html; PretrainedSED, EfficientSED.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.events import SOFT_COLUMNS, merge_events
from common.data.manifest import DataError, Report, read_table
from task4_sed.data import Manifest, SetInfo
from task4_sed.tables import audio_files, label_table

COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
TABLES = {"train": "audioset_train_strong.tsv", "eval": "audioset_eval_strong.tsv"}
NAMES = "mid_to_display_name.tsv"
CLIP_S = 10.0
N_CLASSES = {"train": 447, "eval": 416, "both": 407}


@dataclass(frozen=True)
class ClassLists:
    """Display names: of the training table, of the evaluation table, and of both (which are scored)."""

    train: tuple[str, ...]
    evaluation: tuple[str, ...]

    @property
    def both(self) -> tuple[str, ...]:
        return tuple(name for name in self.train if name in set(self.evaluation))

    def differences(self) -> list[str]:
        """Return a sentence for each list whose length is not the published one."""
        found = {"train": len(self.train), "eval": len(self.evaluation), "both": len(self.both)}
        return [f"{part}: {count} classes, published {N_CLASSES[part]}" for part, count in found.items()
                if count != N_CLASSES[part]]


def read_display_names(path: str | Path) -> dict[str, str]:
    """Return machine id → display name."""
    table = read_table(path, ("mid", "name"), header=False)
    return dict(zip(table.mid, table.name))


def read_strong(path: str | Path, display_names: dict[str, str]) -> pd.DataFrame:
    """Return the rows of a table as strings: filename (the segment_id), onset, offset, event_label (display name).

    Raises:
        DataError: a table that cannot be used, or an id without a name.
    """
    table = read_table(path, COLUMNS, unique=False)
    names = table.label.map(display_names)
    if names.isna().any():
        raise DataError(f"{path}: {table.segment_id[names.isna()].iloc[0]} has the label "
                        f"{table.label[names.isna()].iloc[0]!r}, which {NAMES} does not name; get both again.")
    return pd.DataFrame({"filename": table.segment_id, "onset": table.start_time_seconds,
                         "offset": table.end_time_seconds, "event_label": names})


def class_lists(train: pd.DataFrame, evaluation: pd.DataFrame) -> ClassLists:
    """Return the classes of two tables of `read_strong`."""
    return ClassLists(*(tuple(sorted(table.event_label.unique())) for table in (train, evaluation)))


def audio_names(segment_id: str) -> tuple[str, str]:
    """Return the names an audio file of a segment may have, without ending: Y{YouTube id}, or the segment_id."""
    return "Y" + segment_id.rpartition("_")[0], segment_id


def load_audioset_strong(root: str | Path, part: str, audio: Sequence[str] = ("audio",)) -> tuple[Manifest, ClassLists]:
    """Return the manifest of a part of AudioSet-strong, and the class lists.

    Overlapping events of one class are merged. Targets have the classes of training; events of the others are dropped,
    and for "eval" those that no model can have learnt are masked.

    Args:
        root: folder with the three tables. part: "train" or "eval".
        audio: folders with audio files, relative to `root`.
    Raises:
        DataError: unusable tables, or none of the files is there.
    """
    root = Path(root)
    display_names = read_display_names(root / NAMES)
    rows = {name: read_strong(root / table, display_names) for name, table in TABLES.items()}
    classes = class_lists(rows["train"], rows["eval"])
    labels = label_table(rows[part], sorted(set(display_names.values())), str(root / TABLES[part]))
    report = Report(notes=list(labels.notes))
    events = merge_events(labels.events)[list(SOFT_COLUMNS)]
    scored = classes.train if part == "train" else classes.both
    known = events.event_label.isin(scored)
    if not known.all():
        report.notes.append(f"{part}: {(~known).sum()} events of {events.event_label[~known].nunique()} classes left "
                            "out that the training table does not have.")
    events = events[known]
    clips = _with_files(root, labels.filenames, audio, report)
    if clips.empty:
        raise DataError(f"{root}: none of the {len(labels.filenames)} clips of {TABLES[part]} is in {', '.join(audio)}"
                        "; files are called Y{YouTube id} or by the segment_id, such as Ys9d-2nhuJCQ.mp3.")
    clips["has_events"] = clips.filename.isin(events.filename)
    report.differences = classes.differences()
    info = SetInfo(f"audioset_strong_{part}", "strong", "audioset", "train" if part == "train" else "test")
    mask = np.isin(classes.train, scored)
    return Manifest(info, root, clips, events[events.filename.isin(clips.filename)].reset_index(drop=True), mask,
                    class_names=classes.train, report=report), classes


def _with_files(root: Path, segments: Sequence[str], folders: Sequence[str], report: Report) -> pd.DataFrame:
    """Return the clips that have a file; the others are reported as missing."""
    found = {name: f"{folder}/{file}" for folder in folders for name, file in audio_files(root / folder).items()}
    paths = [next((found[name] for name in audio_names(segment) if name in found), None) for segment in segments]
    report.missing = [segment for segment, path in zip(segments, paths) if path is None]
    report.extra = sorted(set(found.values()) - set(paths))
    clips = pd.DataFrame({"filename": segments, "path": paths, "start_s": 0.0, "duration": np.nan})
    return clips.dropna(subset="path").reset_index(drop=True)


def sampling_weights(targets: np.ndarray, offset: float = 30.0) -> np.ndarray:
    """Return how often to draw each clip, (n,): the sum over its classes of frames · 1000 / (offset + all frames).

    Args:
        targets: frames of each class in each clip, (n, K), or targets (n, N, K).
    Source: PretrainedSED, with a sampler without replacement.
    """
    frames = (targets > 0).sum(1) if targets.ndim == 3 else np.asarray(targets)
    return (frames * (1000.0 / (offset + frames.sum(0)))).sum(1)
