"""The winner of DCASE 2024 task 4: a pre-trained encoder whose embeddings join a CRNN.

Flow: encoder's mel → `Encoder` → pooling → projection → embeddings ┐
      CRNN's mel ───────────────────────────────────────────────────┴→ `FusionCRNN` → **probabilities**

A frozen encoder gives student and teacher the same embeddings: call `FusionModel.embeddings` once and hand them to
both CRNNs.

What the published systems do is the default of `build_fusion`; where that looks like an accident, a switch beside it
does the sane thing:
- projection: "random_frozen" is a random 768 → 527 layer that never trains. The published encoders bring a layer to
  the 527 AudioSet classes into both stages without ever training it; where their file lacks it (ATST-Frame), it stays
  what chance made it. "trained" trains it, "none" goes without.
- encoder option fold_frequency (BEATs): as published, its 496 tokens of 62 moments × 8 bands are taken for 496
  moments, so that the nearest one of a frame is some band at about that time. True averages the bands first.
- embed_pool: "int" (nearest) skips tokens, "aap" averages all of them.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.encoders import build_encoder
from task4_sed.models.crnn import N_CLASSES, FusionCRNN
from task4_sed.models.sequence_encoder import SequenceEncoder

N_PROJECTED = 527  # classes of AudioSet
N_TOKENS = 250  # of 40 ms in 10 s: what the published wrapper of the projection brings any encoder to
PROJECTIONS = ("random_frozen", "trained", "none")


class Joint(NamedTuple):
    """How an encoder is joined to the CRNN."""

    projection: str
    embed_pool: str


PUBLISHED_JOINTS = {
    "atst_frame": Joint("random_frozen", "aap"),
    "fpasst": Joint("random_frozen", "int"),
    "beats": Joint("none", "int"),
}


class FusionModel(nn.Module):
    """Encoder, projection and CRNN.

    The encoder is frozen at first, as in stage 1: it stays in evaluation mode and runs without gradients. Call
    `train_encoder()` for stage 2.

    Args:
        encoder: module with forward(log_mel) → (B, L, D) and `n_features` D (`common.nn.encoders`).
        projection: linear layer, which trains if its parameters do, or None.
        crnn: module with forward(mel, embeddings, class_mask) (`task4_sed.models.crnn`).
        n_tokens: number of tokens the encoder's are averaged to before the projection; None = as they come.
    """

    def __init__(self, encoder: nn.Module, projection: nn.Linear | None, crnn: nn.Module, n_tokens: int | None = None):
        super().__init__()
        self.encoder, self.projection, self.crnn = encoder, projection, crnn
        self.n_tokens = n_tokens
        # What an encoder never trains (unused or fixed parameters) stays so. It is noted on the encoder: a second
        # model around the same encoder finds it frozen.
        if not hasattr(encoder, "trainable_names"):
            encoder.trainable_names = {name for name, p in encoder.named_parameters() if p.requires_grad}
        self.train_encoder(False)

    def train_encoder(self, trainable: bool = True) -> None:
        """Let the encoder's parameters train, or freeze them; the projection stays as it was made."""
        self.encoder_is_frozen = not trainable
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(trainable and name in self.encoder.trainable_names)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FusionModel":
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def embeddings(self, encoder_mel: Tensor) -> Tensor:
        """Return what the CRNN takes, (B, L, D'), for the encoder's log mel (B, 1, F, N)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            tokens = self.encoder(encoder_mel)
        if self.n_tokens is not None and tokens.shape[1] != self.n_tokens:
            tokens = F.adaptive_avg_pool1d(tokens.transpose(1, 2), self.n_tokens).transpose(1, 2)
        return tokens if self.projection is None else self.projection(tokens)

    def forward(self, crnn_mel: Tensor, encoder_mel: Tensor, class_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Detect events: see `task4_sed.models.crnn.CRNN.forward`.

        Args:
            crnn_mel: (B, 1, 128, N).
            encoder_mel: (B, 1, F, N'), of the same clips.
            class_mask: bool (B, K); None = all classes.
        """
        return self.crnn(crnn_mel, self.embeddings(encoder_mel), class_mask)


def build_fusion(
    encoder: nn.Module | str,
    projection: str | None = None,
    embed_pool: str | None = None,
    n_classes: int = N_CLASSES,
    dropout: float = 0.5,
    hidden: int = 256,
    width: float = 1.0,
    n_projected: int = N_PROJECTED,
    projection_seed: int = 0,
    sequence: str | None = None,
    sequence_dim: int = 256,
    **encoder_options,
) -> FusionModel:
    """Return a new model around an encoder.

    Args:
        encoder: an `Encoder`, or its name for `build_encoder`, which gets `encoder_options`.
        projection: "random_frozen", "trained" or "none"; None = as published with this encoder, "none" with others.
        embed_pool: "aap" or "int"; None = as published with this encoder, "aap" with others.
        dropout, hidden, width: see `FusionCRNN`.
        n_projected: width of the projection.
        projection_seed: of the random projection, so that every stage has the same one.
        sequence, sequence_dim: kind and width of a sequence model behind the encoder, see `SequenceEncoder`; None =
            no such model.

    Raises:
        ValueError: unknown names.
    """
    encoder = build_encoder(encoder, **encoder_options) if isinstance(encoder, str) else encoder
    encoder = SequenceEncoder(encoder, sequence, sequence_dim) if sequence else encoder
    published = PUBLISHED_JOINTS.get(getattr(encoder, "name", None), Joint("none", "aap"))
    projection, embed_pool = projection or published.projection, embed_pool or published.embed_pool
    if projection not in PROJECTIONS:
        raise ValueError(f"projection {projection!r} is unknown: choose one of {', '.join(PROJECTIONS)}.")
    layer = None
    if projection != "none":
        layer = seeded_linear(encoder.n_features, n_projected, projection_seed)
        layer.requires_grad_(projection == "trained")
    n_features = encoder.n_features if layer is None else n_projected
    crnn = FusionCRNN(n_features, n_classes, embed_pool, dropout, hidden, width)
    return FusionModel(encoder, layer, crnn, None if layer is None else N_TOKENS)


def seeded_linear(n_in: int, n_out: int, seed: int) -> nn.Linear:
    """Return a linear layer drawn as torch draws its own, but from a seed of its own."""
    layer = nn.Linear(n_in, n_out)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(n_in**-0.5), n_in**-0.5, generator=generator)
    return layer
