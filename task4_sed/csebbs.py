"""Change-detection-based sound event bounding boxes (cSEBBs): events with one score each, instead of frames.

Flow: frame scores → **boxes** → score files or event lists.

A frame score answers two questions at once, when an event is and how sure the network is, so that every
threshold cuts out another length. A box has its borders from the course of the scores and one score for its
whole length; a threshold then only keeps or drops it.

With scores x(t), constant within a frame and zero outside the clip, and a step filter of T seconds:

1. change signal   δ(t) = mean of x over [t, t + T/2] − mean of x over [t − T/2, t]
2. onsets are the local maxima of δ, offsets the local minima; they alternate and form candidate boxes
3. a gap between two candidates is closed if the higher of their two peaks lies above the lowest score in the
   gap by less than the merge thresholds: a difference, and a ratio; all gaps are tested once and together
4. the score of a box is the mean of x over it.

The three numbers T and the merge thresholds are set class by class; `task4_sed.csebbs_tuning` finds them.

    csebbs = Csebbs.read("boxes.json", cell_classes=maestro_classes)
    csebbs.boxes(scores, boundaries_s, clips, classes)       # a table of events with scores
    csebbs.tables(scores, boundaries_s, clips, classes)      # what write_score_folder and the metrics take

Source: J. Ebbers, F. Germain, G. Wichern, J. Le Roux, Sound Event Bounding Boxes, Interspeech 2024.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.manifest import DataError
from common.files import write_json
from common.metrics.maestro import cell_weights
from task4_sed.change_detection import TIME_DECIMALS, Boxes, candidates, joined_columns


@dataclass(frozen=True)
class BoxParameters:
    """The three numbers of one class.

    Args:
        step_filter_s: T, seconds: how short a change may be to count.
        merge_abs, merge_rel: a gap is closed if peak − floor < merge_abs and peak / floor < merge_rel; infinity
            switches a condition off.
    """

    step_filter_s: float = 0.48
    merge_abs: float = 0.2
    merge_rel: float = 2.0

    def __post_init__(self):
        if not 0 < self.step_filter_s < np.inf:
            raise ValueError(f"step_filter_s {self.step_filter_s} must be a number of seconds above 0")
        if not (self.merge_abs >= 0 and self.merge_rel >= 0):
            raise ValueError(f"merge_abs {self.merge_abs} and merge_rel {self.merge_rel} must be numbers ≥ 0")


@dataclass(frozen=True)
class Csebbs:
    """The post-processing of a system: boxes for some classes, cells of a second for the others.

    Args:
        parameters: class → its numbers, or one set of numbers for all classes.
        cell_classes: classes that get cells instead: those annotated second by second (MAESTRO).
    """

    parameters: Mapping[str, BoxParameters] | BoxParameters = BoxParameters()
    cell_classes: Collection[str] = ()

    @classmethod
    def read(cls, path: str | Path, cell_classes: Collection[str] = ()) -> "Csebbs":
        """Return the post-processing with the parameters of a file."""
        return cls(read_parameters(path), cell_classes)

    def boxes(
        self,
        scores: np.ndarray,
        boundaries_s: np.ndarray,
        clips: Sequence[str],
        classes: Sequence[str],
        n_frames: np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Return columns filename (the clip), onset, offset (s), event_label, score; by clip, then by onset.

        Arguments and errors as in `predict`; further

        Raises:
            DataError: a class that has neither parameters nor cells.
        """
        found = self._predict(scores, boundaries_s, clips, classes, n_frames)
        order = np.lexsort((found.label, found.onset_s, found.clip))
        columns = {
            "filename": np.asarray(clips, dtype=object)[found.clip],
            "onset": found.onset_s,
            "offset": found.offset_s,
            "event_label": np.asarray(classes, dtype=object)[found.label],
            "score": found.score,
        }
        return pd.DataFrame({name: column[order] for name, column in columns.items()})

    def tables(
        self,
        scores: np.ndarray,
        boundaries_s: np.ndarray,
        clips: Sequence[str],
        classes: Sequence[str],
        n_frames: np.ndarray | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Return clip → boxes as a table of scores, see `score_tables`; arguments and errors as in `boxes`."""
        found = self._predict(scores, boundaries_s, clips, classes, n_frames)
        return score_tables(found, clips, classes, extents(boundaries_s, n_frames))

    def _predict(self, scores, boundaries_s, clips, classes, n_frames) -> Boxes:
        values, boundaries_s, n_frames = checked(scores, boundaries_s, n_frames, clips, classes)
        own = [None if name in self.cell_classes else self._of(name) for name in classes]
        return _predict(values, boundaries_s, own, n_frames)

    def _of(self, name: str) -> BoxParameters:
        if isinstance(self.parameters, BoxParameters):
            return self.parameters
        if name not in self.parameters:
            near = get_close_matches(name, self.parameters, 1)
            hint = f"the nearest is {near[0]!r}" if near else f"there are some for {', '.join(self.parameters)}"
            raise DataError(f"no box parameters for the class {name!r}; {hint}. Tune it, or give it cells.")
        return self.parameters[name]


def predict(
    scores: np.ndarray,
    boundaries_s: np.ndarray,
    parameters: BoxParameters | Sequence[BoxParameters],
    n_frames: np.ndarray | None = None,
) -> Boxes:
    """Return the cSEBBs of all clips and classes.

    Args:
        scores: (n_clips, N, K) probabilities, not filtered.
        boundaries_s: (N + 1,) rising frame boundaries, seconds; any grid, one for all clips.
        parameters: one for all classes, or K of them.
        n_frames: (n_clips,) frames that belong to each clip, where clips differ in length; None: all. A clip
            ends there as it would on a grid of its own, whatever the scores after it.

    Raises:
        ValueError: shapes that do not fit, scores that are NaN, infinite or negative.
    """
    scores, boundaries_s, n_frames = checked(scores, boundaries_s, n_frames)
    own = [parameters] * scores.shape[2] if isinstance(parameters, BoxParameters) else list(parameters)
    if len(own) != scores.shape[2]:
        raise ValueError(f"{len(own)} sets of parameters for {scores.shape[2]} classes: give one, or one per class")
    return _predict(scores, boundaries_s, own, n_frames)


def _predict(scores, boundaries_s, parameters: Sequence[BoxParameters | None], n_frames) -> Boxes:
    """Return the boxes of all classes; None stands for cells."""
    parts = []
    for label, own in enumerate(parameters):
        values = scores[:, :, label]
        if own is None:
            part = cells(values, boundaries_s, n_frames)
        else:
            part = candidates(values, boundaries_s, own.step_filter_s, n_frames).merged(own.merge_abs, own.merge_rel)
        parts.append(replace(part, label=np.full(len(part), label)))
    return Boxes(*joined_columns(parts, Boxes))


def checked(
    scores, boundaries_s, n_frames=None, clips: Sequence | None = None, classes: Sequence | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three inputs of `predict` as arrays, or say what is wrong with them, and in which clip and class."""
    scores, boundaries_s = np.asarray(scores), np.asarray(boundaries_s, dtype=np.float64)
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"scores have shape {scores.shape}; expected clips, frames, classes, at least one of each")
    n_clips, grid_frames, n_classes = scores.shape
    clips, classes = range(n_clips) if clips is None else clips, range(n_classes) if classes is None else classes
    if (len(clips), len(classes)) != (n_clips, n_classes):
        raise ValueError(f"scores have shape {scores.shape}, but {len(clips)} clips and {len(classes)} classes a name")
    if boundaries_s.shape != (grid_frames + 1,) or not (np.diff(boundaries_s) > 0).all():
        raise ValueError(
            f"{grid_frames} frames need {grid_frames + 1} rising boundaries; found shape {boundaries_s.shape}, "
            f"smallest step {np.diff(boundaries_s).min(initial=np.inf):g} s"
        )
    n_frames = np.full(n_clips, grid_frames) if n_frames is None else np.asarray(n_frames)
    if n_frames.shape != (n_clips,) or n_frames.min() < 1 or n_frames.max() > grid_frames:
        raise ValueError(f"n_frames must be 1…{grid_frames} for each of {n_clips} clips, found {n_frames}")
    if not (scores.min() >= 0 and scores.max() < np.inf):  # also NaN
        clip, frame, label = (int(i) for i in np.argwhere(~((scores >= 0) & (scores < np.inf)))[0])
        raise ValueError(
            f"clip {clips[clip]}, class {classes[label]}: the score at {boundaries_s[frame]:.3f} s is "
            f"{scores[clip, frame, label]}; boxes need probabilities, as they come from the sigmoid"
        )
    return scores, boundaries_s, n_frames


