"""Averages of prediction files: pseudo-labels of the sets to train with, ensembles of those that are scored."""

from pathlib import Path

import numpy as np
import pytest

from task4_sed import ensembles
from task4_sed.predictions import PredictionFile, write_predictions


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """Two runs with predictions of a set to train with and of one that is scored; run n gives the logit n."""
    for n in (1, 2):
        for name in ("weak_train", "devtest"):
            logits = np.full((2, 156, 27), float(n), np.float32)
            path = tmp_path / f"run{n}/predictions/{name}.hdf5"
            write_predictions(path, ["a", "b"], [logits], {"recipe": f"recipe{n}", "identity": f"{n}{name}"})
    return [str(tmp_path / f"run{n}") for n in (1, 2)]


@pytest.mark.parametrize("of, names", [("training", ["weak_train"]), ("evaluation", ["devtest"]),
                                       ("all", ["devtest", "weak_train"])])  # fmt: skip
def test_takes_the_sets_of_one_use(runs, tmp_path, of, names):
    ensembles.main([*runs, "--out", str(tmp_path / "out"), "--of", of, "--recipe", "x/both", "--seed", "3"])
    assert sorted(path.stem for path in (tmp_path / "out").glob("*")) == names
    file = PredictionFile(tmp_path / f"out/{names[0]}.hdf5")
    assert np.all(file.logits() == 1.5)
    assert (file.about["recipe"], file.about["seed"]) == ("x/both", 3)
    assert [member["recipe"] for member in file.about["members"]] == ["recipe1", "recipe2"]


def test_pseudo_labels_may_be_of_one_run_but_an_ensemble_not(runs, tmp_path):
    ensembles.main([runs[1], "--out", str(tmp_path / "out"), "--of", "training"])
    assert np.all(PredictionFile(tmp_path / "out/weak_train.hdf5").logits() == 2)
    with pytest.raises(SystemExit, match="an ensemble needs two folders of predictions or more, 1 given"):
        ensembles.main([runs[1], "--out", str(tmp_path / "other"), "--of", "evaluation"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("trained, expected", [
    (["DESED and MAESTRO Real", "DESED and MAESTRO Real"], "DESED and MAESTRO Real"),
    (["little scenes", "DESED and MAESTRO Real"], "DESED and MAESTRO Real and little scenes"),
    (["little scenes", None], "little scenes"),
    ([None, None], None),
])  # fmt: skip
def test_a_member_trained_on_other_data_is_not_forgotten(trained, expected):
    members = [{"training": {"dataset": name}} if name else {} for name in trained]
    assert ensembles.ensemble_about(members, "x", 0)["training"]["dataset"] == expected


def test_sets_that_only_published_folders_hold_are_passed_over(runs, tmp_path):
    for run in runs:
        (Path(run) / "predictions/eval_private.hdf5").write_bytes(b"")
    ensembles.main([*runs, "--out", str(tmp_path / "out")])
    assert sorted(path.stem for path in (tmp_path / "out").glob("*")) == ["devtest", "weak_train"]


def test_force_averages_again(runs, tmp_path, capsys):
    arguments = [*runs, "--out", str(tmp_path / "out"), "--of", "training"]
    ensembles.main(arguments)
    ensembles.main(arguments)
    assert "done before" in capsys.readouterr().out
    ensembles.main([*arguments, "--force"])
    assert "done before" not in capsys.readouterr().out
