"""The decoded audio of a manifest's clips, each recording stored once at its own length.

Flow: manifest → **decoded recordings** → clips, or parts of them, of one length → batches.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.audio.cache import ClipCache, ClipFormat, build_cache
from task4_sed.data import Manifest
from task4_sed.maestro import RECORDINGS

SAMPLE_RATE = 16000


@dataclass
class ClipAudio:
    """The decoded audio of a manifest's clips, mono.

    Attributes:
        cache: recordings, each stored once at its own length; rows (n,): the recording of each clip.
        first, n_samples: int64 (n,), which part of its recording a clip is.
        usable: bool (n,); problems: path → sentence for files that cannot be used.
    """

    cache: ClipCache
    rows: np.ndarray
    first: np.ndarray
    n_samples: np.ndarray
    usable: np.ndarray
    problems: dict[str, str]

    def read(self, items: Sequence[int], n_samples: int, first: Sequence[int] | int = 0) -> np.ndarray:
        """Return `n_samples` of each clip from its sample `first` on, float32 (B, T), ±1; zeros after its end.

        Clips longer than that: draw `first` (task4_sed.augment.RandomCrop, whose `onset_s` moves the labels), as the
        published loader does even in validation, or take windows over the whole clip (`whole`).
        """
        items, first = np.asarray(items), np.broadcast_to(first, len(items))
        waveforms = self.cache.read_parts(self.rows[items], self.first[items] + first, n_samples)
        left = self.n_samples[items] - first
        for row in np.flatnonzero(left < n_samples):  # a crop ends before its recording
            waveforms[row, max(0, left[row]):] = 0
        return waveforms

    def whole(self, item: int) -> np.ndarray:
        """Return all of one clip, float32 (T,)."""
        return self.read([item], int(self.n_samples[item]))[0]


def open_audio(manifest: Manifest, cache_root: str | Path, dtype: str = "float32", n_threads: int = 2) -> ClipAudio:
    """Decode the files of a manifest (once) to 16 kHz mono: other rates are resampled, channels averaged.

    Args:
        cache_root: folder for decoded audio. dtype: of the cache, float32 or int16.
    """
    clip_format = ClipFormat(SAMPLE_RATE, None, resample=True, downmix=True, dtype=dtype)
    files = list(dict.fromkeys(manifest.clips.path))
    cache = build_cache(cache_root, manifest.root, files, clip_format, n_threads, title=f"decode {manifest.info.name}")
    rows = pd.Index(files).get_indexer(manifest.clips.path)
    first = (manifest.clips.start_s * SAMPLE_RATE).round().to_numpy(np.int64)
    n_samples = cache.lengths[rows] - first
    cut = manifest.clips.path.str.startswith(f"{RECORDINGS}/").to_numpy(bool)
    crop_samples = (manifest.clips.duration[cut] * SAMPLE_RATE).round().to_numpy(np.int64)
    n_samples[cut] = np.minimum(n_samples[cut], crop_samples)
    return ClipAudio(cache, rows, first, n_samples, cache.usable[rows], cache.problems)
