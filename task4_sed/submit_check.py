"""What a DCASE 2024 Task 4 submission is made of: runs, their scores clip by clip, and the checks on a finished zip.

Flow: prediction files → **runs** → score folders → zip (submit.py) → **read again, compared, scored again**.

Both outputs of a run hold all 27 classes for every clip, made in the same way whatever set a clip is of: the challenge
forbids to use where a recording comes from.

    unprocessed     probabilities of the frames
    post-processed  boxes (cSEBBs) where csebbs.json lies beside the predictions, which are those tuned on validation
                    sets; MAESTRO's classes, which have no boxes, get the mean of each second. Otherwise a median filter
                    with the published windows; nothing for frames of another length than theirs
"""

import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from common.data.events import clip_name
from common.data.manifest import DataError
from common.metrics.maestro import mpauc
from common.metrics.scoring_set import SHORT_S, ScoringSet
from common.metrics.sed import PSDS1, psds
from common.metrics.sed_scores import FrameScores, boundaries, read_durations, read_score_folder, some
from common.submission import SubmissionError
from task4_sed import maestro
from task4_sed.data import load_set, set_info
from task4_sed.labels import FrameGrid, sound_classes
from task4_sed.postprocess import median_filter
from task4_sed.predictions import PredictionFile, prediction_files, prediction_folder
from task4_sed.reporting import training_log
from task4_sed.scoring import Split, TunedBoxes, read_boxes

TASK = "task4"  # folder of the systems in the zip
DIGITS = {"raw": 9, "median": 9, "csebbs": 17}  # written: 9 keep order and ties of float32, 17 a float64 as it is
SCORE_TOLERANCE = 1e-8  # of one score, which 9 digits move by 5e-10 at most
TOLERANCE = 1e-6  # of PSDS1 and mpAUC
VALIDATED = {  # fields of meta files that the organisers' validator reads, and what it wants there
    "submission.label": str,
    "submission.name": str,
    "submission.abbreviation": str,
    "submission.authors": list,
    "system.description.input_sampling_rate": (int, float),
    "system.description.acoustic_features": (str, list),
    "system.complexity.total_parameters": int,
    "system.source_code": str,
    "results.devtest.desed.PSDS1": float,
    "results.devtest.maestro.mPAUC": float,
}
DEVELOPMENT = {"PSDS1": "devtest", "mPAUC": "maestro_real_dev"}  # as meta files call it: set it is measured on


