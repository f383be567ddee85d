"""Copied sources, isolated runs, archives."""

import zipfile

import pytest

from common.submission import (
    REPOSITORY,
    SubmissionError,
    check_same_tree,
    copy_modules,
    empty_fields,
    import_closure,
    install,
    requirements,
    rewrite_imports,
    run_isolated,
    write_zip,
)

PRINTS_WHAT_IT_SEES = "import importlib.util, sys\nprint(importlib.util.find_spec('common') is None, *sys.argv[1:])\n"


@pytest.fixture
def repository(tmp_path):
    """A small repository: app.main imports shapes (as a module) and, inside a function, base.numbers."""
    files = {
        "app/__init__.py": "",
        "app/main.py": "import json\nfrom base import shapes\n\ndef f():\n    from base.numbers import (\n"
        "        one,\n    )\n    return one, shapes, json\n",
        "base/__init__.py": "",
        "base/shapes.py": "import numpy as np\n\nSIDE = np.ones(2)\n",
        "base/numbers.py": "one = 1\n",
        "base/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_text(text)
    return tmp_path / "repo"


def test_closure_follows_imports_of_modules_and_inside_functions(repository):
    assert list(import_closure(["app.main"], repository)) == [
        "app",
        "app.main",
        "base",
        "base.numbers",
        "base.shapes",
    ]
    with pytest.raises(SubmissionError, match="app.missing: no such module"):
        import_closure(["app.missing"], repository)


def test_copied_modules_import_each_other_under_the_new_name(repository, tmp_path, monkeypatch):
    copy_modules(["app.main"], tmp_path / "pack" / "models", "pack.models", repository)
    text = (tmp_path / "pack" / "models" / "app" / "main.py").read_text()
    assert "from pack.models.base import shapes" in text
    assert "    from pack.models.base.numbers import (" in text
    monkeypatch.syspath_prepend(tmp_path)
    from pack.models.app.main import f

    one, shapes, _ = f()
    assert one == 1 and shapes.__name__ == "pack.models.base.shapes"


@pytest.mark.parametrize("line", ["import base.shapes", "import base, json", "from . import main"])
def test_imports_that_cannot_be_renamed_are_named(repository, line):
    with pytest.raises(SubmissionError, match=r"main\.py: line 2"):
        rewrite_imports(f"import json\n{line}\n", str.upper, "main.py", repository)


def test_rewriting_leaves_other_lines_alone(repository):
    text = "import base.shapes as s  # base.shapes\nfrom json import loads\nname = 'base.shapes'\n"
    assert rewrite_imports(text, lambda module: f"x.{module}", "f", repository) == "import x." + text[7:]


def test_requirements_name_the_installed_versions(repository):
    (line,) = requirements([repository / "base" / "shapes.py", repository / "app" / "main.py"])
    assert line.startswith("numpy==")
    with pytest.raises(SubmissionError, match="no_such_package: neither"):
        requirements([], ["no_such_package.nets"])


def test_isolated_run_sees_no_repository(tmp_path, capfd):
    script = tmp_path / "look.py"
    script.write_text(PRINTS_WHAT_IT_SEES)
    assert run_isolated(script, ["x"], tmp_path / "site", tmp_path).split() == ["True", "x"]


def test_isolated_run_refuses_where_the_repository_can_be_imported(tmp_path):
    script = tmp_path / "look.py"
    script.write_text(PRINTS_WHAT_IT_SEES)
    with pytest.raises(SubmissionError, match="can be imported from everywhere"):
        run_isolated(script, [], REPOSITORY, tmp_path, quiet=True)


def test_isolated_run_tells_the_last_line_of_a_failure(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("import sys\nprint('at work')\nsys.exit('clip 3 is broken.')\n")
    with pytest.raises(SubmissionError, match=r"fail\.py --index 1: clip 3 is broken\."):
        run_isolated(script, ["--index", "1"], tmp_path, tmp_path, quiet=True)


def test_install_reports_files_left_out_and_what_is_no_package(tmp_path):
    project = tmp_path / "project"
    (project / "pack" / "data").mkdir(parents=True)
    (project / "pack" / "__init__.py").touch()
    (project / "pack" / "data" / "list.csv").write_text("a\n")
    (project / "setup.py").write_text("from setuptools import setup\nsetup(name='pack', packages=['pack'])\n")
    install(project, tmp_path / "site")
    assert sorted(path.name for path in project.iterdir()) == ["pack", "setup.py"]  # nothing left beside it
    with pytest.raises(SubmissionError, match=r"1 files are not installed with it, the first is data/list\.csv"):
        check_same_tree(tmp_path / "site" / "pack", project / "pack")
    (project / "setup.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(SubmissionError, match="cannot be installed"):
        install(project, tmp_path / "other")


def test_equal_folders_give_equal_archives(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "pack" / "__pycache__").mkdir(parents=True)
        (tmp_path / name / "pack" / "a.txt").write_text("a")
        (tmp_path / name / "pack" / "__pycache__" / f"{name}.pyc").touch()
        write_zip(tmp_path / name / "pack", tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist() == ["pack/a.txt"]


def test_empty_fields_are_named_by_their_place():
    content = {"a": None, "b": {"c": "", "d": 0, "e": False}, "f": [{"g": None}, {"g": "x"}], "h": []}
    assert empty_fields(content) == ["a", "b.c", "f[0].g", "h"]
