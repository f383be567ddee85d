"""What all built-in data sets need: a folder for one generator at a time, work on all cores, small files.

Flow: plan → render, one job after the other or on all cores → **files, tables**.

Every file is written beside its place and renamed: half a file is never there under its name. A killed call
leaves files and `generating.json`; the next one with the same options goes on.
"""

import fcntl
import io
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from common.files import write_json, write_text

WAV_HEADER_BYTES = 44
_SUBTYPES = {16: "PCM_16", 24: "PCM_24"}


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the folder: a second process that makes the same data waits, then finds everything done."""
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def claim(root: Path, card: dict, parts: Iterable[str]) -> None:
    """Refuse a folder with other data in it; otherwise note what is going to be written there.

    Args:
        card: what identifies the data: generator and options.
        parts: files and folders of the data set; one that is there without a note is somebody else's.
    """
    for stamp in ("dataset.json", "generating.json"):
        if (root / stamp).is_file():
            found = json.loads((root / stamp).read_text(encoding="utf-8"))
            for key, wanted in card.items():
                if found.get(key) != wanted:
                    raise ValueError(
                        f"{root}: holds data with {key} = {found.get(key)!r}, asked for {wanted!r}; "
                        "give another folder, or delete this one."
                    )
            return
    if any((root / part).is_file() or any((root / part).glob("*")) for part in parts):
        raise ValueError(f"{root}: holds data that this generator did not write; give a new or empty folder.")
    write_json(root / "generating.json", card)


def finish(root: Path, card: dict, audio_folders: Iterable[str]) -> None:
    """Take away what killed calls left, and write `dataset.json`: from now on the data set is complete."""
    for folder in audio_folders:
        for part in (root / folder).glob(".*.tmp"):  # the lock says that nobody writes
            part.unlink()
    write_json(root / "dataset.json", card)
    (root / "generating.json").unlink(missing_ok=True)


def work(render: Callable[..., int], jobs: list[tuple], n_processes: int | None) -> Iterator[int]:
    """Yield what `render(*job)` returns, job after job; `n_processes` None: one for each core."""
    n_processes = n_processes or len(os.sched_getaffinity(0))
    if n_processes <= 1 or len(jobs) < 20:  # starting processes takes longer than a few recordings
        yield from (render(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once the caller has threads, and torch has
    with ProcessPoolExecutor(min(n_processes, len(jobs)), context, initializer=_end_with_parent) as pool:
        yield from pool.map(render, *zip(*jobs, strict=True), chunksize=4)


def _end_with_parent() -> None:
    """End this worker when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def wav_bytes(n_samples: int, bits: int) -> int:
    """Return the size of a mono WAV file."""
    return WAV_HEADER_BYTES + n_samples * bits // 8


def is_whole(path: Path, n_samples: int, bits: int) -> bool:
    return path.is_file() and path.stat().st_size == wav_bytes(n_samples, bits)


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int, bits: int) -> None:
    """Write `waveform` (T,), but do not sync a thousand times as soundfile would: `is_whole` looks at the size."""
    content = io.BytesIO()
    soundfile.write(content, waveform, sample_rate, format="WAV", subtype=_SUBTYPES[bits])
    part = path.with_name(f".{path.name}.tmp")
    part.write_bytes(content.getvalue())
    os.replace(part, path)


def write_table(path: Path, header: Iterable[str] | None, rows: Iterable[Iterable[str]], separator: str = "\t") -> None:
    """Write rows of text; `header` None: without one."""
    lines = [header, *rows] if header is not None else rows
    write_text(path, "".join(separator.join(row) + "\n" for row in lines))
