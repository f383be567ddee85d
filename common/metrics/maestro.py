"""mpAUC on MAESTRO Real: scores of overlapping crops are joined to the recordings, and judged second by second.

Flow: score folder of crops + soft labels → **joined recordings** → `mpauc` → result JSON.

    data = joined_set(read_score_folder("scores"), read_crop_labels("maestro.tsv"), durations_s, classes)
    mpauc(data).value, data.notes

A crop is named {recording}-{start:06d}-{end:06d}, start and end in centiseconds. What counts as an event is a label
with a confidence above one half; touching ones of a class are one event. mpAUC is the area under the ROC curve of one
second segments up to a false positive rate of 0.1, divided by 0.1, averaged over the classes: chance is 0.05.

Source: task description of DCASE 2024 task 4; settings that it leaves open follow the winning system.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from common.data.events import SOFT_COLUMNS, Crop, clip_name, event_rows
from common.data.manifest import DataError, read_table
from common.metrics.scoring_set import ScoringSet, check_columns, scoring_set, short_scores
from common.metrics.sed import Score, Segments, segment_auroc
from common.metrics.sed_scores import (
    SAME_TIME_S,
    FrameScores,
    GroundTruth,
    boundaries,
    check_once,
    ground_truth,
    some,
)

MAX_FPR = 0.1
MIN_CONFIDENCE = 0.5  # events have more than this
LATE_S = 0.01  # names of crops end at a hundredth of a second


def mpauc(data: ScoringSet, max_fpr: float = MAX_FPR, cells: dict[str, Segments] | None = None) -> Score:
    """Return the mean over classes of the segment AUROC up to `max_fpr`, divided by it; segments of 1 s."""
    return segment_auroc(data, max_fpr, cells=cells)


# ---------------------------------------------------------------- labels


@dataclass(frozen=True)
class CropLabels:
    """Soft labels of crops.

    Attributes:
        events: filename (of a crop, without ending), onset, offset (s in the crop), event_label, confidence.
        crops: names of all crops of the table, also those without events.
        notes: a sentence for each kind of row that was left out. counts: the numbers, empty_rows and dropped_rows.
    """

    events: pd.DataFrame
    crops: tuple[str, ...]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pd.DataFrame, where: str = "soft labels") -> "CropLabels":
        """Check a table with the columns of `events`; arguments and errors as in `common.data.events.event_rows`."""
        rows, notes, counts = event_rows(table[list(SOFT_COLUMNS)], where)
        return cls(rows, tuple(dict.fromkeys(map(clip_name, table.filename.unique()))), tuple(notes), counts)


def read_crop_labels(path) -> CropLabels:
    """Read a table with the columns filename (of a crop), onset, offset (s in the crop), event_label, confidence."""
    return CropLabels.of(read_table(path, SOFT_COLUMNS, may_be_empty=SOFT_COLUMNS[1:], unique=False), str(path))


def kept_events(labels: pd.DataFrame, classes: Sequence[str], min_confidence: float = MIN_CONFIDENCE) -> pd.DataFrame:
    """Return the rows of the given classes with a confidence above `min_confidence` (itself not included)."""
    return labels[(labels.confidence > min_confidence) & labels.event_label.isin(list(classes))]


def _sure_events(labels: CropLabels, classes: Sequence[str], min_confidence: float, notes: list[str]) -> pd.DataFrame:
    """Return `kept_events`, and note which sure ones are of other classes.

    Raises:
        DataError: there is none.
    """
    check_once(classes)
    events = kept_events(labels.events, classes, min_confidence)
    other = labels.events[(labels.events.confidence > min_confidence) & ~labels.events.event_label.isin(list(classes))]
    if len(other):
        names = some(sorted(other.event_label.unique()), shown=8)
        notes.append(f"{len(other)} events of classes that are not scored are left out: {names}.")
    if events.empty:
        n_scored, n_all = labels.events.event_label.isin(list(classes)).sum(), len(labels.events)
        none = f"none of the {n_scored} labels of the classes to score has a confidence above {min_confidence:g}"
        if not n_scored:
            none = f"none of the {n_all} labels is of a class to score: {some(classes, shown=8)}"
        raise DataError(f"{none}; nothing to score.")
    return events


# ---------------------------------------------------------------- recordings


def joined_set(
    scores: FrameScores | Mapping[str, pd.DataFrame],
    labels: CropLabels | pd.DataFrame,
    durations_s: Mapping[str, float],
    classes: Sequence[str],
    crops: str = "all",
    min_confidence: float = MIN_CONFIDENCE,
) -> ScoringSet:
    """Return the recordings with one score per second and class, ready for `mpauc` and `segment_f1`.

    A recording with an event in a second that no scored crop covers is left out, and so is a crop of a recording that
    neither the labels nor the durations know; with a sentence.

    Args:
        scores: frame scores of crops. labels: soft labels of crops, as from `read_crop_labels`, or their table.
        durations_s: recording → seconds. classes: those to score.
        crops: "all": every scored crop, as in the final evaluation of the winning system. "with_events": only crops
            with a kept event, as in its test step: a second is then the mean of fewer crops, and one that no crop
            covers scores 0.

    Raises:
        DataError: names that are no crops, crops that do not fit their recording, nothing to score.
    """
    if crops not in ("all", "with_events"):
        raise ValueError(f"crops is {crops!r}, but must be 'all' or 'with_events'")
    tables = scores.tables() if isinstance(scores, FrameScores) else scores
    labels = labels if isinstance(labels, CropLabels) else CropLabels.of(labels)
    notes = list(labels.notes)
    events = _sure_events(labels, classes, min_confidence, notes)
    truth = recording_events(events, durations_s, notes)
    wanted = set(labels.crops if crops == "all" else events.filename)
    tables = _of_known_recordings(tables, {*map(_recording, labels.crops), *durations_s}, notes)
    if crops == "with_events":
        tables = {clip: table for clip, table in tables.items() if clip in wanted}
    if missing := sorted(wanted - set(tables)):
        notes.append(f"{len(missing)} of {len(wanted)} crops of the labels have no scores: {some(missing)}.")
    short = short_scores(tables, {name: Crop.parse(name).duration_s for name in tables}, "crops", notes)
    segments, free = _covered(join_clips(tables, durations_s, classes), truth, notes)
    data = scoring_set(segments, truth, durations_s, classes)
    counts = {"crops_scored": len(tables), "crops_missing": len(missing), "crops_short": short}
    counts = {**data.counts, **labels.counts, **counts, "seconds_uncovered": free}
    return replace(data, notes=(*notes, *data.notes), counts=counts)


def _recording(crop: str) -> str:
    return Crop.parse(crop).recording


def _of_known_recordings(tables: Mapping, known: set[str], notes: list[str]) -> dict[str, pd.DataFrame]:
    """Return the crops of known recordings."""
    if strange := sorted(name for name in tables if _recording(name) not in known):
        notes.append(
            f"{len(strange)} scored crops are of recordings without labels and durations, and left out: "
            f"{some(strange)}."
        )
    return {name: table for name, table in tables.items() if name not in strange} if strange else dict(tables)


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


def recording_events(
    events: pd.DataFrame, durations_s: Mapping[str, float], notes: list[str] | None = None
) -> GroundTruth:
    """Return the events of crops in the time of their recordings, merged where they touch.

    They are cut at the end of their crop and of its recording.

    Args:
        events: as of `CropLabels`. notes: gets a sentence on events that go past the end of their crop.
    """
    crops = {name: Crop.parse(name) for name in events.filename.unique()}
    if unmeasured := sorted({crop.recording for crop in crops.values()} - set(durations_s)):
        raise DataError(f"{len(unmeasured)} recordings have no duration: {some(unmeasured)}; add them.")
    start_s, length_s = (
        events.filename.map({name: getattr(crop, of) for name, crop in crops.items()}).astype(np.float64)
        for of in ("onset_s", "duration_s")
    )
    recording = events.filename.map({name: crop.recording for name, crop in crops.items()})
    late_s = events.offset - length_s
    late = late_s > LATE_S
    if late.any() and notes is not None:
        outside = (late & (events.onset >= length_s)).sum()
        notes.append(
            f"{late.sum()} events go past the end of their crop (by up to {late_s.max():.3g} s; first: "
            f"{events.filename[late].iloc[0]}), and are cut there"
            + (f"; {outside} of them begin after it, and are left out." if outside else ".")
        )
    times = {"onset": start_s + events.onset, "offset": start_s + events.offset.mask(late, length_s)}
    times = {name: np.minimum(time.round(6), recording.map(durations_s)) for name, time in times.items()}
    moved = events.assign(filename=recording, **times)
    # Crops overlap, so that merging is the rule here and worth no sentence; nor is what cutting has emptied.
    return GroundTruth(ground_truth(moved[moved.onset < moved.offset], where="soft labels").events)


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
        n_cells, n_seconds = (math.ceil(round(s, 6)) for s in (crop.duration_s, duration_s))
        first, last = int(crop.onset_s), int(crop.onset_s) + n_cells
        if last > n_seconds:
            raise DataError(f"{name}: ends after its recording, which lasts {duration_s:g} s by the durations.")
        borders = boundaries(table)
        key = (n_cells, borders.tobytes())
        if key not in weights:
            weights[key] = cell_weights(borders, n_cells, name)
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
    labels: CropLabels | pd.DataFrame,
    classes: Sequence[str],
    min_confidence: float = MIN_CONFIDENCE,
) -> ScoringSet:
    """Return every crop by itself, as validation during training scores them: faster, and not the reported mpAUC.

    As published: crops without a kept event are left out, a crop counts up to the end of its last kept event, and the
    score of a second is the maximum of its frames.
    """
    labels, notes = labels if isinstance(labels, CropLabels) else CropLabels.of(labels), []
    truth = ground_truth(_sure_events(labels, classes, min_confidence, notes), where="soft labels")
    truth = GroundTruth(truth.events, (*labels.notes, *notes), labels.counts)
    durations_s = {clip: max((offset for _, offset, _ in own), default=0.0) for clip, own in truth.events.items()}
    return scoring_set(scores, truth, durations_s, classes)
