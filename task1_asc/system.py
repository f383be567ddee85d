"""What Task 1 trains: waveform batch → augmentation → log mel → network → losses.

Flow: batch → impulse responses, roll → **front end with masks** → Freq-MixStyle, mixup → network → cross entropy.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.audio.augment import BandMask, FreqMixStyle, ImpulseResponse, Mixup, Roll, load_responses
from common.training.distributed import gather_clips, world_size
from common.training.module import TrainingSystem
from task1_asc.config import AugmentConfig
from task1_asc.data import Clips
from task1_asc.losses import at_least_float32, cross_entropy, mixup_cross_entropy


class SceneSystem(TrainingSystem):
    """Front end, augmentations and network of one model (general, or of one device).

    Args:
        clips: the training clips, for batches that hold row numbers only (DataConfig.resident).
        frozen: parts of the network that stay as in testing: their norms use the statistics they have.
    """

    def __init__(self, front_end: nn.Module, network: nn.Module, augment: AugmentConfig, clips: Clips | None = None,
                 frozen: Sequence[nn.Module] = ()):  # fmt: skip
        super().__init__()
        self._frozen = list(frozen)
        self.front_end, self.network = front_end, network.to(memory_format=torch.channels_last)
        self.roll = Roll(round(augment.roll_s * front_end.input_rate))
        self.freq_mask, self.time_mask = BandMask(augment.freq_mask_bins), BandMask(augment.time_mask_frames)
        self.mixstyle = FreqMixStyle(augment.mixstyle_p, augment.mixstyle_alpha)
        self.mixup = Mixup(augment.mixup_alpha) if augment.mixup_alpha > 0 else None
        self.impulse_response, self.responses = None, []
        if augment.impulse_response_p > 0:
            self.impulse_response = ImpulseResponse(augment.impulse_response_p, tuple(augment.impulse_response_devices))
            self.responses = load_responses(augment.impulse_response_folder, front_end.input_rate)
        self._clips, self._resident = clips, None

    def train(self, mode: bool = True) -> "SceneSystem":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def waveforms(self, batch: dict) -> Tensor:
        """Return (B, 1, T) on the training device: from the batch, or from the clips kept there."""
        if "waveform" in batch:
            return batch["waveform"]
        device = next(self.network.parameters()).device
        if self._resident is None or self._resident.device != device:
            self._resident = self._clips.waveforms(np.arange(len(self._clips))).to(device)
        return self._resident[batch["item"].to(device)]

    def training_losses(self, batch: dict, rng: np.random.Generator) -> dict[str, Tensor]:
        """Cross entropy summed over this share of the batch, divided by the clips of the whole batch.

        Draws are made for the whole batch and each process takes its clips' part, so that the number of processes does
        not change them.
        """
        n_clips, mine = batch["n_clips"], batch["position"].cpu()
        waveform = self.waveforms(batch)
        if self.impulse_response:
            index = self._draw_responses(batch["device"], n_clips, mine, rng)
            waveform = self.impulse_response.apply(waveform, index, self.responses)
        waveform = self.roll.apply(waveform, self.roll.draw(n_clips, rng)[mine].to(waveform.device))
        freq_mask = self.freq_mask.draw(n_clips, self.front_end.n_mels, rng)[mine]
        time_mask = self.time_mask.draw(n_clips, self.front_end.n_frames(waveform.shape[-1]), rng)[mine]
        edges = self.front_end.draw_edges(rng) if hasattr(self.front_end, "draw_edges") else ()
        log_mel = self.front_end(waveform, freq_mask.to(waveform.device), time_mask.to(waveform.device), *edges)
        log_mel = self._mix_styles(log_mel, n_clips, mine, rng)
        if self.mixup:
            if world_size() > 1:
                raise ValueError("augment.mixup_alpha: mixup stays within a process; use one process (--devices 1).")
            draw = self.mixup.draw(len(log_mel), rng)
            loss = mixup_cross_entropy(self._logits(self.mixup.apply(log_mel, draw)), batch["label"], draw)
        else:
            loss = cross_entropy(self._logits(log_mel), batch["label"])
        return {"loss": loss * len(log_mel) / n_clips}

    def _draw_responses(self, devices: list[str], n_clips: int, mine: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw for every clip of the whole batch as if of a chosen device, then keep this share's that are."""
        chosen = self.impulse_response.devices
        index = self.impulse_response.draw([chosen[0]] * n_clips, len(self.responses), rng)[mine]
        return torch.where(torch.tensor([device in chosen for device in devices]), index, -1)

    def _mix_styles(self, log_mel: Tensor, n_clips: int, mine: Tensor, rng: np.random.Generator) -> Tensor:
        draw = self.mixstyle.draw(n_clips, rng)
        if draw is None:
            return log_mel
        mix, partner = draw
        partners = None
        if world_size() > 1:
            partners = tuple(gather_clips(values, n_clips) for values in self.mixstyle.statistics(log_mel))
        return self.mixstyle.apply(log_mel, (mix[mine].to(log_mel.device), partner[mine].to(log_mel.device)), partners)

    def _logits(self, log_mel: Tensor) -> Tensor:
        weights = next(self.network.parameters())  # double where train.precision is 64-true
        log_mel = log_mel.to(weights.dtype).contiguous(memory_format=torch.channels_last)
        return at_least_float32(self.network(log_mel)["logits"])

    def validation_scores(self, batch: dict) -> dict[str, Tensor]:
        logits = self._logits(self.front_end(self.waveforms(batch)))
        return {
            "loss": F.cross_entropy(logits, batch["label"], reduction="none"),
            "accuracy": (logits.argmax(1) == batch["label"]).float(),
        }
