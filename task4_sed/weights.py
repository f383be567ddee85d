"""Weights of a run: what training writes, and what later stages start from.

Flow: trained system → **weights.pt** {"student", "teacher"} → next stage, predictions.

"student" is the state dict of the whole student. "teacher" holds what the teacher does not share with it: in stage
`frozen` no encoder. `student | teacher` is a whole teacher. "settings" holds the dropouts and the layerdrop that a
published encoder brought (BEATs): stage 2 trains with them, and no config names them.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from common.config import ConfigError
from common.files import write_atomically
from common.nn.encoders import Encoder
from common.nn.weights import LoadReport, WeightsError, load_state_dict_file, load_weights
from common.training.runs import WEIGHTS
from task4_sed.mean_teacher import MeanTeacher
from task4_sed.models.fusion import FusionModel

Weights = dict[str, dict[str, Tensor]]
LAST, SETTINGS = "weights_last.pt", "settings"


def save_weights(path: str | Path, student: FusionModel, teacher: MeanTeacher) -> None:
    """Write the weights of both networks."""
    state = {"student": student.state_dict(), "teacher": teacher.own_weights()}
    state[SETTINGS] = {name: torch.tensor(value) for name, value in _settings(student).items()}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def read_weights(run: Path) -> Weights:
    """Return what `save_weights` wrote into a run folder, or into the file given.

    Raises:
        WeightsError: no such file, or another kind.
    """
    path = run / WEIGHTS if run.is_dir() else run
    if not path.is_file():
        raise WeightsError(f"{run}: holds no {WEIGHTS}; train that config first, or give another run (--init RUN).")
    weights = {name: load_state_dict_file(path, name) for name in ("student", "teacher")}
    with suppress(WeightsError):  # most encoders have none
        weights[SETTINGS] = load_state_dict_file(path, SETTINGS)
    return weights


def start_student(student: FusionModel, base: Weights, encoder_alone: bool) -> None:
    """Load the weights of another run's student.

    Args:
        encoder_alone: leave CRNN and projection as they are.
    Raises:
        ConfigError: these are weights of another network.
    """
    state, target, prefix = base["student"], student, ""
    if encoder_alone:
        target, prefix = student.encoder, "encoder."
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    own = target.state_dict()
    differing = [name for name in {**own, **state} if own.get(name, _NONE).shape != state.get(name, _NONE).shape]
    if differing:
        raise ConfigError(
            f"the base run has another {'encoder' if encoder_alone else 'network'}: {len(differing)} entries differ, "
            f"such as {prefix}{differing[0]}; set the same `network` in both configs."
        )
    target.load_state_dict(state)
    if base.get(SETTINGS) and hasattr(student.encoder.network, "use_settings"):
        student.encoder.network.use_settings({name: float(value) for name, value in base[SETTINGS].items()})


def _settings(student: FusionModel) -> dict[str, float]:
    network = student.encoder.network
    return network.settings() if hasattr(network, "settings") else {}


_NONE = torch.empty(0, 0, 0, 0, 0, 0)  # has a shape that no entry has


def load_encoder(student: FusionModel, weights: str | Path, **where) -> LoadReport:
    """Load published weights into the encoder, and into the projection where the file holds one.

    Args:
        weights: a name of the registry (common/nn/published.py), or a file.
        where: folder and download of `common.nn.weights.load_weights`.
    Raises:
        WeightsError: the file cannot be had, is of another network, or lacks a part of the encoder.
    """
    parts = nn.Module()  # named as in a frame predictor, whose heads this network does not have
    parts.encoder, parts.projection = student.encoder, student.projection
    parts.sequence = getattr(student.encoder, "sequence", None)
    report = load_weights(parts, weights, strict=False, part="", **where)
    if lacking := _lacking(student.encoder, report):
        raise WeightsError(
            f"{weights} lacks {len(lacking)} entries of the encoder {student.encoder.name}, such as {lacking[0]}; "
            "take weights of that network (encoder_weights), or another `network`."
        )
    return report


def _lacking(encoder: Encoder, report: LoadReport) -> list[str]:
    unused: Mapping = dict(encoder.named_parameters())
    used = {id(parameter) for group in encoder.layer_groups() for parameter in group}
    spare = {f"encoder.{name}" for name, parameter in unused.items() if id(parameter) not in used}
    return [name for name in report.missing if name.startswith(("encoder.", "sequence.")) and name not in spare]
