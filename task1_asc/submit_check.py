"""Try a submission package where this repository is not, and compare it with the runs it was built from.

Flow: package → install in an empty folder → test_complexity, evaluate_submission → **checks** → predictions/
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.complexity import MAX_BYTES, MAX_MACS
from common.data.manifest import DataError, read_table
from common.files import write_text
from common.nn.weights import load_state_dict_file
from common.submission import SubmissionError, check_same_tree, install, run_isolated
from task1_asc.data import SceneData
from task1_asc.submit_build import ROOT_FILES, System

DEVICES = ("a", "b", "c", *(f"s{i}" for i in range(1, 11)))  # those the challenge measures complexity for
# Between fp16 on a GPU, float32 from fp16 weights, and float32: absolute, plus a share of the largest logit.
LOGIT_TOLERANCE, LOGIT_RELATIVE_TOLERANCE = 0.02, 2e-3


def check_package(
    package: Path, systems: list[System], data: SceneData, evaluation: Path | None, no_cuda: bool = False
) -> dict[str, dict]:
    """Install the package elsewhere, run its scripts there, compare with the runs, and fill predictions/.

    Args:
        evaluation: folder of the evaluation set; None: the test split is predicted in its place.

    Returns:
        {system: {"scores", "complexity"}}, of the package.

    Raises:
        SubmissionError, DataError: the first thing that is wrong, in a sentence.
    """
    name = package.name
    check_names(package, systems)
    with tempfile.TemporaryDirectory(prefix="submission-") as scratch:
        site, work = Path(scratch, "installed"), Path(scratch, "work")
        install(package, site)
        check_same_tree(site / name, package / name)
        work.mkdir()
        for script in ROOT_FILES.values():
            shutil.copyfile(package / f"{script}.py", work / f"{script}.py")
        if evaluation is None:
            evaluation = evaluation_layout(Path(scratch, "evaluation"), data, systems[0].rows)
        found = {}
        for index, system in enumerate(systems, start=1):
            which = ["--submission_name", name, "--submission_index", str(index)]
            run_isolated(work / "test_complexity.py", which, site, work)
            logits_file = work / f"logits_{index}.csv"
            folders = ["--dev_set_dir", str(data.root.resolve()), "--eval_set_dir", str(evaluation.resolve())]
            run_isolated(
                work / "evaluate_submission.py",
                [*which, *folders, "--test_logits", str(logits_file), *["--no_cuda"] * no_cuda],
                site,
                work,
            )
            out = work / "predictions" / system.name
            found[system.name] = {
                "complexity": check_complexity(out / "complexity.json", system),
                "scores": check_test_split(logits_file, out / "test_accuracy.json", system),
            }
            check_output(out / "output.csv", evaluation, system)
            check_state(out / "model_state_dict.pt", package / name / "ckpts" / f"{system.name}.pt", system)
        shutil.rmtree(package / "predictions", ignore_errors=True)
        shutil.copytree(work / "predictions", package / "predictions")
    return found


def check_names(package: Path, systems: list[System]) -> None:
    """Every system has its module, checkpoint and settings, and there are no others."""
    for folder, ending in (("", ".py"), ("ckpts", ".pt"), ("ckpts", ".json")):
        inside = package / package.name / folder
        found = {path.stem for path in inside.glob(f"*{ending}") if path.stem != "__init__"}
        expected = {system.name for system in systems}
        if found != expected:
            raise SubmissionError(
                f"{inside}: holds {sorted(found)} ({ending}), expected {sorted(expected)}; one for each "
                "run, named by the package and its number. Build the package again."
            )


def check_complexity(path: Path, system: System) -> dict:
    """Return complexity.json if every device the challenge asks for is within the limits."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if sorted(found["per_device"]) != sorted(DEVICES):
        raise SubmissionError(
            f"{system.name}: complexity.json is for {sorted(found['per_device'])}, expected the devices "
            f"{', '.join(DEVICES)}; restore test_complexity.py."
        )
    for device, cost in found["per_device"].items():
        if cost["MACs"] > MAX_MACS or cost["Params"] > MAX_BYTES:
            raise SubmissionError(
                f"{system.name}: device {device} needs {cost['MACs']:,} MACs and {cost['Params']:,} bytes, "
                f"allowed are {MAX_MACS:,} and {MAX_BYTES:,}; submit a smaller network."
            )
    return found


