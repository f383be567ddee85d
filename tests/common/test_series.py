"""What figures are made of: runs by their data, error bars, comparisons as rows, the plots of them."""

import json

import matplotlib
import numpy as np
import pytest
from torchaudio.functional import melscale_fbanks

from common.files import write_json
from common.metrics.bootstrap import (
    accuracy_intervals,
    comparison_for_record,
    intervals_for_record,
    paired_differences,
)
from common.metrics.classification import classification_scores
from common.results import series
from common.results.records import new_record, read_records, write_record

CLASSES = ["bus", "metro_station", "park"]
DEVICES = ["a", "b", "s1", "s4"]
GROUPS = {"real": ["a", "b"], "seen": ["s1"], "unseen": ["s4"]}
N_PLACES, SEEDS = 12, (0, 1)
SYSTEMS = {"general": 0.6, "no_mixstyle": 0.5, "device_specific": 0.7}  # share of clips recognised


def write_results(folder):
    """Write records of three systems and two seeds on other data, and a comparison, below `folder`."""
    n_clips = N_PLACES * len(CLASSES) * len(DEVICES)
    places, labels, devices = (
        np.arange(n_clips) % N_PLACES,
        np.arange(n_clips) // N_PLACES % len(CLASSES),
        np.repeat(DEVICES, n_clips // len(DEVICES)),
    )
    arguments = labels, devices, GROUPS, places
    correct = {}
    for system, share in SYSTEMS.items():
        for seed in SEEDS:
            right = np.random.default_rng(seed).uniform(size=n_clips) < share - 0.2 * (devices == "s4")
            correct.setdefault(system, []).append(right)
            logits = np.eye(len(CLASSES))[np.where(right, labels, (labels + 1) % len(CLASSES))]
            history = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2, 3)]
            tuned = system == "device_specific"
            record = new_record(
                task="task1_asc",
                recipe=f"device_scenes/{system}",
                seed=seed,
                split="test",
                status="other data",
                dataset={"name": "device_scenes", "expected": {"test": n_clips}, "found": {"test": n_clips}},
                config={"base": "device_scenes/general" if tuned else ""},
                metrics=classification_scores(logits, labels, devices, CLASSES, GROUPS),
                intervals=intervals_for_record(accuracy_intervals(right, *arguments, n_resamples=50), "identifier"),
                history=[] if tuned else history,
            )
            write_record(record | ({"devices": {"b": {"history": history}}} if tuned else {}), folder / "task1_asc")
    differences = paired_differences(
        np.stack(correct["device_specific"]), np.stack(correct["general"]), *arguments, n_resamples=50
    )
    entry = {
        "task": "task1_asc",
        "recipe": "device_scenes/device_specific",
        **comparison_for_record(differences, against="device_scenes/general"),
        "dataset": "device_scenes",
        "status": "other data",
        "seeds": [2, 2],
        "pooled": {"seen": "s1"},
    }
    write_json(folder / "comparisons" / "device_scenes-device_specific-vs-general.json", entry)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


@pytest.fixture(scope="module")
def systems(results):
    return series.runs_by_data(read_records(results / "task1_asc").records)["device_scenes (other data)"]


def test_runs_are_grouped_by_data_the_base_first(systems):
    names = [name.rpartition("/")[2] for name in systems]
    assert names == ["general", "device_specific", "no_mixstyle"]
    assert [run["seed"] for run in systems["device_scenes/general"]] == list(SEEDS)


def test_of_two_configurations_the_newest_counts(systems):
    old = systems["device_scenes/general"][0]
    new = {**old, "config_sha256": "another", "created": "2999-01-01T00:00:00+00:00"}
    assert series.runs_by_data([new, old]) == {"device_scenes (other data)": {"device_scenes/general": [new]}}


def test_data_title_names_what_is_not_comparable(systems):
    record = systems["device_scenes/general"][0]
    smoke = {**record, "status": "smoke", "dataset": {"name": "built-in data"}}
    assert series.data_title(smoke) == "built-in data, smoke (other data)"


