"""Vectors of the networks of task 1: CP-Mobile, its device container, CP-ResNet, MobileNet, DyMN."""

import math
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.audio.files import read_audio
from common.audio.frontends import LogMel
from common.complexity import complexity
from common.files import sha256
from common.nn.dymn import START_TEMPERATURE, DyMN, DynamicConv2d
from common.nn.mobilenet import MobileNet
from common.nn.weights import KEY_MAPS, load_published, load_state_dict_file
from task1_asc.cp_resnet import CPResNet
from task1_asc.losses import cross_entropy
from task1_asc.model import CPMobile, DeviceModels, from_published
from tests.parity.checks import Check, DifferenceError, NotCoveredError, compare, equal, handles
from tests.parity.fill import filled_tensor, other_seed, probe
from tests.parity.vectors import SHARED, Vector

NETWORK_FP32 = 1e-5  # of the largest absolute value, as all tolerances called relative
TAGGER_FP32 = 2e-6
NETWORK_FP16 = 2e-3
# Logits of a real clip start from our own log mel, allowed to be 3e-4 off, instead of from the probe.
CLIP_FP32 = 3e-4


# ---------------------------------------------------------------- building and filling


def build(vector: Vector) -> nn.Module:
    """Return our network for the config of a vector."""
    config = vector.field("config")
    if "channels_multiplier" in config and "strides" in config:
        return CPMobile(**config)
    if "rho" in config:
        return _build_cp_resnet(config)
    rows = state_rows(vector) or []
    dynamic = any(row[0].startswith("layers.") for row in rows) or vector.name.startswith("dymn")
    network = (DyMN if dynamic else MobileNet)(config["width_mult"], config.get("num_classes", 527))
    if dynamic:
        named = re.search(r"temperature ([\d.]+\d|\d)", str(vector.field("fill")))
        network.set_temperature(float(named[1]) if named else START_TEMPERATURE)
    return network


def _build_cp_resnet(config: dict) -> CPResNet:
    pools = {i: tuple(config["maxpool_kernel"]) for i in config["maxpool_pos_stage1"]}
    if 0 in pools:
        pools[0] = tuple(config["maxpool_stage1_pos0_kernel"])
    return CPResNet(
        rho=config["rho"],
        base_channels=config["base_channels"],
        channels_multiplier=config["channels_multiplier"],
        n_blocks=config["n_blocks"],
        cut_channels_s3=config["cut_channels_s3"],
        groups_s2=config["s2_group"],
        pools=pools,
    )


def state_rows(vector: Vector) -> list | None:
    """Return the published (name, shape, dtype) rows; a json may say that they stand in another one."""
    rows = vector.field("state")
    if isinstance(rows, str):
        other = vector.sibling(re.search(r"(\S+)\.json", rows)[1])
        return state_rows(other) if other else None
    return rows


