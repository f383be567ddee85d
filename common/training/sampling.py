"""Which clips form which batch: the same answer whatever was killed, resumed or spread over processes.

Everything random is drawn from generators keyed by (seed, epoch, batch), never from a global state. So a resumed run
repeats an uninterrupted one bit for bit, and two processes together see the batches one process would see.
"""
from collections.abc import Iterator

import numpy as np

ORDER, AUGMENT = 0, 1  # streams of random numbers


def generator(seed: int, stream: int, *position: int) -> np.random.Generator:
    """Return the generator that belongs to this place in the run: stream, epoch, batch."""
    return np.random.default_rng(np.random.SeedSequence((seed, stream, *position)))


class EpochOrder:
    """The order of one epoch; lightning tells it the epoch."""

    def __init__(self, n_clips: int, seed: int, shuffle: bool):
        self.n_clips, self.seed, self.shuffle, self.epoch = n_clips, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.n_clips)
        return generator(self.seed, ORDER, self.epoch).permutation(self.n_clips)


class BatchSampler:
    """Cut the epoch's order into batches; of each batch this process takes every `world_size`-th clip.

    Args:
        batch_size: clips in a batch over all processes together. The last batch may be smaller and is kept; it is left
            out only in training when it has fewer clips than there are processes.

    Yields lists of (dataset row, position in the whole batch, clips in the whole batch).
    """

    def __init__(self, n_clips: int, batch_size: int, seed: int = 0, shuffle: bool = False,
                 rank: int = 0, world_size: int = 1):
        if batch_size < world_size:
            raise ValueError(f"batch_size {batch_size} is below the number of processes {world_size}; raise it.")
        self.sampler = EpochOrder(n_clips, seed, shuffle)  # lightning calls sampler.set_epoch
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def _starts(self) -> range:
        n_clips = self.sampler.n_clips
        last = n_clips % self.batch_size
        drop = self.sampler.shuffle and 0 < last < self.world_size
        return range(0, n_clips - last if drop else n_clips, self.batch_size)

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = self.sampler.order()
        for start in self._starts():
            batch = order[start:start + self.batch_size]
            yield [(int(batch[position]), position, len(batch))
                   for position in range(self.rank, len(batch), self.world_size)]
