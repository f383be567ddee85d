"""Every config loads, says what it reproduces and how it is run, builds its network, and holds the published numbers."""

import csv
import re
from pathlib import Path

import pytest
import torch

from common.config import ConfigError, read_yaml
from common.nn.published import REGISTRY
from common.training.runs import recipe_name
from task4_sed import model
from task4_sed.complexity import shape_encoder
from task4_sed.config import CONFIGS, load_config
from task4_sed.models import fusion

FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "smoke.yaml")
NAMES = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES]
PUBLISHED = Path(__file__).parents[2] / "results/published/task4_sed.csv"
WINNER = [f"dcase2024/it{i}_stage{s}_{e}" for i in (1, 2) for s in (1, 2) for e in ("atst", "fpasst", "beats")]
STAGES = [f"it{i}_stage{s}" for i in (1, 2) for s in (1, 2)]


@pytest.fixture(params=FILES, ids=NAMES)
def path(request) -> Path:
    return request.param


@pytest.fixture
def shapes_only(monkeypatch):
    """Networks without numbers: the large ones are only looked at."""
    for module in (fusion, model):
        monkeypatch.setattr(module, "build_encoder", lambda name: shape_encoder(name))
    with torch.device("meta"):
        yield


def header(path: Path) -> dict[str, str]:
    """The comment lines at the top, by what they begin with."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    parts = re.findall(r"# (\w+):(.*(?:\n#   .*)*)", "\n".join(lines))
    return {name: re.sub(r"\s+#?\s*", " ", text).strip() for name, text in parts}


# ---------------------------------------------------------------- the files


def test_all_rows_are_there():
    assert {*WINNER, "dcase2024/baseline", "builtin/pretrain", "event_scenes/pretrain"} <= set(NAMES)
    assert {f"{folder}/{stage}" for folder in ("builtin", "event_scenes") for stage in STAGES} <= set(NAMES)
    assert sum("low_complexity" in name for name in NAMES) == 8


def test_loads_and_says_what_it_is(path):
    config, resolved = load_config(path)
    assert resolved["train"]["batch_size"] == config.data.n_clips * config.train.accumulate
    assert list(header(path)) == ["Reproduces", "Needs", "Run", "Deviates"]
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("# Reproduces:")] == lines[:1]
    assert max(map(len, lines)) <= 120


def test_inherits_one_level(path):
    parent = read_yaml(path).get("inherits")
    assert parent is None or "inherits" not in read_yaml(path.parent / parent)


def test_smoke_shrinks_it_and_downloads_nothing(path):
    config, _ = load_config(path, smoke=True)
    assert (config.train.epochs, config.train.precision, config.train.accumulate) == (1, "32-true", 1)
    assert config.data.n_clips <= 5 and config.encoder_weights == "" and config.augment.response_p == 0


def test_command_in_the_header_names_this_config(path):
    name, command = path.relative_to(CONFIGS).with_suffix("").as_posix(), header(path)["Run"]
    assert command.startswith("./run.sh task4_sed")
    named = re.search(r"--config (\S+)", command)
    assert named[1] == name if named else name.startswith("builtin/") and "--data" not in command
    assert recipe_name(CONFIGS, path, []) == name


def test_builds_its_network_and_starts_from_known_weights(path, shapes_only):
    config, _ = load_config(path)
    network = model.build_network(config.network)
    if config.encoder_weights:
        entry = REGISTRY[config.encoder_weights]
        assert network.encoder.name.split("+")[0] in entry.architecture
    if "+" in network.encoder.name:
        assert config.base or config.encoder_weights == f"{network.encoder.name}_strong"


def test_base_is_the_stage_before(path, shapes_only):
    config, _ = load_config(path)
    if not config.base:
        assert config.encoder_weights or path.stem == "pretrain"
        return
    base, _ = load_config(CONFIGS / f"{config.base}.yaml")
    own, before = (model.build_network(c.network) for c in (config, base))
    part, prefix = (own.encoder, "encoder.") if config.stage == "frozen" else (own, "")
    shapes = {name: tuple(value.shape) for name, value in before.state_dict().items()}
    assert {prefix + name: tuple(value.shape) for name, value in part.state_dict().items()}.items() <= shapes.items()
    assert base.stage == ("frozen" if config.stage == "full" else "full")


def test_expected_scores_are_the_published_ones():
    with open(PUBLISHED, encoding="utf-8") as file:
        rows = {(row["system"], row["split"], row["metric"]): row for row in csv.DictReader(file)}
    said = header(CONFIGS / "dcase2024/baseline.yaml")["Reproduces"]
    psds1, psds1_sd, mpauc, mpauc_sd = re.search(r"PSDS1 (\S+) ± (\S+), mpAUC (\S+) ± (\S+) %", said).groups()
    for found, key in (
        ((psds1, psds1_sd), ("dcase2024/baseline", "devtest", "psds1")),
        ((mpauc, mpauc_sd), ("dcase2024/baseline", "maestro_real_dev", "mpauc")),
    ):
        row = rows[key]
        assert [float(number) for number in found] == pytest.approx([float(row["value"]), float(row["spread"])])
    for encoder in ("atst", "fpasst", "beats"):
        said = header(CONFIGS / f"dcase2024/it2_stage2_{encoder}.yaml")["Reproduces"]
        for split, name, metric in (
            ("devtest", "devtest PSDS1", "psds1"),
            ("public_eval", "public eval", "psds1"),
            ("maestro_real_dev", "mpAUC", "mpauc"),
        ):
            value = float(rows["dcase2024/winner_ensemble", split, metric]["value"])
            assert f"{name} {value:.1f}" in said


# ---------------------------------------------------------------- the published recipe


def test_stage_one_as_published():
    """The numbers of sections 2 and 6 in one place where a change shows."""
    first, second = (load_config(f"dcase2024/it{i}_stage1_atst")[0] for i in (1, 2))
    for config in (first, second):
        assert config.data.sizes == {"maestro": 12, "strong": 10, "synth": 10, "weak": 20, "unlabeled": 20}
        assert (config.stage, config.loss.form, config.loss.scale) == ("frozen", "stage1", 5)
        assert (config.loss.warmup_steps, config.loss.largest_scale) == (14000, 2)
        assert (config.optim.name, config.optim.weight_decay, config.optim.warmup_steps) == ("adamw", 1e-2, 4000)
        assert (config.train.epochs, config.train.validate_every) == (200, 10)
        assert config.augment.wave_mix_p == config.augment.mixup_p == 0.5 and config.augment.response_p == 0
    assert weights_of(first) == (0.08, 0.05, 0.08, 0.21, 0.58, 0) and first.optim.lr == 1e-3
    assert weights_of(second) == (0.5, 0.25, 0.12, 0.1, 0.1, 1.5) and second.optim.lr == 5e-4
    assert first.augment.filter_p == 0.8 and second.augment.filter_p == 0
    assert not first.pseudo_labels and second.pseudo_labels
    assert weights_of(load_config("dcase2024/it2_stage1_beats")[0]) == (0.5, 0.25, 0.08, 0.1, 0.1, 1.5)


def test_stage_two_as_published():
    first, second = (load_config(f"dcase2024/it{i}_stage2_atst")[0] for i in (1, 2))
    for config in (first, second):
        assert config.data.sizes == {"maestro": 7, "strong": 5, "synth": 5, "weak": 9, "unlabeled": 9}
        assert (config.stage, config.loss.form, config.loss.scale, config.loss.pseudo) == ("full", "stage2", 1, 0)
        assert (config.loss.warmup_steps, config.loss.largest_scale, config.loss.interpolation) == (270, 1, True)
        assert (config.rates.cnn, config.rates.rnn) == (1e-5, 1e-4)
        assert (config.rates.encoder, config.rates.encoder_decay) == (1e-4, 0.5)
        assert (config.train.epochs, config.train.accumulate, config.optim.weight_decay) == (250, 8, 1e-3)
        views = config.augment.views()
        assert views.teacher == "unmixed" and views.time_mask and views.encoder_filter and views.warp.p == 0.5
        assert config.augment.response_p == 0.5
    assert weights_of(first) == (2, 1, 1, 1, 70, 0) and weights_of(second) == (12, 3, 0.25, 1, 60, 0)
    assert ("maestro",) in second.augment.views().warp_groups
    assert ("maestro",) not in first.augment.views().warp_groups
    assert load_config("dcase2024/it2_stage2_fpasst")[0].augment.views().warp is None
    beats = load_config("dcase2024/it2_stage2_beats")[0]
    assert (beats.data.n_clips, beats.train.batch_size, beats.rates.rnn) == (13, 13 * 36, 5e-4)


def weights_of(config) -> tuple[float, ...]:
    loss = config.loss
    return loss.maestro, loss.strong, loss.synth, loss.weak, loss.self_supervised, loss.pseudo


def test_what_is_compared_without_masks_or_without_maestro():
    """The options ssl_no_class_mask and exclude_maestro_weak_ssl of the published commands, iteration 2."""
    options = {
        (stage, encoder): load_config(f"dcase2024/it2_stage{stage}_{encoder}")[0].loss
        for stage in (1, 2)
        for encoder in ("atst", "fpasst", "beats")
    }
    unmasked = {key for key, loss in options.items() if not loss.mask_consistency}
    without_maestro = {key for key, loss in options.items() if not loss.maestro_weak_consistency}
    assert unmasked == {(1, "atst"), (1, "beats")}
    assert without_maestro == {(1, "fpasst"), (2, "fpasst"), (2, "beats")}


def test_baseline_as_published():
    config = load_config("dcase2024/baseline")[0]
    assert config.data.sizes == {"maestro": 12, "strong": 6, "synth": 6, "weak": 12, "unlabeled": 24}
    assert config.data.recipe == "baseline" and config.data.sets["strong"] == ["strong_train", "synth_train"]
    assert config.data.sets["weak"] == ["weak_train"]  # what a config does not name stays
    assert (config.optim.name, config.optim.lr, config.optim.gradient_clip) == ("adam", 1e-3, 5)
    assert (config.train.epochs, config.train.precision, config.loss.self_supervised) == (300, "32-true", 2)
    assert config.augment.views().mixup_groups == (("weak",), ("strong", "synth"), ("maestro",))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("--data.batch.maestros=5", "data.batch.maestros: there is no such part; expected maestro, strong"),
        ("--data.batch.maestro=-1", "must not be negative"),
        ("--data.batch.maestro=many", "`data.batch` is many, expected a whole number"),
        ("--data.batches.maestro=1", "did you mean `data.batch`"),
        ("--data.sets.strong=[strong_trian]", "there is no data set 'strong_trian', did you mean 'strong_train'"),
        ("--data.sets.strong=[]", "data.sets.strong names no set; set data.batch.strong to 0"),
        ("--data.validation.devtest=devtest", "data.validation.devtest: there is no such part"),
        ("--data.recipe=winners", "data.recipe is 'winners', expected winner or baseline"),
        ("--data.label_overlap=mean", "expected maximum or overwrite"),
        ("--data.max_clips=-1", "must not be negative"),
        ("--stage=half", "stage is 'half', expected frozen or full"),
        ("--loss.form=stage3", "expected one of stage1, stage2, baseline"),
        ("--loss.synth=-1", "loss.synth is -1.0, expected at least 0"),
        ("--loss.pseudo=1", "one needs the other"),
        ("--augment.mixup=0.5", "unknown key `augment.mixup`"),
        ("--augment.mixup_p=2", "p 2.0 is not a probability"),
        ("--augment.mixup_groups=[[weak,devtest]]", "unknown set 'devtest'"),
        ("--augment.response_p=0.5", "augment.response_folder must name the folder"),
        ("--augment.teacher=both", "augment.teacher is 'both'"),
        ("--augment.encoder_filter=true", "with augment.filter_p above 0"),
        ("--rates.cnn=-1", "rates must not be negative"),
        ("--ema_decay=1", "ema_decay is 1.0"),
        ("--norm_momentum=2", "norm_momentum is 2.0"),
        ("--train.ema_decay=0.9", "the teacher is the average"),
        ("--train.batch_size=7", "train.batch_size is the sum of data.batch"),
        ("--encoder_weights=fmn04_strong", "both give the encoder's weights"),
    ],
)
def test_refused_in_one_sentence(override, sentence):
    with pytest.raises(ConfigError) as refused:
        load_config("builtin/it1_stage1", [override])
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_stage_two_needs_the_unmixed_teacher():
    with pytest.raises(ConfigError, match="unmixed"):
        load_config("builtin/it1_stage2", ["--augment.teacher=mixed"])


def test_nobody_trains_without_clips(tmp_path):
    (tmp_path / "empty.yaml").write_text("data: {batch: {maestro: 0}}\n")
    with pytest.raises(ConfigError, match="one above 0"):
        load_config(tmp_path / "empty.yaml")


def test_sizes_follow_the_order_of_a_batch_whatever_the_file_says(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {batch: {weak: 2, maestro: 3, synth: 0}}\n")
    data = load_config(tmp_path / "mine.yaml")[0].data
    assert list(data.sizes.items()) == [("maestro", 3), ("weak", 2)] and data.n_clips == 5
