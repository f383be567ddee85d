"""Records of Task 4 in tables: units, post-processings, gains; other data never beside a published number."""

import json
from pathlib import Path

import matplotlib
import pytest

from common.files import write_json
from common.nn.published import REGISTRY
from common.results import plots, sed_tables, series
from common.results.compare import PUBLISHED_DATA, read_published
from common.results.records import REPOSITORY, RecordError, bounds, is_fraction, metric, new_record, write_record
from common.results.tables import TABLES, Results, load_results
from task4_sed import data

DATA = PUBLISHED_DATA["task4_sed"]
CLIPS = {"devtest": 1168, "eval_public": 692, "maestro_real_dev": 718}
SED = [name for name in TABLES if name.startswith("task4_sed") and name != "task4_sed_complexity"]
PUBLISHED = REPOSITORY / "results" / "published" / "task4_sed.csv"


def make_record(
    recipe="dcase2024/winner_ensemble", split="devtest", seed=0, value=0.5, name=DATA, status="complete", **cost
):
    """A record whose scores differ by post-processing: value, + .01 raw, + .02 and + .03 with boxes."""
    main, wide = ("mpauc", 0.05) if split == "maestro_real_dev" else ("psds1", 0.02)
    posts = {"raw": 0.01} if main == "mpauc" else {"raw": 0.01, "csebbs": 0.02, "csebbs_devtest": 0.03}
    metrics = {main: value, f"{main}_class": {"Dog": value, "door opens/closes": value}, "n_items": CLIPS[split]}
    metrics |= {"psds1_macro": value + 0.1} if main == "psds1" else {}
    metrics |= {post: {main: value + more} for post, more in posts.items()}
    intervals = {key: [own - wide, own + wide] for key, own in metrics.items() if isinstance(own, float)}
    intervals |= {post: {main: [value + more - wide, value + more + wide]} for post, more in posts.items()}
    return new_record(
        task="task4_sed", recipe=recipe, seed=seed, split=split, status=status,
        dataset={"name": name, "manifest_sha256": "ab", "expected": {split: CLIPS[split]},
                 "found": {split: CLIPS[split]}},
        config={}, metrics=metrics, intervals=intervals, complexity=cost or {"parameters": 2e6, "macs": 3e9},
    )  # fmt: skip


def results_of(*records, comparisons=()):
    return Results(read_published(PUBLISHED), list(records), None, comparisons)


def cells(text, *starts):
    """Return the cells of the one row whose first cells are `starts`."""
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    found = [row for row in rows if row[: len(starts)] == list(starts)]
    assert len(found) == 1, text
    return found[0]


# ---- units ----


def test_scores_are_fractions_in_records_and_per_cent_in_tables():
    named = ("psds1", "raw/mpauc", "collar_f1_class/Dog", "segment_auroc", "macro_accuracy")
    assert all(map(is_fraction, named)) and not any(map(is_fraction, ("log_loss", "macs", "n_items", "bytes_fp16")))
    for value in (73.75, -0.1):
        with pytest.raises(RecordError, match="fractions between 0 and 1"):
            make_record(value=value)
    published = read_published(PUBLISHED)
    own = published[published["metric"].map(is_fraction)]
    assert len(own) and (own["value"] > 1).mean() > 0.95 and own["value"].between(0, 100).all()


def test_names_may_hold_slashes():
    record = make_record()
    assert metric(record, "csebbs/psds1") == pytest.approx(0.52) and metric(record, "psds1_class/Dog") == 0.5
    assert metric(record, "psds1_class/door opens/closes") == 0.5 and metric(record, "csebbs/psds2") is None
    assert bounds(record, "csebbs_devtest/psds1") == pytest.approx((0.51, 0.55))
    assert metric(record, "psds1/Dog") is None


def test_the_data_set_has_one_name():
    assert DATA == data.PUBLISHED_DATA


def test_every_published_row_is_in_the_published_table():
    published = read_published(PUBLISHED)
    known = set(zip(published["system"], published["split"], published["metric"]))
    assert {(row.system, row.split, row.metric) for row in sed_tables.PUBLISHED_ROWS} <= known
    challenge = {key for key in known if key[0].startswith("dcase2024/")}
    assert challenge == {(row.system, row.split, row.metric) for row in sed_tables.PUBLISHED_ROWS}


def test_recipes_of_published_rows_are_configs_or_ensembles():
    recipes = {recipe for row in sed_tables.PUBLISHED_ROWS for recipe in row.recipes}
    for recipe in recipes - set(sed_tables.ENSEMBLE):
        own, weights = REPOSITORY / "task4_sed" / "configs" / f"{recipe}.yaml", recipe.removeprefix("weights/")
        assert own.is_file() or any(entry.url and Path(entry.file_name).stem == weights for entry in REGISTRY.values())


# ---- tables ----