@dataclass(frozen=True)
class SetScores:
    """One set of one run.

    Attributes:
        predictions: its logits. durations_s: clip → s of all clips that are asked for, NaN if unknown.
        split: with ground truth, None for a set that has none.
    """

    name: str
    predictions: PredictionFile
    durations_s: Mapping[str, float]
    split: Split | None

    @classmethod
    def load(cls, data: Path, run: Path, name: str) -> "SetScores":
        """Read one set.

        Raises:
            SubmissionError, DataError: no predictions, clips without predictions or unknown ones, missing classes.
        """
        files, info = prediction_files(run), set_info(name)
        if name not in files:
            raise SubmissionError(f"{prediction_folder(run)}: no predictions of {name} (there are {', '.join(files)}); "
                                  f"predict it: python -m task4_sed.evaluate predict … --sets {name}.")  # fmt: skip
        predictions = PredictionFile(files[name])
        if lacking := [label for label in sound_classes().names if label not in predictions.classes]:
            raise SubmissionError(f"{predictions.path}: no scores for {some(lacking)}; the challenge wants all "
                                  f"{len(sound_classes().names)} classes for every clip.")  # fmt: skip
        if info.kind in ("strong", "soft"):
            split = Split.load(data, name, run)
            manifest = split.manifest
        else:
            split, manifest = None, load_set(data, name, exclude_overlap=False, need_audio=False)
        durations_s = dict(zip(map(clip_name, manifest.clips.filename), map(float, manifest.clips.duration)))
        _check_clips(predictions, durations_s, Path(data) / info.durations, info.source)
        return cls(name, predictions, durations_s, split)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of all classes of the task, float32 (n, N, 27)."""
        columns = [self.predictions.classes.index(name) for name in sound_classes().names]
        return self.predictions.targets()[:, :, columns]

    def tables(self, post: str, boxes: TunedBoxes | None) -> dict[str, pd.DataFrame]:
        """Return clip → scores behind one post-processing: raw, median or csebbs."""
        own, file, values = sound_classes(), self.predictions, self.probabilities
        if post == "csebbs":
            cells = own.where(~own.desed)
            csebbs = replace(boxes.csebbs, cell_classes=cells)
            return csebbs.tables(values, file.boundaries_s, file.filenames, own.names)
        if post == "median":
            values = median_filter(values, own.median_frames)
        return FrameScores(file.filenames, own.names, file.boundaries_s, values).tables()


def _check_clips(predictions: PredictionFile, asked: Mapping[str, float], durations: Path, source: str) -> None:
    """Raise SubmissionError unless the predictions are of the clips asked for; a file has no clip twice.

    Clips that only the table of durations lists are known too, and all crops of MAESTRO's recordings.
    """
    names, path = set(predictions.filenames), predictions.path
    missing = sorted(set(asked) - names)
    if missing and not predictions.about.get("smoke"):  # smoke runs predict a few clips, to try every step
        raise SubmissionError(f"{path}: {len(missing)} of {len(asked)} clips have no predictions: {some(missing)}; "
                              "predict again with the audio of all of them.")  # fmt: skip
    known = set(asked) | (set(read_durations(durations)) if durations.is_file() else set())
    unknown = sorted(names - known)
    if source == "maestro":
        recordings = set(map(maestro.recording_of, asked))
        unknown = [name for name in unknown if maestro.recording_of(name) not in recordings]
    if unknown:
        raise SubmissionError(f"{path}: {len(unknown)} clips are not of this set: {some(unknown)}; give the data "
                              "folder that was predicted.")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training (or ensemble) of a system.

    Attributes:
        sets: those in the package. development: sets of the development set's results by metric, where predicted.
        boxes: tuned on validation sets, None if there are none. log: train.json, {} for ensembles.
    """

    path: Path
    sets: Sequence[SetScores]
    development: Mapping[str, Split]
    boxes: TunedBoxes | None
    log: Mapping
    _predicted: dict[str, dict[str, float]] = field(default_factory=dict)  # set → post-processing → score

    @classmethod
    def load(cls, path: Path, data: Path, sets: Sequence[str]) -> "Run":
        """Read a run folder, or a folder of predictions."""
        own = {name: SetScores.load(data, path, name) for name in sets}
        found, development = prediction_files(path), {}
        for metric, name in DEVELOPMENT.items():
            try:
                if name in found:
                    development[metric] = own[name].split if name in own else Split.load(data, name, path)
            except DataError as error:
                print(f"{name}: no result for the meta file. {error}")
        first = next(iter(own.values()))
        return cls(path, list(own.values()), development, read_boxes(path).get("csebbs"), training_log(path, first))

    @property
    def about(self) -> Mapping:
        return self.sets[0].predictions.about

    @property
    def recipe(self) -> str:
        return str(self.about.get("recipe") or self.path.name)

    @property
    def post(self) -> str:
        """The post-processing: csebbs, median or raw (none)."""
        if self.boxes:
            return "csebbs"
        known = all(own.predictions.n_frames == FrameGrid().n_frames for own in self.sets)
        return "median" if known else "raw"

    def predicted(self, split: Split, post: str) -> float:
        """Return what `task4_sed.evaluate score` finds in the predictions themselves, as records hold it.

        Records score MAESTRO without boxes: the mean of a second, which stands for them here, scores as frames do.
        """
        if split.name not in self._predicted:
            sets = split.processed({"csebbs": self.boxes} if self.boxes else {})
            self._predicted[split.name] = {own: score_of(split, sets[own]) for own in {self.post, "raw"} & set(sets)}
        found = self._predicted[split.name]
        return found.get(post, found["raw"])

    def scores(self, post: str) -> dict[str, pd.DataFrame]:
        """Return clip → scores of all sets of the package."""
        tables: dict[str, pd.DataFrame] = {}
        for own in self.sets:
            new = own.tables(post, self.boxes)
            if twice := sorted(set(new) & set(tables)):
                raise SubmissionError(f"{self.path}: the clip {twice[0]} is in two of the sets "
                                      f"{', '.join(each.name for each in self.sets)}; submit them apart.")  # fmt: skip
            tables |= new
        return tables


