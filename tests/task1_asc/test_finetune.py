"""What fine-tuning may change: the named part of the network, and nothing else."""

import numpy as np
import pytest
import torch

from common.training.loop import Hardware
from task1_asc.config import CONFIGS, AugmentConfig, load_config
from task1_asc.data import DataConfig, load_clips, open_data
from task1_asc.finetune import freeze, keep_better, renew_statistics
from task1_asc.model import CPMobile, DeviceModels
from task1_asc.system import SceneSystem
from tests.task1_asc.conftest import SHORT_CLIPS


@pytest.fixture
def clips(tau, tmp_path):
    config = load_config(CONFIGS / "dcase2025/general.yaml", SHORT_CLIPS)[0]
    return load_clips(open_data(tau), "split100", config.data, tmp_path / "cache"), config


def one_step(network, config, clips, part) -> dict[str, torch.Tensor]:
    """Train one batch and return what moved: name → largest change."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    system = SceneSystem(
        config.front_end(), network, AugmentConfig(mixstyle_p=0.0), clips, freeze(network, part)
    ).train()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    batch = next(iter(clips.loader(32)))
    system.training_losses(batch, np.random.default_rng(0))["loss"].backward()
    optimiser.step()
    changes = {name: (tensor - before[name]).abs().max() for name, tensor in network.state_dict().items()}
    return {name for name, change in changes.items() if change > 0}


def test_head_alone_moves_and_sees_the_features_of_testing(clips):
    clips, config = clips
    network = CPMobile(base_channels=8)
    moved = one_step(network, config, clips, "head")
    assert moved and all(name.startswith("feed_forward.") for name in moved)
    system = SceneSystem(config.front_end(), network, config.augment, clips, freeze(network, "head"))
    x = torch.randn(4, 1, 256, 17)
    features = [network.stages(network.in_c(x)) for _ in (system.train(), system.eval())]
    assert torch.equal(system.train() and network.stages(network.in_c(x)), features[1])


def test_batch_norm_moves_scales_shifts_and_statistics_of_all_norms(clips):
    clips, config = clips
    network = CPMobile(base_channels=8)
    norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    moved = one_step(network, config, clips, "batch_norm")
    assert {name.rpartition(".")[0] for name in moved} == norms
    assert {name.rpartition(".")[2] for name in moved} >= {"weight", "bias", "running_mean", "running_var"}


def test_renewed_statistics_are_those_of_the_clips_and_weights_stay(clips):
    clips, config = clips
    network, front_end = CPMobile(base_channels=8), config.front_end()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    renew_statistics(network, front_end, clips, batch_size=len(clips))
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    with torch.no_grad():
        first = network.in_c[0][0](front_end(clips.waveforms(range(len(clips)))))
    torch.testing.assert_close(network.in_c[0][1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("worse", [True, False])
def test_general_model_is_kept_unless_the_copy_is_better_on_the_holdout(clips, worse):
    clips, config = clips
    held = clips.select(clips.devices == "a")
    container = DeviceModels(CPMobile(base_channels=8).eval(), ["a"])
    loser = container.device_models["a"] if worse else container.base_model
    winner = container.base_model if worse else container.device_models["a"]
    for network, answer in ((loser, 1), (winner, int(held.labels.mode().values))):  # constant answers
        torch.nn.init.zeros_(network.feed_forward[1].weight)
        network.feed_forward[1].bias.data = torch.nn.functional.one_hot(torch.tensor(answer), 10).float()
    held.labels = torch.full_like(held.labels, int(held.labels.mode().values))
    report = keep_better(container, "a", held, config, Hardware("cpu"))
    assert report["kept_base"] is worse and report["n_holdout"] == len(held)
    if worse:
        assert torch.equal(container.device_models["a"].feed_forward[1].bias, container.base_model.feed_forward[1].bias)


def test_rates_that_differ_are_refused():
    with pytest.raises(ValueError, match="data.format.sample_rate is 32000, the front end's input_rate 44100"):
        load_config(CONFIGS / "dcase2025/general.yaml", ["--data.format.sample_rate=32000"])


def test_finetune_without_a_base_is_refused():
    with pytest.raises(ValueError, match="finetune is used only where `base` names a general model"):
        load_config(CONFIGS / "dcase2025/general.yaml", ["--finetune.trainable=head"])


def test_max_clips_spreads_over_the_list(tau, tmp_path):
    config = DataConfig(
        subset=100, max_clips=30, format=load_config(CONFIGS / "dcase2025/general.yaml", SHORT_CLIPS)[0].data.format
    )
    clips = load_clips(open_data(tau), "split100", config, tmp_path / "cache")
    assert len(clips) == 30 and set(clips.devices) == {"a", "b", "s1"} and len(set(clips.labels.tolist())) == 10
