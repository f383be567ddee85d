"""Decoded clips are what the files hold, whatever was killed, changed, damaged or started twice meanwhile."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile

import common.audio.cache as cache_module
from common.audio.cache import ClipFormat, build_cache, cache_folder
from common.audio.files import AudioError, fit_length, read_audio

REPOSITORY = Path(__file__).parents[2]
RATE, N_SAMPLES = 44100, 4410
TENTH = ClipFormat(clip_s=0.1)


def write_clips(root: Path, n_clips: int, ending: str = "wav", start: int = 0) -> list[str]:
    rng, names = np.random.default_rng(start), []
    for i in range(start, start + n_clips):
        names.append(f"clip{i}.{ending}")
        soundfile.write(root / names[-1], rng.uniform(-1, 1, N_SAMPLES), RATE, subtype="PCM_24")
    return names


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the files that were decoded, in order."""
    names = []

    def read_and_note(path):
        names.append(path.name)
        return read_audio(path)

    monkeypatch.setattr(cache_module, "read_audio", read_and_note)
    return names


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_24_bit_files_come_back_exactly(root, tmp_path, ending):
    names = write_clips(root, 5, ending)
    cache = build_cache(tmp_path / "cache", root, names, TENTH)
    assert cache.usable.all() and not cache.problems
    clips = cache.read([3, 0])
    assert clips.dtype == np.float32 and clips.shape == (2, N_SAMPLES)
    for clip, name in zip(clips, (names[3], names[0]), strict=True):
        np.testing.assert_array_equal(clip, soundfile.read(root / name, dtype="float32")[0])
        whole_numbers = soundfile.read(root / name, dtype="int32")[0] // 256  # the 24 bits themselves
        np.testing.assert_array_equal(clip.astype(np.float64) * 2**23, whole_numbers)


def test_int16_is_within_half_a_step_and_cuts_at_full_scale(root, tmp_path):
    names = write_clips(root, 2)
    loud = np.zeros(N_SAMPLES, np.float32)
    loud[:4] = 1.5, -1.5, 1, -1
    soundfile.write(root / "loud.wav", loud, RATE, subtype="FLOAT")
    exact = build_cache(tmp_path / "cache", root, names, TENTH)
    half = build_cache(tmp_path / "cache", root, [*names, "loud.wav"], ClipFormat(clip_s=0.1, dtype="int16"))
    assert half.waveforms.itemsize * 2 == exact.waveforms.itemsize
    assert np.abs(half.read([0, 1]) - exact.read([0, 1])).max() <= 0.505 / 32767  # half a step, and float32
    np.testing.assert_array_equal(half.read([2])[0, :4], [1, -1, 1, -1])


def test_second_call_decodes_nothing(root, tmp_path, decoded):
    names = write_clips(root, 4)
    build_cache(tmp_path / "cache", root, names, TENTH)
    assert sorted(decoded) == names
    build_cache(tmp_path / "cache", root, names, TENTH)
    assert len(decoded) == len(names)


def test_other_list_order_format_or_folder_is_another_cache(root, tmp_path):
    names = ["a", "b"]
    formats = [TENTH, ClipFormat(clip_s=0.2), ClipFormat(clip_s=0.1, dtype="int16"), ClipFormat(clip_s=0.1, pad=True)]
    folders = [cache_folder(tmp_path, root, names, clip_format) for clip_format in formats]
    folders += [cache_folder(tmp_path, root, other, TENTH) for other in (["b", "a"], ["a"], ["a", "b", "c"])]
    folders += [cache_folder(tmp_path, tmp_path, names, TENTH)]
    assert len(set(folders)) == len(folders)
    assert cache_folder(tmp_path, root / ".." / root.name, names, TENTH) == folders[0]


def test_changed_file_is_decoded_again_and_only_it(root, tmp_path, decoded):
    names = write_clips(root, 4)
    build_cache(tmp_path / "cache", root, names, TENTH)
    decoded.clear()
    other = np.full(N_SAMPLES, 0.25)
    soundfile.write(root / names[2], other, RATE, subtype="PCM_24")  # same size, changed later
    cache = build_cache(tmp_path / "cache", root, names, TENTH)
    assert decoded == [names[2]]
    np.testing.assert_array_equal(cache.read([2])[0], other)


def test_file_taken_away_is_a_problem_and_comes_back(root, tmp_path):
    names = write_clips(root, 3)
    build_cache(tmp_path / "cache", root, names, TENTH)
    (root / names[1]).rename(root / "elsewhere")
    cache = build_cache(tmp_path / "cache", root, names, TENTH)
    assert cache.usable.tolist() == [True, False, True]
    assert list(cache.problems) == [names[1]] and "no such file" in cache.problems[names[1]]
    (root / "elsewhere").rename(root / names[1])
    assert build_cache(tmp_path / "cache", root, names, TENTH).usable.all()


