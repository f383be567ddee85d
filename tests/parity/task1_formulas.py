"""Vectors of task 1 without a network: front ends, augmentations, losses, schedules, metrics."""

import re
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from common.audio.augment import FreqMixStyle, ImpulseResponse, Mixup, Roll
from common.audio.frontends import KaldiLogMel, LogMel
from common.metrics.classification import classification_scores
from common.nn.gates import l_gate, t_gate
from common.training.schedules import exp_warmup_linear_down, warmup_cosine
from task1_asc.cp_resnet import damping_row
from task1_asc.losses import cross_entropy, distillation, knowledge_distillation, parallel_mse, soft_targets
from tests.parity.checks import Check, NotCoveredError, compare, equal, handles
from tests.parity.fill import other_seed, probe
from tests.parity.vectors import Vector

LOG_MEL = 3e-4  # absolute
POWER_MEL = 2e-5  # of the maximum
WAVEFORM = 1e-5
FORMULA = 1e-5  # of the largest absolute value
DEVICE_GROUPS = {"real": ["a", "b", "c"], "seen": ["s1", "s2", "s3"], "unseen": ["s4", "s5", "s6"]}


# ---------------------------------------------------------------- front ends


@handles(lambda v: v.field("44k1") is not None and v.field("mel") is not None)
def check_baseline_front_end(vector: Vector) -> Iterable[Check]:
    """Power and log mel at 32 kHz, resampling from 44.1 kHz, and the constants behind them."""
    numbers = {
        key: int(re.search(rf"{text} (\d+)", vector.field("mel"))[1])
        for key, text in (
            ("sample_rate", "sr"),
            ("n_fft", "n_fft"),
            ("win_length", "win"),
            ("hop_samples", "hop"),
        )
    }
    numbers["n_mels"] = int(re.search(r"(\d+) htk mels", vector.field("mel"))[1])
    expected = vector.arrays

    front_end = LogMel(input_rate=numbers["sample_rate"], **numbers)
    x, other = _probe_and_other(vector.field("power/log mel 32k")["probe"])
    power, other_power = front_end.power_mel(x), front_end.power_mel(other)
    yield compare("power_mel_32k", power, expected["power_mel_32k"], relative=POWER_MEL, replaced=other_power)
    yield compare(
        "logmel_32k", front_end(x), expected["logmel_32k"], absolute=LOG_MEL, replaced=front_end(other)
    )

    front_end = LogMel(input_rate=44100, **numbers)
    x, other = _probe_and_other(vector.field("44k1")["probe"])
    waves = [front_end.resample(w[:, 0])[:, None] for w in (x, other)]
    yield compare(
        "resampled_44k1", waves[0], expected["resampled_44k1"], absolute=WAVEFORM, replaced=waves[1]
    )
    yield compare(
        "logmel_44k1", front_end(x), expected["logmel_44k1"], absolute=LOG_MEL, replaced=front_end(other)
    )

    bank, kernel = front_end.mel_bank, front_end.resample_kernel  # (bins, F), (phases, 1, taps)
    yield equal("resample_kernel_shape", list(kernel.shape), vector.field("resample_kernel_shape"))
    yield compare("resample_kernel_phase0", kernel[0, 0], expected["resample_kernel_phase0"], relative=1e-6)
    yield equal("fbank_nonzero_per_mel", (bank != 0).sum(0), expected["fbank_nonzero_per_mel"])
    yield compare("fbank_sum_per_mel", bank.sum(0), expected["fbank_sum_per_mel"], relative=1e-5)
    yield equal("fbank_peak_bin", bank.argmax(0), expected["fbank_peak_bin"])


