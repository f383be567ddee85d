"""The mean teacher: a network whose parameters follow the student's as a moving average.

Flow: student after each step → **moving average** → teacher → targets of the consistency losses.

As published, the average takes parameters alone. Running statistics of norms are the teacher's own: it is in training
mode, dropout and all, and makes them from the clips that it sees.

Source: A. Tarvainen and H. Valpola, Mean teachers are better role models, 2017; DCASE 2024 task 4, system of CP-JKU.
"""

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from task4_sed.models.fusion import FusionModel


class MeanTeacher(nn.Module):
    """The teacher of `student`, a copy of it at first.

    Parts that are frozen in the student (its encoder in stage 1, a projection that never trains) are not copied: both
    networks hold the same module.

    Args:
        decay: largest share of the old value that an update keeps.

    Attributes:
        network: the teacher; no part of it has a gradient.
        shared: names of the parts that are the student's.
    """

    def __init__(self, student: FusionModel, decay: float = 0.999):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected 0 … 1, without 1.")
        self.decay = decay
        frozen = {
            name: part
            for name, part in student.named_children()
            if not any(parameter.requires_grad for parameter in part.parameters())
        }
        self.shared = tuple(frozen)
        # What stands in deepcopy's memo is taken for the copy of itself.
        self.network = deepcopy(student, {id(part): part for part in frozen.values()}).requires_grad_(False)
        own = dict(self.network.named_parameters())
        pairs = [(own[name], p) for name, p in student.named_parameters() if own[name] is not p]
        self._own, self._student = (list(parameters) for parameters in zip(*pairs, strict=True))

    def update(self, step: int) -> None:
        """Move to the student: θ ← α θ + (1 − α) θ_student with α = min(1 − 1 / (step + 1), decay).

        Args:
            step: optimiser steps done; at step 0 the teacher becomes the student.
        """
        alpha = min(1.0 - 1.0 / (step + 1), self.decay)
        get_ema_multi_avg_fn(alpha)(self._own, self._student, None)

    def own_weights(self) -> dict[str, Tensor]:
        """Return the entries of the network's state dict that are not the student's."""
        state = self.network.state_dict()
        return {name: value for name, value in state.items() if _part(name) not in self.shared}

    def load_own_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of another teacher.

        Parts that are missing as a whole, because that teacher shared them with its student, stay as they are; parts
        that are shared here are left out.

        Raises:
            ValueError: entries that do not fit this network.
        """
        given = {name: value for name, value in weights.items() if _part(name) not in self.shared}
        parts = set(map(_part, given))
        kept = {name: value for name, value in self.network.state_dict().items() if _part(name) not in parts}
        try:
            self.network.load_state_dict(kept | given)
        except RuntimeError as error:
            raise ValueError(f"the weights of the teacher do not fit this network: {error}") from None


def _part(name: str) -> str:
    return name.split(".")[0]