class Output(NamedTuple):
    """One folder of scores of a system: run 1, 2, …, post-processing, the folder's name."""

    number: int
    run: Run
    post: str
    folder: str


@dataclass(frozen=True)
class System:
    """One submitted system.

    Attributes:
        name: its label, Team_INST_task4_<index>. recipe: what its runs were trained as. runs: independent trainings,
            of n_given that there are.
    """

    name: str
    recipe: str
    runs: Sequence[Run]
    n_given: int

    @property
    def post(self) -> str:
        """The post-processing of all runs."""
        return self.runs[0].post

    @property
    def outputs(self) -> list[Output]:
        """Folders of scores, post-processed and unprocessed of each run."""
        found = []
        for number, run in enumerate(self.runs, start=1):
            found.append(Output(number, run, run.post, f"{self.name}_run{number}.output"))
            found.append(Output(number, run, "raw", f"{self.name}_run{number}_unprocessed.output"))
        return found


def score_of(split: Split, data: ScoringSet) -> float:
    """Return PSDS1, or mpAUC where crops of MAESTRO are joined to recordings."""
    return float((mpauc(data) if split.is_soft else psds(data, PSDS1)).value)


# ---------------------------------------------------------------- the finished zip


class Scored(NamedTuple):
    """A score of the package, of set `name`: by its files, and by the predictions they were made from."""

    output: str
    post: str
    name: str
    metric: str
    packed: float
    predicted: float


