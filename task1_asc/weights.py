"""Read and write networks of Task 1 in the key layout of the published checkpoints.

A file of ours and a published one are the same to every reader: {"state_dict": {"model.in_c…"}} for a general model,
{"state_dict": {"multi_device_model.base_model…", "multi_device_model.device_models.<device>…"}} for a container.
"""
from pathlib import Path

import torch
from torch import nn

from common.files import write_atomically
from task1_asc.config import Task1Config
from task1_asc.model import DeviceModels

GENERAL, CONTAINER = "model.", "multi_device_model."


def save_network(network: nn.Module, path: Path, class_names: list[str]) -> None:
    """Write the weights, with the class order beside them."""
    prefix = CONTAINER if isinstance(network, DeviceModels) else GENERAL
    state = {prefix + name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(path, lambda file: torch.save({"state_dict": state, "class_names": class_names}, file))


def load_network(path: Path, config: Task1Config, class_names: list[str]) -> nn.Module:
    """Build the network of `config` and fill it from `path`: a general model or a container, ours or published.

    """
    state = torch.load(path, weights_only=True)["state_dict"]
    network = config.model(len(class_names))
    if next(iter(state)).startswith(CONTAINER):
        devices = sorted({name.split(".")[2] for name in state if name.startswith(CONTAINER + "device_models.")})
        network = DeviceModels(network, devices)
    prefix = CONTAINER if isinstance(network, DeviceModels) else GENERAL
    network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return network