def test_broken_clip_is_listed_and_picked_up_when_mended(root, tmp_path, decoded):
    names = write_clips(root, 3)
    sound = (root / names[1]).read_bytes()
    (root / names[1]).write_bytes(sound[:5000])
    for _ in range(2):  # the sentence is there at every start, not only at the first
        cache = build_cache(tmp_path / "cache", root, names, TENTH)
        assert cache.usable.tolist() == [True, False, True]
        assert list(cache.problems) == [names[1]]
    (root / names[1]).write_bytes(sound)
    decoded.clear()
    cache = build_cache(tmp_path / "cache", root, names, TENTH)
    assert decoded == [names[1]] and cache.usable.all() and not cache.problems
    assert (cache.folder / "problems.json").read_text().strip() == "{}"


def test_full_disk_is_a_sentence_and_leaves_no_file(root, tmp_path, monkeypatch):
    names = write_clips(root, 2)
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"the cache needs 0\.00 GB, 0\.00 GB are free.*--cache.*int16") as caught:
        build_cache(tmp_path / "cache", root, names, TENTH)
    assert "[Errno" not in str(caught.value)
    folder = cache_folder(tmp_path / "cache", root, names, TENTH)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_quota_is_met_before_decoding(root, tmp_path, monkeypatch, decoded):
    def refuse(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="quota"):
        build_cache(tmp_path / "cache", root, write_clips(root, 2), TENTH)
    assert not decoded


def test_file_system_that_cannot_reserve_is_good_enough(root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert build_cache(tmp_path / "cache", root, write_clips(root, 2), TENTH).usable.all()


# A program that decodes slowly: the clip's own decoding, then a moment, so that the test can come between.
SLOW = """
import sys, time
from pathlib import Path
import common.audio.cache as module
def read_slowly(path, read=module.read_audio):
    with open(sys.argv[3], "a") as log:
        print(path.name, file=log)
    time.sleep(0.01)
    return read(path)
module.read_audio = read_slowly
files = sorted(path.name for path in Path(sys.argv[1]).iterdir())
cache = module.build_cache(sys.argv[2], sys.argv[1], files, module.ClipFormat(clip_s=0.1), block=8)
assert cache.usable.all()
"""


def start_slow(root: Path, cache: Path, log: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SLOW, root, cache, log], cwd=REPOSITORY, stderr=subprocess.DEVNULL)


def wait_for_lines(log: Path, n_lines: int) -> None:
    deadline = time.monotonic() + 60
    while not log.is_file() or len(log.read_text().splitlines()) < n_lines:
        assert time.monotonic() < deadline, "the other process does not decode"
        time.sleep(0.005)


def test_killed_while_decoding_goes_on(root, tmp_path, decoded):
    names = sorted(write_clips(root, 40))
    process = start_slow(root, tmp_path / "killed", tmp_path / "log")
    wait_for_lines(tmp_path / "log", 20)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    cache = build_cache(tmp_path / "killed", root, names, TENTH)
    assert 0 < len(decoded) <= len(names) - 8  # whole blocks of 8 were kept
    decoded.clear()
    undisturbed = build_cache(tmp_path / "undisturbed", root, names, TENTH)
    assert cache.usable.all()
    np.testing.assert_array_equal(cache.waveforms, undisturbed.waveforms)


def test_killed_over_a_changed_file_does_not_pass_for_the_old_one(root, tmp_path, monkeypatch):
    """Killed after the row was overwritten, and the old file is put back with its old time."""
    names = write_clips(root, 2)
    build_cache(tmp_path / "cache", root, names, TENTH)
    old, times = (root / names[0]).read_bytes(), os.stat(root / names[0])
    soundfile.write(root / names[0], np.zeros(N_SAMPLES), RATE, subtype="PCM_24")

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr(cache_module, "read_audio", die)
    with pytest.raises(Killed):
        build_cache(tmp_path / "cache", root, names, TENTH)
    monkeypatch.setattr(cache_module, "read_audio", read_audio)
    (root / names[0]).write_bytes(old)
    os.utime(root / names[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    cache = build_cache(tmp_path / "cache", root, names, TENTH)
    np.testing.assert_array_equal(cache.read([0])[0], soundfile.read(root / names[0], dtype="float32")[0])


def test_two_processes_at_once_decode_every_clip_once(root, tmp_path):
    names = write_clips(root, 30)
    processes = [start_slow(root, tmp_path / "cache", tmp_path / "log") for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == sorted(names)
    cache = build_cache(tmp_path / "cache", root, sorted(names), TENTH)
    for row, name in enumerate(sorted(names)):
        np.testing.assert_array_equal(cache.read([row])[0], soundfile.read(root / name, dtype="float32")[0])


def test_resampled_downmixed_padded_only_when_asked(root):
    t = np.arange(800) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(root / "8k.wav", np.stack([tone, np.zeros(800)], axis=1), 8000, subtype="PCM_24")
    clip = ClipFormat(clip_s=0.1, resample=True, downmix=True).read(root / "8k.wav")
    middle = slice(1000, 3400)  # away from the ends, where the filter sees the edges
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(N_SAMPLES) / RATE)
    np.testing.assert_allclose(clip[middle], expected[middle], atol=1e-3)
    with pytest.raises(AudioError, match="2 channels, expected 1. Set data.format.downmix=true"):
        TENTH.read(root / "8k.wav")
    with pytest.raises(AudioError, match="8000 Hz, expected 44100 Hz. Set data.format.resample=true"):
        ClipFormat(clip_s=0.1, downmix=True).read(root / "8k.wav")
    name = write_clips(root, 1)[0]
    with pytest.raises(AudioError, match="4410 samples long, expected 8820.*data.format.pad=true"):
        ClipFormat(clip_s=0.2).read(root / name)
    padded = ClipFormat(clip_s=0.2, pad=True).read(root / name)
    assert len(padded) == 8820 and not padded[N_SAMPLES:].any()
    np.testing.assert_array_equal(ClipFormat(clip_s=0.05).read(root / name), padded[:2205])


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"clip_s": 0}, {"sample_rate": -1}])
def test_impossible_format_is_refused(wrong):
    with pytest.raises(ValueError, match=f"format.{next(iter(wrong))}"):
        ClipFormat(**wrong)


