"""Prediction files: the frame logits of a network, or of an ensemble, for all clips of one data set.

Flow: network → blocks of logits → **SET.hdf5** → pseudo-labels of the next iteration, ensembles, scores, submission.

The schema is the published one: `strong_logits` float32 (n, 156, 27), before the sigmoid and without class mask, and
`filenames`, the clips' names without ending. So published files can be used here and ours elsewhere. What made a file
stands in its attributes, which published ones lack.

    file = PredictionFile("runs/it1/predictions/strong_train.hdf5")
    file.targets(["Y0a_30.000_40.000.wav"])         # probabilities (1, 156, 27)

Source: DCASE 2024 task 4, winner: one such file for each set, an ensemble is the mean of the logits.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
from scipy.special import expit

from common.data.events import clip_name
from common.data.manifest import DataError
from common.files import sha256, write_atomically
from common.metrics.sed_scores import some
from task4_sed.data import set_info
from task4_sed.labels import AUDIOSET_GRID, FrameGrid, sound_classes

LOGITS, NAMES, ENDING, FOLDER = "strong_logits", "filenames", ".hdf5", "predictions"
ENERGY = "energy.json"  # beside them: what predicting them took
BLOCK_CLIPS = 128
GRIDS = {grid.n_frames: grid for grid in (FrameGrid(), AUDIOSET_GRID)}


class PredictionFile:
    """One prediction file, read where it is asked for.

    Attributes:
        path; filenames: clip names (n,), without ending; n_frames, n_classes; about: what made it, {} if it does not
            say.

    Raises:
        DataError: the file is missing, is none of these, or names a clip twice.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with h5py.File(self.path) as file:
                names, shape, chunks = file[NAMES][:], file[LOGITS].shape, file[LOGITS].chunks
                self._offset = None if chunks or file[LOGITS].dtype != np.float32 else file[LOGITS].id.get_offset()
                self.about = {key: _read_attribute(value) for key, value in file.attrs.items()}
        except FileNotFoundError:
            make = "python -m task4_sed.evaluate predict"
            raise DataError(f"{path}: no such file of predictions; make it with {make}.") from None
        except (OSError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: not a file of predictions ({error}); it needs {LOGITS} and {NAMES}.") from None
        self.filenames = [clip_name(name.decode() if isinstance(name, bytes) else str(name)) for name in names]
        if len(shape) != 3 or len(self.filenames) != shape[0]:
            raise DataError(f"{path}: {LOGITS} has shape {shape} for {len(self.filenames)} clips, expected (clips, "
                            "frames, classes); predict again.")  # fmt: skip
        self.n_frames, self.n_classes = shape[1:]
        self._row = {name: row for row, name in enumerate(self.filenames)}
        if len(self._row) < len(self.filenames):
            twice = next(name for row, name in enumerate(self.filenames) if self._row[name] != row)
            raise DataError(f"{path}: holds the clip {twice!r} twice; predict again.")
        self._logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.filenames)

    def __reduce__(self):
        return type(self), (self.path,)  # a worker process opens the file itself, instead of being sent all of it

    @property
    def boundaries_s(self) -> np.ndarray:
        """Borders of the frames (N + 1,), s."""
        if self.n_frames not in GRIDS:
            raise DataError(f"{self.path}: {self.n_frames} frames a clip, but only grids of {some(GRIDS)} are known.")
        return GRIDS[self.n_frames].boundaries_s

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names; those of the task unless the file says others."""
        names = tuple(self.about.get("classes") or sound_classes().names)
        if len(names) != self.n_classes:
            raise DataError(f"{self.path}: {self.n_classes} classes, but {len(names)} have a name.")
        return names

    def rows(self, filenames: Iterable[str]) -> np.ndarray:
        """Return where clips stand in the file, int64 (n,); DataError names those it lacks."""
        names = [clip_name(name) for name in filenames]
        if missing := [name for name in names if name not in self._row]:
            raise DataError(f"{self.path}: lacks {len(missing)} of {len(names)} clips ({some(missing)}); predict them "
                            "too, or use the data these predictions were made on.")  # fmt: skip
        return np.array([self._row[name] for name in names], np.int64)

    def logits(self, filenames: Sequence[str] | None = None) -> np.ndarray:
        """Return logits of clips in their order, float32 (n, N, K); None: of all clips."""
        if self._logits is None:
            if self._offset is not None:  # bytes in one piece: the system reads and keeps what is used
                shape = (len(self), self.n_frames, self.n_classes)
                self._logits = np.memmap(self.path, np.float32, "r", self._offset, shape)
            else:
                with h5py.File(self.path) as file:
                    self._logits = file[LOGITS][:].astype(np.float32)
        logits = np.asarray(self._logits if filenames is None else self._logits[self.rows(filenames)])
        if not (finite := np.isfinite(logits).all(axis=(1, 2))).all():
            bad = (self.filenames if filenames is None else filenames)[int(np.argmin(finite))]
            raise DataError(f"{self.path}: logits of {(~finite).sum()} clips are not finite (first: {bad}); the "
                            "network diverged, or overflowed half precision.")  # fmt: skip
        return logits

    def targets(self, filenames: Sequence[str] | None = None) -> np.ndarray:
        """Return probabilities of clips in their order, float32 (n, N, K): targets of distillation, scores."""
        return expit(self.logits(filenames))


def _read_attribute(value):
    """Return an attribute; texts that are JSON as what they say."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(value)
    return value.item() if hasattr(value, "item") else value


