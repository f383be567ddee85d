"""Vectors of the transformer encoders: ATST-Frame, BEATs, frame-wise PaSST."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.nn.atst import AtstFrame
from common.nn.beats import Beats
from common.nn.frame_passt import FramePasst
from common.nn.weights import load_published
from tests.parity.checks import Check, compare, equal, handles
from tests.parity.fill import filled_tensor, other_seed, probe
from tests.parity.vectors import Vector

NETWORK_FP32 = 1e-5  # of the largest absolute value


def filled(network: nn.Module, vector: Vector, key_map: str, prefix: str = "", part: str = "") -> nn.Module:
    """Fill the published names by the rule and load them as a published file would be.

    Args:
        prefix: put before the vector's names.
    """
    state = {}
    for name, shape, dtype in vector.field("keys"):
        # One tensor under twelve names has the fill of the first.
        first = re.sub(r"layers\.\d+(\.self_attn\.relative_attention_bias)", r"layers.0\1", name)
        state[prefix + name] = filled_tensor(first, shape, getattr(torch, dtype))
    load_published(network, state, key_map, part=part)
    return network.eval()


def macs(network: nn.Module, log_mel: Tensor) -> int:
    """Return the multiply-adds of convolutions, linear layers and attention products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(log_mel)
    return counter.get_total_flops() // 2


def _outputs(
    vector: Vector, network: nn.Module, shape: tuple[int, ...], saved_macs: int = 0
) -> Iterable[Check]:
    """Counts and final output; the steps of the output's slice stand in its description."""
    seed = vector.field("seed")
    log_mel, other = probe(shape, seed, 0.5), probe(shape, other_seed(seed), 0.5)
    found, replaced = network(log_mel), network(other)
    step = 5 if isinstance(network, Beats) else 3
    yield equal("params", sum(p.numel() for p in network.parameters()), vector.field("params"))
    yield equal("macs", macs(network, log_mel) + saved_macs, vector.field("macs"))
    yield equal("full_shape", found.shape, vector.field("full_shape"))
    yield _close("out", found[:, ::step, ::4], vector, replaced[:, ::step, ::4])


def _close(what: str, found: Tensor, vector: Vector, replaced: Tensor | None = None) -> Check:
    return compare(what, found, vector.arrays[what], relative=NETWORK_FP32, replaced=replaced)


@handles(lambda v: v.name == "atst_frame_base")
@torch.no_grad()
def check_atst_frame(vector: Vector) -> Iterable[Check]:
    """Patches and frames."""
    network = filled(AtstFrame(), vector, "atst_frame", part="encoder.network.")
    yield from _outputs(vector, network, (1, 1, 64, 1001))
    patches, replaced = (
        network.patch_embed(probe((1, 1, 64, 1001), seed, 0.5))[:, ::3, ::4]
        for seed in (vector.field("seed"), other_seed(vector.field("seed")))
    )
    yield _close("patch", patches, vector, replaced)


@handles(lambda v: v.name == "beats")
@torch.no_grad()
def check_beats(vector: Vector) -> Iterable[Check]:
    """Tokens and relative position bias."""
    network = filled(Beats(), vector, "beats", part="encoder.network.")
    # Of each gate we compute the 2 sums, not the 8 terms: 12 layers, 496 tokens, 12 heads of 64.
    yield from _outputs(vector, network, (1, 1, 128, 998), saved_macs=12 * 496 * 12 * 64 * 6)
    n_tokens = vector.field("full_shape")[1]
    yield _close("rel_bias", network.encoder.relative_bias(n_tokens)[:, ::31, ::31], vector)


@handles(lambda v: v.name == "fpasst")
@torch.no_grad()
def check_frame_passt(vector: Vector) -> Iterable[Check]:
    """Convolutional stem and frames."""
    network = filled(FramePasst(), vector, "pretrained_sed", prefix="model.fpasst.", part="encoder.network.")
    yield from _outputs(vector, network, (1, 1, 128, 1000))
    stem, replaced = (
        network.stem(probe((1, 1, 128, 1000), seed, 0.5))[:, ::8, ::4, ::5]
        for seed in (vector.field("seed"), other_seed(vector.field("seed")))
    )
    yield _close("stem", stem, vector, replaced)
