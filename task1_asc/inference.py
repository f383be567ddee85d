"""Run a trained system on lists of files: what a submission package does.

Flow: audio files + device ids → log mel → network of each device → **logits**.

`task1_asc.submit` copies this file and what it imports into every package. A system there is a checkpoint
(weights in fp16) with settings beside it: {"model": {"class_path", "init_args"}, "front_end": the same,
"clip_format", "class_names"}. A class path that begins with a dot is one of the repository, or of the package
it was copied into.
"""

import copy
import importlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.audio.cache import FULL_SCALE_INT16, ClipFormat
from common.nn.weights import load_state_dict_file
from task1_asc.model import from_published

N_DECODE_THREADS = 16
CLIPS_AT_ONCE = 256
_ROOT = __name__.removesuffix("task1_asc.inference").rstrip(
    "."
)  # the package copied into; empty in the repository


class SceneClassifier(nn.Module):
    """A system: clip reading, front end and network(s).

    Attributes:
        model: the network, or the container of device networks, in fp16.
        front_end: waveform (B, 1, T) → log mel (B, 1, F, N), float32.
        class_names: class order of the logits.
    """

    def __init__(
        self, model: nn.Module, front_end: nn.Module, clip_format: ClipFormat, class_names: Sequence[str]
    ):
        super().__init__()
        self.model, self.front_end = model.half().eval(), front_end.eval()
        self.clip_format, self.class_names = clip_format, list(class_names)

    def read_clip(self, path: str | Path) -> np.ndarray:
        """Return a clip (T,), float32: mean over channels, resampled, padded with zeros or cut to length."""
        clip = self.clip_format.read(Path(path))
        if self.clip_format.dtype == "int16":  # the system was tested on clips kept as 16 bit
            clip = np.round(clip * FULL_SCALE_INT16).astype(np.float32) / FULL_SCALE_INT16
        return clip


def load_model(weights: str | Path, settings: str | Path) -> SceneClassifier:
    """Return the system of a settings file, with weights from a checkpoint or a state dict of its model."""
    said = json.loads(Path(settings).read_text(encoding="utf-8"))
    model, _ = from_published(
        load_state_dict_file(weights), instantiate(said["model"], len(said["class_names"]))
    )
    lenient = ClipFormat(**said["clip_format"] | {"resample": True, "downmix": True, "pad": True})
    return SceneClassifier(model, instantiate(said["front_end"]), lenient, said["class_names"])


def instantiate(described: Mapping, *arguments):
    """Build the object that {"class_path": "a.b.Class", "init_args": {…}} describes."""
    module, _, name = described["class_path"].rpartition(".")
    module = (_ROOT + module).lstrip(".") if module.startswith(".") else module
    return getattr(importlib.import_module(module), name)(
        *arguments, **_plain(described.get("init_args", {}))
    )


def _plain(value):
    """Build nested classes, and turn the keys that JSON made text of back into numbers."""
    if isinstance(value, Mapping) and "class_path" in value:
        return instantiate(value)
    if isinstance(value, Mapping):
        return {int(key) if key.isdigit() else key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def get_model_for_device(model: SceneClassifier, device_id: str | None) -> nn.Module:
    """Return the one network (fp16) that runs for a device's clips; the general one for an unknown device."""
    choose = getattr(model.model, "get_model_for_device", None)
    return choose(device_id) if choose else model.model


@torch.no_grad()
def load_inputs(
    file_paths: Sequence[str | Path], device_ids: Sequence[str], model: SceneClassifier
) -> list[Tensor]:
    """Return the log mel (1, 1, F, N) of every file, fp16, in the order given.

    Raises:
        AudioError: a file that cannot be read, by its name.
    """
    if len(file_paths) != len(device_ids):
        raise ValueError(
            f"{len(file_paths)} files and {len(device_ids)} device ids: give one device id per file."
        )
    target, inputs = next(model.parameters()).device, []
    with ThreadPoolExecutor(N_DECODE_THREADS) as pool:
        for start in range(0, len(file_paths), CLIPS_AT_ONCE):
            clips = list(pool.map(model.read_clip, file_paths[start : start + CLIPS_AT_ONCE]))
            waveform = torch.from_numpy(np.stack(clips))[:, None].to(target)
            inputs += model.front_end(waveform).half().split(1)
    return inputs


@torch.no_grad()
def predict(
    model: SceneClassifier, file_paths: Sequence[str | Path], device_ids: Sequence[str], use_cuda: bool = True
) -> tuple[list[Tensor], list[str]]:
    """Return (logits (K,) of every file in the order given, class order).

    Clips that share a network run as one batch. A GPU computes in fp16, a CPU (slow in fp16) in float32 from
    the fp16 weights and log mel.
    """
    on_gpu = use_cuda and torch.cuda.is_available()
    dtype = torch.float16 if on_gpu else torch.float32
    model = model.to("cuda" if on_gpu else "cpu").eval()
    networks: dict[int, nn.Module] = {}
    logits: list[Tensor] = []
    for start in tqdm(range(0, len(file_paths), CLIPS_AT_ONCE), desc="predict", unit="batch", mininterval=2):
        devices = device_ids[start : start + CLIPS_AT_ONCE]
        inputs = load_inputs(file_paths[start : start + CLIPS_AT_ONCE], devices, model)
        clips_of: dict[int, list[int]] = {}
        for i, device in enumerate(devices):
            network = get_model_for_device(model, device)
            if id(network) not in networks:
                networks[id(network)] = copy.deepcopy(network).to(dtype).to(memory_format=torch.channels_last)
            clips_of.setdefault(id(network), []).append(i)
        block: list[Tensor] = [torch.empty(0)] * len(devices)
        for key, clips in clips_of.items():
            log_mel = (
                torch.cat([inputs[i] for i in clips]).to(dtype).contiguous(memory_format=torch.channels_last)
            )
            for i, row in zip(clips, networks[key](log_mel)["logits"].float().cpu(), strict=True):
                block[i] = row
        logits += block
    return logits, list(model.class_names)