def write_predictions(path: str | Path, filenames: Sequence[str], blocks: Iterable[np.ndarray], about: Mapping) -> None:
    """Write a prediction file, all of it or nothing.

    Args:
        filenames: (n,). blocks: logits (b, N, K) of the clips in their order.
        about: attributes: numbers, texts, and what JSON can hold.
    """
    names = [clip_name(name) for name in filenames]

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file.create_dataset(NAMES, data=names, dtype=h5py.string_dtype("utf-8"))
            for key, value in about.items():
                if value is not None:
                    file.attrs[key] = value if isinstance(value, (str, int, float)) else json.dumps(value)
            first = 0
            for block in blocks:
                if first == 0:
                    file.create_dataset(LOGITS, (len(names), *block.shape[1:]), np.float32)
                file[LOGITS][first : first + len(block)] = block
                first += len(block)
        if first != len(names):
            raise ValueError(f"{path}: {first} clips have logits, {len(names)} a name")

    write_atomically(path, write)


# ---------------------------------------------------------------- folders of prediction files


def prediction_folder(path: str | Path) -> Path:
    """Return the folder with the prediction files: the given one, or `predictions` of a run folder."""
    return Path(path) / FOLDER if (Path(path) / FOLDER).is_dir() else Path(path)


def prediction_files(folder: str | Path) -> dict[str, Path]:
    """Return set → file of a folder of predictions or a run; DataError where there is none."""
    folder = prediction_folder(folder)
    files = {path.stem: path for path in sorted(folder.glob(f"*{ENDING}")) if not path.name.startswith(".")}
    if not files:
        raise DataError(f"{folder}: holds no predictions (SET{ENDING}); make them with python -m task4_sed.evaluate "
                        "predict, or unpack published ones there.")  # fmt: skip
    return files


def open_pseudo_labels(folder: str | Path, set_name: str) -> PredictionFile:
    """Return the predictions that are the pseudo-labels of a training set of this task.

    Args:
        folder: of predictions, or a run. set_name: a set of sets.csv; a part of a set (maestro_real_fit) is looked up
            in the file of the whole (maestro_real_train) where it has none of its own.

    Raises:
        DataError: no such file, or one of another grid or other classes.
    """
    files = prediction_files(folder)
    names = [name for name in (set_name, set_info(set_name).whole) if name in files]
    if not names:
        raise DataError(f"{prediction_folder(folder)}: no pseudo-labels of {set_name} (there are {', '.join(files)}); "
                        f"predict it: python -m task4_sed.pseudo_labels predict … --sets {set_name}.")  # fmt: skip
    file = PredictionFile(files[names[0]])
    expected = FrameGrid().n_frames, len(sound_classes().names)
    if (file.n_frames, file.n_classes) != expected:
        raise DataError(f"{file.path}: {file.n_frames} frames and {file.n_classes} classes a clip, expected "
                        f"{expected[0]} and {expected[1]}; these are predictions of another task.")  # fmt: skip
    return file


# ---------------------------------------------------------------- blocks, so that a kill costs one


