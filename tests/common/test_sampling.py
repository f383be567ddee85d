"""Every clip once an epoch, in an order that seed and epoch decide, whatever the number of processes."""

import numpy as np
import pytest

from common.training.sampling import AUGMENT, ORDER, BatchSampler, generator


def rows_of(sampler: BatchSampler) -> list[int]:
    return [row for batch in sampler for row, _, _ in batch]


def whole_batches(world_size: int, **how) -> list[list[tuple[int, int, int]]]:
    """Put the shares of all processes together, by position."""
    shares = [list(BatchSampler(rank=rank, world_size=world_size, **how)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    return [sorted(sum(parts, []), key=lambda place: place[1]) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("n_clips", "batch_size"), [(10, 4), (12, 4), (3, 4), (1, 1), (101, 7)])
def test_every_clip_once(n_clips, batch_size, shuffle):
    sampler = BatchSampler(n_clips, batch_size, seed=3, shuffle=shuffle)
    batches = list(sampler)
    assert len(sampler) == len(batches) == -(-n_clips // batch_size)  # the last batch is kept
    assert sorted(rows_of(sampler)) == list(range(n_clips))
    for batch in batches:
        assert [place[1:] for place in batch] == [(position, len(batch)) for position in range(len(batch))]


def test_without_shuffle_the_order_is_that_of_the_rows():
    assert rows_of(BatchSampler(10, 4)) == list(range(10))


def test_seed_and_epoch_decide_the_order():
    def order(seed, epoch):
        sampler = BatchSampler(50, 8, seed=seed, shuffle=True)
        sampler.sampler.set_epoch(epoch)
        assert rows_of(sampler) == rows_of(sampler)  # asking twice changes nothing
        return tuple(rows_of(sampler))

    assert order(1, 2) == order(1, 2)
    assert len({order(1, 2), order(1, 3), order(2, 2), order(2, 1)}) == 4


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("n_clips", "shuffle"), [(40, True), (47, True), (47, False), (33, False), (41, False)])
def test_processes_share_the_batches_that_one_would_see(world_size, n_clips, shuffle):
    how = {"n_clips": n_clips, "batch_size": 8, "seed": 5, "shuffle": shuffle}
    alone, together = list(BatchSampler(**how)), whole_batches(world_size, **how)
    last = n_clips % 8
    if 0 < last < world_size:  # too few for a clip each
        if shuffle:
            assert together == alone[:-1]
        else:
            assert together[:-1] == alone[:-2]
            assert [row for row, _, _ in together[-1]] == [row for batch in alone[-2:] for row, _, _ in batch]
            assert [place[1:] for place in together[-1]] == [(position, 8 + last) for position in range(8 + last)]
    else:
        assert together == alone


@pytest.mark.parametrize(("n_clips", "shuffle"), [(33, True), (33, False), (3, False), (43, True)])
def test_no_process_gets_an_empty_batch(n_clips, shuffle):
    for rank in range(3):
        assert all(BatchSampler(n_clips, 8, shuffle=shuffle, rank=rank, world_size=3))


@pytest.mark.parametrize(
    ("n_clips", "batch_size", "sentence"),
    [(10, 2, "batch_size 2 is below the number of processes 3"), (2, 8, "number of clips 2 is below")],
)
def test_more_processes_than_clips_is_refused(n_clips, batch_size, sentence):
    with pytest.raises(ValueError, match=sentence):
        BatchSampler(n_clips, batch_size, world_size=3)


def test_generators_differ_by_place_and_repeat():
    places = [(0, ORDER, 1), (0, AUGMENT, 1, 0), (0, AUGMENT, 1, 1), (0, AUGMENT, 2, 0), (1, ORDER, 1)]
    draws = [tuple(generator(*place).random(4)) for place in places]
    assert len(set(draws)) == len(places)
    np.testing.assert_array_equal(generator(0, AUGMENT, 1, 1).random(4), draws[2])