@handles(lambda v: isinstance(v.field("config"), dict) and "hopsize" in v.field("config"))
def check_kaldi_front_end(vector: Vector) -> Iterable[Check]:
    """Scaled log mel of the 2023 front ends, evaluation mode; the probe is at their own rate."""
    config = vector.field("config")
    front_end = KaldiLogMel(
        input_rate=config["sr"],
        sample_rate=config["sr"],
        n_fft=config["n_fft"],
        win_length=config["win_length"],
        hop_samples=config["hopsize"],
        n_mels=config["n_mels"],
        f_min_hz=config["fmin"],
        f_max_hz=config["fmax"],
        f_min_range_hz=config["fmin_aug_range"],
        f_max_range_hz=config["fmax_aug_range"],
    )
    x, other = _probe_and_other(vector.field("probe"))
    yield equal("fmax_used", front_end.f_max_hz, vector.field("fmax_used"))
    # The output is (log mel + 4.5) / 5: a fifth of the tolerance on the log mel.
    found, replaced = front_end(x)[:, 0], front_end(other)[:, 0]
    yield compare("out", found, vector.arrays["out"], absolute=LOG_MEL / 5, replaced=replaced)


def _probe_and_other(recipe: list) -> tuple[Tensor, Tensor]:
    """Return a waveform (B, 1, T) and other noise of the same shape; recipes may leave out the channel."""
    shape, seed, scale = recipe
    return tuple(probe(shape, s, scale).reshape(shape[0], 1, shape[-1]) for s in (seed, other_seed(seed)))


# ---------------------------------------------------------------- small cases in one json

CASES: dict[str, Callable[[dict, str], Iterable[Check]]] = {}


def _case(name: str):
    def register(function):
        CASES[name] = function
        return function

    return register


def _matching(title: str) -> Callable[[dict, str], Iterable[Check]] | None:
    """Return the function for a case: its name, without the arguments that may follow in brackets."""
    return CASES.get(title.split("(")[0])


@handles(lambda v: v.name.startswith("minicases"), cases=lambda v: list(v.spec))
def check_small_case(vector: Vector, title: str) -> Iterable[Check]:
    """One formula with its inputs, frozen draws and results, all in the json."""
    function = _matching(title)
    if function is None:
        raise NotCoveredError(f"no handler for case {title}")
    return list(function(vector.spec[title], title))


def _noise_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * x.std() + x.mean()


@_case("fms")
def _freq_mixstyle(case: dict, title: str) -> Iterable[Check]:
    style = FreqMixStyle(p=1.0, alpha=0.3, eps=case["eps"])
    x, draw = torch.tensor(case["x"]), (torch.tensor(case["lam"]), torch.tensor(case["perm"]))
    found, replaced = style.apply(x, draw), style.apply(_noise_like(x), draw)
    yield compare("y", found, case["y"], relative=FORMULA, replaced=replaced)


@_case("dir")
def _impulse_response(case: dict, title: str) -> Iterable[Check]:
    x, response = torch.tensor(case["x"])[:, None], torch.tensor(case["ir"]).flatten()
    index = torch.zeros(len(x), dtype=torch.long)
    found, replaced = (ImpulseResponse(p=1.0).apply(w, index, [response])[:, 0] for w in (x, _noise_like(x)))
    yield compare("y", found, case["y"], relative=FORMULA, replaced=replaced)


@_case("roll")
def _roll(case: dict, title: str) -> Iterable[Check]:
    x = torch.tensor(case["x"], dtype=torch.float32).reshape(1, 1, -1)
    for shift, expected in (("shift", "y"), ("shift_neg", "y_neg")):
        roll, by = Roll(max_shift_samples=abs(case[shift])), torch.tensor([case[shift]])
        found, replaced = roll.apply(x, by).flatten(), roll.apply(x + 1, by).flatten()
        yield compare(expected, found, case[expected], absolute=0.0, replaced=replaced)


