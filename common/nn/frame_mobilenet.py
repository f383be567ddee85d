"""Frame-wise MobileNetV3: the small sound event detectors fmn04 … fmn30.

Flow: log mel (B, 1, F, N) → **FrameMobileNet** → frames (B, N / 4, D).

The network of `common.nn.mobilenet` with other strides: time is strided in the stem and the second block only,
so that frames are 40 ms apart with a hop of 10 ms; frequency is strided until 128 mel bins are one row.
Parameter names are those of the published checkpoints.

Source: Morocutti et al., "Exploring performance-complexity trade-offs in sound event detection", 2025
(EfficientSED).
"""

from torch import Tensor, nn

from common.nn.layers import init_mobile
from common.nn.mobilenet import mobile_features
from common.nn.transformer import check_log_mel

N_MELS = 128
TIME_STRIDE = 4
# (frequency, time) of each block; the stem strides both by 2.
STRIDES = tuple((f, 2 if i == 1 else 1) for i, f in enumerate((1, 2, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2)))
WIDTHS = {"fmn04": 0.4, "fmn06": 0.6, "fmn10": 1.0, "fmn20": 2.0, "fmn30": 3.0}


class FrameMobileNet(nn.Module):
    """Backbone with one feature vector per 40 ms.

    Args:
        width: factor on all channel counts; WIDTHS holds the published ones.

    Attributes:
        n_features: D = 960 · width (384, 576, 960, 1920 or 2880 for the published widths).
        frames_per_token: mel frames from one output frame to the next.

    Shape: log mel (B, 1, 128, N) of any length → (B, ceil(N / 4), D).
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.n_mels, self.frames_per_token = N_MELS, TIME_STRIDE
        self.features = mobile_features(width, strides=STRIDES)
        self.n_features = self.features[-1][0].out_channels
        init_mobile(self)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return frames (B, N / 4, D) for log_mel (B, 1, 128, N)."""
        check_log_mel(self, log_mel, self.n_mels, shortest=1)
        return self.features(log_mel).mean(2).transpose(1, 2)  # one frequency row is left
