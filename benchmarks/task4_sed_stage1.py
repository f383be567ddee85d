"""Task 4: a training step, and what it saves in stage 1 to run the frozen encoder once.

Run:  python -m benchmarks.task4_sed_stage1 shared [--encoder beats] [--clips 12,10,10,20,20] [--device cuda]
      python -m benchmarks.task4_sed_stage1 recipe --config dcase2024/it2_stage1_atst … [--device cuda]

`shared`: one encoder for student and teacher against two equal copies, as published: same losses, ratio of time and
memory. `recipe`: seconds and memory of a step of each config at its own batch size, and the hours of the whole
training. A step is features, augmentation, losses, backward pass, optimiser and teacher, on noise; reading audio and
looking at the hold-out clips are not in it.
"""

import argparse
import json
from contextlib import nullcontext

import numpy as np
import torch

from benchmarks.measure import alternate, in_own_process, keep
from common.results.records import peak_memory
from common.training.module import OPTIMISERS
from task4_sed.config import AugmentConfig, DataConfig, SedConfig, load_config
from task4_sed.labels import FrameGrid, class_mask
from task4_sed.mean_teacher import MeanTeacher
from task4_sed.model import build_network
from task4_sed.system import SedSystem
from task4_sed.views import SETS

PUBLISHED, OURS = "two copies (as published)", "this repository: one encoder"
CLIP_SAMPLES = 160000
N_CLASSES, N_FRAMES = len(class_mask("desed")), FrameGrid().n_frames
# As far as known; the external recordings, which differ from user to user, are not counted.
SET_CLIPS = {"maestro": 6750, "strong": 3470, "synth": 10000, "weak": 1420, "unlabeled": 14412}


class TwoCopies(SedSystem):
    """The published way: the teacher has a copy of the frozen encoder, which runs once more and is averaged as well."""

    def __init__(self, student, config):
        super().__init__(student, config)
        student.train_encoder()  # what trains, the teacher copies
        self.mean_teacher = MeanTeacher(student, config.ema_decay)
        for network in (student, self.teacher):
            network.train_encoder(False)

    def _teacher_embeddings(self, view, tokens):
        return self.teacher.embeddings(self._as_weights(view.encoder_mel))


def stage1_config(args) -> SedConfig:
    """Return stage 1 with the default augmentations of the published code and a batch of `args.clips`."""
    batch = dict(zip(SETS, map(int, args.clips.split(",")), strict=True))
    augment = AugmentConfig(mixup_p=0.5, mixstyle_p=0.5, filter_p=0.8)
    network = f"build_fusion('{args.encoder}', dropout=0.3)"
    return SedConfig(network=network, data=DataConfig(batch=batch), augment=augment)


class Step:
    """Training steps of a system on one batch of noise."""

    def __init__(self, kind: type[SedSystem], config: SedConfig, device: str):
        torch.manual_seed(0)
        student = build_network(config.network).to(memory_format=torch.channels_last)
        self.system, self.device = kind(student, config).to(device), device
        groups = self.system.parameter_groups(config.optim)
        self.optimiser = OPTIMISERS[config.optim.name](groups, lr=config.optim.lr)
        lower = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.train.precision)
        self.precision = torch.autocast(device, lower) if lower else nullcontext()
        sizes, draw = config.data.sizes, torch.Generator().manual_seed(0)
        n_clips, labels = sum(sizes.values()), (N_CLASSES, N_FRAMES)
        self.batch = {
            "waveform": 0.1 * torch.randn(n_clips, 1, CLIP_SAMPLES, generator=draw),
            "targets": (torch.rand(n_clips, *labels, generator=draw) > 0.95).float(),
            "class_mask": torch.from_numpy(class_mask("desed")).repeat(n_clips, 1),
            "pseudo": torch.rand(n_clips, *labels, generator=draw),
            "rows": torch.arange(n_clips),
        }
        self.batch = {name: value.to(device) for name, value in self.batch.items()}
        self.batch |= {"sizes": sizes, "n_clips": n_clips}

    def __call__(self) -> dict[str, float]:
        """Take a step, always with the same draws; return its losses."""
        torch.manual_seed(self.system.step)
        with self.precision:
            losses = self.system.training_losses(self.batch, np.random.default_rng(self.system.step))
        self.system.before_zero_grad(self.system.step)
        self.optimiser.zero_grad()
        losses["loss"].backward()
        self.optimiser.step()
        self.system.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}  # waits for the GPU


