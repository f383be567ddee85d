"""The training loop: what a resumed run reads, with processes that read ahead and without."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.training import distributed
from common.training.loop import Hardware, fit
from common.training.module import OptimConfig, Totals, TrainConfig, TrainingSystem
from common.training.sampling import BatchSampler

N_CLIPS, BATCH = 12, 4


class Rows(Dataset):
    """Batches of row numbers."""

    def __getitems__(self, places):
        return {"rows": torch.tensor([row for row, _, _ in places]), "n_clips": places[0][2]}


class Recorder(TrainingSystem):
    """One weight; notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(N_CLIPS)), []

    def training_losses(self, batch, rng):
        self.seen.append(batch["rows"].tolist())
        return {"loss": (self.weight[batch["rows"]] - batch["rows"]).square().mean()}

    def validation_scores(self, batch):
        return {"loss": self.weight[batch["rows"]]}


def train(run: Path, epochs: int, n_workers: int) -> Recorder:
    system = Recorder()

    def loaders(rank, world_size):
        sampler = BatchSampler(N_CLIPS, BATCH, seed=3, shuffle=True, rank=rank, world_size=world_size)
        return DataLoader(Rows(), batch_sampler=sampler, collate_fn=_same, num_workers=n_workers,
                          persistent_workers=n_workers > 0), None  # fmt: skip

    fit(system, loaders, OptimConfig(lr=0.1, warmup_steps=0), TrainConfig(epochs, BATCH), run, 0, Hardware("cpu"))
    return system


def _same(batch):
    return batch


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_resumed_run_reads_what_the_uninterrupted_one_would_have_read(tmp_path, n_workers):
    whole = train(tmp_path / "whole", epochs=3, n_workers=n_workers)
    first = train(tmp_path / "parts", epochs=1, n_workers=n_workers)
    rest = train(tmp_path / "parts", epochs=3, n_workers=n_workers)
    assert first.seen + rest.seen == whole.seen
    assert len({str(whole.seen[i : i + 3]) for i in (0, 3, 6)}) == 3, "every epoch has its own order"


def test_a_term_that_some_batches_lack_is_averaged_over_the_others():
    totals = Totals()
    totals.add({"loss": torch.tensor(8.0), "mixed": torch.tensor(4.0)}, 4)
    totals.add({"loss": torch.tensor(2.0)}, 1)
    assert totals.counts == {"loss": 5, "mixed": 4} and float(totals.sums["mixed"]) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_over_two_processes_that_hold_the_same_clips(dtype, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist_nn, "all_reduce", lambda values: 2 * values)
    plain, whole = nn.BatchNorm2d(3), distributed.WholeBatchNorm2d(3)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = plain(torch.cat([x, x]).float())[:4]
    found = whole(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
    torch.testing.assert_close(whole.running_var, plain.running_var, atol=1e-6, rtol=1e-6)
