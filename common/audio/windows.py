"""Windows over recordings of any length, and how their outputs become one.

Flow: recording (C, T) → **overlapping windows** → network, a few at a time → **overlap-add** → one output (N, K).

Windows start on the network's frame grid, so that a moment has the same frame number in every window that
covers it. Where windows overlap their outputs are averaged with weights that fall to the edges of a window:
there the network has seen least of what comes before or after.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Where windows over a recording start.

    Args:
        window_samples: length of a window, samples.
        frame_samples: grid on which windows start, samples; 1 for outputs that are waveforms.
        n_frames: frames of the network's output for one window.
        hop_frames: frames between two starts; at most `n_frames`, or moments would be left out.
    """

    window_samples: int
    frame_samples: int
    n_frames: int
    hop_frames: int

    def __post_init__(self):
        if min(self.window_samples, self.frame_samples, self.n_frames) < 1:
            raise ValueError(f"{self}: lengths must be at least 1.")
        if not 1 <= self.hop_frames <= self.n_frames:
            raise ValueError(f"hop_frames {self.hop_frames} must be 1 up to the {self.n_frames} frames of a window.")
        if self.n_frames * self.frame_samples > self.window_samples:
            raise ValueError(
                f"{self.n_frames} frames of {self.frame_samples} samples are longer than the window of "
                f"{self.window_samples} samples."
            )

    def starts(self, n_samples: int) -> list[int]:
        """Return the first frame of each window over `n_samples` samples, at most `hop_frames` apart.

        They are spread evenly and the last one ends with the recording, so that none is mostly padding; a
        recording shorter than a window gets one, padded.
        """
        last = max(0, self.n_total(n_samples) - self.n_frames)
        n_hops = -(-last // self.hop_frames)
        return [round(turn * last / n_hops) for turn in range(n_hops + 1)] if n_hops else [0]

    def n_total(self, n_samples: int) -> int:
        """Return the number of frames of a recording of `n_samples` samples; of a window's length: `n_frames`.

        Networks give no frame for the last samples of a window (10 s are 156 frames of 64 ms and 16 ms more);
        what is no longer than that at the end of a recording gets none either.
        """
        if n_samples < 1:
            raise ValueError("the recording holds no samples.")
        left_over = self.window_samples - self.n_frames * self.frame_samples
        return max(1, -(-(n_samples - left_over) // self.frame_samples))

    def weights(self) -> Tensor:
        """Return the weight of each frame of a window (n_frames,), a triangle of height 1."""
        position = torch.arange(self.n_frames, dtype=torch.float32)
        return torch.minimum(position + 1, self.n_frames - position) / ((self.n_frames + 1) // 2)

    def cut(self, waveform: Tensor, first_frame: int) -> Tensor:
        """Return one window (C, window_samples) of `waveform` (C, T), filled with zeros behind its end."""
        start = first_frame * self.frame_samples
        part = waveform[..., start : start + self.window_samples]
        return F.pad(part, (0, self.window_samples - part.shape[-1]))

    def run(
        self,
        waveform: Tensor,
        network: Callable[[Tensor], Tensor],
        batch_size: int = 8,
        on_batch: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the network's output (N, K) over the whole `waveform` (C, T).

        Args:
            network: maps windows (B, C, window_samples) to outputs (B, n_frames, K).
            batch_size: windows at a time; it sets the memory, whatever the length of the recording.
            on_batch: called with the number of windows done, for a progress bar.

        Raises:
            ValueError: if the network gives another number of frames than announced.
        """
        total, starts = self.n_total(waveform.shape[-1]), self.starts(waveform.shape[-1])
        weights = self.weights()[:, None]
        weighted = seen = None
        for begin in range(0, len(starts), batch_size):
            chosen = starts[begin : begin + batch_size]
            outputs = network(torch.stack([self.cut(waveform, first) for first in chosen]))
            if outputs.shape[1] != self.n_frames:
                raise ValueError(f"the network gave {outputs.shape[1]} frames for a window, expected {self.n_frames}.")
            outputs = outputs.float().cpu()
            if weighted is None:
                weighted, seen = torch.zeros(total, outputs.shape[2]), torch.zeros(total, 1)
            for first, output in zip(chosen, outputs, strict=True):
                n_kept = min(self.n_frames, total - first)  # frames behind the end are padding
                weighted[first : first + n_kept] += (output * weights)[:n_kept]
                seen[first : first + n_kept] += weights[:n_kept]
            if on_batch:
                on_batch(len(chosen))
        return weighted / seen
