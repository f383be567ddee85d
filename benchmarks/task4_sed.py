"""Task 4: what encoders, the BEATs front end and decoding cost, against the plain way in the same run.

Run:  python -m benchmarks.task4_sed encoders [--device cuda]     the three transformers at batch 1 and 8
      python -m benchmarks.task4_sed front_end                     filter bank of BEATs, batched against clip by clip
      python -m benchmarks.task4_sed decoding                     frame scores → events
Post-processing has its own: benchmarks/task4_sed_postprocess.py.
"""

import argparse
import json
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from benchmarks.measure import alternate, in_own_process, keep
from common.audio.encoder_frontends import BeatsFbank
from common.nn.encoders import build_encoder
from common.results.records import peak_memory
from task4_sed.labels import FrameGrid, decode

ENCODERS = ("atst_frame", "fpasst", "beats")
BATCHES = (1, 8)
CLIP_SAMPLES = 160000
PLAIN, OURS = "explicit attention", "scaled_dot_product_attention"


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, scale=None) -> Tensor:
    """Attention as product, softmax, product: the plain way."""
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ value


def encoders(args) -> None:
    """Forward pass of one and of eight clips of 10 s; each way's memory from a process of its own."""
    rows = []
    for name in ENCODERS:
        for batch in BATCHES:
            own = {"--encoder": name, "--batch": str(batch), "--device": args.device}
            options = [text for pair in own.items() for text in pair]
            times = in_own_process("benchmarks.task4_sed", "one_encoder", *options)
            for way in (PLAIN, OURS):
                memory = in_own_process("benchmarks.task4_sed", "one_memory", "--way", way, *options)
                ratio = {"plain / this": round(times[PLAIN] / times[way], 2)}
                rows.append({"encoder": name, "clips": batch, "way": way, "s": round(times[way], 3)} | ratio | memory)
    keep(
        f"task4_sed_encoders{'_gpu' if args.device != 'cpu' else ''}",
        f"Task 4: encoders on clips of 10 s, float32, {torch.get_num_threads()} threads",
        rows,
        "The same network with the same numbers (within 1e-4), only attention differs. Memory is the peak of a process "
        "that does nothing else, libraries and weights included.",
    )


def _encoder_and_input(args):
    torch.manual_seed(0)
    encoder = build_encoder(args.encoder).eval().to(args.device)
    waveform = 0.1 * torch.randn(args.batch, 1, CLIP_SAMPLES, generator=torch.Generator().manual_seed(0))
    return encoder, encoder.log_mel(waveform.to(args.device))


def _run(encoder, log_mel: Tensor, way: str) -> Tensor:
    with torch.inference_mode():
        if way == OURS:
            output = encoder(log_mel)
        else:
            with patch("torch.nn.functional.scaled_dot_product_attention", explicit_attention):
                output = encoder(log_mel)
    if log_mel.is_cuda:
        torch.cuda.synchronize()
    return output


def one_encoder(args) -> None:
    encoder, log_mel = _encoder_and_input(args)
    difference = (_run(encoder, log_mel, OURS) - _run(encoder, log_mel, PLAIN)).abs().max().item()
    if difference > 1e-4:
        raise SystemExit(f"the two ways differ by {difference}")
    rounds = 3 if args.device == "cpu" else 20
    times = alternate({way: lambda way=way: _run(encoder, log_mel, way) for way in (PLAIN, OURS)}, rounds)
    print(json.dumps(times))


def one_memory(args) -> None:
    encoder, log_mel = _encoder_and_input(args)
    _run(encoder, log_mel, args.way)
    print(json.dumps(peak_memory()))


def front_end(args) -> None:
    """Kaldi filter bank of eight clips."""
    fbank = BeatsFbank()
    waveform = 0.1 * torch.randn(8, 1, CLIP_SAMPLES, generator=torch.Generator().manual_seed(0))

    def loop() -> Tensor:
        features = [
            kaldi.fbank(2**15 * clip, num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10)
            for clip in waveform
        ]
        return (torch.stack(features) - 15.41663) / (2 * 6.55582)

    apart = (loop().transpose(1, 2) - fbank(waveform)[:, 0]).abs().max().item()
    times = alternate({"clip by clip (torchaudio)": loop, "this repository": lambda: fbank(waveform)}, rounds=15)
    plain = times["clip by clip (torchaudio)"]
    keep(
        "task4_sed_front_end",
        f"Task 4: Kaldi filter bank of BEATs, 8 clips of 10 s, {torch.get_num_threads()} threads",
        [{"way": way, "ms": round(1000 * s, 1), "plain / this": round(plain / s, 2)} for way, s in times.items()],
        f"Outputs differ by at most {apart:.0e}.",
    )


def decoding(args) -> None:
    """Scores of 40 clips, 27 classes, at one and at 51 thresholds."""
    rng = np.random.default_rng(0)
    grid = FrameGrid()
    scores = rng.random((40, grid.n_frames, 27)).astype(np.float32)
    scores = np.apply_along_axis(lambda row: np.convolve(row, np.ones(9) / 9, "same"), 1, scores)
    names, clips = [f"class{k}" for k in range(27)], [f"clip{i}" for i in range(40)]

    def loop(threshold: float) -> list:
        events = []
        for clip, one in zip(clips, scores):
            for k, name in enumerate(names):
                active = np.concatenate([[False], one[:, k] > threshold, [False]])
                edges = np.flatnonzero(active[1:] != active[:-1])
                for onset, offset in edges.reshape(-1, 2):
                    events.append((clip, grid.boundaries_s[onset], grid.boundaries_s[offset], name))
        return events

    def ours(threshold: float):
        return decode(scores, grid.boundaries_s, names, threshold, clips)

    if [tuple(row) for row in ours(0.5).iloc[:, :4].itertuples(index=False)] != loop(0.5):
        raise SystemExit("the two ways find other events")
    thresholds = np.linspace(0.01, 0.99, 51)
    rows = []
    for title, chosen in (("one threshold", [0.5]), ("51 thresholds", thresholds)):
        times = alternate(
            {
                "clip by clip, class by class": lambda chosen=chosen: [loop(t) for t in chosen],
                "this repository": lambda chosen=chosen: [ours(t) for t in chosen],
            },
            rounds=3,
        )
        plain = next(iter(times.values()))
        rows += [
            {"what": title, "way": way, "ms": round(1000 * s, 1), "plain / this": round(plain / s, 1)}
            for way, s in times.items()
        ]
    keep(
        "task4_sed_decoding",
        "Task 4: events from the scores of 40 clips, 27 classes",
        rows,
        "Same events. Scoring needs none of this: PSDS comes from the scores themselves, at all thresholds at once.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encoders", "front_end", "decoding", "one_encoder", "one_memory"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name in ("encoder", "way"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