def test_error_bars_are_the_recorded_interval_or_the_sd_over_runs(systems):
    runs = systems["device_scenes/general"]
    below, above = series.error_bars(runs, "device_accuracy")["a"]
    low, high = np.mean([run["intervals"]["device_accuracy"]["a"] for run in runs], axis=0)
    assert below + above == pytest.approx(100 * (high - low))
    values = [100 * run["metrics"]["class_accuracy"]["bus"] for run in runs]
    assert series.seed_means(runs, "class_accuracy")["bus"] == pytest.approx(np.mean(values))
    assert series.error_bars(runs, "class_accuracy")["bus"] == pytest.approx((np.std(values, ddof=1),) * 2)
    assert series.error_bars(runs[:1], "class_accuracy") == {}  # one run without intervals has no error bar


def test_comparison_becomes_rows_in_points(results):
    (comparison,), problems = series.read_comparisons(results / "comparisons", "task1_asc")
    assert problems == []
    assert series.comparison_title(comparison) == "device_specific minus general: device_scenes (other data), 2 seeds"
    rows = series.comparison_rows(comparison)
    assert list(rows)[:4] == ["macro accuracy", "devices: real", "devices s1", "devices: unseen"]
    assert rows["device s4"].value == pytest.approx(100 * comparison["device_accuracy"]["s4"]["difference"])
    assert series.read_comparisons(results / "comparisons", "task4_sed") == ([], [])


def test_malformed_comparisons_are_named_and_an_absent_folder_is_empty(tmp_path):
    (tmp_path / "half.json").write_text('{"task": "task1_asc"')
    (tmp_path / "other.json").write_text(json.dumps({"task": "task1_asc", "recipe": "general"}))
    found, problems = series.read_comparisons(tmp_path, "task1_asc")
    assert found == [] and [problem.partition(":")[0] for problem in problems] == ["half.json", "other.json"]
    assert series.read_comparisons(tmp_path / "nothing", "task1_asc") == ([], [])


def test_gap_is_the_mean_over_runs_and_absent_where_a_run_recorded_none(systems):
    gaps = series.gap_rows(systems)
    runs = systems["device_scenes/general"]
    assert gaps["general"].value == pytest.approx(
        np.mean(
            [
                100 * (run["metrics"]["device_accuracy"]["a"] - run["metrics"]["group_accuracy"]["unseen"])
                for run in runs
            ]
        )
    )
    assert gaps["general"].low <= gaps["general"].value <= gaps["general"].high
    assert series.gap_rows({"general": [runs[0], {**runs[1], "intervals": None}]}) == {}


def test_histories_of_systems_and_of_devices(systems):
    assert {name.rpartition("/")[2]: len(runs) for name, runs in series.histories(systems).items()} == {
        "general": 2,
        "no_mixstyle": 2,
    }
    assert {device: len(runs) for device, runs in series.device_histories(systems).items()} == {"b": 2}


def test_plots_of_series(systems, results):
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from common.results import plots

    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    plots.measured(axes[0, 0], systems, "class_accuracy", "class")
    assert len(axes[0, 0].patches) == len(SYSTEMS) * len(CLASSES)
    rows = {"first": {"zero": (0.0, 0.0, 0.0), "two": (2.0, 1.0, 3.0)}, "second": {"one": (-1.0, -2.0, 0.5)}}
    plots.forest(axes[0, 1], rows)
    assert [label.get_text() for label in axes[0, 1].get_yticklabels()] == ["zero", "two", "one"]
    markers = [line.get_markerfacecolor() for line in axes[0, 1].lines if line.get_marker() == "o"]
    assert [face == "white" for face in markers] == [True, False, True]  # filled: 0 is outside of the interval
    plots.log_mel(axes[1, 0], np.zeros((256, 65)), 1.0, 16000.0)
    bands, names = axes[1, 0].get_yticks(), [label.get_text() for label in axes[1, 0].get_yticklabels()]
    weights = melscale_fbanks(2049, 0.0, 16000.0, 256, 32000)[128].numpy()  # of each band at 1000 Hz
    assert dict(zip(names, bands))["1"] == pytest.approx(weights @ np.arange(256) / weights.sum(), abs=0.02)
    plots.learning_curves(axes[1, 1], series.histories(systems))
    assert len(axes[1, 1].lines) == 4 and len(axes[1, 1].get_legend().get_texts()) == 2
    figure.canvas.draw()
    plt.close(figure)
