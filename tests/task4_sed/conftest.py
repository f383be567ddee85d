"""Small data folders in the layout of the challenge."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000


def write_table(path: Path, header: str, rows: Iterable[Iterable], separator: str = "\t", newline: str = "\n") -> Path:
    """Write a text table; `header` has its columns separated by blanks, "" for none."""
    lines = ([separator.join(header.split())] if header else []) + [separator.join(map(str, row)) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + newline for line in lines).encode())
    return path


def write_audio(path: Path, duration_s: float = 0.1, rate: int = RATE, n_channels: int = 1, seed: int = 0) -> Path:
    """Write low noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal((round(duration_s * rate), n_channels))
    soundfile.write(path, samples, rate, subtype="PCM_24")
    return path


@pytest.fixture
def desed(tmp_path) -> Path:
    """A devtest of three clips (one without events), a weak set of ten, four unlabeled clips."""
    strong = [("a.wav", 0, 2.5, "Dog"), ("a.wav", 1, 10.1, "Speech"), ("b.wav", "", "", ""), ("c.wav", 3, 4, "Cat")]
    write_table(tmp_path / "metadata/validation/validation.tsv", "filename onset offset event_label", strong)
    durations = [("b.wav", 5.5), ("a.wav", 10.0), ("c.wav", 10.0)]
    write_table(tmp_path / "metadata/validation/validation_durations.tsv", "filename duration", durations)
    weak = [(f"w{i}.wav", "Dog,Speech" if i % 2 else "Cat") for i in range(10)]
    write_table(tmp_path / "metadata/train/weak.tsv", "filename event_labels", weak)
    for name in "abc":
        write_audio(tmp_path / f"audio/validation/validation_16k/{name}.wav")
    for i in range(10):
        write_audio(tmp_path / f"audio/train/weak_16k/w{i}.wav")
    for name in ("u3", "u1", "u10", "u2"):
        write_audio(tmp_path / f"audio/train/unlabel_in_domain_16k/{name}.wav")
    return tmp_path
