"""mpAUC on MAESTRO Real: scores of overlapping crops are joined to the recordings, and judged second by second.

Flow: score folder of crops + soft labels → **joined recordings** → `mpauc` → result JSON.

    data = joined_set(read_score_folder("scores"), read_soft_labels("maestro.tsv"), durations_s, classes)
    mpauc(data).value, data.notes

A crop is named {recording}-{start:06d}-{end:06d}, start and end in centiseconds. What counts as an event is a label
with a confidence above one half; touching ones of a class are one event. mpAUC is the area under the ROC curve of one
second segments up to a false positive rate of 0.1, divided by 0.1, averaged over the classes: chance is 0.05.

Source: task description of DCASE 2024 task 4; settings that it leaves open follow the winning system.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from common.data.manifest import DataError, read_table
from common.metrics.scoring_set import ScoringSet, check_columns, scoring_set, some
from common.metrics.sed import Score, Segments, segment_auroc
from common.metrics.sed_scores import (
    EVENT_COLUMNS,
    SAME_TIME_S,
    FrameScores,
    GroundTruth,
    boundaries,
    clip_name,
    ground_truth,
)

MAX_FPR = 0.1
MIN_CONFIDENCE = 0.5  # events have more than this
CROP_NAME = re.compile(r"(?P<recording>.+)-(?P<start>\d{6,})-(?P<end>\d{6,})")


@dataclass(frozen=True)
class Crop:
    """Where a crop lies: recording, start and end in seconds of it."""

    recording: str
    start_s: float
    end_s: float

    @classmethod
    def parse(cls, name: str) -> "Crop":
        """Read the name of a crop; DataError where it is none."""
        match = CROP_NAME.fullmatch(clip_name(name))
        if not match or int(match["end"]) <= int(match["start"]):
            raise DataError(
                f"{name}: not the name of a MAESTRO crop, RECORDING-000500-001500 with start and end in centiseconds."
            )
        return cls(match["recording"], int(match["start"]) / 100, int(match["end"]) / 100)

    @property
    def n_cells(self) -> int:
        """Seconds that the crop touches, the last one perhaps in part."""
        return math.ceil(round(self.end_s - self.start_s, 6))


def mpauc(data: ScoringSet, max_fpr: float = MAX_FPR, cells: dict[str, Segments] | None = None) -> Score:
    """Return the mean over classes of the segment AUROC up to `max_fpr`, divided by it; segments of 1 s."""
    return segment_auroc(data, max_fpr, cells=cells)


def read_soft_labels(path) -> pd.DataFrame:
    """Read a table with the columns filename (of a crop), onset, offset (s in the crop), event_label, confidence."""
    columns = (*EVENT_COLUMNS, "confidence")
    table = read_table(path, columns, may_be_empty=columns[1:], unique=False)
    confidence = pd.to_numeric(table.confidence, errors="coerce")
    labelled = table.event_label != ""
    if (broken := labelled & ~confidence.between(0, 1)).any():
        row = table[broken].iloc[0]
        raise DataError(f"{path}: {row.filename}, {row.event_label}: confidence {row.confidence!r} is not within 0..1.")
    return table.assign(confidence=confidence)


def kept_events(labels: pd.DataFrame, classes: Sequence[str], min_confidence: float = MIN_CONFIDENCE) -> pd.DataFrame:
    """Return the rows of the given classes with a confidence above `min_confidence` (itself not included)."""
    return labels[(labels.confidence > min_confidence) & labels.event_label.isin(list(classes))]


# ---------------------------------------------------------------- recordings


def joined_set(
    scores: FrameScores | Mapping[str, pd.DataFrame],
    labels: pd.DataFrame,
    durations_s: Mapping[str, float],
    classes: Sequence[str],
    crops: str = "all",
    min_confidence: float = MIN_CONFIDENCE,
) -> ScoringSet:
    """Return the recordings with one score per second and class, ready for `mpauc` and `segment_f1`.

    A recording with an event in a second that no scored crop covers is left out, with a sentence.

    Args:
        scores: frame scores of crops. labels: soft labels of crops, as from `read_soft_labels`.
        durations_s: recording → seconds. classes: those to score.
        crops: "all": every scored crop, as in the final evaluation of the winning system. "with_events": only crops
            with a kept event, as in its test step: a second is then the mean of fewer crops, and one that no crop
            covers scores 0.

    Raises:
        DataError: names that are no crops, crops that do not fit their recording, nothing to score.
    """
    tables = scores.tables() if isinstance(scores, FrameScores) else scores
    events = kept_events(labels, classes, min_confidence)
    truth, notes = recording_events(events, durations_s), []
    wanted = {clip_name(name) for name in labels.filename.unique()}
    if crops == "with_events":
        wanted = {clip_name(name) for name in events.filename.unique()}
        tables = {clip: table for clip, table in tables.items() if clip in wanted}
    elif crops != "all":
        raise ValueError(f"crops is {crops!r}, but must be 'all' or 'with_events'")
    if missing := sorted(wanted - set(tables)):
        notes.append(f"{len(missing)} of {len(wanted)} crops of the labels have no scores: {some(missing)}.")
    segments, free = _covered(join_clips(tables, durations_s, classes), truth, notes)
    data = scoring_set(segments, truth, durations_s, classes)
    counts = {**data.counts, "crops_scored": len(tables), "crops_missing": len(missing), "seconds_uncovered": free}
    return replace(data, notes=(*notes, *data.notes), counts=counts)


def _covered(joined: Mapping, truth: GroundTruth, notes: list[str]) -> tuple[dict[str, pd.DataFrame], int]:
    """Return the recordings whose events all lie in covered seconds, and how many other seconds no crop covers."""
    uncovered = {name: set(np.flatnonzero(crops == 0)) for name, (_, crops) in joined.items()}
    broken = [
        name
        for name, seconds in uncovered.items()
        if any(seconds & set(range(int(on), math.ceil(off))) for on, off, _ in truth.events.get(name, ()))
    ]
    if broken:
        notes.append(
            f"{len(broken)} recordings have an event in a second that no scored crop covers, and are left out: "
            f"{some(broken)}."
        )
    segments = {name: table for name, (table, _) in joined.items() if name not in broken}
    if free := sum(len(uncovered[name]) for name in segments):
        notes.append(f"{free} seconds without an event are covered by no crop, and score 0.")
    if not segments:
        raise DataError(notes[-1] if notes else "there are no scores of crops to join.")
    return segments, free


def recording_events(events: pd.DataFrame, durations_s: Mapping[str, float]) -> GroundTruth:
    """Return the events of crops in the time of their recordings, merged where they touch, cut at its end."""
    names = list(dict.fromkeys(events.filename))
    places = {name: Crop.parse(name) for name in names}
    if unmeasured := sorted({crop.recording for crop in places.values()} - set(durations_s)):
        raise DataError(f"{len(unmeasured)} recordings have no duration: {some(unmeasured)}; add them.")
    start_s = events.filename.map({name: crop.start_s for name, crop in places.items()}).astype(float)
    recording = events.filename.map({name: crop.recording for name, crop in places.items()})
    end_s = recording.map(durations_s).astype(float)
    times = {name: (start_s + pd.to_numeric(events[name])).round(6) for name in ("onset", "offset")}
    moved = events.assign(filename=recording, onset=times["onset"], offset=np.minimum(times["offset"], end_s))
    truth = ground_truth(moved[moved.onset < end_s] if len(moved) else moved, where="soft labels")
    return GroundTruth(truth.events)  # crops overlap, so that merging is the rule here and worth no sentence


def join_clips(
    tables: Mapping[str, pd.DataFrame], durations_s: Mapping[str, float], classes: Sequence[str]
) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Return recording → (table with one row per second, number of crops that cover each second).

    The score of a second is the mean over the crops that cover it, 0 where none does. Crops begin at full seconds;
    others count from the second in which they begin.

    Args:
        tables: crop → frame scores. durations_s: recording → seconds. classes: columns to join.
    """
    check_columns(tables, classes)
    sums: dict[str, np.ndarray] = {}
    covered: dict[str, np.ndarray] = {}
    weights: dict[tuple, np.ndarray] = {}
    for name, table in tables.items():
        crop = Crop.parse(name)
        if crop.recording not in durations_s:
            raise DataError(f"{name}: the recording {crop.recording!r} has no duration; add it to the durations.")
        duration_s = durations_s[crop.recording]
        first, last = int(crop.start_s), int(crop.start_s) + crop.n_cells
        n_seconds = math.ceil(round(duration_s, 6))
        if last > n_seconds:
            raise DataError(f"{name}: ends after its recording, which lasts {duration_s:g} s by the durations.")
        borders = boundaries(table)
        key = (crop.n_cells, borders.tobytes())
        if key not in weights:
            weights[key] = cell_weights(borders, crop.n_cells, name)
        if crop.recording not in sums:
            sums[crop.recording] = np.zeros((n_seconds, len(classes)))
            covered[crop.recording] = np.zeros(n_seconds, dtype=int)
        values = table.to_numpy()[:, table.columns.get_indexer(classes)]
        sums[crop.recording][first:last] += weights[key] @ values
        covered[crop.recording][first:last] += 1
    joined = {}
    for name, total in sums.items():
        times = np.minimum(np.arange(len(total) + 1), round(durations_s[name], 6))
        columns = {"onset": times[:-1], "offset": times[1:]}
        mean = total / np.maximum(covered[name], 1)[:, None]
        joined[name] = pd.DataFrame(columns | dict(zip(classes, mean.T))), covered[name]
    return joined


