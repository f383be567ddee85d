"""Score prediction files: median filter or boxes → PSDS, F1, mpAUC with intervals → result records.

Flow: SET.hdf5 + ground truth → post-processing → **scores** → results/task4_sed/<record>.json → tables, notebook.

Of one split, four post-processings are scored side by side; the names are those in records:

    (none)          median filter with the published windows, as in the published validation and test step
    raw             nothing, as the published ensemble's scores "without cSEBBs" were made
    csebbs          boxes tuned on other clips than those scored (validation sets)
    csebbs_devtest  boxes tuned on devtest, as published: an oracle where devtest itself is scored

Scoring needs prediction files and label tables alone, never a model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common.data.events import Crop, clip_name
from common.data.manifest import DataError
from common.files import sha256
from common.metrics.maestro import joined_set
from common.metrics.scoring_set import ScoringSet, scoring_set
from common.metrics.sed import PSDS1, psds
from common.metrics.sed_scores import FrameScores, GroundTruth, ground_truth, read_durations, read_ground_truth
from task4_sed import csebbs_tuning, maestro
from task4_sed.csebbs import Csebbs, finite, write_parameters
from task4_sed.data import Manifest, load_set, set_info
from task4_sed.labels import FrameGrid, sound_classes
from task4_sed.postprocess import median_filter
from task4_sed.predictions import PredictionFile, prediction_files, prediction_folder

TUNED_ON = ("synth_val", "external_strong_eval")
ORACLE = "devtest"
BOXES = {"csebbs": "csebbs.json", "csebbs_devtest": "csebbs_devtest.json"}  # in the folder of predictions
POSTPROCESSINGS = ("median", "raw", *BOXES)
MAESTRO_DURATIONS = "metadata/maestro_real_durations.tsv"
MAX_POINTS = 100  # of a recorded curve


@dataclass(frozen=True)
class Split:
    """A data set's ground truth beside its predictions.

    Attributes:
        manifest: its tables; the audio is not looked at. predictions: logits of its clips.
    """

    manifest: Manifest
    predictions: PredictionFile

    @classmethod
    def load(cls, data: str | Path, name: str, folder: str | Path) -> "Split":
        """Read one split of a data folder and its file in a folder of predictions (or run folder)."""
        files = prediction_files(folder)
        if set_info(name).kind not in ("strong", "soft"):
            raise DataError(f"{name}: has no events with times, so it cannot be scored.")
        if name not in files:
            raise DataError(f"{prediction_folder(folder)}: no predictions of {name} (there are {', '.join(files)}); "
                            f"predict it: python -m task4_sed.evaluate predict … --sets {name}.")  # fmt: skip
        predictions = PredictionFile(files[name])
        hop_s = maestro.hop_of(predictions.filenames) if set_info(name).kind == "soft" else None
        manifest = load_set(data, name, exclude_overlap=False, need_audio=False, hop_s=hop_s)
        return cls(manifest, predictions)

    @property
    def name(self) -> str:
        return self.manifest.info.name

    @property
    def is_soft(self) -> bool:
        """Whether this is MAESTRO, whose crops are joined to recordings."""
        return self.manifest.info.kind == "soft"

    @property
    def unit(self) -> str:
        """What intervals resample."""
        return "recording" if self.is_soft else "clip"

    @property
    def classes(self) -> list[str]:
        """Classes that are scored."""
        own = sound_classes()
        return own.where(own.maestro_evaluated if self.is_soft else own.desed)

    @cached_property
    def truth(self) -> GroundTruth:
        """Events of clips (not of MAESTRO's crops: `joined_set` makes its own)."""
        path = self.manifest.root / self.manifest.info.table
        return read_ground_truth(path) if path.is_file() else ground_truth(self.manifest.events)

    @cached_property
    def durations_s(self) -> dict[str, float]:
        """Seconds of clips; for MAESTRO of recordings, by its table or else by the end of their last crop."""
        if not self.is_soft:
            path = self.manifest.root / self.manifest.info.durations
            return read_durations(path) if path.is_file() else self.manifest.durations()
        path, durations_s = self.manifest.root / MAESTRO_DURATIONS, {}
        known = read_durations(path) if path.is_file() else {}
        for crop in map(Crop.parse, [*self.manifest.clips.filename, *self.predictions.filenames]):
            durations_s[crop.recording] = max(crop.offset_s, durations_s.get(crop.recording, 0.0))
        return durations_s | {name: known[name] for name in durations_s if name in known}

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the classes that are scored, float32 (n, N, K)."""
        columns = [self.predictions.classes.index(name) for name in self.classes]
        return self.predictions.targets()[:, :, columns]

    def frame_scores(self, windows: Sequence[int] | None = None) -> FrameScores:
        """Return the frame scores, behind a median filter if windows (K,) are given."""
        values = self.probabilities if windows is None else median_filter(self.probabilities, windows)
        return FrameScores(self.predictions.filenames, self.classes, self.predictions.boundaries_s, values)

    def scoring_set(self, scores) -> ScoringSet:
        """Return scores (FrameScores, or clip → table) with the ground truth; MAESTRO's crops joined."""
        if self.is_soft:
            return joined_set(scores, self.manifest.events, self.durations_s, self.classes)
        return scoring_set(scores, self.truth, self.durations_s, self.classes)

    def median_windows(self) -> np.ndarray | None:
        """Return the published windows (K,); None for frames of another length than theirs."""
        if self.predictions.n_frames != FrameGrid().n_frames:
            return None
        own = sound_classes()
        return own.median_frames[[own.names.index(name) for name in self.classes]]

    def processed(self, boxes: Mapping[str, "TunedBoxes"]) -> dict[str, ScoringSet]:
        """Return post-processing → scoring set: raw, median where there are windows for these frames, boxes.

        MAESTRO is judged second by second, where boxes change nothing: it has none.
        """
        sets = {"raw": self.scoring_set(self.frame_scores())}
        if (windows := self.median_windows()) is not None:
            sets = {"median": self.scoring_set(self.frame_scores(windows)), **sets}
        for name, own in ({} if self.is_soft else boxes).items():
            arguments = self.probabilities, self.predictions.boundaries_s, self.predictions.filenames, self.classes
            sets[name] = self.scoring_set(own.csebbs.tables(*arguments))
        return sets

    def card(self, dataset_name: str, is_published: bool) -> dict:
        """Return the "dataset" entry of a record: what was expected, what has predictions, what differs."""
        info, listed = self.manifest.info, {clip_name(name) for name in self.manifest.clips.filename}
        names, differences = set(self.predictions.filenames), []
        expected = len(listed | names) if self.is_soft else len(listed)
        found = len(names if self.is_soft else names & listed)
        if is_published:
            hop_s = maestro.hop_of(self.predictions.filenames) if self.is_soft else None
            expected = info.n_clips(hop_s) or expected
            with_events = int(self.manifest.clips.has_events.sum())
            for key, count in (("clips_with_events", with_events), ("events", len(self.manifest.events))):
                if (published := getattr(info, key)) not in (None, count):
                    differences.append(f"{self.name}: {count} {key.replace('_', ' ')}, published {published}")
        return {
            "name": dataset_name,
            "manifest_sha256": self.manifest.sha256(),  # of the tables that are scored with
            "expected": {self.name: expected},
            "found": {self.name: found},
            "skipped": {},
            "differences": differences,
        }


def psd_roc(data: ScoringSet, max_points: int = MAX_POINTS) -> dict[str, list[float]]:
    """Return the PSD-ROC curve of PSDS1: efpr (per hour, up to 100) and etpr, a staircase; at most `max_points`.

    Points left out lie close to others along the curve.
    """
    details = psds(data, PSDS1).details
    inside = details["efpr"] <= PSDS1.max_efpr
    efpr, etpr = details["efpr"][inside], details["etpr"][inside]
    if len(efpr) > max_points:
        steps = np.diff(efpr) / PSDS1.max_efpr + np.abs(np.diff(etpr))
        length = np.append(0, np.cumsum(steps))
        kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], max_points)))
        efpr, etpr = efpr[kept], etpr[kept]
    return {"efpr": [round(float(x), 4) for x in efpr], "etpr": [round(float(y), 5) for y in etpr]}


