"""Every config loads, says what it reproduces and how it is run, and differs from the baseline where it says so."""

import csv
import re
from pathlib import Path

import pytest

from common.config import read_merged, read_yaml
from common.training.runs import recipe_name
from task1_asc.config import CONFIGS, load_config

FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "smoke.yaml")
NAMES = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES]
PUBLISHED = Path(__file__).parents[2] / "results/published/task1_asc.csv"
GENERAL = CONFIGS / "dcase2025/general.yaml"


@pytest.fixture(params=FILES, ids=NAMES)
def path(request) -> Path:
    return request.param


def header(path: Path) -> dict[str, str]:
    """The comment lines at the top, by what they begin with."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    parts = re.findall(r"# (\w+):(.*(?:\n#   .*)*)", "\n".join(lines))
    return {name: re.sub(r"\s+#?\s*", " ", text).strip() for name, text in parts}


def test_loads_and_says_what_it_is(path):
    config, resolved = load_config(path)
    assert resolved["base"] == config.base
    assert config.model(10) is not None and config.front_end().n_mels == 256
    assert list(header(path)) == ["Reproduces", "Needs", "Run", "Deviates"]
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("# Reproduces:")] == lines[:1]


def test_smoke_shrinks_it(path):
    config, _ = load_config(path, smoke=True)
    assert config.train.epochs == 1


def test_command_in_the_header_names_this_config(path):
    name, command = path.relative_to(CONFIGS).with_suffix("").as_posix(), header(path)["Run"]
    assert command.startswith("./run.sh task1_asc")
    named = re.search(r"--config (\S+)", command)
    if named:
        assert named[1] == name
    elif name.startswith("builtin/"):
        assert "--data" not in command  # the built-in data are the default
    else:
        assert name == "dcase2025/device_specific"  # the default config
    assert recipe_name(CONFIGS, path, []) == name


def test_expected_score_is_the_published_one(path):
    first = header(path)["Reproduces"]
    stated = re.search(r"expected macro accuracy ([\d.]+) ± ([\d.]+) % \(mean of (\d+) runs\)", first)
    with open(PUBLISHED, encoding="utf-8") as file:
        rows = {row["system"]: row for row in csv.DictReader(file) if row["metric"] == "macro_accuracy"}
    row = rows.get(recipe_name(CONFIGS, path, []))
    if stated is None:
        assert row is None and ("no published row" in first or "nothing published" in first)
    else:
        assert [float(number) for number in stated.groups()] == [
            float(row[column]) for column in ("value", "spread", "n_runs")
        ]


def test_base_is_a_general_config(path):
    base = load_config(path)[0].base
    assert not base or not load_config(CONFIGS / f"{base}.yaml")[0].base


def test_2024_configs_change_the_training_list_alone():
    general = read_merged(GENERAL)
    for subset in (5, 10, 25, 50, 100):
        merged = read_merged(CONFIGS / f"dcase2024/split{subset}.yaml")
        assert merged == {**general, "data": {"subset": subset}}


def test_published_recipe():
    """The numbers of the baseline's description, in one place where a change shows."""
    config = load_config(GENERAL)[0]
    assert (config.train.epochs, config.train.batch_size, config.train.precision) == (150, 256, "32-true")
    assert (config.optim.lr, config.optim.weight_decay, config.optim.warmup_steps) == (5e-3, 1e-4, 2000)
    assert (config.optim.name, config.optim.schedule) == ("adamw", "warmup_cosine")
    assert (config.augment.roll_s, config.augment.freq_mask_bins, config.augment.time_mask_frames) == (0.1, 48, 0)
    assert (config.augment.mixstyle_p, config.augment.mixstyle_alpha, config.augment.mixup_alpha) == (0.4, 0.3, 0)
    devices = load_config(CONFIGS / "dcase2025/device_specific.yaml")[0]
    assert (devices.train.epochs, devices.optim.lr, devices.augment.mixstyle_p) == (50, 5e-4, 0)
    assert devices.optim.warmup_steps == 200 and devices.finetune.keep_base == "never"
    assert config.data.holdout_fraction == devices.data.holdout_fraction == 0


def test_smoke_file_says_only_what_shrinks():
    assert set(read_yaml(CONFIGS / "smoke.yaml")) <= {"train", "optim", "data"}


def test_overrides_are_part_of_the_recipe_name_however_they_are_written():
    spaced, joined = ["--optim.lr", "0.1", "--data.subset", "5"], ["--optim.lr=0.1", "--data.subset=5"]
    assert recipe_name(CONFIGS, GENERAL, spaced) == "dcase2025/general+optim.lr=0.1+data.subset=5"
    assert recipe_name(CONFIGS, GENERAL, spaced) == recipe_name(CONFIGS, GENERAL, joined)
    assert recipe_name(CONFIGS, Path("/somewhere/mine.yaml"), []) == "mine"
