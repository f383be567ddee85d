"""Every config loads, says what it reproduces and how it is run, builds its network and holds the published numbers."""

import csv
import re
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path

import pytest
import torch

from common.config import ConfigError, read_yaml
from common.nn.encoders import ENCODERS
from common.nn.published import REGISTRY
from common.training.runs import recipe_name
from task4_sed.config import CONFIGS, load_config
from task4_sed.model import build_network

ALL = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name != "smoke.yaml")
ENSEMBLES = [path for path in ALL if path.stem.endswith("ensemble")]
FILES = [path for path in ALL if path not in ENSEMBLES]
PUBLISHED = Path(__file__).parents[2] / "results/published/task4_sed.csv"
TRANSFORMERS = ("atst", "fpasst", "beats")
WINNER = [f"dcase2024/it{i}_stage{s}_{e}" for i in (1, 2) for s in (1, 2) for e in TRANSFORMERS]
STAGES = [f"it{i}_stage{s}" for i in (1, 2) for s in (1, 2)]
HEADER = ["Reproduces", "Needs", "Run", "Deviates"]


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


NAMES = [name_of(path) for path in ALL]


@pytest.fixture(params=FILES, ids=[name_of(path) for path in FILES])
def path(request) -> Path:
    return request.param


@pytest.fixture(params=ENSEMBLES, ids=[name_of(path) for path in ENSEMBLES])
def ensemble(request) -> Path:
    return request.param


@cache
def loaded(name: str):
    return load_config(name)


def config_of(name: str):
    return loaded(name)[0]


@pytest.fixture(scope="module")
def shapes_of():
    """A function that builds a network without numbers: the large ones are only looked at."""

    def on_cpu(front_end):
        @wraps(front_end)
        def build(**options):
            with torch.device("cpu"):  # filter banks are computed
                return front_end(**options)

        return build

    @cache
    def build(expression):
        with torch.device("meta"):
            return build_network(expression)

    with pytest.MonkeyPatch.context() as patch:
        for name, spec in ENCODERS.items():
            patch.setitem(ENCODERS, name, replace(spec, front_end=on_cpu(spec.front_end)))
        yield build


