"""Parameters, bytes and multiply-accumulate operations by the rule of the low-complexity challenge.

Flow: network + input shape → **complexity** → result JSON, submission package.

The rule (DCASE 2025 task 1): torchinfo's `total_mult_adds` for one item on a float32 copy. It adds up
`weight` and `bias` parameters of leaf modules: in convolutions times the output positions, elsewhere once.
Pooling, activations, sums, functional calls and parameters with other names (a norm's `gamma`, the kernels of
a dynamic convolution) count 0. Memory is parameters times bytes of their type; buffers such as BatchNorm
statistics are free.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
import torch
import torchinfo
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MAX_MACS = 30_000_000
MAX_BYTES = 128_000
BYTES_PER_PARAMETER = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
INT8_BIAS_BYTES = 4  # biases of int8 layers are int32
_TORCH_BYTES = {
    torch.float32: 4, torch.int32: 4, torch.float16: 2, torch.bfloat16: 2,
    torch.int8: 1, torch.uint8: 1, torch.qint8: 1, torch.quint8: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Complexity:
    """What one network costs.

    Attributes:
        macs: multiply-accumulate operations for one item.
        parameters: number of parameters, whatever their type.
        bytes: memory of the parameters when stored as `dtype`.
        layers: one row per leaf module: name, kind, output_shape (without batch), parameters, macs.
    """

    macs: int
    parameters: int
    bytes: int
    dtype: str
    layers: pd.DataFrame


def complexity(model: nn.Module, input_shape: tuple[int, ...], dtype: str = "fp16") -> Complexity:
    """Count `model` for one input of `input_shape` (its batch must be 1); the model itself is not touched.

    Args:
        input_shape: for example (1, 1, 256, 65), batch · channels · mel bins · frames.
        dtype: how the weights will be stored: fp32, fp16, bf16 or int8. For int8 the copy's BatchNorms are
            folded into the convolutions first, as quantisation does; weights then cost 1 byte and biases 4.

    Raises:
        ValueError: a quantised model, a container of device models, a batch other than 1 or an unknown dtype.
    """
    if dtype not in BYTES_PER_PARAMETER:
        raise ValueError(
            f"dtype {dtype!r} has no byte size here: choose one of {', '.join(BYTES_PER_PARAMETER)}."
        )
    if input_shape[0] != 1:
        raise ValueError(
            f"input_shape {tuple(input_shape)} has a batch of {input_shape[0]}: the rule counts one item."
        )
    if hasattr(model, "get_model_for_device"):
        raise ValueError("The limits hold for one device's network: pass model.get_model_for_device(device).")
    if _packed_layers(model):
        raise ValueError(
            "This model is quantised: torchinfo sees none of its packed weights. Count the float model "
            "it was made from, with dtype='int8'; parameter_bytes() alone reads packed weights."
        )
    network = deepcopy(model).cpu().float().eval()
    if dtype == "int8":
        network = fold_batchnorm(network)
    layers = _layer_table(network, tuple(input_shape))
    return Complexity(
        macs=int(layers.attrs["total_macs"]),
        parameters=sum(p.numel() for p in network.parameters()),
        bytes=_bytes_as(network, dtype),
        dtype=dtype,
        layers=layers,
    )


def parameter_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters in the types they have now.

    Counts packed weights of quantised layers as well: they are no parameters to torch, so that a plain sum
    over `parameters()` would call an int8 network almost free. Their biases cost 4 bytes (int32 when run).
    """
    tensors = list(model.parameters())
    for layer in _packed_layers(model):
        tensors += [t for t in (layer.weight(), layer.bias()) if t is not None]
    for tensor in tensors:
        if tensor.dtype not in _TORCH_BYTES:
            raise ValueError(
                f"a parameter is {tensor.dtype}, which the rule does not allow: convert it to float16."
            )
    return sum(t.numel() * _TORCH_BYTES[t.dtype] for t in tensors)


def limit_violations(found: Complexity, max_macs: int = MAX_MACS, max_bytes: int = MAX_BYTES) -> list[str]:
    """Return one sentence per exceeded limit; an empty list when the network may be submitted."""
    sentences = []
    if found.macs > max_macs:
        sentences.append(f"{found.macs:,} MACs are above the limit of {max_macs:,}.")
    if found.bytes > max_bytes:
        sentences.append(
            f"{found.bytes:,} bytes of {found.dtype} parameters are above the limit of {max_bytes:,}."
        )
    return sentences


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose BatchNorms are folded into the convolutions before them.

    Folds pairs that follow each other in an `nn.Sequential`; the folded convolution has a bias.
    """
    folded = deepcopy(model).eval()
    for module in folded.modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return folded


def _bytes_as(network: nn.Module, dtype: str) -> int:
    if dtype != "int8":
        return sum(p.numel() for p in network.parameters()) * BYTES_PER_PARAMETER[dtype]
    return sum(
        p.numel() * (INT8_BIAS_BYTES if name.rsplit(".", 1)[-1] == "bias" else BYTES_PER_PARAMETER["int8"])
        for name, p in network.named_parameters()
    )


def _packed_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that keep their weights packed (quantised convolutions and linear layers)."""
    return [
        m
        for m in model.modules()
        if callable(getattr(m, "weight", None)) and callable(getattr(m, "bias", None))
    ]


def _layer_table(network: nn.Module, input_shape: tuple[int, ...]) -> pd.DataFrame:
    """Run torchinfo on `network` and return its leaf modules; attrs["total_macs"] is its total."""
    summary = torchinfo.summary(network, input_size=input_shape, device="cpu", mode="eval", verbose=0)
    names = {id(module): name for name, module in network.named_modules()}
    rows = [
        (names[info.layer_id], info.class_name, tuple(info.output_size[1:]), info.num_params, info.macs)
        for info in summary.summary_list
        if info.is_leaf_layer and info.executed
    ]
    table = pd.DataFrame(rows, columns=["name", "kind", "output_shape", "parameters", "macs"])
    table.attrs["total_macs"] = summary.total_mult_adds
    return table