def cell_weights(borders: np.ndarray, n_cells: int, name: str = "scores") -> np.ndarray:
    """Return the share (n_cells, N) of each frame in the mean of each second [k, k + 1) of a crop.

    Shares follow the overlap with the WHOLE second, also in the last one of a crop that ends within it: frames after
    the end of the crop, where the network saw zeros, count as the others do.
    """
    begin = np.arange(n_cells)[:, None]
    overlap = np.clip(np.minimum(borders[1:], begin + 1) - np.maximum(borders[:-1], begin), 0, None)
    total = overlap.sum(axis=1, keepdims=True)
    if (total < SAME_TIME_S).any():
        raise DataError(
            f"{name}: lasts {n_cells} s by its name, but its scores go from {borders[0]:g} to {borders[-1]:g} s."
        )
    return overlap / total


# ---------------------------------------------------------------- single crops


def crop_set(
    scores: FrameScores | Mapping[str, pd.DataFrame],
    labels: pd.DataFrame,
    classes: Sequence[str],
    min_confidence: float = MIN_CONFIDENCE,
) -> ScoringSet:
    """Return every crop by itself, as validation during training scores them: faster, and not the reported mpAUC.

    As published: crops without a kept event are left out, a crop counts up to the end of its last kept event, and the
    score of a second is the maximum of its frames.
    """
    truth = ground_truth(kept_events(labels, classes, min_confidence), where="soft labels")
    truth = GroundTruth(truth.events)
    durations_s = {clip: max((offset for _, offset, _ in own), default=0.0) for clip, own in truth.events.items()}
    return scoring_set(scores, truth, durations_s, classes)