def shared(args) -> None:
    """Both ways in turn in one process; memory of each in a process of its own."""
    options = ["--encoder", args.encoder, "--clips", args.clips, "--device", args.device, "--rounds", str(args.rounds)]
    measured = in_own_process("benchmarks.task4_sed_stage1", "one_shared", *options)
    rows = []
    for way in (PUBLISHED, OURS):
        memory = in_own_process("benchmarks.task4_sed_stage1", "one_memory", *options, "--way", way)
        row = {"way": way, "s per step": round(measured["seconds"][way], 3)}
        row["plain / this"] = round(measured["seconds"][PUBLISHED] / measured["seconds"][way], 2)
        rows.append(row | {"parameters, M": round(memory.pop("parameters") / 1e6, 1)} | memory)
    keep(
        f"task4_sed_stage1_{args.encoder}{'_gpu' if args.device != 'cpu' else ''}",
        f"Task 4: step of stage 1 with {args.encoder}, batch {args.clips.replace(',', ' + ')}, float32, "
        f"{torch.get_num_threads()} threads",
        rows,
        f"Same draws: losses of {measured['steps']} steps differ by at most {measured['apart']:.0e} of their value. "
        "Both ways in turn; memory is the peak of a process that does nothing else.",
    )


def one_shared(args) -> None:
    steps = {way: Step(kind, stage1_config(args), args.device) for way, kind in KINDS.items()}
    losses = {way: [] for way in steps}
    seconds = alternate({way: lambda way=way: losses[way].append(steps[way]()) for way in steps}, args.rounds)
    pairs = list(zip(losses[PUBLISHED], losses[OURS], strict=True))
    apart = max(abs(one[name] - two[name]) / max(abs(one[name]), 1e-9) for one, two in pairs for name in one)
    if apart > 1e-3:
        raise SystemExit(f"the losses of the two ways differ by {apart:.1e} of their value")
    print(json.dumps({"seconds": seconds, "apart": apart, "steps": len(pairs)}))


def one_memory(args) -> None:
    step = Step(KINDS[args.way], stage1_config(args), args.device)
    step()
    held = sum(parameter.numel() for parameter in step.system.parameters())
    print(json.dumps({"parameters": held} | peak_memory()))


def recipe(args) -> None:
    """Seconds and memory of one step of each config, and the hours of its training."""
    rows = []
    for name in args.config:
        options = ["--config", name, "--device", args.device, "--rounds", str(args.rounds)]
        rows.append(in_own_process("benchmarks.task4_sed_stage1", "one_recipe", *options))
    keep(
        f"task4_sed_recipe{'_gpu' if args.device != 'cpu' else ''}",
        f"Task 4: training steps on {args.device}",
        rows,
        f"Hours of all epochs of {', '.join(f'{n:,} {name}' for name, n in SET_CLIPS.items())} clips, without reading "
        f"audio and looking at hold-out clips; all {sum(row['hours'] for row in rows):.1f} h.",
    )


def one_recipe(args) -> None:
    config, _ = load_config(args.config[0])
    step = Step(SedSystem, config, args.device)
    seconds = alternate({"step": step}, args.rounds)["step"]
    sizes = config.data.sizes
    batches = config.train.epochs * min(SET_CLIPS[name] // n for name, n in sizes.items())
    row = {"config": args.config[0], "precision": config.train.precision, "clips": sum(sizes.values())}
    row |= {"batches per s": round(1 / seconds, 2), "batches": batches, "hours": round(batches * seconds / 3600, 2)}
    print(json.dumps(row | peak_memory()))


KINDS = {PUBLISHED: TwoCopies, OURS: SedSystem}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shared", "recipe", "one_shared", "one_memory", "one_recipe"))
    parser.add_argument("--encoder", default="atst_frame", help="of `shared`: a name of common.nn.encoders")
    parser.add_argument("--clips", default="12,10,10,20,20", help=f"of `shared`: {', '.join(SETS)} in a batch")
    parser.add_argument("--config", nargs="+", default=[], help="of `recipe`: names below task4_sed/configs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each way, after one that is not")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
