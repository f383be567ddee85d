"""Damaged data and mistyped configs through the real commands: one sentence, or a listed skip; nothing else is lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from task1_asc import data as data_command
from task1_asc import evaluate as evaluate_command
from task1_asc import train as train_command
from task1_asc.config import CONFIGS
from task1_asc.data import TAU_NAME
from tests.task1_asc.conftest import SAMPLE_RATE, SHORT_CLIPS, write_clip, write_tau

REPOSITORY = Path(__file__).parents[2]
CONFIG = CONFIGS / "dcase2025/general.yaml"
TONE = 0.1 * np.sin(np.arange(11025) / 10)
SMALL = (
    "--train.epochs=1",
    "--train.batch_size=40",
    "--model.init_args.base_channels=8",
    "--model.init_args.expansion_rate=1.0",
    "--optim.warmup_steps=0",
)


def not_a_number(path: Path) -> None:
    samples = TONE.astype(np.float32)
    samples[5:8] = np.nan, np.inf, np.nan
    write_clip(path, samples, subtype="FLOAT")


# What can happen to a clip, and what the list of skipped clips then says.
DAMAGES = {
    "empty file": (lambda path: path.write_bytes(b""), "is empty (0 bytes); a copy or download broke off"),
    "header without samples": (lambda path: write_clip(path, TONE[:0]), "holds no samples; get the file again or take"),
    "header cut off": (lambda path: path.write_bytes(path.read_bytes()[:20]), "cannot be decoded (Error in WAV"),
    "samples cut off": (
        lambda path: path.write_bytes(path.read_bytes()[:9000]),
        "header announces 33075 bytes, 8956 are there; the file is cut off, get it again.",
    ),
    "8 kHz": (
        lambda path: write_clip(path, TONE, 8000),
        "8000 Hz, expected 44100 Hz. Set data.format.resample=true",
    ),
    "stereo": (
        lambda path: write_clip(path, np.stack([TONE, TONE], axis=1)),
        "2 channels, expected 1. Set data.format.downmix=true",
    ),
    "not a number": (not_a_number, "3 of 11025 samples are NaN or infinite; get the file again"),
    "too short": (
        lambda path: write_clip(path, TONE[:5000]),
        "5000 samples long, expected 11025 (0.25 s); get the whole file, or set data.format.pad=true",
    ),
    "a page instead": (lambda path: path.write_text("<html>404</html>"), "cannot be decoded (Format not recognised)"),
    "gone": (lambda path: path.unlink(), "no such file; check the path, download it again or take its row out"),
}


def damage(root: Path, split: str = "split100") -> dict[str, str]:
    """Damage one clip of the list in every way; return file → what must be said of it."""
    names = pd.read_csv(root / "split_setup" / f"{split}.csv", sep="\t").filename[::7]
    expected = {}
    for name, (harm, sentence) in zip(names, DAMAGES.values(), strict=False):
        harm(root / name)
        expected[name] = sentence
    assert len(expected) == len(DAMAGES)
    return expected


def arguments(root: Path, *more: str) -> list[str]:
    return ["--config", str(CONFIG), "--data", str(root), "--cache", str(root.parent / "cache"), *SHORT_CLIPS, *more]


def refusal(command, words: list[str]) -> str:
    """Run a command's main; return the sentence that it ends with."""
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert isinstance(caught.value.code, str), "a sentence, and so exit status 1"
    assert "\n" not in caught.value.code
    return caught.value.code


# ---------------------------------------------------------------- clips


def test_every_damaged_clip_is_listed_with_its_reason(tau, capsys):
    expected = damage(tau)
    (tau / "audio/unlisted.wav").write_bytes(b"")
    data_command.main(arguments(tau))
    out = capsys.readouterr().out
    assert "missing: 1 files" in out and "extra: 1 files\n  audio/unlisted.wav" in out
    assert f"broken: {len(expected) - 1} files" in out and "`partial data`" in out
    reasons = [reason for name, reason in expected.items() if (tau / name).exists()]
    shown = [line for line in out.splitlines() if line.startswith(f"  {tau}/audio/")]
    assert len(shown) == 5  # no more, so that a terminal shows the end
    for line, reason in zip(shown, reasons, strict=False):
        assert reason in line


