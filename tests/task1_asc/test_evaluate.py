"""Predict and score through the commands: a result says what made it, and nothing stale passes for new."""

import json
import shutil

import pytest
import torch

from task1_asc import evaluate, train
from task1_asc.config import CONFIGS
from tests.task1_asc.conftest import SHORT_CLIPS, write_tau

SMALL = [
    *SHORT_CLIPS,
    "--train.epochs=1",
    "--train.batch_size=32",
    "--optim.warmup_steps=0",
    "--model.init_args.base_channels=8",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained and predicted general run: (data folder, run folder)."""
    data, run = write_tau(tmp_path_factory.mktemp("data") / "tau"), tmp_path_factory.mktemp("run") / "seed3"
    where = ["--data", str(data), "--cache", str(data / "cache"), "--run", str(run), "--device", "cpu"]
    train.main(["--config", str(CONFIGS / "dcase2025/general.yaml"), "--seed", "3", *where, *SMALL])
    evaluate.main(["predict", *where])
    return data, run


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "seed3")
    return tmp_path / "seed3"


def score(run, results, *more):
    evaluate.main(["score", "--run", str(run), "--results", str(results), *more])
    (path,) = results.glob("*.json")
    return json.loads(path.read_text())


def test_record_says_what_was_trained_and_on_what(run, tmp_path):
    record = score(run, tmp_path / "results")
    assert record["recipe"].startswith("dcase2025/general+data.format.clip_s=0.25") and record["seed"] == 3
    assert record["status"] == "other data" and record["dataset"]["found"] == {"train": 120, "test": 40}
    assert record["metrics"]["n_items"] == 40 and set(record["metrics"]["device_accuracy"]) == {"a", "s4"}
    trained = json.loads((run / "train.json").read_text())["training"]
    assert record["git"] == trained["git"] and record["wall_time_s"] == trained["wall_time_s"] and record["scored"]


def test_every_clip_is_predicted_once_in_the_order_of_the_list(trained):
    rows, logits, _ = evaluate.read_predictions(trained[1] / "predictions.csv")
    listed = [line.split("\t")[0] for line in (trained[0] / "split_setup/test.csv").read_text().splitlines()[1:]]
    assert list(rows.filename) == listed and logits.shape == (40, 10)


def test_predictions_of_other_weights_are_not_scored(run, tmp_path):
    content = torch.load(run / "weights.pt", weights_only=True)
    content["state_dict"]["model.feed_forward.1.bias"] += 1
    torch.save(content, run / "weights.pt")
    with pytest.raises(SystemExit, match="made with other weights than weights.pt; predict again"):
        score(run, tmp_path / "results")


def test_a_run_is_not_predicted_with_another_config(trained, run):
    data = trained[0]
    with pytest.raises(SystemExit, match="--config and overrides need --weights"):
        evaluate.main(
            ["predict", "--run", str(run), "--data", str(data), "--cache", str(data / "cache"), "--test_precision=fp32"]
        )


def test_published_checkpoint_is_scored_under_a_name_of_its_own(trained, tmp_path, shared):
    data = trained[0]
    weights = shared / "data/checkpoints/task1/karasin_jku_task1_4.ckpt"
    words = ["--run", str(tmp_path / "winner"), "--data", str(data), "--cache", str(data / "cache")]
    words += ["--weights", str(weights),
             "--config", str(CONFIGS / "dcase2025/device_specific.yaml"), "--device", "cpu", *SHORT_CLIPS]  # fmt: skip
    (tmp_path / "winner").mkdir()
    evaluate.main(["predict", *words])
    record = score(tmp_path / "winner", tmp_path / "results")
    assert record["recipe"] == "weights/karasin_jku_task1_4" and record["weights"]["given"]


def test_comparison_over_seeds_is_paired(trained, tmp_path):
    run, results = trained[1], tmp_path / "comparisons"
    evaluate.main(
        ["compare", "--runs", str(run), "--against", str(run), "--results", str(results), "--pool", "both=a,s4"]
    )
    (path,) = results.glob("*.json")
    content = json.loads(path.read_text())
    assert (
        content["macro_accuracy"] == {"difference": 0.0, "interval": [0.0, 0.0]}
        and content["groups"]["both"]["difference"] == 0
    )