def published_state(vector: Vector, network: nn.Module) -> dict[str, Tensor]:
    """Return the filled state dict under the published names and in the published shapes."""
    own = network.state_dict()
    rows = state_rows(vector) or [
        [n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in own.items()
    ]
    keep = _kept_names(vector)
    state = {}
    for name, shape, dtype_name in rows:
        dtype = getattr(torch, dtype_name)
        if not dtype.is_floating_point or any(part in name for part in keep):
            state[name] = own.get(name, torch.zeros(shape, dtype=dtype)).clone()
        else:
            state[name] = filled_tensor(name, shape, dtype)
    return _with_gain(vector, network, state)


def _kept_names(vector: Vector) -> list[str]:
    """Return the parts of names that are not filled: listed in the json or in its sentence on the fill."""
    named = re.search(r"keep=\(([^)]*)\)", str(vector.field("fill")))
    return list(vector.field("keep") or []) + (re.findall(r"[\"'](\w+)[\"']", named[1]) if named else [])


def _with_gain(vector: Vector, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the gains that make some vectors depend on their input."""
    recipe = str(vector.field("fill"))
    if plain := re.search(r"every 4-D tensor times ([\d.]+)", recipe):
        return {n: t * float(plain[1]) if t.ndim == 4 else t for n, t in state.items()}
    if dynamic := re.search(r"times ([\d.]+)\*sqrt\((\d+)\*C\)", recipe):
        for name, module in network.named_modules():
            if isinstance(module, DynamicConv2d):
                gain = float(dynamic[1]) * math.sqrt(int(dynamic[2]) * module.kernel_shape[0])
                state[f"{name}.weight"] = state[f"{name}.weight"] * gain
    return state


def load_like_published(network: nn.Module, state: dict[str, Tensor], prefix: str, key_map: str) -> nn.Module:
    """Send filled weights through a checkpoint file and our own loader, as a published file would go."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.ckpt"
        torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, path)
        load_published(network, load_state_dict_file(path), KEY_MAPS[key_map])
    return network.eval()


def filled_network(vector: Vector) -> nn.Module:
    """Return our network for `vector`, filled by the rule."""
    network = build(vector)
    task1 = not isinstance(network, MobileNet | DyMN)
    prefix, key_map = ("model.", "dcase_baseline") if task1 else ("", "same names")
    return load_like_published(network, published_state(vector, network), prefix, key_map)


def probes(vector: Vector) -> dict[str, tuple]:
    """Return (shape, seed, scale) of every input by name."""
    if named := vector.field("inputs"):
        return {name: (i["shape"], i["seed"], i["scale"]) for name, i in named.items()}
    return {"": tuple(vector.field("input"))}


@torch.no_grad()
def outputs_of(network: nn.Module, shape: list[int], seed: int, scale: float) -> tuple[dict, dict]:
    """Return the network's outputs for a probe and for other noise of the same shape and scale."""
    return network(probe(shape, seed, scale)), network(probe(shape, other_seed(seed), scale))


# ---------------------------------------------------------------- one network, evaluation mode


def _twin_names(vector: Vector) -> list[str]:
    return [] if vector.name.endswith("_sensitive") else [f"{vector.name}_sensitive"]


def _is_network(vector: Vector) -> bool:
    config = vector.field("config")
    return isinstance(config, dict) and any(
        key in config for key in ("channels_multiplier", "rho", "width_mult")
    )


@handles(_is_network, signal_path_from=_twin_names)
def check_network(vector: Vector) -> Iterable[Check]:
    """Names, shapes, counts and outputs of one network."""
    network = filled_network(vector)
    yield from _counts(vector, network)
    if not vector.arrays:
        raise NotCoveredError(f"{vector.name}.npz is missing")
    for name, recipe in probes(vector).items():
        found, replaced = outputs_of(network, *recipe)
        # With several inputs each array is named after its input; with one, after the output.
        arrays = {name: "logits"} if name else {array: array for array in vector.arrays}
        for array, output in arrays.items():
            tolerance = _tolerance(vector, output)
            yield compare(array, found[output], vector.arrays[array], replaced=replaced[output], **tolerance)


def _tolerance(vector: Vector, output: str) -> dict[str, float]:
    rounding = vector.field("max_abs_err_fp32_vs_fp64")
    if rounding is not None and output == "logits":
        return {"absolute": 20 * rounding}
    plain_tagger = "width_mult" in vector.field("config") and not vector.name.startswith("dymn")
    return {"relative": TAGGER_FP32 if plain_tagger and rounding is None else NETWORK_FP32}


def _counts(vector: Vector, network: nn.Module) -> Iterable[Check]:
    if (expected := vector.field("n_params")) is not None:
        yield equal("n_params", sum(p.numel() for p in network.parameters()), expected)
    if (expected := vector.field("bytes_fp16")) is not None:
        yield equal("bytes_fp16", complexity(network, tuple(vector.field("macs_input"))).bytes, expected)
    for key, expected in (vector.spec or {}).items():
        if key.startswith("macs_torchinfo"):
            named = re.search(r"_(\d+(?:x\d+)+)$", key)
            shape = [int(n) for n in named[1].split("x")] if named else vector.field("macs_input")
            yield equal(key, complexity(network, tuple(shape)).macs, expected)


# ---------------------------------------------------------------- what else is known of one network


def _base_vector(vector: Vector) -> Vector:
    """Return the network vector that `NAME_fp16`, `NAME_layers` and `NAME_trainstep` belong to."""
    base = vector.sibling(vector.name.rsplit("_", 1)[0])
    if base is None or not _is_network(base):
        raise NotCoveredError(
            f"{vector.name.rsplit('_', 1)[0]}.json with the network's config is not beside it"
        )
    return base


# Half precision moves by some 15 of its wide tolerances only; the float32 vector has the same network and
# weights.
@handles(
    lambda v: v.spec is None and v.name.endswith("_fp16"),
    signal_path_from=lambda v: [v.name.removesuffix("_fp16")],
)
@torch.no_grad()
def check_half(vector: Vector) -> Iterable[Check]:
    """Outputs of the network and input of NAME, both cast to half precision on the CPU."""
    base = _base_vector(vector)
    network = filled_network(base).half()
    for array, expected in vector.arrays.items():
        shape, seed, scale = probes(base)[array]
        found = network(probe(shape, seed, scale).half())["logits"]
        replaced = network(probe(shape, other_seed(seed), scale).half())["logits"]
        yield compare(array, found, expected, relative=NETWORK_FP16, replaced=replaced)


def _layers_key(vector: Vector) -> str | None:
    keys = vector.spec if isinstance(vector.spec, dict) else ()
    return next((key for key in keys if key.startswith("layers_of_probe(")), None)


@handles(lambda v: _layers_key(v) is not None)
def check_layers(vector: Vector) -> Iterable[Check]:
    """Shape, mean, standard deviation and largest value after each block."""
    base = _base_vector(vector)
    network = filled_network(base)
    shape = [int(n) for n in re.search(r"\(([\d,\s]+)\)", _layers_key(vector))[1].split(",")]
    counted = complexity(network, tuple(shape))
    yield equal("macs", counted.macs, vector.field("macs"))
    yield equal("bytes", counted.bytes, vector.field("bytes"))
    expected = vector.spec[_layers_key(vector)]
    # The json does not say the seed: it is that of the network's first input, or 0.
    _, seed, scale = next(iter(probes(base).values()))
    candidates = [(seed, scale), (0, 1.0)]
    found = min(
        (_block_statistics(network, probe(shape, *c)) for c in candidates),
        key=lambda f: _distance(f, expected),
    )
    replaced = _block_statistics(network, probe(shape, other_seed(seed), scale))
    for name, (expected_shape, *values) in expected.items():
        if found[name][0] != expected_shape:
            raise DifferenceError(f"{name} has shape {found[name][0]}, expected {expected_shape}")
        yield compare(name, found[name][1], values, relative=NETWORK_FP32, replaced=replaced[name][1])


def _distance(found: dict, expected: dict) -> float:
    return max(
        float(abs(np.subtract(found[name][1], values)).max()) for name, (_, *values) in expected.items()
    )


@torch.no_grad()
def _block_statistics(network: CPMobile, log_mel: Tensor) -> dict[str, tuple[list[int], list[float]]]:
    """Return {"in_c.0": (shape, [mean, std, largest]), …, "block1": …} of one forward pass."""
    statistics = {}
    blocks = {f"in_c.{i}": module for i, module in enumerate(network.in_c)}
    stages = [module for stage in network.stages for module in stage]
    blocks |= {f"block{i}": module for i, module in enumerate(stages, start=1)}
    hooks = []
    for name, module in blocks.items():

        def record(_module, _inputs, y, name=name):
            statistics[name] = (list(y.shape), [y.mean().item(), y.std().item(), y.abs().max().item()])

        hooks.append(module.register_forward_hook(record))
    network(log_mel)
    for hook in hooks:
        hook.remove()
    return statistics


@handles(lambda v: v.field("grad_norm") is not None)
def check_training_step(vector: Vector) -> Iterable[Check]:
    """Loss, gradient norms and BatchNorm statistics of one step in training mode, without an optimiser."""
    shape, seed, scale = vector.field("input")
    labels = torch.tensor(vector.field("labels"))
    found, replaced = (
        _training_step(_base_vector(vector), probe(shape, s, scale), labels) for s in (seed, other_seed(seed))
    )
    yield compare(
        "loss", found["loss"], vector.field("loss"), relative=NETWORK_FP32, replaced=replaced["loss"]
    )
    for group in ("grad_norm", "running_mean_after", "running_var_after"):
        expected = vector.field(group)
        rows = [(_values(step[group], expected)) for step in (found, replaced)]
        yield compare(
            group, rows[0], np.hstack(list(expected.values())), relative=NETWORK_FP32, replaced=rows[1]
        )


def _training_step(base: Vector, log_mel: Tensor, labels: Tensor) -> dict:
    network = filled_network(base).train()
    loss = cross_entropy(network(log_mel)["logits"], labels)
    loss.backward()
    buffers = {name: buffer.tolist() for name, buffer in network.named_buffers() if buffer.ndim}
    return {
        "loss": loss.item(),
        "grad_norm": {name: p.grad.norm().item() for name, p in network.named_parameters()},
        "running_mean_after": buffers,
        "running_var_after": buffers,
    }


def _values(found: dict, expected: dict) -> np.ndarray:
    """Return the values found for the names expected, of each as many as are expected, in one row."""
    return np.hstack([np.atleast_1d(found[name])[: np.size(values)] for name, values in expected.items()])


# ---------------------------------------------------------------- container of device networks


@handles(lambda v: v.field("devices_in_container") is not None)
@torch.no_grad()
def check_container(vector: Vector) -> Iterable[Check]:
    """Mixed batch, no devices and a single device, through a container built from the file's names."""
    container = DeviceModels(CPMobile(), vector.field("devices_in_container"))
    own = container.state_dict()
    for name, shape, _ in vector.field("state"):
        if name not in own or list(own[name].shape) != shape:
            raise DifferenceError(f"{name} {shape} is not among our names and shapes")
    yield equal("n_state", len(own), vector.field("n_state"))
    yield equal("n_params", sum(p.numel() for p in container.parameters()), vector.field("n_params"))
    state = {n: filled_tensor(n, t.shape, t.dtype) if t.is_floating_point() else t for n, t in own.items()}
    load_like_published(container, state, "multi_device_model.", "dcase_baseline")

    shape, seed, scale = vector.field("input")
    clips = probe(shape, seed, scale)
    others = probe(shape, other_seed(seed), scale)
    for case, expected in vector.arrays.items():
        devices = _devices_of(case, vector, shape[0])
        found, replaced = container(clips, devices)["logits"], container(others, devices)["logits"]
        yield compare(case, found, expected, relative=NETWORK_FP32, replaced=replaced)


def _devices_of(case: str, vector: Vector, n_clips: int) -> list[str] | None:
    if case == "none":
        return None
    if case == "mixed":
        return vector.field("batch_devices")
    if case.startswith("single_"):
        return [case.removeprefix("single_")] * n_clips
    raise NotCoveredError(f"case {case} is unknown")


# ---------------------------------------------------------------- a real checkpoint on a real clip


@handles(lambda v: v.field("ckpt_sha256") is not None)
@torch.no_grad()
def check_real_checkpoint(vector: Vector) -> Iterable[Check]:
    """The challenge winner's file through our loader, on a clip through our front end."""
    network, _ = from_published(load_state_dict_file(_file_with(vector, "ckpt_sha256", "*.ckpt")))
    network.eval()
    front_end = LogMel()
    waveform, sample_rate = read_audio(_file_with(vector, "dummy_wav_sha256", "*.wav"))
    if sample_rate != front_end.input_rate:
        raise DifferenceError(f"the clip has {sample_rate} Hz, the front end takes {front_end.input_rate}")
    clip = torch.from_numpy(waveform)[None]
    log_mel, other = front_end(clip), front_end(probe(clip.shape, 0, clip.std().item()))
    statistics = [[x.mean().item(), x.std().item()] for x in (log_mel, other)]
    yield compare("logmel_mean_std", statistics[0], vector.field("logmel_mean_std"), absolute=3e-4)
    for precision, tolerance in (("fp32", CLIP_FP32), ("fp16", NETWORK_FP16)):
        model, x, y = network, log_mel, other
        if precision == "fp16":
            model, x, y = network.half(), log_mel.half(), other.half()
        for device, expected in vector.field(precision, {}).items():
            found, replaced = model(x, [device])["logits"][0], model(y, [device])["logits"][0]
            what = f"{precision} {device}"
            yield compare(what, found, expected, relative=tolerance, replaced=replaced)


def _file_with(vector: Vector, checksum_field: str, pattern: str) -> Path:
    """Return the file with the checksum that the json names, from the data folder beside the vectors."""
    expected = vector.field(checksum_field)
    folders = [parent / "data" for parent in vector.folder.resolve().parents] + [SHARED / "data"]
    for folder in folders:
        for where in ("checkpoints/task1", "scenes/real_challenge_samples/tau2022"):
            for path in sorted((folder / where).glob(pattern)):
                if sha256(path) == expected:
                    return path
    raise NotCoveredError(f"no {pattern} with SHA-256 {expected[:12]}… in {folders[-1]}")
