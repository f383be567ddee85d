"""Every notebook runs from start to end on the committed results, on none, and on records of other data.

They run in a copy of the working tree: a notebook that writes somewhere is found out, and nothing here is touched.
"""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.common.test_series import write_results
from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_500_000  # it is looked at on the web, and every version stays in the history
CELL_TIMEOUT_S = 120

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of what a notebook may read, and an environment in which figures land in it."""
    folder = tmp_path / "a copy"
    for name in ("common", "notebooks", "results", *(path.name for path in REPOSITORY.glob("task*_*"))):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.delenv("DCASE_RESULTS", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return folder


def execute(notebook: Path, folder: Path) -> list[dict]:
    """Run `notebook` with `folder` as working directory and return all outputs; an error in a cell is raised."""
    content = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(content, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=resources).execute()
    return outputs_of(content)


def outputs_of(content) -> list[dict]:
    return [output for cell in content.cells for output in cell.get("outputs", [])]


def texts(outputs: list[dict]) -> str:
    """Return all that the outputs say: printed, or shown as Markdown."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs)


def figures(outputs: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def errors(outputs: list[dict]) -> list[dict]:
    return [output for output in outputs if output["output_type"] == "error"]


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@every_notebook
def test_runs_on_the_committed_results_says_the_same_and_writes_nothing(notebook, copy):
    before = files_below(copy)
    outputs = execute(copy / "notebooks" / notebook.name, copy / "notebooks")
    assert figures(outputs) and not errors(outputs)
    assert files_below(copy) == before
    committed = texts(outputs_of(nbformat.read(notebook, as_version=4)))
    assert texts(outputs) == committed, "results have changed: execute it again, see notebooks/README.md"


@every_notebook
def test_without_records_it_says_what_to_run(notebook, copy, tmp_path, monkeypatch):
    monkeypatch.setenv("DCASE_RESULTS", str(tmp_path / "no results"))
    said = texts(execute(copy / "notebooks" / notebook.name, copy))
    assert f"./run.sh {notebook.stem}" in said and f"python -m {notebook.stem}.evaluate compare" in said


def test_task1_shows_records_and_comparisons(copy, tmp_path, monkeypatch):
    write_results(tmp_path / "results")
    monkeypatch.setenv("DCASE_RESULTS", str(tmp_path / "results"))
    outputs = execute(copy / "notebooks" / "task1_asc.ipynb", copy / "notebooks")
    said = texts(outputs)
    assert "6 records, 1 comparisons" in said and "`device_scenes/device_specific`" in said
    assert "No runs on other data yet" not in said and "No comparisons yet" not in said
    assert figures(outputs) == 7


@every_notebook
def test_as_committed_it_is_executed_small_and_names_no_machine(notebook):
    assert notebook.stat().st_size < MAX_BYTES
    content = nbformat.read(notebook, as_version=4)
    numbers = [cell.execution_count for cell in content.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1)), "run it from start to end, see notebooks/README.md"
    outputs = outputs_of(content)
    assert figures(outputs) and not errors(outputs)
    assert not [word for word in (str(REPOSITORY), str(Path.home()), "/tmp/") if word in texts(outputs)]
