"""What fine-tuning for a device may change, and whether it is kept.

Flow: general model → copy of a device → **part that trains** → trained copy → **kept or replaced by the general one**.
"""

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from common.training.loop import Hardware
from task1_asc.config import Task1Config
from task1_asc.data import Clips
from task1_asc.model import DeviceModels


def freeze(network: nn.Module, trainable: str) -> list[nn.Module]:
    """Leave only the part named by FinetuneConfig.trainable to the optimiser.

    Returns:
        The norms that are to use the statistics they have, as in testing: where only the head trains, it must see the
        features it will see later.
    """
    if trainable == "all":
        return []
    head = set(network.feed_forward.modules()) if trainable == "head" else set()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in network.modules():
        learns = module in head or (trainable == "batch_norm" and module in norms)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
    return [norm for norm in norms if norm not in head] if trainable == "head" else []


@torch.no_grad()
def renew_statistics(network: nn.Module, front_end: nn.Module, clips: Clips, batch_size: int) -> None:
    """Replace the batch norm statistics of `network` by those of `clips`; nothing else changes, nothing is trained."""
    batches = clips.loader(batch_size)
    update_bn((front_end(clips.waveforms(batch["item"].numpy())) for batch in batches), network)
    network.eval()


@torch.no_grad()
def keep_better(container: DeviceModels, device: str, held: Clips, config: Task1Config, hardware: Hardware) -> dict:
    """Put the general model back for `device` unless the fine-tuned one is better on the device's hold-out clips."""
    from task1_asc.evaluate import predict_logits

    accuracy = {}
    for name, network in (("base", container.base_model), ("fine_tuned", container.get_model_for_device(device))):
        compute = "cuda" if hardware.on_gpu else "cpu"
        logits = predict_logits(network, config.front_end(), held, config.test_precision, compute)
        accuracy[name] = float(np.mean(logits.argmax(1) == held.labels.numpy()))
    kept = accuracy["fine_tuned"] <= accuracy["base"]
    if kept:
        container.device_models[device].load_state_dict(container.base_model.state_dict())
    print(
        f"device {device}: hold-out accuracy {accuracy['base']:.3f} before, {accuracy['fine_tuned']:.3f} after; "
        f"{'general model kept' if kept else 'fine-tuned model kept'}",
        flush=True,
    )
    return {"holdout_accuracy": accuracy, "kept_base": kept, "n_holdout": len(held)}