@_case("kd")
def _knowledge_distillation(case: dict, title: str) -> Iterable[Check]:
    student, labels = torch.tensor(case["student"]), torch.tensor(case["labels"])
    temperature, weight = case["T"], case["lambda"]
    targets = soft_targets(torch.tensor(case["teacher"]), temperature)
    for what, loss in (
        ("ce", lambda s: cross_entropy(s, labels)),
        ("kd_mean_over_batch_AND_classes_times_T2", lambda s: distillation(s, targets, temperature)),
        ("loss", lambda s: knowledge_distillation(s, targets, labels, temperature, weight)),
    ):
        yield compare(what, loss(student), case[what], relative=FORMULA, replaced=loss(_noise_like(student)))


@_case("mixup")
def _mixup(case: dict, title: str) -> Iterable[Check]:
    lam = torch.tensor(next(value for key, value in case.items() if key.startswith("lam")))
    x, perm = torch.tensor(case["x"]), torch.tensor(case["perm"])
    found, replaced = (Mixup(alpha=0.3).apply(w, (lam, perm)) for w in (x, _noise_like(x)))
    yield compare("y", found, case["y"], relative=FORMULA, replaced=replaced)


@_case("cosine")
def _cosine(case: dict, title: str) -> Iterable[Check]:
    for name, values in case.items():
        peak = float(re.search(r"lr ([\d.e-]+)", name)[1])
        warmup, total = (int(re.search(rf"{word} (\d+)", name)[1]) for word in ("warm", "total"))
        found = [peak * warmup_cosine(int(step), warmup, total) for step in values]
        yield compare(name[:20], found, list(values.values()), relative=1e-9)


@_case("exp_warmup_linear_down")
def _warmup_and_down(case: dict, title: str) -> Iterable[Check]:
    warmup, rampdown, start, last = (float(n) for n in re.search(r"\((.*)\)", title)[1].split(","))
    found = [exp_warmup_linear_down(int(epoch), warmup, rampdown, start, last) for epoch in case]
    yield compare("factor", found, list(case.values()), relative=1e-9)


@_case("metrics")
def _metrics(case: dict, title: str) -> Iterable[Check]:
    logits, labels, devices = torch.tensor(case["logits"]), case["labels"], case["devices"]
    names = [str(k) for k in range(logits.shape[1])]
    found, replaced = (
        classification_scores(x, labels, devices, names, DEVICE_GROUPS) for x in (logits, _noise_like(logits))
    )
    for what, ours in (("acc", "accuracy"), ("macro_avg_acc", "macro_accuracy"), ("log_loss", "log_loss")):
        yield compare(what, found[ours], case[what], relative=1e-6, replaced=replaced[ours])
    expected_classes = dict(zip(names, case["class_acc"], strict=True))
    for what, ours, expected in (
        ("class_acc", "class_accuracy", expected_classes),
        ("device_acc", "device_accuracy", case["device_acc"]),
        ("group_acc_sample_weighted", "group_accuracy", case["group_acc_sample_weighted"]),
    ):
        rows = [[scores[ours][name] for name in expected] for scores in (found, replaced)]
        yield compare(what, rows[0], list(expected.values()), relative=1e-6, replaced=rows[1])


@_case("freq_damping_rows")
def _damping(case: dict, title: str) -> Iterable[Check]:
    for size, expected in case.items():
        yield compare(f"kernel {size}", damping_row(int(size)), expected, relative=1e-6)


@_case("gates")
def _gates(case: dict, title: str) -> Iterable[Check]:
    x = torch.tensor(case["x"])
    for name, gate in (("T", t_gate), ("L", l_gate)):
        dials = [float(t) for t in case[name]]
        found, replaced = (torch.stack([gate(values, t) for t in dials]) for values in (x, x.flip(0) + 0.3))
        expected = np.array(list(case[name].values()))
        yield compare(f"{name} gate", found, expected, relative=FORMULA, replaced=replaced)


@_case("parallel_mse")
def _parallel(case: dict, title: str) -> Iterable[Check]:
    a, b, c = (torch.tensor(case[name]) for name in "abc")
    found, replaced = parallel_mse(a, b, c), parallel_mse(_noise_like(a), b, c)
    yield compare("loss", found, case["loss"], relative=FORMULA, replaced=replaced)