def check_package(archive: Path, systems: Sequence[System]) -> list[Scored]:
    """Read a zip again: all files there, every score as predicted, PSDS1 and mpAUC as from the predictions.

    It is unpacked beside itself, and removed again. Sets without ground truth are compared score by score alone.

    Raises:
        SubmissionError: one sentence on the first thing that is wrong.
    """
    found = []
    with unpacked(archive) as folder:
        _check_names(archive.name, "systems", {system.name for system in systems}, _folders(folder / TASK))
        for system in systems:
            own = folder / TASK / system.name
            _check_names(f"{archive.name}: {system.name}", "folders", {o.folder for o in system.outputs}, _folders(own))
            check_meta(own / f"{system.name}.meta.yaml", system.name)
            for output in system.outputs:
                try:
                    found += check_output(own / output.folder, output)
                except DataError as error:
                    message = str(error).replace(f"{folder}/", f"{archive.name}: ")
                    raise SubmissionError(f"{message} Build the package again.") from None
    return found


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Unpack a zip into a folder beside it, for the time of the block."""
    if not archive.is_file():
        raise SubmissionError(f"{archive}: no package to check; run without --check-only first.")
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{archive.stem}.") as folder:
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        except (zipfile.BadZipFile, EOFError) as error:
            raise SubmissionError(f"{archive}: cannot be unpacked ({error}); build the package again.") from None
        yield Path(folder)


def check_meta(path: Path, label: str) -> None:
    """Check what the organisers' validator reads of a meta file; what is still to be filled in may be empty."""
    if not path.is_file():
        raise SubmissionError(f"{label}: {path.name} is missing; build the package again.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, kind in VALIDATED.items():
        value = content
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise SubmissionError(f"{path.name}: has no field {name}; build the package again, with a file of "
                                      "authors whose fields are those of the one written at first.")  # fmt: skip
            value = value[key]
        if value is not None and not isinstance(value, kind):
            raise SubmissionError(f"{path.name}: {name} is {value!r}, which is not what belongs there; mend it.")
    if (found := content["submission"]["label"]) != label:
        raise SubmissionError(f"{path.name}: its label is {found!r}, but must be that of its folder, {label!r}.")


def check_output(folder: Path, output: Output) -> list[Scored]:
    """Check one folder of scores against the predictions, and score it.

    Raises:
        SubmissionError, DataError: files that are missing, odd, or not those of the predictions.
    """
    expected, names = output.run.scores(output.post), list(sound_classes().names)
    files = {path.stem if path.suffix == ".tsv" else path.name for path in folder.iterdir()}
    _check_names(output.folder, "score files", set(expected), files)
    tables, found = read_score_folder(folder, names), []
    for own in output.run.sets:
        for clip in own.predictions.filenames:
            check_table(f"{output.folder}/{clip}.tsv", tables[clip], expected[clip], own.durations_s.get(clip, np.nan))
        if own.split is None:
            continue
        packed = score_of(own.split, own.split.scoring_set({clip: tables[clip] for clip in own.predictions.filenames}))
        predicted = output.run.predicted(own.split, output.post)
        metric = "mpAUC" if own.split.is_soft else "PSDS1"
        if not abs(packed - predicted) <= TOLERANCE:
            raise SubmissionError(f"{output.folder}: {metric} of {own.name} is {packed:.7f} from the package and "
                                  f"{predicted:.7f} from {own.predictions.path}; build the package again.")  # fmt: skip
        found.append(Scored(output.folder, output.post, own.name, metric, packed, predicted))
    return found


def check_table(where: str, table: pd.DataFrame, expected: pd.DataFrame, duration_s: float) -> None:
    """Check one file of scores: probabilities, frames from begin to end of the clip, values as predicted."""
    values, borders = table.to_numpy()[:, 2:], boundaries(table)
    if values.min() < -SCORE_TOLERANCE or values.max() > 1 + SCORE_TOLERANCE:  # means of frames are a trifle off
        raise SubmissionError(f"{where}: scores from {values.min():g} to {values.max():g}, but probabilities lie "
                              "within 0…1; build the package again.")  # fmt: skip
    if borders[0] > 0 or duration_s - borders[-1] > SHORT_S:
        raise SubmissionError(f"{where}: scores from {borders[0]:g} to {borders[-1]:g} s for a clip of "
                              f"{duration_s:g} s; predict with a window that covers it.")  # fmt: skip
    own = boundaries(expected)
    if borders.shape != own.shape or abs(borders - own).max() > SCORE_TOLERANCE:
        raise SubmissionError(f"{where}: {len(table)} frames, but other ones ({len(expected)}) in the predictions; "
                              "build the package again.")  # fmt: skip
    apart = abs(values - expected.to_numpy()[:, 2:])
    if apart.max() > SCORE_TOLERANCE:
        frame, label = np.unravel_index(np.argmax(apart), apart.shape)
        raise SubmissionError(f"{where}: the score of {table.columns[2 + label]!r} at {borders[frame]:g} s is "
                              f"{apart.max():.3g} off the predictions; build the package again.")  # fmt: skip


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()


def _check_names(where: str, what: str, expected: set[str], found: set[str]) -> None:
    """Raise SubmissionError unless two sets of names are one."""
    if missing := sorted(expected - found):
        raise SubmissionError(f"{where}: {len(missing)} of {len(expected)} {what} are missing: {some(missing)}; build "
                              "the package again.")  # fmt: skip
    if more := sorted(found - expected):
        raise SubmissionError(f"{where}: {len(more)} {what} too many: {some(more)}; build the package again.")