def test_published_scores_stand_beside_those_of_the_same_post_processing():
    runs = [make_record(seed=seed, value=0.535 + 0.003 * seed) for seed in range(3)]
    runs.append(make_record("dcase2024/it2_stage2_atst", "eval_public"))
    runs.append(make_record(split="maestro_real_dev", value=0.7275))
    text = TABLES["task4_sed"].build(results_of(*runs))
    row = cells(text, "dcase2024/winner_ensemble", "devtest", "PSDS1", "none")
    assert row[4:6] == ["54.81", "54.80 ± 0.30 (3 seeds)"] and row[7] == "52.80 … 56.80" and row[-1] == "reproduced"
    row = cells(text, "dcase2024/winner_ensemble", "devtest", "PSDS1", "cSEBBs tuned on devtest")
    assert row[4:6] == ["64.06", "56.80 ± 0.30 (3 seeds)"] and row[-1] == "not reproduced"
    assert cells(text, "dcase2024/it2_stage2_atst")[5:] == ["53.00 (1 seed)", "–", "51.00 … 55.00", "-16.20", "–"]
    assert cells(text, "dcase2024/winner_ensemble", "maestro_real_dev", "mpAUC")[5] == "73.75 (1 seed)"
    assert cells(text, "dcase2024/baseline", "devtest", "PSDS1 by psds_eval")[-1] == "not run"
    assert "weights/" not in text  # a row only where released weights were scored


def test_released_weights_have_a_row_of_their_own_where_they_were_scored():
    text = TABLES["task4_sed"].build(results_of(make_record("weights/winner_ensemble", value=0.5381)))
    row = cells(text, "weights/winner_ensemble", "devtest", "PSDS1", "none")
    assert row[4:6] == ["54.81", "54.81 (1 seed)"]
    assert cells(text, "dcase2024/winner_ensemble", "devtest", "PSDS1", "none")[-1] == "not run"


@pytest.mark.parametrize("change", [{"name": "event_scenes", "status": "other data"}, {"status": "smoke"}])
def test_other_data_is_never_beside_a_published_number(change):
    results = results_of(make_record(value=0.8311, **change))
    assert "83.11" not in TABLES["task4_sed"].build(results) + TABLES["task4_sed_runs"].build(results)
    text = TABLES["task4_sed_other_data"].build(results)
    assert "83.11 (1 seed)" in text and "not to be compared with any published number" in text and "54.81" not in text
    whole = results_of(make_record(value=0.8311))
    assert "83.11" in TABLES["task4_sed_runs"].build(whole)
    assert TABLES["task4_sed_other_data"].build(whole) == "No runs on other data."


def test_other_data_shows_every_post_processing_with_means_over_seeds():
    change = {"name": "event_scenes", "status": "other data"}
    runs = [make_record("event_scenes/it1_stage1", seed=seed, value=0.1 + 0.02 * seed, **change) for seed in range(2)]
    runs.append(make_record("event_scenes/it1_stage1", "maestro_real_dev", value=0.3, **change))
    text = TABLES["task4_sed_other_data"].build(results_of(*runs))
    assert text.startswith("**Other data (event_scenes): not to be compared with any published number**")
    row = cells(text, "event_scenes/it1_stage1", "devtest")
    assert row[2:6] == ["1,168", "PSDS1", "11.00 ± 1.41 (2 seeds)", "9.00 … 13.00"]
    assert row[6:10] == ["12.00 ± 1.41 (2 seeds)", "13.00 ± 1.41 (2 seeds)", "11.00 … 15.00", "14.00 ± 1.41 (2 seeds)"]
    assert row[10] == "21.00 ± 1.41 (2 seeds)"
    row = cells(text, "event_scenes/it1_stage1", "maestro_real_dev")
    assert row[3:6] == ["mpAUC", "30.00 (1 seed)", "25.00 … 35.00"] and row[7:] == ["–"] * 5


def test_classes_have_a_column_per_recipe():
    change = {"name": "event_scenes", "status": "other data"}
    runs = [make_record(recipe, value=value, **change) for recipe, value in (("a/one", 0.25), ("a/two", 0.5))]
    text = TABLES["task4_sed_classes"].build(results_of(*runs))
    assert "number: devtest, PSDS1, %**" in text
    assert cells(text, "class") == ["class", "a/one", "a/two"] and cells(text, "Dog") == ["Dog", "25.00", "50.00"]


def test_cost_is_beside_the_score_cheapest_first():
    change = {"name": "event_scenes", "status": "other data"}
    runs = [make_record("a/large", parameters=88_600_000, macs=23_713_000_000, **change)]
    runs.append(make_record("a/small", parameters=1_200_000, macs=400_000_000, **change))
    text = TABLES["task4_sed_low_complexity"].build(results_of(*runs))
    assert cells(text, "a/small")[1:6] == ["1.20", "0.40", "devtest", "PSDS1", "50.00 (1 seed)"]
    assert text.index("a/small") < text.index("a/large")