def test_training_goes_on_with_the_sound_clips_and_the_result_says_so(tau, tmp_path, capsys):
    (tau / "dataset.json").write_text(json.dumps({"name": TAU_NAME}))
    expected, unheard = damage(tau), pd.read_csv(tau / "split_setup/test.csv", sep="\t").filename[4]
    (tau / unheard).unlink()
    run = tmp_path / "run"
    train_command.main(arguments(tau, "--run", str(run), "--device", "cpu", *SMALL))
    card = json.loads((run / "train.json").read_text())["dataset"]
    assert card["found"] == {"train": 120 - len(expected)} and card["expected"] == {"train": 120}
    assert set(card["skipped"]) == set(expected)
    for name, sentence in expected.items():
        assert card["skipped"][name].startswith(f"DATA/{name}: ") and sentence in card["skipped"][name]

    evaluate_command.main(["predict", "--run", str(run), "--data", str(tau), "--cache", str(tmp_path / "cache")])
    assert "(39 clips)" in capsys.readouterr().out
    evaluate_command.main(["score", "--run", str(run), "--results", str(tmp_path / "results")])
    (result,) = (tmp_path / "results").glob("*.json")
    record = json.loads(result.read_text())
    assert record["status"] == "partial data" and record["metrics"]["n_items"] == 39
    assert record["dataset"]["skipped"].keys() == {*expected, unheard}
    assert record["dataset"]["found"] == {"train": 120 - len(expected), "test": 39}
    assert record["intervals"]["n_groups"] == 2

    edit(run / "predictions.csv", lambda text: text.replace(",wien-6,", ",paris-5,"))
    evaluate_command.main(["score", "--run", str(run), "--results", str(tmp_path / "results")])
    assert "all clips are of one identifier: no intervals" in capsys.readouterr().out  # but a result
    assert json.loads(result.read_text())["intervals"] is None


def test_other_rates_and_channels_are_used_when_asked_for(make_tau, tmp_path, capsys):
    root = make_tau(classes=("bus", "tram"))
    names = sorted(path for path in (root / "audio").iterdir())
    write_clip(names[0], TONE[:2000], 8000)
    write_clip(names[1], np.stack([TONE, TONE], axis=1))
    write_clip(names[2], TONE[:5000], SAMPLE_RATE)
    willing = [f"--data.format.{option}=true" for option in ("resample", "downmix", "pad")]
    data_command.main(arguments(root, *willing))
    assert "broken: 0 files" in capsys.readouterr().out


# ---------------------------------------------------------------- tables


def edit(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


def without_line(n: int):
    return lambda text: "".join(line for i, line in enumerate(text.splitlines(True)) if i != n)


TABLES = {
    "meta with commas": ("meta.csv", lambda text: text.replace("\t", ","), "separated by commas, expected tabs"),
    "list with commas": ("split_setup/test.csv", lambda text: text.replace("\t", ","), "separated by commas"),
    "empty meta": ("meta.csv", lambda text: "", "meta.csv: is empty; get it again."),
    "meta with a header only": ("meta.csv", lambda text: text.splitlines(True)[0], "has a header but no rows"),
    "empty list": ("split_setup/split100.csv", lambda text: "", "split100.csv: is empty; get it again."),
    "row twice in meta": ("meta.csv", lambda text: text + text.splitlines(True)[3], "stands in two rows; take one"),
    "row twice in a list": (
        "split_setup/test.csv",
        lambda text: text + text.splitlines(True)[3],
        "test.csv: 'audio/bus-wien-6-2-0-a.wav' stands in two rows",
    ),
    "row of the list not in meta": (
        "meta.csv",
        without_line(3),
        "1 of 8 files are not in meta.csv, the first is audio/bus-wien-6-2-0-a.wav; list and meta.csv must be of the "
        "same data set.",
    ),
    "other label": (
        "split_setup/test.csv",
        lambda text: text.replace("\tbus", "\ttram", 1),
        "audio/bus-paris-5-0-0-a.wav is 'tram' here and 'bus' in meta.csv; get both again.",
    ),
    "no device column": (
        "meta.csv",
        lambda text: "\n".join(line.rpartition("\t")[0] for line in text.splitlines()),
        "column 'source_label' is missing, found ['filename', 'scene_label', 'identifier']",
    ),
    "unreadable card": ("dataset.json", lambda text: "{", 'dataset.json: expected {"name": "…"}; mend it or take it'),
    "card without a name": ("dataset.json", lambda text: "{}", 'dataset.json: expected {"name": "…"}'),
}


@pytest.mark.parametrize("case", TABLES)
def test_unusable_table_is_refused_before_anything_is_decoded(make_tau, case):
    root = make_tau(classes=("bus", "tram"), train_places=("lyon-1",))
    name, change, sentence = TABLES[case]
    (root / "dataset.json").write_text('{"name": "mine"}')
    edit(root / name, change)
    assert sentence in refusal(data_command, arguments(root))
    assert not (root.parent / "cache").exists() or case.startswith("row of the list")


def test_row_in_no_list_is_no_fault(make_tau, capsys):
    """The published meta.csv has many more rows than a list."""
    root = make_tau(classes=("bus", "tram"))
    edit(root / "split_setup/split100.csv", without_line(2))
    data_command.main(arguments(root))
    assert "split100: 23 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        ("meta.csv", "meta.csv: no such table; check the data folder"),
        ("split_setup/split100.csv", "split_setup/split100.csv: no such table"),
        ("audio", "none of the 24 clips of split100 can be used; the first: "),
        (".", "no such data folder; give the one that holds meta.csv (--data FOLDER)"),
    ],
)
def test_absent_part_is_named(make_tau, absent, sentence):
    root = make_tau(classes=("bus", "tram"))
    (root / absent).resolve().rename(root.parent / "elsewhere")
    assert sentence in refusal(data_command, arguments(root))


