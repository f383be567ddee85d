"""Read and write networks of Task 1 in the key layout of the published checkpoints.

A file of ours and a published one are the same to every reader: {"state_dict": {"model.in_c…"}} for a general model,
{"state_dict": {"multi_device_model.base_model…", "multi_device_model.device_models.<device>…"}} for a container.
"""

from pathlib import Path

import torch
from torch import nn

from common.files import write_atomically
from common.nn.weights import WeightsError, container_devices, load_published, load_state_dict_file
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


    Raises:
        WeightsError: missing or unsafe file, keys or shapes of another network, other class names.
    """
    state = load_state_dict_file(path)  # first: it says in a sentence why a file cannot be read
    found = read_class_names(path)
    if found is not None and found != class_names:
        raise WeightsError(
            f"{path}: trained for the classes {found}, the data have {class_names}; use weights trained on "
            "these classes."
        )
    network = config.model(len(class_names))
    devices = container_devices(state)
    if devices:
        network = DeviceModels(network, devices)
    load_published(network, state, "dcase_baseline")
    return network


def read_class_names(path: Path) -> list[str] | None:
    """Return the class order in a file of ours; published files do not say theirs (it is alphabetical)."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("class_names")