# ---- comparisons ----


def comparison(**changes):
    entry = {"difference": 0.03, "interval": [0.01, 0.05]}
    return {
        "task": "task4_sed", "recipe": "event_scenes/it1_stage2", "against": "event_scenes/it1_stage1", "psds1": entry,
        "psds1_class": {"Electric_shaver_toothbrush": {"difference": -0.01, "interval": [-0.02, 0.01]}},
        "csebbs": {"psds1": {"difference": 0.04, "interval": [0.02, 0.06]}}, "per_seed": {"psds1": [0.02, 0.03, 0.04]},
        "dataset": "event_scenes", "status": "other data", "seeds": [3, 3], "n_items": 296, "split": "devtest",
    } | changes  # fmt: skip


def test_gains_show_clips_and_seeds(tmp_path):
    text = TABLES["task4_sed_gains"].build(results_of(comparisons=[comparison()]))
    names = "event_scenes/it1_stage2", "event_scenes/it1_stage1", "event_scenes (other data)", "devtest"
    row = cells(text, *names, "PSDS1")
    assert row[5:8] == ["+3.00", "+1.00 … +5.00", "+2.00, +3.00, +4.00"]
    low, high = (float(end) for end in row[8].split(" … "))
    assert (low, high) == pytest.approx((3 - 2.48, 3 + 2.48), abs=0.01)  # 4.3027 / √3
    row = cells(text, *names, "PSDS1, cSEBBs")
    assert row[5:] == ["+4.00", "+2.00 … +6.00", "3 seeds", "–"]
    assert TABLES["task4_sed_gains"].build(results_of()) == "No comparisons."


def test_comparisons_become_rows_for_figures(tmp_path):
    rows = series.comparison_rows(comparison())
    assert list(rows) == ["PSDS1", "PSDS1, cSEBBs", "PSDS1 of Electric shaver toothbrush"]
    assert rows["PSDS1, cSEBBs"] == pytest.approx((4, 2, 6))
    assert series.comparison_title(comparison()) == (
        "it1_stage2 minus it1_stage1: event_scenes (other data), devtest, 3 seeds"
    )
    write_json(tmp_path / "one.json", comparison())
    without = {key: value for key, value in comparison(csebbs={}).items() if key != "psds1"}
    write_json(tmp_path / "none.json", without)
    found, problems = series.read_comparisons(tmp_path, "task4_sed")
    assert len(found) == 1 and [problem.partition(":")[0] for problem in problems] == ["none.json"]


def test_results_are_loaded_with_the_comparisons_of_run_folders(tmp_path):
    write_record(make_record(), tmp_path / "runs/x/results/task4_sed")
    write_json(tmp_path / "runs/x/results/comparisons/c.json", comparison())
    write_json(tmp_path / "results/comparisons/task1.json", {"task": "task1_asc"})
    found, problems = load_results(tmp_path / "results", "task4_sed", tmp_path / "runs", PUBLISHED.parent)
    assert len(found.records) == 1 and len(found.comparisons) == 1 and problems == []
    for name in SED:
        assert TABLES[name].build(found), name


def test_seed_means_of_a_post_processing():
    runs = [make_record(seed=seed, value=0.1 + 0.2 * seed) for seed in range(2)]
    for run in runs:
        run["metrics"]["csebbs"]["psds1_class"] = {"Dog": run["metrics"]["psds1"]}
    assert series.seed_means(runs, "csebbs/psds1_class") == {"Dog": pytest.approx(20)}
    assert series.seed_means(runs, "csebbs_devtest/psds1_class") == {}


# ---- figures ----


def test_curves_and_costs_are_drawn():
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, layout="constrained")
    curve = {"efpr": [0, 10], "etpr": [0.1, 0.4]}
    plots.psd_roc(axes[0], {"one": [curve, curve], "two": [curve]})
    assert len(axes[0].lines) == 3 and len(axes[0].get_legend().get_texts()) == 2
    assert list(axes[0].lines[0].get_xdata()) == [0, 10, 100]  # held up to the end of the area
    assert axes[0].lines[0].get_drawstyle() == "steps-post"
    plots.score_against_cost(axes[1], {"small": (4e8, 11.0, (9.0, 13.0)), "large": (2.4e10, 54.0, None)})
    assert axes[1].get_xscale() == "log" and axes[1].get_xlabel() and axes[1].get_ylabel()
    figure.canvas.draw()
    plt.close(figure)


def test_records_are_json_with_their_curves(tmp_path):
    record = make_record() | {"curves": {"median": {"efpr": [0.0], "etpr": [0.2]}}}
    path = write_record(record, tmp_path)
    assert json.loads(path.read_text())["curves"]["median"]["etpr"] == [0.2]
    assert path.name == "desed-and-maestro-real-2024-dcase2024_winner_ensemble-devtest-seed0.json"