def test_fit_length():
    np.testing.assert_array_equal(fit_length(np.ones((2, 3)), 4), [[1, 1, 1, 0]] * 2)
    np.testing.assert_array_equal(fit_length(np.ones((2, 3)), 2), np.ones((2, 2)))


# ---------------------------------------------------------------- files that keep their own length

OWN_LENGTH = ClipFormat(sample_rate=16000, clip_s=None, resample=True, downmix=True)


def write_lengths(root: Path, lengths: dict[str, tuple[int, int]]) -> list[str]:
    """Write noise of (samples, rate) for each name."""
    rng = np.random.default_rng(0)
    for name, (n_samples, rate) in lengths.items():
        soundfile.write(root / name, rng.uniform(-0.5, 0.5, n_samples), rate, subtype="FLOAT")
    return list(lengths)


def test_own_lengths_lie_one_after_the_other(root, tmp_path):
    names = write_lengths(root, {"a.wav": (700, 16000), "b.wav": (4410, 44100), "c.wav": (300, 16000)})
    cache = build_cache(tmp_path / "cache", root, names, OWN_LENGTH)
    assert cache.lengths.tolist() == [700, 1600, 300] and cache.waveforms.shape == (2600,) and cache.usable.all()
    parts = cache.read_parts([2, 0, 0], [0, 100, 650], 400)
    for part, name, first in zip(parts, ("c.wav", "a.wav", "a.wav"), (0, 100, 650), strict=True):
        whole = soundfile.read(root / name, dtype="float32")[0][first : first + 400]
        np.testing.assert_array_equal(part, np.pad(whole, (0, 400 - len(whole))))
    with pytest.raises(ValueError, match="no common length"):
        _ = OWN_LENGTH.n_samples


def test_parts_of_clips_of_one_length(root, tmp_path):
    names = write_clips(root, 3)
    cache = build_cache(tmp_path / "cache", root, names, ClipFormat(clip_s=0.1, dtype="int16"))
    np.testing.assert_array_equal(cache.read_parts([2, 1], [0, 10], N_SAMPLES)[0], cache.read([2])[0])
    np.testing.assert_array_equal(cache.read_parts([1], [4400], 20)[0, :10], cache.read([1])[0, 4400:])


def test_file_of_another_length_moves_the_others(root, tmp_path, decoded):
    names = write_lengths(root, {"a.wav": (700, 16000), "b.wav": (500, 16000), "c.wav": (300, 16000)})
    build_cache(tmp_path / "cache", root, names, OWN_LENGTH)
    decoded.clear()
    soundfile.write(root / "c.wav", np.full(300, 0.5), 16000, subtype="FLOAT")  # as long as before: nothing moves
    build_cache(tmp_path / "cache", root, names, OWN_LENGTH)
    assert decoded == ["c.wav"]
    decoded.clear()
    soundfile.write(root / "b.wav", np.full(900, 0.25), 16000, subtype="FLOAT")
    cache = build_cache(tmp_path / "cache", root, names, OWN_LENGTH)
    assert sorted(decoded) == names and cache.lengths.tolist() == [700, 900, 300]
    assert (cache.read_parts([1], [0], 900) == 0.25).all() and (cache.read_parts([2], [0], 300) == 0.5).all()
    decoded.clear()
    build_cache(tmp_path / "cache", root, names, OWN_LENGTH)
    assert not decoded


def test_files_without_a_length_are_problems(root, tmp_path):
    names = [*write_lengths(root, {"a.wav": (700, 16000)}), "gone.wav", "broken.wav"]
    (root / "broken.wav").write_bytes(b"RIFF")
    cache = build_cache(tmp_path / "cache", root, names, OWN_LENGTH)
    assert cache.usable.tolist() == [True, False, False] and list(cache.problems) == ["gone.wav", "broken.wav"]
    only_bad = build_cache(tmp_path / "cache", root, names[1:], OWN_LENGTH)
    assert not only_bad.usable.any() and not only_bad.read_parts([0], [0], 5).any()
