"""One submitted system, by the interface of DCASE 2025 Task 1; its checkpoint in ckpts/ has the same name."""

from pathlib import Path

from torch import Tensor, nn

from task1_asc import inference

CHECKPOINT = Path(__file__).parent / "ckpts" / f"{Path(__file__).stem}.pt"


def load_model(model_file_path: str | None = None) -> nn.Module:
    """Return the system with the weights of a file, or its own; `.model` is it without the front end."""
    return inference.load_model(model_file_path or CHECKPOINT, CHECKPOINT.with_suffix(".json"))


def load_inputs(file_paths: list[str], device_ids: list[str], model: nn.Module) -> list[Tensor]:
    """Return the log mel (1, 1, F, N) of every file, fp16, in the order given."""
    return inference.load_inputs(file_paths, device_ids, model)


def get_model_for_device(model: nn.Module, device_id: str) -> nn.Module:
    """Return the one network (fp16) that runs for a device's clips; the general one for an unknown device."""
    return inference.get_model_for_device(model, device_id)


def predict(
    file_paths: list[str], device_ids: list[str], model_file_path: str | None = None, use_cuda: bool = True
) -> tuple[list[Tensor], list[str]]:
    """Return (logits (K,) of every file in the order given, class order)."""
    return inference.predict(load_model(model_file_path), file_paths, device_ids, use_cuda)