def cells(scores: np.ndarray, boundaries_s: np.ndarray, n_frames: np.ndarray) -> Boxes:
    """Return the boxes of a class that is annotated second by second: one per second, the last as long as the clip.

    Args:
        scores: (n_clips, N). boundaries_s: (N + 1,), from 0. n_frames: (n_clips,), see `predict`. The score of a
            box is the mean of its frames, weighted by how much of each lies in the second.
    """
    parts = []
    for own_frames in np.unique(n_frames):
        clips = np.flatnonzero(n_frames == own_frames)
        own_s = boundaries_s[: own_frames + 1]
        n_cells = int(np.ceil(np.round(own_s[-1], 6)))
        means = scores[clips, :own_frames].astype(np.float64) @ cell_weights(own_s, n_cells).T  # (clips, cells)
        edges = np.minimum(np.arange(n_cells + 1.0), np.round(own_s[-1], TIME_DECIMALS))
        clip, cell = np.repeat(clips, n_cells), np.tile(np.arange(n_cells), len(clips))
        parts.append(Boxes(clip, np.zeros_like(clip), edges[cell], edges[cell + 1], means.ravel()))
    columns = joined_columns(parts, Boxes)
    order = np.argsort(columns[0], kind="stable")  # by clip
    return Boxes(*(column[order] for column in columns))


