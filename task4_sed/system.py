"""What Task 4 trains: a student and its mean teacher, on batches made of five sets.

Flow: batch → front ends → **views → student, teacher → losses**;  hold-out clips → student → PSDS1, mpAUC, rank.

Stage `frozen`: one encoder, which runs once per batch and feeds the CRNNs of student and teacher. The published system
runs two equal copies: the losses are the same, the time is nearly twice as long. Stage `full`: everything trains.

Source: DCASE 2024 task 4, system of CP-JKU; with `loss.form=baseline` the challenge's baseline.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from common.audio.encoder_frontends import CrnnMel
from common.config import ConfigError
from common.training.distributed import gather_clips
from common.training.module import OptimConfig, TrainingSystem
from task4_sed import losses
from task4_sed.augment import MixDraw
from task4_sed.config import SedConfig
from task4_sed.data import Manifest
from task4_sed.labels import class_mask
from task4_sed.losses import Outputs, Share
from task4_sed.mean_teacher import MeanTeacher
from task4_sed.models.crnn import class_probabilities
from task4_sed.models.fusion import FusionModel
from task4_sed.validation import HoldOut
from task4_sed.views import SedBatch, ViewDraws


class SedSystem(TrainingSystem):
    """Student, teacher and losses.

    A training batch holds `waveform` (B, 1, T), `targets` (B, K, N), `class_mask` bool (B, K), `pseudo` (B, K, N) or
    nothing, `sizes` (clips of each set, one set after the other), `n_clips` B and `rows`, the places of this process's
    clips (every n-th of n processes). All processes get the whole batch, so that augmentations are the same everywhere;
    networks see `rows` alone. A hold-out batch holds `waveform`, `targets`, `class_mask`, and for each clip `set` (its
    name) and `item` (place in that set's manifest).

    Args:
        student: the model to train; `config.stage` decides whether its encoder does.
        hold_out: sets looked at during training, by their names in `data.validation`; their rank decides which weights
            are the best.

    Attributes:
        student; mean_teacher: see `MeanTeacher`; teacher: its network.
    """

    def __init__(self, student: FusionModel, config: SedConfig, hold_out: Mapping[str, Manifest] | None = None):
        super().__init__()
        if config.loss.interpolation and config.augment.teacher != "unmixed":
            raise ConfigError(
                "loss.interpolation mixes what the teacher says of unmixed clips: set augment.teacher=unmixed."
            )
        self.config, self.views = config, config.augment.views()
        self.crnn_mel = CrnnMel()
        # The encoder with its pooling, without projection: what both networks share in stage `frozen`.
        self._tokens = FusionModel(student.encoder, None, student.crnn, student.n_tokens).embeddings
        student.train_encoder(config.stage == "full")
        for parameter in set(student.encoder.parameters()) - {p for g in student.encoder.layer_groups() for p in g}:
            parameter.requires_grad_(False)  # takes no part in the output
        self.student = student
        self.mean_teacher = MeanTeacher(student, config.ema_decay)
        self.skips_layers = config.stage == "full" and any(getattr(m, "layerdrop", 0) > 0 for m in student.modules())
        desed = torch.from_numpy(class_mask("desed", "train", config.data.recipe))
        self.register_buffer("desed_classes", desed, persistent=False)
        self.hold_out = HoldOut(hold_out) if hold_out else None
        self.best_by = "rank" if hold_out else None
        self.train()

    @property
    def teacher(self) -> FusionModel:
        return self.mean_teacher.network

    def before_zero_grad(self, step: int) -> None:
        """Move the teacher; as published between forward pass and step, so that it is one step behind."""
        self.mean_teacher.update(step)

    def parameter_groups(self, optim: OptimConfig) -> list[dict]:
        """Return all that trains with its learning rates: in stage `full` those of `config.rates`."""
        if self.config.stage == "frozen":
            return super().parameter_groups(optim)
        rates, student = self.config.rates, self.student
        cnn = list(student.crnn.cnn.parameters())
        elsewhere = {*cnn, *student.encoder.parameters()}
        groups = [(rates.cnn, cnn), (rates.rnn, [p for p in student.parameters() if p not in elsewhere])]
        groups += [(rates.encoder * rates.encoder_decay**i, g) for i, g in enumerate(student.encoder.layer_groups())]
        groups = [{"params": [p for p in group if p.requires_grad], "lr": lr} for lr, group in groups]
        return [group for group in groups if group["params"]]

    # ------------------------------------------------------------ training

    def training_losses(self, batch: dict, rng: np.random.Generator) -> dict[str, Tensor]:
        with _float32():
            seen = self.features(batch, rng)
            draws = self.views.draw(batch["sizes"], seen, rng)
        return self.losses(batch, seen, draws)

    @torch.no_grad()
    def features(self, batch: dict, rng: np.random.Generator) -> SedBatch:
        """Return the whole batch as the front ends see it; with `augment.edge_jitter` the encoder's has drawn edges."""
        encoder, waveform = self.student.encoder, batch["waveform"]
        edges = encoder.draw_edges(rng) if self.config.augment.edge_jitter else {}
        return SedBatch(
            amplitude=self.crnn_mel.amplitude(waveform),
            encoder_mel=encoder.log_mel(waveform, **edges),
            labels=batch["targets"].float(),
            class_mask=batch["class_mask"],
            pseudo_labels=batch["pseudo"].float() if self.config.pseudo_labels else None,
        )

    def losses(self, batch: dict, seen: SedBatch, draws: ViewDraws) -> dict[str, Tensor]:
        """Return the loss and its terms for fixed draws, this process's part of them (see `losses.Share`).

        Args:
            batch: `sizes`, `rows` and `n_clips`. seen: of the whole batch. draws: of `views`.
        """
        loss, rows = self.config.loss, batch["rows"]
        share = Share(batch["sizes"], rows.cpu())
        with torch.no_grad(), _float32():
            student_view, teacher_view = (_rows(view, rows) for view in self.views.apply(seen, draws))
        mask = student_view.class_mask
        student, free_student, teacher = self._outputs(student_view, teacher_view)
        labels = student_view.labels.masked_fill(~mask[..., None], 0.0)
        weak_labels = self._weak_labels(seen.labels, draws.mix)[rows].masked_fill(~mask, 0.0)
        terms = losses.supervised_terms(student, labels, weak_labels, share)
        if teacher is None:
            pass  # no term needs it
        elif loss.interpolation and draws.mix is not None:
            mixed = self._mixed(teacher, draws.mix, batch["n_clips"], rows)
            groups, desed = self.views.mixup_groups, self.desed_classes
            terms |= losses.interpolation_terms(free_student, mixed, share, loss, groups, desed)
        else:
            terms |= losses.consistency_terms(free_student, teacher, share, loss)
        if student_view.pseudo_labels is not None:
            pseudo_labels = student_view.pseudo_labels.masked_fill(~mask[..., None], 0.0)
            terms |= losses.pseudo_terms(student, pseudo_labels, share)
        weight = losses.self_supervised_weight(loss, self.step)
        return losses.total_loss(terms, loss, weight, batch["sizes"]) | terms

    def _outputs(self, student: SedBatch, teacher: SedBatch) -> tuple[Outputs, Outputs, Outputs | None]:
        """Return the student's outputs masked by its classes, and both networks' as consistency compares them.

        The teacher's are masked by the student's classes (of the mix, in stage 2 too); with `loss.mask_consistency` off
        neither is masked. With `loss.self_supervised` 0 the teacher is not run (None): it follows the student's weights
        still, but its BatchNorms see no clips.
        """
        embeddings, tokens = self._embeddings(student)
        mask = student.class_mask
        masked = free = self.student.crnn(self._crnn_input(student), embeddings, mask)
        if not self.config.loss.mask_consistency:
            free, mask = class_probabilities(masked["strong_logits"], masked["attention_logits"]), None
        if self.config.loss.self_supervised == 0:
            return masked, free, None
        with torch.no_grad():
            embeddings = self._teacher_embeddings(teacher, tokens)
            target = self.teacher.crnn(self._crnn_input(teacher), embeddings, mask)
        return masked, free, target

    def _embeddings(self, view: SedBatch) -> tuple[Tensor, Tensor | None]:
        """Return the student's embeddings, and the frozen encoder's tokens that they are made of."""
        mel = self._as_weights(view.encoder_mel)
        if self.config.stage == "full":
            return self.student.embeddings(mel), None
        tokens = self._tokens(mel)
        return _projected(self.student, tokens), tokens

    def _teacher_embeddings(self, view: SedBatch, tokens: Tensor | None) -> Tensor:
        """Return the teacher's embeddings, from the student's tokens where both see the same clips."""
        mel = self._as_weights(view.encoder_mel)
        if tokens is None:
            return self.teacher.embeddings(mel)
        return _projected(self.teacher, tokens if self.views.teacher == "mixed" else self._tokens(mel))

    def _crnn_input(self, view: SedBatch) -> Tensor:
        return self._as_weights(self.crnn_mel.scale(view.amplitude))

    def _as_weights(self, x: Tensor) -> Tensor:
        """Return `x` in the precision of the weights: double where train.precision is 64-true."""
        return x.to(next(self.student.crnn.parameters()).dtype)

    def _weak_labels(self, labels: Tensor, mix: MixDraw | None) -> Tensor:
        """Return the classes that clips have anywhere, (B, K): taken before the mix and mixed like the clips.

        In the baseline a mixed clip has all classes of both.
        """
        weak = (labels.sum(-1) > 0).to(labels.dtype)
        if mix is not None:
            weak = self.views.mixup.apply_labels(weak, mix)
        return (weak > 0).to(labels.dtype) if self.config.loss.form == "baseline" else weak

    def _mixed(self, teacher: Outputs, mix: MixDraw, n_clips: int, rows: Tensor) -> Outputs:
        """Return the teacher's outputs mixed as the student's clips are; partners may be in other processes."""
        whole = {name: gather_clips(teacher[name], n_clips) for name in ("strong", "weak")}
        return {name: self.views.mixup.apply_labels(values, mix)[rows] for name, values in whole.items()}

    # ------------------------------------------------------------ hold-out

    def validation_scores(self, batch: dict) -> dict[str, Tensor]:
        """Return the student's cross entropy of each clip, and keep its probabilities for `validation_metrics`."""
        log_mel = self._as_weights(self.student.encoder.log_mel(batch["waveform"]))
        mel, mask = self._as_weights(self.crnn_mel(batch["waveform"])), batch["class_mask"]
        strong = self.student(mel, log_mel, mask)["strong"]
        self.hold_out.add(batch["set"], batch["item"], strong)
        return {"loss": losses.cross_entropy(strong, batch["targets"].masked_fill(~mask[..., None], 0.0))}

    def validation_metrics(self) -> dict[str, float]:
        return self.hold_out.metrics()


@contextmanager
def _float32() -> Iterator[None]:
    """Front ends and augmentations are float32, also where train.precision=64-true makes double the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _projected(model: FusionModel, tokens: Tensor) -> Tensor:
    return tokens if model.projection is None else model.projection(tokens)


def _rows(view: SedBatch, rows: Tensor) -> SedBatch:
    """Return some clips of a view."""
    fields = {name: value[rows] for name, value in vars(view).items() if value is not None}
    return replace(view, **fields)
