"""Scores and ground truth of the same clips and classes: what every metric of sound events takes.

Flow: score folder + ground truth + durations → **scoring set** → metrics.

Nothing is dropped in silence: `notes` has a sentence for all that was mended, left out or is missing, and `status` is
"partial data" where not all of the evaluation set could be scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from common.data.manifest import DataError
from common.metrics.sed_scores import SAME_TIME_S, FrameScores, GroundTruth, check_once, nearest, some

SHORT_S = 0.5  # scores that leave so much of their clip out are worth a sentence

MISSING = ("clips_missing", "clips_short", "crops_missing", "crops_short", "classes_missing")  # counts that say so

Event = tuple[float, float, str]  # onset s, offset s, class


@dataclass(frozen=True)
class ScoringSet:
    """Scores and ground truth of the same clips and classes.

    Attributes:
        tables: clip → scores in the form of sed_scores_eval: columns onset, offset and the classes.
        events: clip → its events. durations_s: clip → seconds. All three have the same clips.
        classes: those with an event in these clips. notes: see above.
        counts: clips_expected, clips_scored, clips_missing, clips_short, clips_without_events, classes_missing, events,
            late_events, and those of the ground truth (empty_rows, dropped_rows, merged_events).
    """

    tables: Mapping[str, pd.DataFrame]
    events: Mapping[str, list[Event]]
    durations_s: Mapping[str, float]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def clips(self) -> list[str]:
        return list(self.tables)

    @property
    def status(self) -> str:
        """complete, or partial data where a clip, a crop, much of one of these, or a class could not be scored."""
        return "partial data" if any(self.counts.get(name, 0) for name in MISSING) else "complete"


def scoring_set(
    scores: FrameScores | Mapping[str, pd.DataFrame],
    truth: GroundTruth,
    durations_s: Mapping[str, float],
    classes: Sequence[str] | None = None,
    drop_clips_without_events: bool = True,
) -> ScoringSet:
    """Return the clips that have scores, with their ground truth and durations.

    Args:
        scores: scores, or clip → table; columns of other classes are left out.
        durations_s: clip → seconds, of all clips of the evaluation set.
        classes: to score; None: all of the ground truth. Events of others are left out.
        drop_clips_without_events: as published: such clips then add neither false positives nor hours.

    Raises:
        DataError: a class of the ground truth without scores, a clip without duration, nothing left to score.
    """
    tables = scores.tables() if isinstance(scores, FrameScores) else scores
    classes = list(truth.classes if classes is None else classes)
    if not tables or not truth.events:
        raise DataError(f"there are no {'clips in the ground truth' if tables else 'scores'}; nothing to score.")
    check_once(classes)
    check_columns(tables, classes)
    notes = list(truth.notes)
    events = _events_of(truth, classes, notes)
    listed, with_events = set(events) | set(durations_s), {clip for clip, own in events.items() if own}
    expected = with_events if drop_clips_without_events else listed
    clips = _scored_clips(tables, expected, listed, with_events, notes)
    if unmeasured := [clip for clip in clips if clip not in durations_s]:
        raise DataError(f"{len(unmeasured)} clips have no duration: {some(unmeasured)}; add them to the durations.")
    present = {label for clip in clips for *_, label in events.get(clip, ())}
    if absent := [name for name in classes if name not in present]:
        notes.append(f"{len(absent)} classes have no event in the scored clips, and are left out: {some(absent)}.")
    classes = tuple(name for name in classes if name in present)
    data = ScoringSet(
        {clip: _columns(tables[clip], ["onset", "offset", *classes]) for clip in clips},
        {clip: events.get(clip, []) for clip in clips},
        {clip: float(durations_s[clip]) for clip in clips},
        classes,
    )
    counts = {
        "clips_expected": len(expected),
        "clips_scored": len(clips),
        "clips_missing": len(expected) - len(clips),
        "clips_without_events": len(listed - with_events),
        "classes_missing": len(absent),
        "events": sum(map(len, data.events.values())),
        "late_events": _late_events(data, notes),
        "clips_short": short_scores(data.tables, data.durations_s, "clips", notes),
        **truth.counts,
    }
    return ScoringSet(data.tables, data.events, data.durations_s, classes, tuple(notes), counts)


def check_columns(tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> None:
    """Raise DataError with the first clip that has no scores for one of the classes."""
    for clip, table in tables.items():
        if lacking := [name for name in classes if name not in table.columns]:
            hint = nearest(lacking[0], table.columns[2:], "there are scores for")
            raise DataError(
                f"{clip}: no scores for the class {lacking[0]!r}; {hint}. Name the classes to score, or predict all."
            )


def _columns(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    return table if list(table.columns) == names else table[names]  # not copied without need: there may be many


def _events_of(truth: GroundTruth, classes: Sequence[str], notes: list[str]) -> dict[str, list[Event]]:
    """Return the events of the classes, clip by clip."""
    if other := sorted(set(truth.classes) - set(classes)):
        n = sum(label in other for own in truth.events.values() for *_, label in own)
        notes.append(f"{n} events of classes that are not scored are left out: {some(other)}.")
    return {clip: [event for event in own if event[2] in classes] for clip, own in truth.events.items()}


def _scored_clips(tables: Mapping, expected: set, listed: set, with_events: set, notes: list[str]) -> list[str]:
    """Return the expected clips that have scores, sorted."""
    if not with_events:
        raise DataError(f"none of the {len(listed)} clips has an event of the classes to score; nothing to score.")
    clips = sorted(expected & set(tables))
    if not with_events & set(clips):
        raise DataError(
            f"none of the {len(tables)} scored clips (first: {min(tables)}) has an event in the ground truth (first "
            f"with one: {min(with_events)}); the names must agree, without ending."
        )
    if missing := sorted(expected - set(tables)):
        notes.append(f"{len(missing)} of {len(expected)} clips have no scores, and are left out: {some(missing)}.")
    if unknown := sorted(set(tables) - listed):
        notes.append(f"{len(unknown)} scored clips are not in the ground truth, and left out: {some(unknown)}.")
    return clips


def _late_events(data: ScoringSet, notes: list[str]) -> int:
    """Return the number of events that end after their clip."""
    late = [offset - data.durations_s[clip] for clip, own in data.events.items() for _, offset, _ in own]
    late = [seconds for seconds in late if seconds > SAME_TIME_S]
    if late:
        notes.append(
            f"{len(late)} events end after their clip (by up to {max(late):.3g} s), and are scored as they are: PSDS "
            "and F1 by event want their whole length covered, segments end with the clip."
        )
    return len(late)


def short_scores(tables: Mapping, durations_s: Mapping[str, float], what: str, notes: list[str]) -> int:
    """Return how many clips (`what` they are) have no scores for more than SHORT_S of their length, and note it."""
    short = [
        clip
        for clip, table in tables.items()
        if table["offset"].iat[-1] < durations_s[clip] - SHORT_S or table["onset"].iat[0] > SHORT_S
    ]
    if short:
        notes.append(f"more than {SHORT_S:g} s of {len(short)} {what} are without scores: {some(short)}.")
    return len(short)
