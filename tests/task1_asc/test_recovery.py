"""Training survives kill -9, and several processes give what one gives: on tiny data, through the real commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

REPOSITORY = Path(__file__).parents[2]
GENERAL, DEVICES = (
    REPOSITORY / "task1_asc/configs/builtin" / name for name in ("general.yaml", "device_specific.yaml")
)
SMALL = [
    "--data.format.clip_s=0.25",
    "--train.batch_size=16",
    "--train.validate_every=1",
    "--optim.warmup_steps=2",
    "--model.init_args.base_channels=8",
    "--data.holdout_fraction=0.25",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """120 noisy tones of 0.25 s: three classes, two devices, eight places, in the TAU layout."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "audio").mkdir()
    rows = []
    for i in range(120):
        label, device, place = ("bus", "park", "tram")[i % 3], "ab"[i // 3 % 2], f"city-{i % 8}"
        name = f"audio/{label}-{place}-{i}-0-{device}.wav"
        tone = np.sin(2 * np.pi * (300 + 500 * (i % 3)) * np.arange(11025) / 44100)
        soundfile.write(root / name, 0.1 * tone + 0.1 * rng.standard_normal(11025), 44100, subtype="PCM_24")
        rows.append(f"{name}\t{label}\t{place}\t{device}")
    (root / "meta.csv").write_text("filename\tscene_label\tidentifier\tsource_label\n" + "\n".join(rows) + "\n")
    (root / "split_setup").mkdir()
    for split in ("split100", "test"):
        lines = ["\t".join(row.split("\t")[:2]) for row in rows]
        (root / "split_setup" / f"{split}.csv").write_text("filename\tscene_label\n" + "\n".join(lines) + "\n")
    return root


def command(config: Path, data: Path, run: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "task1_asc.train",
        "--config",
        str(config),
        "--data",
        str(data),
        "--cache",
        str(data / "cache"),
        "--run",
        str(run),
        "--device",
        "cpu",
        *SMALL,
        *more,
    ]


def run_to_end(words: list[str]) -> None:
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_when(words: list[str], reached: Path, times: int = 1) -> None:
    """Start the command and kill -9 it once `reached` has been written `times` times."""
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen, deadline = set(), time.monotonic() + 200
    while len(seen) < times:
        assert process.poll() is None, f"the command ended before {reached} was written {times} times"
        assert time.monotonic() < deadline
        if reached.is_file():
            seen.add(reached.stat().st_mtime_ns)
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "weights.pt", weights_only=True)["state_dict"]


def assert_same(first: dict, second: dict, tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def general(data, tmp_path_factory) -> Path:
    """A general model trained without interruption."""
    run = tmp_path_factory.mktemp("runs") / "general"
    run_to_end(command(GENERAL, data, run, "--train.epochs=5"))
    return run


def test_killed_in_stage_one_goes_on_bit_for_bit(data, general, tmp_path):
    words = command(GENERAL, data, tmp_path / "run", "--train.epochs=5")
    kill_when(words, tmp_path / "run/last.ckpt", times=2)
    assert not (tmp_path / "run/weights.pt").exists()
    run_to_end(words)
    assert_same(weights(general), weights(tmp_path / "run"))
    history = [json.loads((run / "train.json").read_text())["history"] for run in (general, tmp_path / "run")]
    assert history[0] == history[1] and [row["epoch"] for row in history[1]] == [1, 2, 3, 4, 5]


def test_killed_in_stage_two_goes_on_bit_for_bit(data, general, tmp_path):
    more = ("--init", str(general / "weights.pt"), "--train.epochs=3")
    run_to_end(command(DEVICES, data, tmp_path / "whole", *more))
    words = command(DEVICES, data, tmp_path / "killed", *more)
    kill_when(words, tmp_path / "killed/devices/b/last.ckpt")  # a is finished, b has begun
    assert (tmp_path / "killed/devices/a/network.pt").is_file()
    run_to_end(words)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_two_processes_give_what_one_gives(data, tmp_path):
    """Same effective batch, Freq-MixStyle across processes, uneven shares (15 clips a batch, an odd hold-out).

    In double precision: rounding in float32 alone moves gradients of this network by a per cent, and AdamW turns that
    into whole steps, so that a loose tolerance would hide a real fault.
    """
    more = ("--train.epochs=2", "--augment.mixstyle_p=1.0", "--train.batch_size=15", "--train.precision=64-true")
    run_to_end(command(GENERAL, data, tmp_path / "one", *more))
    run_to_end(command(GENERAL, data, tmp_path / "two", *more, "--devices", "2"))
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"), tolerance=1e-8)
    one, two = (json.loads((tmp_path / run / "train.json").read_text())["history"] for run in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, abs=1e-6)  # hold-out averages too: every clip counted once


def test_another_config_does_not_go_into_a_used_run_folder(data, general):
    done = subprocess.run(
        command(GENERAL, data, general, "--train.epochs=6"), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode != 0 and "holds a run of another config" in done.stderr and "Traceback" not in done.stderr
