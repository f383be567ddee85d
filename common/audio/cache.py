"""Decode every clip once into a memory-mapped array; later epochs read rows of it.

Flow: manifest rows → audio files → **cache** (N, T) on disk → dataset item.

A cache folder is named by what it depends on (files listed, clip length, rate, dtype). It holds `waveforms.npy`,
`sources.npy` (of each decoded file its size and time of change), `problems.json` and, where every file keeps its own
length, `starts.npy`. Blocks are flushed before their sources are noted, so a killed run goes on where it stopped. A
file that changed since, or that could not be used, is decoded again at the next start; a file whose length changed
moves all others, which are then decoded again too.
"""
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from common.audio.files import AudioError, fit_length, read_audio
from common.files import write_atomically, write_json
from common.progress import progress

FULL_SCALE_INT16 = 32767


@dataclass(frozen=True)
class ClipFormat:
    """What every clip of a data set must be, and what is done to clips that are not.

    Args:
        sample_rate: Hz. Other rates are refused unless `resample`.
        clip_s: length in seconds; longer clips are cut, shorter ones refused unless `pad`. None: every file keeps
            its own length, and `ClipCache.read_parts` reads parts of it.
        resample: bring other rates to `sample_rate` (soxr, high quality).
        downmix: average the channels of multi-channel clips; refused otherwise.
        pad: fill clips that are too short with zeros.
        dtype: float32 keeps 24-bit files exact; int16 halves the size, rounds to 16 bit and cuts at full scale.
    """

    sample_rate: int = 44100
    clip_s: float | None = 1.0
    resample: bool = False
    downmix: bool = False
    pad: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "int16"):
            raise ValueError(f"format.dtype is {self.dtype!r}, expected float32 or int16.")
        if (self.clip_s is not None and self.clip_s <= 0) or self.sample_rate <= 0:
            raise ValueError(f"format.clip_s {self.clip_s} and format.sample_rate {self.sample_rate} must be above 0.")

    @property
    def n_samples(self) -> int:
        if self.clip_s is None:
            raise ValueError("format.clip_s is null: the clips have no common length.")
        return round(self.clip_s * self.sample_rate)

    def length(self, path: Path) -> int:
        """Return the samples that `read` will give: `n_samples`, or by the file's header; 0 if it has none."""
        if self.clip_s is not None:
            return self.n_samples
        try:
            info = soundfile.info(path)
        except (soundfile.LibsndfileError, RuntimeError):  # the decoder says what is wrong with it
            return 0
        return -(-info.frames * self.sample_rate // info.samplerate)

    def read(self, path: Path) -> np.ndarray:
        """Return one clip, float32 (T,) with T = `n_samples` or its own; AudioError says what does not fit."""
        waveform, rate = read_audio(path)
        if waveform.shape[0] != 1:
            if not self.downmix:
                raise AudioError(f"{path}: {waveform.shape[0]} channels, expected 1. Set data.format.downmix=true to "
                                 "average them.")
            waveform = waveform.mean(0, keepdims=True)
        if rate != self.sample_rate:
            if not self.resample:
                raise AudioError(f"{path}: {rate} Hz, expected {self.sample_rate} Hz. Set data.format.resample=true "
                                 "to convert it.")
            import soxr

            waveform = soxr.resample(waveform[0], rate, self.sample_rate, quality="HQ")[None]
        if self.clip_s is None:
            return waveform[0]
        if waveform.shape[1] < self.n_samples and not self.pad:
            length = f"{waveform.shape[1]} samples long, expected {self.n_samples} ({self.clip_s:g} s)"
            raise AudioError(f"{path}: {length}; get the whole file, or set data.format.pad=true "
                             "to fill with zeros.")
        return fit_length(waveform, self.n_samples)[0]


class ClipCache:
    """The decoded clips of one file list.

    Attributes:
        waveforms: memory-mapped (N, T) in the order of the list, or one after the other (samples of all,) where every
            file keeps its own length; rows of unusable clips mean nothing.
        starts: int64 (N + 1,), where in all samples each clip starts.
        usable: bool (N,); problems: file name → sentence, for the rest.
    """

    def __init__(self, folder: Path, waveforms: np.ndarray, usable: np.ndarray, problems: dict[str, str],
                 starts: np.ndarray | None = None):
        self.folder, self.waveforms, self.usable, self.problems = folder, waveforms, usable, problems
        self.starts = np.arange(len(waveforms) + 1) * waveforms.shape[1] if starts is None else starts

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each clip, int64 (N,)."""
        return np.diff(self.starts)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Return clips as float32 (B, T), full scale ±1."""
        clips = np.empty((len(rows), self.waveforms.shape[1]), np.float32)
        for clip, row in zip(clips, rows, strict=True):  # row by row: faster than indexing with a list
            clip[:] = self.waveforms[row]
        return self._full_scale_1(clips)

    def read_parts(self, rows: Sequence[int], first: Sequence[int], n_samples: int) -> np.ndarray:
        """Return `n_samples` of each clip from sample `first` on, float32 (B, n_samples); zeros after its end."""
        clips, samples = np.zeros((len(rows), n_samples), np.float32), self.waveforms.reshape(-1)
        for clip, row, start in zip(clips, rows, first, strict=True):
            part = samples[self.starts[row] + start:min(self.starts[row] + start + n_samples, self.starts[row + 1])]
            clip[:len(part)] = part
        return self._full_scale_1(clips)

    def _full_scale_1(self, clips: np.ndarray) -> np.ndarray:
        return clips / FULL_SCALE_INT16 if self.waveforms.dtype == np.int16 else clips


def cache_folder(cache_root: Path, root: Path, files: Sequence[str], clip_format: ClipFormat) -> Path:
    """Return the folder that belongs to this data folder, file list and format."""
    identity = json.dumps([str(Path(root).resolve()), list(files), asdict(clip_format)])
    return Path(cache_root) / hashlib.sha256(identity.encode()).hexdigest()[:16]


def build_cache(cache_root: str | Path, root: str | Path, files: Sequence[str], clip_format: ClipFormat,
                n_threads: int = 2, block: int = 256, title: str = "decode") -> ClipCache:
    """Decode what is not decoded yet and return the cache. Killed at any moment, a second call goes on.

    Args:
        root: the folder that `files` are relative to.
        block: clips between two flushes: what a kill can cost.
    Raises:
        OSError: no room on the disk (named before anything is decoded).
    """
    cache_root, root = Path(cache_root), Path(root)
    folder = cache_folder(cache_root, root, files, clip_format)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process (another rank, another seed) waits, then finds all done
        sources = _sources(root, files)
        starts = _starts(folder, sources, root, files, clip_format)
        waveforms, decoded = _open_arrays(folder, starts, clip_format)
        todo, problems = np.flatnonzero(~_is_current(decoded, sources)), {}
        if len(todo):
            problems = _decode(waveforms, starts, decoded, sources, todo, root, files, clip_format, n_threads, block,
                               title)
            write_json(folder / "problems.json", problems)
        usable = _is_current(decoded, sources)
    return ClipCache(folder, np.load(folder / "waveforms.npy", mmap_mode="r"), usable, problems, starts)


def _sources(root: Path, files: Sequence[str]) -> np.ndarray:
    """Return size in bytes and time of change in ns of every file, int64 (N, 2); zeros where there is none."""
    sources = np.zeros((len(files), 2), np.int64)
    for row, name in enumerate(files):
        try:
            status = os.stat(os.path.join(root, name))  # a Path for each would double the time
        except OSError:  # the decoder says what is wrong with it
            continue
        sources[row] = status.st_size, status.st_mtime_ns
    return sources


def _is_current(decoded: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Return bool (N,): rows that were decoded from the file that is there now."""
    return np.asarray((decoded == sources).all(1) & sources.any(1))


def _starts(folder: Path, sources: np.ndarray, root: Path, files: Sequence[str], clip_format: ClipFormat) -> np.ndarray:
    """Return where each clip starts in the array of all samples, int64 (N + 1,).

    Lengths of files that are not decoded yet are read from their headers. Where that moves any clip, what was decoded
    is dropped.
    """
    if clip_format.clip_s is not None:
        return np.arange(len(files) + 1) * clip_format.n_samples
    path, arrays = folder / "starts.npy", (folder / "waveforms.npy", folder / "sources.npy")
    known, decoded = np.zeros(len(files) + 1, np.int64), np.zeros_like(sources)
    if path.is_file():
        known = np.load(path)
        decoded = np.load(arrays[1]) if arrays[1].is_file() else decoded
    lengths = np.diff(known)
    for row in np.flatnonzero(~_is_current(decoded, sources)):
        lengths[row] = clip_format.length(root / files[row])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if not path.is_file() or (starts != known).any():
        for array in arrays:
            array.unlink(missing_ok=True)
        write_atomically(path, lambda temporary: _save(temporary, starts))
    return starts


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save(path) would add an ending
        np.save(file, array)


def _open_arrays(folder: Path, starts: np.ndarray, clip_format: ClipFormat) -> tuple[np.memmap, np.memmap]:
    """Return waveforms (N, T) or (samples of all,) and the sources they were decoded from (N, 2), writable; zeros
    where they are new."""
    paths, n_clips = (folder / "waveforms.npy", folder / "sources.npy"), len(starts) - 1
    all_samples = (max(1, int(starts[-1])),) if clip_format.clip_s is None else (n_clips, clip_format.n_samples)
    shapes = (all_samples, clip_format.dtype), ((n_clips, 2), "int64")
    if not all(path.is_file() for path in paths):
        n_bytes = starts[-1] * np.dtype(clip_format.dtype).itemsize
        free = shutil.disk_usage(folder).free
        try:
            if n_bytes > free:
                raise OSError(errno.ENOSPC, "disk full")
            for path, (shape, dtype) in zip(paths, shapes, strict=True):
                write_atomically(path, lambda tmp, shape=shape, dtype=dtype: _empty_array(tmp, shape, dtype))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(f"{folder}: the cache needs {n_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free (or your "
                          "quota is smaller). Give another folder (--cache), or set data.format.dtype=int16 to halve "
                          "it.") from None
    return tuple(np.load(path, mmap_mode="r+") for path in paths)


def _empty_array(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Write zeros, with their room on the disk: a memory map that finds the disk full later kills the process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    with open(path, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others: a file system that cannot reserve
                raise


def _decode(waveforms, starts, decoded, sources, todo, root, files, clip_format, n_threads, block,
            title) -> dict[str, str]:
    """Fill the rows `todo` and note their sources; return the reasons of those that could not be filled."""
    problems, samples = {}, waveforms.reshape(-1)
    decoded[todo] = 0  # a row that is half overwritten must not pass for the old one
    decoded.flush()

    def decode_one(row: int) -> None:
        try:
            clip = clip_format.read(root / files[row])
        except AudioError as error:
            problems[files[row]] = str(error)
            return
        if clip_format.dtype == "int16":
            clip = np.round(clip.clip(-1, 1) * FULL_SCALE_INT16)
        n_samples = starts[row + 1] - starts[row]
        samples[starts[row]:starts[row + 1]] = fit_length(clip[None], n_samples)[0]  # a resampler may round its way

    with ThreadPoolExecutor(n_threads) as pool, progress(total=len(todo), desc=title, unit="clip") as bar:
        for start in range(0, len(todo), block):
            rows = todo[start:start + block]
            list(pool.map(decode_one, rows))
            waveforms.flush()
            good = [row for row in rows if files[row] not in problems]
            decoded[good] = sources[good]
            decoded.flush()
            bar.update(len(rows))
    return {name: problems[name] for name in files if name in problems}