# ---------------------------------------------------------------- boxes


@dataclass(frozen=True)
class TunedBoxes:
    """Boxes with parameters from a file; about: what it says beside them (tuned_on, n_clips, psds1, …)."""

    csebbs: Csebbs
    about: Mapping

    def summary(self, split: str) -> dict:
        """Return what a record keeps; `oracle` says that they were tuned on the very clips that are scored."""
        keys = ("tuned_on", "n_clips", "classes")
        return {key: self.about[key] for key in keys} | {"oracle": split in self.about["tuned_on"]}


def tune_boxes(data: str | Path, folder: str | Path, sets: Sequence[str] | None = None, oracle: bool = False) -> Path:
    """Tune boxes class by class on sets with predictions, and write the parameters beside these.

    Args:
        sets: None: those of TUNED_ON that were predicted. oracle: on devtest, as published.

    Raises:
        DataError: nothing to tune on, or a set that is scored without `oracle`.
    """
    files = prediction_files(folder)
    sets = [ORACLE] if oracle else list(sets or [name for name in TUNED_ON if name in files])
    if scored := [name for name in sets if set_info(name).use == "test" and not oracle]:
        raise DataError(f"{scored[0]} is a set that is scored; tuning on it is called --oracle and has its own column.")
    if not sets:
        raise DataError(f"{prediction_folder(folder)}: no predictions to tune on; predict {' or '.join(TUNED_ON)}.")
    splits = [Split.load(data, name, folder) for name in sets]
    if soft := [split.name for split in splits if split.is_soft]:
        raise DataError(f"{soft[0]}: boxes are tuned on strong labels, this set has soft ones; leave it out.")
    clips, events, durations_s = [], {}, {}
    for split in splits:  # names of different sets may be the same
        clips += [f"{split.name}/{clip}" for clip in split.predictions.filenames]
        events |= {f"{split.name}/{clip}": own for clip, own in split.truth.events.items()}
        durations_s |= {f"{split.name}/{clip}": s for clip, s in split.durations_s.items()}
    values = np.concatenate([split.probabilities for split in splits])
    scores = FrameScores(clips, splits[0].classes, splits[0].predictions.boundaries_s, values)
    tuned = csebbs_tuning.tune(scores, events, durations_s)
    path = prediction_folder(folder) / BOXES["csebbs_devtest" if oracle else "csebbs"]
    identities = {split.name: _identity(split.predictions) for split in splits}
    found = {"psds1": {name: finite(value) for name, value in tuned.psds1.items()}, "tied": dict(tuned.tied)}
    about = {"tuned_on": sets, "identities": identities, "n_clips": tuned.n_clips, **found, "notes": list(tuned.notes)}
    write_parameters(path, tuned.parameters, **about)
    for note in tuned.notes:
        print(note)
    print(f"wrote {path}: tuned on {tuned.n_clips} clips of {', '.join(sets)}")
    return path


def _identity(file: PredictionFile) -> str:
    """Return what tells predictions from others; files from elsewhere (published ones) do not say it themselves."""
    return file.about.get("identity") or sha256(file.path)


def read_boxes(folder: str | Path) -> dict[str, TunedBoxes]:
    """Return the boxes that were tuned on a folder's predictions, by post-processing.

    Raises:
        DataError: they were tuned on other predictions than those that lie there now.
    """
    folder, found = prediction_folder(folder), {}
    for name, file in BOXES.items():
        path = folder / file
        if not path.is_file():
            continue
        boxes, about = Csebbs.read(path), json.loads(path.read_text(encoding="utf-8"))
        files = prediction_files(folder)
        for set_name, identity in about.get("identities", {}).items():
            if set_name in files and _identity(PredictionFile(files[set_name])) != identity:
                raise DataError(f"{path}: tuned on other predictions of {set_name} than those beside it; tune again.")
        found[name] = TunedBoxes(boxes, about)
    return found
