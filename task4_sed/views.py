"""What student and teacher see of a training batch: the augmentations in their order.

Flow: front ends → **augmentations** → student's and teacher's batch → networks, losses.

Stage 1: time shift → mixup → Freq-MixStyle → time mask → two filter augmentations, one for each network.
Stage 2: time shift → time mask → (copy for the teacher) → mixup → Freq-MixStyle → frequency warp → filter.

Whether a batch is mixed, styled, warped or filtered at all is decided once for each of these; how, is then drawn for
every group of clips, for the features of either network, and for student and teacher.

Source: DCASE 2024 task 4, system of CP-JKU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.audio.augment import FreqMixStyle, check_probability, require
from task4_sed.augment import (
    ClassMixup,
    FilterAugment,
    FrequencyWarp,
    MixDraw,
    TimeMask,
    TimeShift,
    draw_in_groups,
)

SETS = ("maestro", "strong", "synth", "weak", "unlabeled")  # in the order they have in a batch
Groups = tuple[tuple[str, ...], ...]  # sets whose clips are mixed, or masked alike, with each other
MIX_GROUPS: Groups = (("weak",), ("maestro", "strong", "synth"), ("unlabeled",))
TEACHER_VIEWS = ("mixed", "unmixed")


@dataclass(frozen=True)
class SedBatch:
    """What the networks see of a batch, and what they are to say.

    Attributes:
        amplitude: mel amplitudes of the CRNN (B, 1, F, N), linear.
        encoder_mel: log mel of the transformer (B, 1, F', N'), as its front end gives it.
        labels: (B, K, L), 0 … 1, time last as the networks' outputs have it; `task4_sed.labels` gives (B, L, K).
        class_mask: classes that each clip is annotated for (B, K), bool; outputs of both networks are masked by it.
        pseudo_labels: (B, K, L), 0 … 1, or None.
    """

    amplitude: Tensor
    encoder_mel: Tensor
    labels: Tensor
    class_mask: Tensor
    pseudo_labels: Tensor | None = None


@dataclass(frozen=True)
class ViewDraws:
    """All that is random in the augmentation of one batch; None and () leave the clips alone.

    Attributes:
        mix: the mixup, which a loss on the mixed outputs of the teacher needs as well.
        time_masks, warps: (rows of the batch, draw) for each group.
        filters: of the student's and of the teacher's amplitudes; the second only if the teacher sees the mix.
    """

    shift: Tensor | None = None
    time_masks: tuple[tuple[Tensor, tuple[int, int]], ...] = ()
    mix: MixDraw | None = None
    style: MixDraw | None = None
    encoder_style: MixDraw | None = None
    warps: tuple[tuple[Tensor, tuple[int, int]], ...] = ()
    filters: tuple[tuple[Tensor, Tensor] | None, ...] = (None, None)
    encoder_filter: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Views:
    """Augment a batch for student and teacher.

    Args:
        teacher: "mixed" (stage 1): the teacher sees the student's mixed clips through another filter.
            "unmixed" (stage 2): the clips as they are before mixup, Freq-MixStyle, warp and filter, but with the class
            mask of the student's: as published, outputs for unmixed clips are masked by the classes of the mix.
        mixup_p: probability that a batch is mixed.
        mixup, mixstyle, warp, filter, encoder_filter, time_mask, time_shift: None switches one off; p of each is the
            probability that it changes a batch, and then it changes all groups, in the features of both networks
            (mixup, mixstyle) or of student and teacher (filter).
        mixup_groups, mixstyle_groups, warp_groups, time_mask_groups: sets whose clips are mixed with each other,
            or changed alike.
    """

    teacher: str = "mixed"
    mixup_p: float = 0.5
    mixup: ClassMixup | None = ClassMixup()
    mixup_groups: Groups = MIX_GROUPS
    mixstyle: FreqMixStyle | None = None
    mixstyle_groups: Groups = MIX_GROUPS
    warp: FrequencyWarp | None = None
    warp_groups: Groups = (("strong", "synth"), ("weak",), ("unlabeled",))
    filter: FilterAugment | None = None
    encoder_filter: FilterAugment | None = None
    time_mask: TimeMask | None = None
    time_mask_groups: Groups = (("strong", "synth"),)
    time_shift: TimeShift | None = None

    def __post_init__(self):
        check_probability(self.mixup_p)
        require(self.teacher in TEACHER_VIEWS, f"teacher {self.teacher!r} is none of {', '.join(TEACHER_VIEWS)}.")
        for groups in (self.mixup_groups, self.mixstyle_groups, self.warp_groups, self.time_mask_groups):
            unknown = {name for group in groups for name in group} - set(SETS)
            require(not unknown, f"unknown set {min(unknown, default='')!r} in {groups}; there are {', '.join(SETS)}.")

    def draw(self, sizes: Mapping[str, int], batch: SedBatch, rng: np.random.Generator) -> ViewDraws:
        """Return the draws for a batch that holds `sizes[name]` clips of each set, one set after the other.

        Of `batch` only the shapes count.

        Raises:
            ValueError: unless the sizes add up to the clips of the batch.
        """
        n_clips = len(batch.amplitude)
        n_mels, n_encoder_mels = batch.amplitude.shape[2], batch.encoder_mel.shape[2]
        require(sum(sizes.values()) == n_clips, f"{n_clips} clips in the batch, but sets of {dict(sizes)}.")

        def if_chosen(one):
            return replace(one, p=1.0) if one and rng.random() < one.p else None

        def partners(one, groups):
            return draw_in_groups(one.draw, group_rows(groups, sizes), n_clips, rng) if one else None

        def per_group(one, groups, n_rows):
            all_rows = group_rows(groups, sizes) if one else []
            return tuple((torch.from_numpy(rows), one.draw(n_rows, rng)) for rows in all_rows if len(rows))

        def curve(one, n_rows):
            return one.draw(n_clips, n_rows, rng) if one else None

        mixed, style, warp = rng.random() < self.mixup_p, if_chosen(self.mixstyle), if_chosen(self.warp)
        curves, encoder_curve = if_chosen(self.filter), if_chosen(self.encoder_filter)
        return ViewDraws(
            shift=self.time_shift.draw(n_clips, batch.amplitude.shape[-1], rng) if self.time_shift else None,
            time_masks=per_group(self.time_mask, self.time_mask_groups, batch.labels.shape[-1]),
            mix=partners(self.mixup, self.mixup_groups) if mixed else None,
            style=partners(style, self.mixstyle_groups),
            encoder_style=partners(style, self.mixstyle_groups),
            warps=per_group(warp, self.warp_groups, n_encoder_mels),
            filters=(curve(curves, n_mels), curve(curves, n_mels)),
            encoder_filter=curve(encoder_curve, n_encoder_mels),
        )

    def apply(self, batch: SedBatch, draws: ViewDraws) -> tuple[SedBatch, SedBatch]:
        """Return the student's and the teacher's batch, with one class mask for both (see `teacher`)."""
        batch = self._shift(batch, draws)
        if self.teacher == "mixed":
            batch = self._mask(self._mix(batch, draws), draws)
            views = [self._filter(batch, one) for one in draws.filters]
            return tuple(self._encoder_only(view, draws) for view in views)
        unmixed = self._mask(batch, draws)
        student = self._filter(self._mix(unmixed, draws), draws.filters[0])
        return self._encoder_only(student, draws), replace(unmixed, class_mask=student.class_mask)

    def _shift(self, batch: SedBatch, draws: ViewDraws) -> SedBatch:
        if (shift := draws.shift) is None:
            return batch
        one, n_frames, pseudo = self.time_shift, batch.amplitude.shape[-1], batch.pseudo_labels
        return replace(
            batch,
            amplitude=one.apply(batch.amplitude, shift),
            encoder_mel=one.apply(batch.encoder_mel, shift, n_frames),
            labels=one.apply_labels(batch.labels, shift),
            pseudo_labels=None if pseudo is None else one.apply_labels(pseudo, shift),
        )

    def _mask(self, batch: SedBatch, draws: ViewDraws) -> SedBatch:
        one, n_label_frames = self.time_mask, batch.labels.shape[-1]
        for rows, draw in draws.time_masks:
            pseudo = batch.pseudo_labels
            batch = replace(
                batch,
                amplitude=_on_rows(one.apply, batch.amplitude, rows, draw),
                encoder_mel=_on_rows(one.apply_encoder, batch.encoder_mel, rows, draw, n_label_frames),
                labels=_on_rows(one.apply_labels, batch.labels, rows, draw),
                pseudo_labels=None if pseudo is None else _on_rows(one.apply_pseudo_labels, pseudo, rows, draw),
            )
        return batch

    def _mix(self, batch: SedBatch, draws: ViewDraws) -> SedBatch:
        if (draw := draws.mix) is not None:
            one, pseudo = self.mixup, batch.pseudo_labels
            batch = SedBatch(
                amplitude=one.apply(batch.amplitude, draw),
                encoder_mel=one.apply(batch.encoder_mel, draw),
                labels=one.apply_labels(batch.labels, draw),
                class_mask=one.apply_mask(batch.class_mask, batch.labels, draw),
                pseudo_labels=None if pseudo is None else one.apply_labels(pseudo, draw),
            )
        if self.mixstyle is None:
            return batch
        return replace(
            batch,
            amplitude=self.mixstyle.apply(batch.amplitude, draws.style),
            encoder_mel=self.mixstyle.apply(batch.encoder_mel, draws.encoder_style),
        )

    def _filter(self, batch: SedBatch, draw: tuple[Tensor, Tensor] | None) -> SedBatch:
        return replace(batch, amplitude=self.filter.apply(batch.amplitude, draw)) if self.filter else batch

    def _encoder_only(self, batch: SedBatch, draws: ViewDraws) -> SedBatch:
        log_mel = batch.encoder_mel
        for rows, draw in draws.warps:
            log_mel = _on_rows(self.warp.apply, log_mel, rows, draw)
        if self.encoder_filter is not None:
            log_mel = self.encoder_filter.apply(log_mel, draws.encoder_filter)
        return replace(batch, encoder_mel=log_mel)


def group_rows(groups: Groups, sizes: Mapping[str, int]) -> list[np.ndarray]:
    """Return the rows of the batch that belong to each group; sets are in the batch in the order of `sizes`."""
    stops = np.cumsum(list(sizes.values()), dtype=np.int64)
    rows = {name: np.arange(stop - n, stop) for (name, n), stop in zip(sizes.items(), stops, strict=True)}
    nothing = np.empty(0, np.int64)
    return [np.concatenate([nothing, *(rows.get(name, nothing) for name in group)]) for group in groups]


def _on_rows(function: Callable[..., Tensor], x: Tensor, rows: Tensor, *arguments) -> Tensor:
    rows = rows.to(x.device)
    return x.index_copy(0, rows, function(x[rows], *arguments))

