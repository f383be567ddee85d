"""BEATs (iteration 3+): a transformer over 16 × 16 patches with gated relative positions.

Flow: log mel (B, 1, 128, N) → patches, time · 8 + band → positional convolution → **post-norm layers** →
tokens (B, 8 · N / 16, D).

Names of the published checkpoints (what stands in beats_as.pt["model"]), with one exception: these list the
table of relative positions once per layer, though it is one tensor; here it stands under layer 0 alone.

The published systems use the tokens as they come, 496 for 9.92 s, as if they were 50 frames per second: 8
neighbours are the 8 bands of one moment. `fold_frequency` averages the bands: 62 frames, 6.25 Hz.

Source: Chen et al., "BEATs: audio pre-training with acoustic tokenizers", ICML 2023; gate: WavLM; residuals:
Wang et al., "DeepNet", 2022.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from common.nn.transformer import check_heads, check_log_mel, layer_groups

GATE_OUTPUTS = 8  # of the gate's linear layer: two gates, each the sum of four
# Settings of published files: rates that training may use, and others of training that are not here.
RATES = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "encoder_layerdrop")
NOT_USED = {"layer_wise_gradient_decay_ratio": 1.0}


class Beats(nn.Module):
    """BEATs (default sizes: 90.3 M parameters, 49.3 GMACs per 10 s).

    Args:
        n_mels: a multiple of `patch`.
        patch, patch_dim: side of a patch and its features before they become D.
        dim, depth, n_heads, ffn_dim: features D, layers, attention heads, hidden features.
        conv_taps, conv_groups: of the positional convolution.
        n_buckets, max_distance: of the relative positions, see `relative_buckets`.
        dropout: after each sub-layer and before the first layer, in training.
        attention_dropout, input_dropout, activation_dropout: on attention weights, on the patch embedding, and
            between the two linear layers of the feed-forward part.
        layerdrop: probability that a layer is skipped in training. A skipped layer has no gradient: on
            several GPUs train with find_unused_parameters, or with layerdrop 0.
        fold_frequency: average the bands of each moment; False is the published behaviour.

    Attributes:
        n_features: D.
        frames_per_token: mel frames from one token to the next: 2 as published, 16 when folded.

    Input of any length: positions are relative. Trained on 10 s. The file of the fine-tuned BEATs brings dropouts
    and layerdrop of its own; `common.nn.weights.load_weights` hands them to `use_settings`.

    Raises (forward):
        ValueError: wrong shape or less than one patch of frames.
    """

    def __init__(
        self,
        n_mels: int = 128,
        patch: int = 16,
        patch_dim: int = 512,
        dim: int = 768,
        depth: int = 12,
        n_heads: int = 12,
        ffn_dim: int = 3072,
        conv_taps: int = 128,
        conv_groups: int = 16,
        n_buckets: int = 320,
        max_distance: int = 800,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        input_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layerdrop: float = 0.05,
        fold_frequency: bool = False,
    ):
        super().__init__()
        if n_mels % patch:
            raise ValueError(f"n_mels {n_mels} must be a multiple of the patch, {patch}.")
        self.n_mels, self.patch, self.n_features, self.n_bands = n_mels, patch, dim, n_mels // patch
        self.fold_frequency = fold_frequency
        self.frames_per_token = patch if fold_frequency else patch / self.n_bands
        self.patch_embedding = nn.Conv2d(1, patch_dim, patch, stride=patch, bias=False)
        self.layer_norm = nn.LayerNorm(patch_dim)
        self.post_extract_proj = nn.Linear(patch_dim, dim)
        self.input_dropout = nn.Dropout(input_dropout)
        rates = dropout, attention_dropout, activation_dropout
        layers = [BeatsLayer(dim, n_heads, ffn_dim, depth, *rates) for _ in range(depth)]
        self.encoder = BeatsEncoder(
            layers, dim, n_heads, conv_taps, conv_groups, n_buckets, max_distance, dropout, layerdrop
        )
        # What the settings of published files call them; the last six cannot be chosen here.
        self.architecture = {
            "encoder_layers": depth, "encoder_embed_dim": dim, "encoder_ffn_embed_dim": ffn_dim,
            "encoder_attention_heads": n_heads, "embed_dim": patch_dim, "input_patch_size": patch,
            "conv_pos": conv_taps, "conv_pos_groups": conv_groups, "num_buckets": n_buckets,
            "max_distance": max_distance, "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True,
            "conv_bias": False, "relative_position_embedding": True, "gru_rel_pos": True,
        }  # fmt: skip

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return tokens (B, N // 16 · 8, D), or (B, N // 16, D) if folded, for log_mel (B, 1, 128, N)."""
        check_log_mel(self, log_mel, self.n_mels, self.patch)
        patches = self.patch_embedding(log_mel.transpose(2, 3)).flatten(2).transpose(1, 2)
        tokens = self.encoder(self.input_dropout(self.post_extract_proj(self.layer_norm(patches))))
        return tokens.unflatten(1, (-1, self.n_bands)).mean(2) if self.fold_frequency else tokens

    def settings_problem(self, settings: Mapping) -> str:
        """Return the first of a published file's `settings` ("cfg") that this network is not built for, or ""."""
        for name, here in self.architecture.items():
            if settings.get(name, here) != here:
                return f"{name} is {settings[name]} in the file and {here} in the network"
        for name in RATES:
            rate = settings.get(name, 0)
            if not isinstance(rate, int | float) or not 0 <= rate <= 1:
                return f"{name} is {rate} in the file, but has to be 0 up to 1"
        return ""

    def settings(self) -> dict[str, float]:
        """Return the rates that training uses, as `use_settings` takes them."""
        layer = self.encoder.layers[0]
        rates = (self.encoder.dropout.p, layer.self_attn.dropout, layer.activation_dropout.p, self.input_dropout.p)
        return dict(zip(RATES, (*rates, self.encoder.layerdrop), strict=True))

    def use_settings(self, settings: Mapping) -> str:
        """Take over the dropouts and the layerdrop of a published file; return what was taken.

        A rate that the file does not name stays.
        """
        rates = {name: float(settings[name]) for name in RATES if name in settings}
        dropouts = {"dropout_input": [self.input_dropout], "dropout": [self.encoder.dropout], "activation_dropout": []}
        for layer in self.encoder.layers:
            dropouts["dropout"].append(layer.dropout)
            dropouts["activation_dropout"].append(layer.activation_dropout)
            layer.self_attn.dropout = rates.get("attention_dropout", layer.self_attn.dropout)
        for name, modules in dropouts.items():
            for module in modules:
                module.p = rates.get(name, module.p)
        self.encoder.layerdrop = rates.get("encoder_layerdrop", self.encoder.layerdrop)
        taken = ", ".join(f"{name} {rate:g}" for name, rate in rates.items()) or "none"
        left = [f"{name} {settings[name]}" for name, none in NOT_USED.items() if settings.get(name, none) != none]
        return f"Training rates of the file taken over: {taken}{', not ' * bool(left)}{', '.join(left)}."

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters from top to bottom, see `common.nn.transformer.layer_groups`.

        The first group is empty, as there is no last norm. The table of relative positions, which all layers
        share, is in the group of layer 0.
        """
        return layer_groups(self, [], self.encoder.layers)


class BeatsEncoder(nn.Module):
    """Positional convolution, norm and the layers. Shape: (B, L, D) → (B, L, D)."""

    def __init__(
        self,
        layers: list["BeatsLayer"],
        dim: int,
        n_heads: int,
        conv_taps: int,
        conv_groups: int,
        n_buckets: int,
        max_distance: int,
        dropout: float,
        layerdrop: float,
    ):
        super().__init__()
        conv = nn.Conv1d(dim, dim, conv_taps, padding=conv_taps // 2, groups=conv_groups)
        nn.init.normal_(conv.weight, 0.0, math.sqrt(4 * (1 - dropout) / (conv_taps * dim)))
        nn.init.zeros_(conv.bias)
        self.pos_conv = nn.Sequential(weight_norm(conv, dim=2))  # one norm per tap
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        # Used by all layers, but published under each of them.
        self.layers[0].self_attn.relative_attention_bias = nn.Embedding(n_buckets, n_heads)
        nn.init.xavier_normal_(self.layers[0].self_attn.relative_attention_bias.weight)
        self.n_buckets, self.max_distance, self.layerdrop = n_buckets, max_distance, layerdrop

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        positions = F.gelu(self.pos_conv(x.transpose(1, 2))[..., :length]).transpose(1, 2)
        x = self.dropout(self.layer_norm(x + positions))
        bias = self.relative_bias(length)
        for layer in self.layers:
            if self.training and torch.rand(()) < self.layerdrop:
                continue
            x = layer(x, bias)
        return x

    def relative_bias(self, length: int) -> Tensor:
        """Return what is added, gated, to the attention logits: (H, query, key)."""
        # One value per head and distance, 2 · length - 1 in all; the matrix holds each on a diagonal.
        table = self.layers[0].self_attn.relative_attention_bias
        distances = torch.arange(length - 1, -length, -1, device=table.weight.device)
        buckets = relative_buckets(distances, self.n_buckets, self.max_distance)
        per_distance = table(buckets).T  # (H, 2 · length - 1), key - query falling
        # Row i of the windows starts at distance length - 1 - i and falls: the keys of query i backwards.
        return per_distance.unfold(1, length, 1).flip(2)


class BeatsLayer(nn.Module):
    """x = norm(α · x + attention(x)), then x = norm(α · x + feed-forward(x)), with α = (2 · depth)^¼.

    Shape: x (B, L, D), bias (H, L, L) → (B, L, D).
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        ffn_dim: int,
        depth: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = GatedBiasAttention(dim, n_heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout, self.activation_dropout = nn.Dropout(dropout), nn.Dropout(activation_dropout)
        self.residual_gain = (2 * depth) ** 0.25
        gain = (8 * depth) ** -0.25  # DeepNet's start for deep post-norm networks
        for linear in (self.self_attn.v_proj, self.self_attn.out_proj, self.fc1, self.fc2):
            nn.init.xavier_normal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attended = self.dropout(self.self_attn(x, bias))
        x = self.self_attn_layer_norm(torch.add(attended, x, alpha=self.residual_gain))
        fed = self.dropout(self.fc2(self.activation_dropout(F.gelu(self.fc1(x)))))
        return self.final_layer_norm(torch.add(fed, x, alpha=self.residual_gain))


class GatedBiasAttention(nn.Module):
    """Self-attention whose relative position bias is weighed by a gate per head and query.

    Logits q·k / √d + g · bias, with g = a · (b · grep_a - 1) + 2 and (a, b) the sigmoids of two sums over the
    linear map of the unscaled q.

    Shape: x (B, L, D), bias (H, L, L) → (B, L, D).
    """

    def __init__(self, dim: int, n_heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(dim, n_heads)
        self.n_heads, self.dropout = n_heads, dropout
        self.grep_a = nn.Parameter(torch.ones(1, n_heads, 1, 1))
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.grep_linear = nn.Linear(dim // n_heads, GATE_OUTPUTS)
        for linear in (self.k_proj, self.q_proj):
            nn.init.xavier_normal_(linear.weight)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        b, length, d = x.shape
        q, k, v = (
            linear(x).view(b, length, self.n_heads, -1).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        gate, bias = self.gate(q).to(q.dtype), bias.to(q.dtype)
        if x.is_cpu and not torch.is_grad_enabled():
            # Clip by clip: the gated bias of one clip (12 MB at 10 s) stays in the processor's cache.
            clips = zip(q.split(1), k.split(1), v.split(1), gate.split(1))
            heads = torch.cat([self._attend(*clip, bias) for clip in clips])
        else:
            heads = self._attend(q, k, v, gate, bias)
        return self.out_proj(heads.transpose(1, 2).reshape(b, length, d))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=gate * bias, dropout_p=dropout)

    def gate(self, q: Tensor) -> Tensor:
        """Return the gate (B, H, L, 1) of the unscaled queries q (B, H, L, d)."""
        # Summing groups of outputs is one linear map with the summed weights.
        weight = self.grep_linear.weight.unflatten(0, (2, -1)).sum(1)
        offset = self.grep_linear.bias.unflatten(0, (2, -1)).sum(1)
        a, b = F.linear(q, weight, offset).sigmoid().split(1, dim=-1)
        return a * (b * self.grep_a - 1) + 2


def relative_buckets(distances: Tensor, n_buckets: int = 320, max_distance: int = 800) -> Tensor:
    """Return the bucket of each distance key - query (integers, any shape).

    Half of the buckets are for keys after the query. Of each half, distances below a half have a bucket of
    their own, larger ones share them logarithmically up to `max_distance`, from where all share the last.
    """
    half = n_buckets // 2
    exact = half // 2
    size = distances.abs()
    share = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + share * (half - exact)).long().clamp(max=half - 1)
    return half * (distances > 0).long() + torch.where(size < exact, size, far)