def header(path: Path) -> dict[str, str]:
    """The comment lines at the top, by what they begin with."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    parts = re.findall(r"# (\w+):(.*(?:\n#   .*)*)", "\n".join(lines))
    return {name: re.sub(r"\s+#?\s*", " ", text).strip() for name, text in parts}


# ---------------------------------------------------------------- the files


def test_all_rows_are_there():
    assert {*WINNER, "dcase2024/baseline", "dcase2024/winner_ensemble"} <= set(NAMES)
    for folder in ("builtin", "event_scenes"):
        assert {f"{folder}/{stage}" for stage in ("pretrain", *STAGES, "ensemble")} <= set(NAMES)
    assert sum("low_complexity" in name for name in NAMES) == 8


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_begins_with_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and max(map(len, lines)) <= 120
    if path.parent.name != "dcase2024":
        return  # on data that have no published rows
    assert list(header(path)) == HEADER and lines[0].startswith("# Reproduces:")
    command = header(path)["Run"]
    assert command.startswith(f"./run.sh task4_sed --config {name_of(path)} --data FOLDER")


def test_loads(path):
    config, resolved = loaded(name_of(path))
    assert resolved["train"]["batch_size"] == config.data.n_clips * config.train.accumulate
    assert recipe_name(CONFIGS, path, []) == name_of(path)


def test_inherits_one_level(path):
    parent = read_yaml(path).get("inherits")
    assert parent is None or "inherits" not in read_yaml(path.parent / parent)


def test_smoke_shrinks_it_and_downloads_nothing(path):
    config, _ = load_config(path, smoke=True)
    assert (config.train.epochs, config.train.precision, config.train.accumulate) == (1, "32-true", 1)
    assert config.data.n_clips <= 5 and config.encoder_weights == "" and config.augment.response_p == 0


def test_builds_its_network_and_starts_from_known_weights(path, shapes_of):
    config = config_of(name_of(path))
    network = shapes_of(config.network)
    if config.encoder_weights:
        entry = REGISTRY[config.encoder_weights]
        assert network.encoder.name.split("+")[0] in entry.architecture
    if "+" in network.encoder.name:
        assert config.base or config.encoder_weights == f"{network.encoder.name}_strong"


def test_base_is_the_stage_before(path, shapes_of):
    config = config_of(name_of(path))
    if not config.base:
        from_scratch = config.stage == "full" and path.parent.name != "dcase2024"
        assert config.encoder_weights or from_scratch
        return
    base = config_of(config.base)
    own, before = (shapes_of(c.network) for c in (config, base))
    part, prefix = (own.encoder, "encoder.") if config.stage == "frozen" else (own, "")
    shapes = {name: tuple(value.shape) for name, value in before.state_dict().items()}
    assert {prefix + name: tuple(value.shape) for name, value in part.state_dict().items()}.items() <= shapes.items()
    assert base.stage == ("frozen" if config.stage == "full" else "full")


def test_pseudo_labels_are_of_the_networks_that_iteration_one_ends_with(path):
    config = config_of(name_of(path))
    assert bool(config.pseudo_labels) == (re.match("it2_stage1|low_complexity_stage1", path.stem) is not None)
    for name in config.pseudo_labels:
        assert re.match("it1_stage2", Path(name).name) and Path(name).parent.name == path.parent.name
        assert config_of(name).stage == "full"


# ---------------------------------------------------------------- ensembles


def test_ensemble_is_of_trained_networks_and_nothing_else(ensemble):
    content = read_yaml(ensemble)
    assert list(content) == ["members"] and content["members"]
    for name in content["members"]:
        assert Path(name).parent.name == ensemble.parent.name and config_of(name).stage == "full"
    if ensemble.stem == "winner_ensemble":
        assert content["members"] == [f"dcase2024/it2_stage2_{encoder}" for encoder in TRANSFORMERS]


def test_nobody_trains_an_ensemble(ensemble):
    with pytest.raises(ConfigError) as refused:
        load_config(name_of(ensemble))
    assert "an ensemble, which is not trained itself; train its members (" in str(refused.value)
    assert read_yaml(ensemble)["members"][-1] in str(refused.value) and "\n" not in str(refused.value)


# ---------------------------------------------------------------- expected scores


def published() -> dict[tuple[str, str, str], dict]:
    with open(PUBLISHED, encoding="utf-8") as file:
        return {(row["system"], row["split"], row["metric"]): row for row in csv.DictReader(file)}


def test_expected_scores_of_the_baseline_are_the_published_ones():
    said = header(CONFIGS / "dcase2024/baseline.yaml")["Reproduces"]
    psds1, psds1_sd, mpauc, mpauc_sd = re.search(r"PSDS1 (\S+) ± (\S+), mpAUC (\S+) ± (\S+) %", said).groups()
    for *found, split, metric in (
        (psds1, psds1_sd, "devtest", "psds1"),
        (mpauc, mpauc_sd, "maestro_real_dev", "mpauc"),
    ):
        row = published()["dcase2024/baseline", split, metric]
        assert [float(number) for number in found] == pytest.approx([float(row["value"]), float(row["spread"])])


def test_expected_scores_of_the_winner_are_the_published_ones():
    def value(system, split, metric="psds1"):
        return f"{float(published()[f'dcase2024/{system}', split, metric]['value']):.1f}"

    plain = {split: value("winner_ensemble", split) for split in ("devtest", "eval_public")}
    boxes = {split: value("winner_ensemble_csebbs", split) for split in ("devtest", "eval_public")}
    mpauc = value("winner_ensemble", "maestro_real_dev", "mpauc")
    for encoder in TRANSFORMERS:
        said = header(CONFIGS / f"dcase2024/it2_stage2_{encoder}.yaml")["Reproduces"]
        assert f"devtest PSDS1 {plain['devtest']}, public eval {plain['eval_public']}, mpAUC {mpauc} %" in said
        assert f"the best: public eval {value('winner_single', 'eval_public')}" in said
    said = header(CONFIGS / "dcase2024/winner_ensemble.yaml")["Reproduces"]
    assert f"devtest PSDS1 {plain['devtest']}, {boxes['devtest']} (" in said
    assert f"public evaluation set {plain['eval_public']}, {boxes['eval_public']}; mpAUC {mpauc} %" in said


# ---------------------------------------------------------------- the published recipe


def test_stage_one_as_published():
    """The numbers of sections 2 and 6 in one place where a change shows."""
    first, second = (config_of(f"dcase2024/it{i}_stage1_atst") for i in (1, 2))
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
    assert first.pseudo_labels == []
    assert second.pseudo_labels == [f"dcase2024/it1_stage2_{encoder}" for encoder in TRANSFORMERS]
    assert weights_of(config_of("dcase2024/it2_stage1_beats")) == (0.5, 0.25, 0.08, 0.1, 0.1, 1.5)


def test_stage_two_as_published():
    first, second = (config_of(f"dcase2024/it{i}_stage2_atst") for i in (1, 2))
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
    assert config_of("dcase2024/it2_stage2_fpasst").augment.views().warp is None
    beats = config_of("dcase2024/it2_stage2_beats")
    assert (beats.data.n_clips, beats.train.batch_size, beats.rates.rnn) == (13, 13 * 36, 5e-4)


def weights_of(config) -> tuple[float, ...]:
    loss = config.loss
    return loss.maestro, loss.strong, loss.synth, loss.weak, loss.self_supervised, loss.pseudo


def test_what_is_compared_without_masks_or_without_maestro():
    """The options ssl_no_class_mask and exclude_maestro_weak_ssl of the published commands, iteration 2."""
    options = {
        (stage, encoder): config_of(f"dcase2024/it2_stage{stage}_{encoder}").loss
        for stage in (1, 2)
        for encoder in TRANSFORMERS
    }
    unmasked = {key for key, loss in options.items() if not loss.mask_consistency}
    without_maestro = {key for key, loss in options.items() if not loss.maestro_weak_consistency}
    assert unmasked == {(1, "atst"), (1, "beats")}
    assert without_maestro == {(1, "fpasst"), (2, "fpasst"), (2, "beats")}


def test_baseline_as_published():
    config = config_of("dcase2024/baseline")
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
        ("--loss.pseudo=1", "name the configs that predict them and give the loss a weight, or leave both out"),
        ("--pseudo_labels=[builtin/it1_stage2]", "and loss.pseudo 0.0"),
        ("--pseudo_labels=true", "`pseudo_labels` is"),
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
