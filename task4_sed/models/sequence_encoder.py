"""An encoder with a sequence model behind it, to be used wherever an encoder is.

Flow: log mel (B, 1, F, N) → encoder → frames → **sequence model** → frames (B, N', D').

With a frame-wise MobileNet this is the small detector of EfficientSED without its heads: the low-complexity way to
the embeddings of `task4_sed.models.fusion`.
"""

from torch import Tensor, nn

from common.nn.encoders import MEL_RATE_HZ, Encoder
from common.nn.sequence import build_sequence


class SequenceEncoder(Encoder):
    """`encoder`, whose frames go through a sequence model.

    Args:
        kind, dim, n_layers: see `common.nn.sequence.build_sequence`.

    Attributes:
        name: as in the registry of published weights, such as "fmn10+tf-256".
        n_features: of the sequence model.
    """

    def __init__(self, encoder: Encoder, kind: str, dim: int = 256, n_layers: int = 2):
        super().__init__(encoder.name, encoder.front_end, encoder.network, MEL_RATE_HZ / encoder.frame_rate_hz)
        self.name = f"{encoder.name}+{kind}-{dim}"
        self.sequence = build_sequence(kind, encoder.n_features, dim, n_layers)
        self.n_features = self.sequence.n_features

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return frames (B, N', D') for log_mel (B, 1, F, N)."""
        return self.sequence(self.network(log_mel))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the sequence model's parameters, then those of the encoder's groups."""
        return [list(self.sequence.parameters()), *super().layer_groups()]