class Blocks:
    """Finished blocks of a prediction file, each a file of its own, beside it until all are there.

    Several processes or machines may fill them: block b belongs to shard b modulo the number of shards, and whoever
    finishes last joins them.

    Args:
        path: of the prediction file. identity: of what makes it; blocks of another identity are not used.
    """

    def __init__(self, path: str | Path, filenames: Sequence[str], identity: str, block_clips: int = BLOCK_CLIPS):
        self.path, self.filenames, self.identity = Path(path), list(filenames), identity
        self.starts = range(0, len(self.filenames), block_clips)
        self.block_clips = block_clips
        self.folder = self.path.with_name(f".{self.path.name}.{identity}-{block_clips}.blocks")

    def done(self) -> bool:
        """Return whether the joined file is there and of this identity."""
        return _identity_in(self.path) == self.identity

    def forget(self) -> None:
        """Remove the file and its blocks."""
        self.path.unlink(missing_ok=True)
        self._remove_blocks()

    def _remove_blocks(self) -> None:
        for folder in self.path.parent.glob(f".{self.path.name}.*.blocks"):
            shutil.rmtree(folder, ignore_errors=True)

    def todo(self, shard: tuple[int, int] = (0, 1)) -> list[slice]:
        """Return the clips of the blocks of shard (number, of how many) that are not there yet."""
        own = self.starts[shard[0] :: shard[1]]
        n_clips = len(self.filenames)
        return [slice(b, min(b + self.block_clips, n_clips)) for b in own if not self._file(b).is_file()]

    def save(self, clips: slice, logits: np.ndarray) -> None:
        """Keep the logits (b, N, K) of one block."""
        if not (finite := np.isfinite(logits).all(axis=(1, 2))).all():
            bad = self.filenames[clips.start + int(np.argmin(finite))]
            raise DataError(f"{bad}: the network gives logits that are not finite; it diverged, or overflowed half "
                            "precision.")  # fmt: skip

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, logits.astype(np.float32))

        write_atomically(self._file(clips.start), write)

    def join(self, about: Mapping) -> bool:
        """Write the prediction file if all blocks are there, and remove them; return whether they were."""
        files = [self._file(start) for start in self.starts]
        if not all(path.is_file() for path in files):
            return self.done()  # another process may have joined them
        try:
            blocks = (np.load(path) for path in files)
            write_predictions(self.path, self.filenames, blocks, {**about, "identity": self.identity})
        except FileNotFoundError:
            if not self.done():
                raise
        self._remove_blocks()
        return True

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:07d}.npy"


# ---------------------------------------------------------------- ensembles


def identity_of(*parts) -> str:
    """Return 12 hex digits that change with any of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _identity_in(path: Path) -> str | None:
    """Return what a prediction file was made from; None if there is none, or a damaged one, which is made anew."""
    try:
        return PredictionFile(path).about.get("identity") if path.is_file() else None
    except DataError:
        return None


def ensemble(paths: Sequence[str | Path], out: str | Path, about: Mapping, said: Callable[[str], None] = print) -> bool:
    """Write the mean of the logits of several prediction files of one set; return whether it had to be made.

    Clips are matched by name and stand in the order of the first file.

    Raises:
        DataError: a file lacks clips that another has, or has other frames or classes.
    """
    files = [PredictionFile(path) for path in paths]
    first, out = files[0], Path(out)
    for file in files[1:]:
        if (file.n_frames, file.n_classes) != (first.n_frames, first.n_classes) or file.classes != first.classes:
            raise DataError(f"{file.path}: {file.n_frames} frames of {file.n_classes} classes a clip, {first.path} has "
                            f"{first.n_frames} of {first.n_classes}; only like can be averaged.")  # fmt: skip
        first.rows(file.filenames), file.rows(first.filenames)
    # What the file says of itself is part of it, the commit aside: another recipe's name makes another file.
    said_of_it = {key: value for key, value in about.items() if key not in ("commit", "dirty")}
    identity = identity_of([file.about.get("identity") or sha256(file.path) for file in files], said_of_it)
    if _identity_in(out) == identity:
        return False

    def blocks():
        for start in range(0, len(first), BLOCK_CLIPS):
            names = first.filenames[start : start + BLOCK_CLIPS]
            yield np.mean([file.logits(names) for file in files], axis=0, dtype=np.float64)

    write_predictions(out, first.filenames, blocks(), {**about, "identity": identity})
    said(f"wrote {out}: mean of {len(files)} files, {len(first)} clips")
    return True