# ---------------------------------------------------------------- tables


def score_tables(
    boxes: Boxes, clips: Sequence[str], classes: Sequence[str], extent_s: np.ndarray
) -> dict[str, pd.DataFrame]:
    """Return clip → table in the form of sed_scores_eval: onset, offset, one column per class; 0 outside boxes.

    The rows of a clip lie between all borders of its boxes, of whatever class, and its begin and end.

    Args:
        extent_s: (2,) begin and end of all clips, or (n_clips, 2); see `extents`.
    """
    extent_s = np.broadcast_to(extent_s, (len(clips), 2))
    order = np.argsort(boxes.clip, kind="stable")
    begins = np.searchsorted(boxes.clip[order], np.arange(len(clips) + 1))
    tables = {}
    for number, clip in enumerate(clips):
        own = order[begins[number] : begins[number + 1]]
        onset_s, offset_s = boxes.onset_s[own], boxes.offset_s[own]
        borders = np.unique(np.concatenate([extent_s[number], onset_s, offset_s]))
        table = np.zeros((len(borders) - 1, 2 + len(classes)))
        table[:, 0], table[:, 1] = borders[:-1], borders[1:]
        first, last = np.searchsorted(borders, onset_s), np.searchsorted(borders, offset_s)
        for begin, end, label, score in zip(first, last, boxes.label[own], boxes.score[own]):
            table[begin:end, 2 + label] = score
        tables[clip] = pd.DataFrame(table, columns=["onset", "offset", *classes])
    return tables


def extents(boundaries_s: np.ndarray, n_frames: np.ndarray | None = None) -> np.ndarray:
    """Return begin and end of clips on one grid, seconds: (2,), or (n_clips, 2) where they differ in length."""
    edges = np.round(np.asarray(boundaries_s, dtype=np.float64), TIME_DECIMALS)
    if n_frames is None:
        return edges[[0, -1]]
    return np.stack([np.full(len(n_frames), edges[0]), edges[n_frames]], axis=1)


# ---------------------------------------------------------------- parameters file


def write_parameters(path: str | Path, parameters: Mapping[str, BoxParameters], **about) -> None:
    """Write a parameters file: JSON; null stands for a merge threshold that is switched off.

    Args:
        about: further entries, such as what the parameters were tuned on.
    """
    classes = {
        name: {
            "step_filter_s": own.step_filter_s,
            "merge_abs": finite(own.merge_abs),
            "merge_rel": finite(own.merge_rel),
        }
        for name, own in parameters.items()
    }
    write_json(path, {**about, "classes": classes})


def finite(value: float) -> float | None:
    """Return a number as JSON knows it: None for infinity and NaN."""
    return float(value) if np.isfinite(value) else None


def read_parameters(path: str | Path) -> dict[str, BoxParameters]:
    """Return class → parameters; DataError where the file is none of `write_parameters`."""
    try:
        classes = json.loads(Path(path).read_text(encoding="utf-8"))["classes"]
        return {
            name: BoxParameters(
                entry["step_filter_s"],
                *(np.inf if entry[key] is None else float(entry[key]) for key in ("merge_abs", "merge_rel")),
            )
            for name, entry in classes.items()
        }
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of box parameters; csebbs_tuning.tune makes one.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a file of box parameters ({error}); write it again with Tuned.write.") from None