def check_test_split(logits_file: Path, accuracy_file: Path, system: System) -> dict:
    """Return the package's scores on the test split if class order, logits and accuracy are the run's."""
    table = read_table(logits_file, ("filename",), separator=",").set_index("filename")
    if list(table.columns) != system.class_names:
        raise SubmissionError(
            f"{system.name}: its class order is {list(table.columns)}, that of {system.run} is "
            f"{system.class_names}; build the package again."
        )
    if set(table.index) != set(system.rows.filename):
        raise SubmissionError(
            f"{system.name}: resources/test.csv lists other clips than predictions.csv of {system.run}; "
            "build the package again."
        )
    logits = table.loc[system.rows.filename].to_numpy(np.float32)
    scores = system.score(logits)
    both = "; ".join(
        f"{whose} {100 * one['macro_accuracy']:.2f} % macro, {100 * one['accuracy']:.2f} % of all clips"
        for whose, one in (("package", scores), ("run", system.scores))
    )
    difference = np.abs(logits - system.logits).max(1)
    allowed = LOGIT_TOLERANCE + LOGIT_RELATIVE_TOLERANCE * float(np.abs(system.logits).max())
    if (difference > allowed).any():
        worst = int(difference.argmax())
        raise SubmissionError(
            f"{system.name}: {int((difference > allowed).sum())} of {len(logits)} clips have other logits "
            f"than in predictions.csv of {system.run}, {system.rows.filename[worst]} by {difference[worst]:.3g} "
            f"(allowed: {allowed:.2g}); {both}. The package holds other weights or settings: build it again."
        )
    written = json.loads(accuracy_file.read_text(encoding="utf-8"))
    for key, metric in (("Test Accuracy", "accuracy"), ("Macro Accuracy", "macro_accuracy")):
        # 0.0051: it is rounded to two decimals
        if abs(written[key] - 100 * scores[metric]) > 0.0051:
            raise SubmissionError(
                f"{system.name}: test_accuracy.json says {key} {written[key]}, its logits give "
                f"{100 * scores[metric]:.2f}; restore evaluate_submission.py."
            )
    print(f"{system.name}: {both}; logits within {difference.max():.1g}")
    return scores


def check_output(path: Path, evaluation: Path, system: System) -> None:
    """output.csv has a row per clip, in the list's order, with its most probable class and probabilities."""
    table = pd.read_csv(path, sep="\t", dtype={"filename": str, "scene_label": str})
    columns = ["filename", "scene_label", *system.class_names]
    if list(table.columns) != columns:
        raise SubmissionError(
            f"{system.name}: output.csv has the columns {list(table.columns)}, expected {columns}."
        )
    listed = read_table(evaluation / "evaluation_setup" / "fold1_test.csv", ("filename", "device_id"))
    if list(table.filename) != list(listed.filename):
        raise SubmissionError(
            f"{system.name}: output.csv does not hold the {len(listed)} clips of fold1_test.csv in their "
            "order; restore evaluate_submission.py."
        )
    probabilities = table[system.class_names].to_numpy()
    whole = np.abs(probabilities.sum(1) - 1) < 1e-3  # False for NaN
    if not whole.all():
        raise SubmissionError(
            f"{system.name}: output.csv has probabilities that do not add up to 1, the first for "
            f"{table.filename[int(whole.argmin())]}; are there NaN among the weights?"
        )
    chosen = probabilities[
        np.arange(len(table)), [system.class_names.index(label) for label in table.scene_label]
    ]
    if (chosen < probabilities.max(1)).any():
        raise SubmissionError(
            f"{system.name}: output.csv names classes that are not the most probable ones; restore "
            "evaluate_submission.py."
        )


def check_state(path: Path, checkpoint: Path, system: System) -> None:
    """model_state_dict.pt holds as many tensors as the checkpoint, in fp16 where they are floating point."""
    state = load_state_dict_file(path)
    other = [
        name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dtype != torch.float16
    ]
    if other or len(state) != len(load_state_dict_file(checkpoint)):
        raise SubmissionError(
            f"{system.name}: model_state_dict.pt is not the checkpoint in fp16 ({len(state)} tensors, "
            f"{len(other)} in another type); restore load_model."
        )


def evaluation_layout(folder: Path, data: SceneData, rows: pd.DataFrame) -> Path:
    """Write `rows` as an evaluation set: the list with device ids, and the folders of their files linked."""
    table = rows.rename(columns={"source_label": "device_id"})[["filename", "device_id"]]
    write_text(folder / "evaluation_setup" / "fold1_test.csv", table.to_csv(sep="\t", index=False))
    for top in sorted({name.split("/")[0] for name in table.filename}):
        (folder / top).symlink_to((data.root / top).resolve())
    return folder


def check_evaluation_folder(folder: Path) -> pd.DataFrame:
    """Return the rows of an evaluation set's list; DataError names the first clip that is missing."""
    rows = read_table(folder / "evaluation_setup" / "fold1_test.csv", ("filename", "device_id"))
    missing = [name for name in rows.filename if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of the {len(rows)} clips in fold1_test.csv are missing, the first is "
            f"{missing[0]}; give the folder that holds evaluation_setup/ and audio/ (--eval-data)."
        )
    return rows
