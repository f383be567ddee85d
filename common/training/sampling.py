"""Which clips form which batch: the same answer whatever was killed, resumed or spread over processes.

Everything random is drawn from generators keyed by (seed, epoch, batch), never from a global state. So a resumed
run repeats an uninterrupted one bit for bit, and two processes together see the batches one process would see.
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
        batch_size: clips in a batch over all processes together. The last batch may be smaller and is kept. Where it
            has fewer clips than there are processes, it is left out in training (`shuffle`), and otherwise joined to
            the batch before: every process has a clip of every batch.

    Yields lists of (dataset row, position in the whole batch, clips in the whole batch).
    """

    def __init__(self, n_clips: int, batch_size: int, seed: int = 0, shuffle: bool = False,
                 rank: int = 0, world_size: int = 1):
        for what, count in (("batch_size", batch_size), ("number of clips", n_clips)):
            if count < world_size:
                raise ValueError(f"{what} {count} is below the number of processes {world_size}; use fewer.")
        self.sampler = EpochOrder(n_clips, seed, shuffle)  # lightning calls sampler.set_epoch
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def _bounds(self) -> list[tuple[int, int]]:
        """Return start and end of every batch in the epoch's order."""
        n_clips = self.sampler.n_clips
        starts = list(range(0, n_clips, self.batch_size))
        ends = [*starts[1:], n_clips]
        if ends[-1] - starts[-1] < self.world_size:
            starts.pop()
            last_end = ends.pop()
            if not self.sampler.shuffle:
                ends[-1] = last_end
        return list(zip(starts, ends, strict=True))

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = self.sampler.order()
        for start, end in self._bounds():
            yield [(int(order[start + position]), position, end - start)
                   for position in range(self.rank, end - start, self.world_size)]