def test_full_disk_is_one_sentence(make_tau, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    message = refusal(data_command, arguments(make_tau(classes=("bus", "tram"))))
    assert "the cache needs" in message and "--cache" in message and "Errno" not in message


# ---------------------------------------------------------------- configs and commands


@pytest.mark.parametrize("command", [data_command, train_command], ids=["data", "train"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optim.lrr=1"], "--optim.lrr: unknown key `optim.lrr`; did you mean `optim.lr`?"),
        (["--subset", "5"], "unknown key `subset`; did you mean `data.subset`?"),
        (["--optim.lr=fast"], "`optim.lr` is fast, expected a number."),
        (["--data.subset=7"], "data.subset is 7, expected 5, 10, 25, 50 or 100."),
        (["--model.class_path=task1_asc.model.CPMobil"], "did you mean `task1_asc.model.CPMobile`?"),
        (["--model.init_args.base_chanels=8"], "did you mean `model.init_args.base_channels`?"),
        (["--train.validate_every=0"], "train.validate_every is 0, expected at least 1."),
        (["--augment.impulse_response_p=0.5"], "augment.impulse_response_folder must name the folder."),
        (["--config", "generl.yaml"], "generl.yaml: no such config; did you mean general.yaml?"),
    ],
)
def test_mistake_in_the_config(command, words, sentence, tmp_path):
    if words[0] == "--config":
        words = [words[0], str(CONFIG.with_name(words[1]))]
    run = ["--run", str(tmp_path / "run")] if command is train_command else []
    assert sentence in refusal(command, [*arguments(tmp_path / "data"), *run, *words])
    assert not (tmp_path / "run").exists()


def test_key_with_a_typo_in_a_file(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"inherits: {CONFIG}\ndata: {{format: {{dtyp: int16}}}}\n")
    message = refusal(data_command, [*arguments(tmp_path), "--config", str(mine)])
    assert message == f"{mine}: unknown key `data.format.dtyp`; did you mean `data.format.dtype`?"


def test_general_weights_are_asked_for_and_only_where_needed(tmp_path):
    words = [*arguments(tmp_path), "--run", str(tmp_path / "run")]
    devices = str(CONFIG.with_name("device_specific.yaml"))
    assert "--init is needed: the weights of dcase2025/general" in refusal(train_command, [*words, "--config", devices])
    assert "--init is not used" in refusal(train_command, [*words, "--init", "weights.pt"])


def test_wrong_path_does_not_spoil_the_run_folder(tau, tmp_path, monkeypatch):
    """After a mistake in --data the same run folder is used with the right one; after training it is not."""
    run = ["--run", str(tmp_path / "run"), "--device", "cpu", *SMALL]
    assert "no such data folder" in refusal(train_command, [*arguments(tmp_path / "wrong"), *run])

    def trained(job):
        (job.run / "weights.pt").touch()
        return {}

    monkeypatch.setattr(train_command, "train_general", trained)
    train_command.main([*arguments(tau), *run])
    assert "holds a run of another config, seed" in refusal(
        train_command, [*arguments(tau), *run, "--seed", "1"]
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cuda:0"], "--device cuda:0: expected cpu, gpu or auto."),
        (["--device", "gpu"], "--device gpu: PyTorch finds no GPU on this machine; give --device cpu."),
        (["--devices", "0"], "--devices 0 and --nodes 1 must be at least 1."),
    ],
)
def test_hardware_that_is_not_there(make_tau, tmp_path, monkeypatch, words, sentence):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = [*arguments(make_tau(classes=("bus", "tram"))), "--run", str(tmp_path / "run"), *SMALL, *words]
    assert refusal(train_command, words) == sentence


def run_command(module: str, words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *words], cwd=REPOSITORY, capture_output=True, text=True)


def test_command_line_ends_with_a_sentence_and_a_status(make_tau):
    """As a user sees it: no traceback, exit status 1."""
    root = make_tau(classes=("bus", "tram"), train_places=("lyon-1",))
    edit(root / "meta.csv", lambda text: text.replace("\t", ","))
    done = run_command("task1_asc.train", arguments(root, "--run", str(root.parent / "run")))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"{root}/meta.csv: columns are separated by commas, expected tabs; write it with tabs.\n"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["task1_asc.data", "task1_asc.train"])
def test_command_line_on_damaged_clips(tmp_path, module):
    root = write_tau(tmp_path / "tau")
    expected = damage(root)
    more = ["--run", str(tmp_path / "run"), "--device", "cpu", *SMALL] if module == "task1_asc.train" else []
    done = run_command(module, arguments(root, *more))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    if more:
        assert set(json.loads((tmp_path / "run/train.json").read_text())["dataset"]["skipped"]) == set(expected)
    else:
        assert f"broken: {len(expected) - 1} files" in done.stdout


@pytest.mark.slow
def test_command_line_with_a_typo():
    done = run_command("task1_asc.data", arguments(Path("nowhere"), "--optim.lrr", "3"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "--optim.lrr: unknown key `optim.lrr`; did you mean `optim.lr`?\n"
