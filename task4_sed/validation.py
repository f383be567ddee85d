"""Scores of hold-out clips during training: which epoch's weights are kept is decided by them.

Flow: student's probabilities → **median filter → PSDS1, mpAUC** → rank → best weights.

As published, clips of MAESTRO are scored one by one, not joined to recordings: faster than the reported mpAUC, and
another number. Clips are collected as they come, from all processes; nothing is written.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch.distributed as dist
from torch import Tensor

from common.data.manifest import DataError
from common.metrics.maestro import crop_set, mpauc
from common.metrics.scoring_set import scoring_set
from common.metrics.sed import psds
from common.metrics.sed_scores import FrameScores, clip_name, ground_truth
from common.training.distributed import process_rank, world_size
from task4_sed.data import Manifest
from task4_sed.labels import FrameGrid, sound_classes
from task4_sed.postprocess import median_filter

MAESTRO = "maestro"


class HoldOut:
    """Collects probabilities of hold-out clips, and scores them together.

    Args:
        manifests: sets that are looked at, by the names in `data.validation`: "maestro" is judged by mpAUC, all others
            by the PSDS1 of DESED's classes.
    """

    def __init__(self, manifests: Mapping[str, Manifest]):
        self.manifests = dict(manifests)
        self._collected: list[tuple[str, int, np.ndarray]] = []
        self._said: set[str] = set()

    def add(self, sets: Sequence[str], items: Sequence[int], probabilities: Tensor) -> None:
        """Take the probabilities (B, K, N) of clips: `items` are places in the manifests of `sets` (B,)."""
        values = probabilities.detach().transpose(1, 2).float().cpu().numpy()
        self._collected += zip(sets, map(int, items), values, strict=True)

    def metrics(self) -> dict[str, float]:
        """Return `mpauc_maestro`, `psds1_NAME` and their sum `rank`, over the clips of all processes, and forget them.

        A set that cannot be scored (in a small part of the data no clip may have an event) is left out and said.

        Raises:
            FloatingPointError: the network gives out what is no number.
        """
        collected, self._collected = gathered(self._collected), []
        found = {}
        for name, manifest in self.manifests.items():
            clips = {item: values for own, item, values in collected if own == name}
            metric = "mpauc_maestro" if name == MAESTRO else f"psds1_{name}"
            try:
                found[metric] = _score(name == MAESTRO, manifest, clips)
            except DataError as error:
                if process_rank() == 0 and name not in self._said:
                    print(f"hold-out {name} is not scored: {error}", flush=True)
                self._said.add(name)
        return found | {"rank": sum(found.values())}


def gathered(values: list) -> list:
    """Return the lists of all processes as one, in the order of the processes."""
    if world_size() == 1:
        return values
    parts = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def _score(is_maestro: bool, manifest: Manifest, clips: Mapping[int, np.ndarray]) -> float:
    classes = sound_classes()
    if not clips:
        raise DataError("none of its clips was looked at.")
    values = np.stack([clips[item] for item in sorted(clips)])
    if not np.isfinite(values).all():
        raise FloatingPointError(
            "the network's output is not finite on hold-out clips: lower optim.lr or rates, or use "
            "train.precision=32-true."
        )
    names = [clip_name(manifest.clips.filename.iloc[item]) for item in sorted(clips)]
    scores = FrameScores(names, classes.names, FrameGrid().boundaries_s, median_filter(values, classes.median_frames))
    if is_maestro:
        return mpauc(crop_set(scores, manifest.events, classes.where(classes.maestro_evaluated))).value
    truth = ground_truth(manifest.events, where=manifest.info.name)
    return psds(scoring_set(scores, truth, manifest.durations(), classes.where(classes.desed))).value
