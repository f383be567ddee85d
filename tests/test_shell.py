"""common/shell.sh and the commands at the root: options, stages with stamps, set-up of the environment.

Each test writes a small bash script that sources common/shell.sh, as every run.sh does, and runs it.
"""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOW_OPTIONS = """
CONFIG=base SEEDS="7"
parse_args "$@"
echo "$CONFIG|$STAGE|$STOP_STAGE|$SEEDS|$DATA|$OUT|$DEVICE|$DEVICES|$SMOKE|$FORCE|$DRY_RUN|$LIST"
printf '<%s>' ${OVERRIDES[@]+"${OVERRIDES[@]}"}
"""
THREE_STAGES = """
parse_args "$@"
STAMPS=$HERE/stamps STAGE_KEY=${KEY:-key} STAGE_FOR="seed 0"
stage 1 prepare bash -c 'echo prepare >>"$HERE/log"'
stage 2 train bash -c "${TRAIN:-true}"' && echo train >>"$HERE/log"'
stage 10 score bash -c 'echo score >>"$HERE/log"'
at_end echo the tables
"""


class Shell:
    """A folder with a space in its name, scripts in it, and the log that their stages write."""

    def __init__(self, folder: Path):
        self.folder = folder / "a folder"
        self.folder.mkdir()
        self.script = self.folder / "script.sh"

    def write(self, body: str, head: str = "# First line\n#\n#   second\n") -> Path:
        self.script.write_text(f'#!/usr/bin/env bash\n{head}source "{ROOT}/common/shell.sh"\n{body}')
        self.script.chmod(0o755)
        return self.script

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DCASE_VENV", "CC")}
        return {**kept, "HERE": str(self.folder), **variables}

    def run(self, body: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = [str(self.write(body)), *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment(**variables), text=True,
                              capture_output=True, timeout=60)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text().replace("\n", " ").strip() if path.exists() else ""

    def stamps(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "stamps").glob("*")) + sorted(
            path.name for path in (self.folder / "stamps").glob(".*"))


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


# ---------------------------------------------------------------- options

def test_defaults_of_the_script_hold(shell):
    assert shell.run(SHOW_OPTIONS).stdout.splitlines()[0] == "base|0|999|7|||auto|1||||"


def test_every_option_and_the_overrides(shell):
    given = ["--config", "dcase2025/general", "--stage", "02", "--stop-stage=4", "--seeds", "0,1 2",
             "--data", "my data", "--out=/abs", "--device", "gpu", "--devices", "2",
             "--smoke", "--force", "--dry-run", "--list"]
    done = shell.run(SHOW_OPTIONS, *given, "--", "optim.lr=1e-3", "--name=a b=c", "x.y=-1")
    options, overrides = done.stdout.splitlines()
    assert options == f"dcase2025/general|2|4|0 1 2|{shell.folder}/my data|/abs|gpu|2|1|1|1|1"
    assert overrides == "<--optim.lr=1e-3><--name=a b=c><--x.y=-1>"


def test_config_file_is_meant_from_where_one_stands(shell):
    (shell.folder / "my.yaml").write_text("")
    assert shell.run(SHOW_OPTIONS, "--config", "my.yaml").stdout.startswith(f"{shell.folder}/my.yaml|")


@pytest.mark.parametrize("arguments, sentence", [
    (["--sede", "1"], "Unknown option --sede. Did you mean --seeds? --help lists all of them."),
    (["--stopstage=1"], "Unknown option --stopstage. Did you mean --stop-stage? --help lists all of them."),
    (["--learning-rate", "1"], "Unknown option --learning-rate. --help lists all of them."),
    (["--smoke=yes"], "--smoke takes no value."),
    (["--data"], "--data needs a value (--help explains it)."),
    (["--data", "--smoke"], "--data needs a value (--help explains it)."),
    (["--stage", "train"], "--stage needs the number of a stage, found 'train' (--list shows them)."),
    (["--seeds", "a"], "--seeds needs whole numbers, as in --seeds \"0 1 2\", found 'a'."),
    (["--seeds", "0", "1"], "'1' is no option; a value with spaces needs quotes, as in --seeds \"0 1 2\" "
                            "(--help lists the options)."),
    (["lr=1"], "'lr=1' stands before --: overrides of the config go after it, as in -- lr=1."),
    (["--", "lr", "1"], "After -- every word reads key=value (as in -- optim.lr=0.001), found 'lr'."),
])
def test_wrong_options_end_with_one_sentence(shell, arguments, sentence):
    done = shell.run(SHOW_OPTIONS, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence + "\n")


def test_help_is_the_head_of_the_script(shell):
    done = shell.run(SHOW_OPTIONS, "--help")
    assert (done.returncode, done.stdout) == (0, "First line\n\n  second\n")


# ---------------------------------------------------------------- stages

def test_stages_run_once(shell):
    first, second = shell.run(THREE_STAGES), shell.run(THREE_STAGES)
    assert first.returncode == second.returncode == 0
    assert shell.log() == "prepare train score"
    assert shell.stamps() == ["1-prepare", "10-score", "2-train"]
    assert (shell.folder / "stamps/2-train").read_text() == "key\n"
    assert "stage 2 train (seed 0): done before, skipped (--force runs it again)" in second.stdout
    assert second.stdout.endswith("the tables\n")


def test_force_and_range_run_again_and_later_stamps_go(shell):
    shell.run(THREE_STAGES)
    shell.run(THREE_STAGES, "--force", "--stage", "2", "--stop-stage", "2")
    assert shell.log() == "prepare train score train"
    assert shell.stamps() == ["1-prepare", "2-train"]
    shell.run(THREE_STAGES)
    assert shell.log() == "prepare train score train score"


def test_another_key_runs_again(shell):
    shell.run(THREE_STAGES)
    shell.run(THREE_STAGES, KEY="other")
    assert shell.log() == "prepare train score prepare train score"


def test_failing_stage_says_what_to_do_and_leaves_no_stamp(shell):
    done = shell.run(THREE_STAGES, "--force", "--seeds", "0 1", "--", "a.b=c d", TRAIN="exit 3")
    assert done.returncode == 1 and shell.stamps() == ["1-prepare"] and "the tables" not in done.stdout
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("stage 2 train (seed 0) failed with exit code 3; its command was: bash -c ")
    again = sentence.split("go on with: ")[1].removesuffix(" (stages done before are skipped).")
    assert "--force" not in again and again.endswith(r"script.sh --seeds 0\ 1 -- a.b=c\ d")
    subprocess.run(["bash", "-c", again], env=shell.environment(), cwd=shell.folder, check=True)
    assert shell.log() == "prepare train score"


def test_program_that_is_not_there_fails(shell):
    done = shell.run('parse_args; STAMPS="$HERE/stamps" STAGE_KEY=k; stage 1 a /nowhere/program; echo after')
    assert done.returncode == 1 and "after" not in done.stdout and "failed with exit code 127" in done.stderr


def test_list_shows_and_runs_nothing(shell):
    shell.run(THREE_STAGES, "--stop-stage", "1")
    done = shell.run(THREE_STAGES, "--list")
    assert done.stdout.splitlines() == ["stage 1 prepare (seed 0): done", "stage 2 train (seed 0): not done",
                                        "stage 10 score (seed 0): not done"]
    stale = shell.run(THREE_STAGES, "--list", KEY="other").stdout.splitlines()[0]
    assert stale == "stage 1 prepare (seed 0): not done (done before with other settings)"
    assert shell.log() == "prepare"


def test_dry_run_prints_what_would_run(shell):
    shell.run(THREE_STAGES)
    (shell.folder / "stamps/2-train").unlink()
    done = shell.run(THREE_STAGES, "--dry-run")
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith("stage 1 prepare (seed 0): done before, skipped")
    assert second.startswith("stage 2 train (seed 0): bash -c ")
    assert third.startswith("stage 10 score (seed 0): bash -c ")    # its stamp would go with stage 2
    assert last == "at the end: echo the tables"
    assert shell.log() == "prepare train score" and "10-score" in shell.stamps()


@pytest.mark.parametrize("number, to_group, code", [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)])
def test_signal_in_a_stage_ends_its_program_and_leaves_no_stamp(shell, number, to_group, code):
    """kill and SLURM reach the script alone, Ctrl-C its whole process group."""
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    script = shell.write(f"""parse_args; STAMPS="$HERE/stamps" STAGE_KEY=k
        stage 1 train "{sys.executable}" -I -S -c '{program}'""")
    process = subprocess.Popen([script], env=shell.environment(), text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "== stage 1 train\n"
    child = int(process.stdout.readline())
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code and shell.stamps() == []
    assert "stage 1 train was interrupted; to go on where it stopped: " in errors
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_killed_script_leaves_no_stamp(shell):
    body = 'parse_args; STAMPS="$HERE/stamps" STAGE_KEY=k; stage 1 train bash -c "kill -KILL $$"'
    assert shell.run(body).returncode == -signal.SIGKILL and shell.stamps() == []


def test_stage_reads_the_terminal_and_gets_its_words_unchanged(shell):
    script = shell.write("""parse_args; STAMPS="$HERE/stamps" STAGE_KEY=k
        stage 1 read bash -c 'read -r x; echo "$x|$1|$2"' - "a  b" '*'""")
    done = subprocess.run([script], input="typed\n", env=shell.environment(), text=True, capture_output=True)
    assert "typed|a  b|*\n" in done.stdout


# ---------------------------------------------------------------- Python environment

# The Python behind the environment that runs the tests; a compiler that is content with everything; and an
# installer that makes an environment, installs nothing and says $INSTALLER_SAYS.
PYTHON = f'exec "{os.path.realpath(sys._base_executable)}" "$@"'
COMPILER = "exit 0"
INSTALLER = """
case $1 in
  venv) for folder; do true; done; python3 -I -m venv --without-pip "$folder" ;;
  pip) sleep 0.3; echo "$INSTALLER_SAYS"; exit "${INSTALLER_EXIT:-0}" ;;
esac"""


def path_with(shell: Shell, **programs: str) -> str:
    """Return a PATH with everyday tools, the installer and `programs` (name=text of a script) alone."""
    folder = shell.folder / "bin"
    folder.mkdir(exist_ok=True)
    for tool in "bash sh env dirname mkdir rmdir rm mv cat tr awk grep df tee tail flock sleep".split():
        if not (folder / tool).exists() and shutil.which(tool):
            (folder / tool).symlink_to(shutil.which(tool))
    for name, text in {"uv": INSTALLER, **programs}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def one_sentence(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
    return done.stderr.strip()


@pytest.mark.parametrize("programs, variables, sentence", [
    ({}, {}, "No Python 3.11 or 3.12 found (looked for python3.11, python3.12 and python3): install one"),
    ({"python3": "exit 1"}, {}, "No Python 3.11 or 3.12 found"),
    ({"old": "exit 1"}, {"PYTHON": "old"}, "PYTHON=old is no working Python 3.11 or 3.12"),
    ({"python3": PYTHON}, {}, "No C compiler found, and sed_scores_eval is built from source: install one"),
    ({"python3": PYTHON, "cc": "exit 1"}, {}, "The C compiler (cc) cannot use the headers of "),
    ({"python3": PYTHON, "cc": COMPILER}, {"GB": "1000000"}, "{venv} needs 1000000 GB of free disk, "),
], ids=["no Python", "other Python", "PYTHON is no Python", "no compiler", "no headers", "small disk"])
def test_what_is_missing_is_one_sentence(shell, programs, variables, sentence):
    path = path_with(shell, **programs)
    done = shell.run("NEEDED_GB=${GB:-1}; ensure_venv", PATH=path, DCASE_VENV="venv", **variables)
    assert one_sentence(done).startswith(sentence.format(venv=shell.folder / "venv")), done.stderr
    assert done.stdout == "" and not (shell.folder / "venv").exists()


def test_foreign_folder_is_left_alone(shell):
    (shell.folder / "venv").mkdir()
    (shell.folder / "venv/thesis.txt").write_text("important")
    done = shell.run("ensure_venv", PATH=path_with(shell, python3=PYTHON, cc=COMPILER), DCASE_VENV="venv")
    assert "exists and holds no Python 3.11 or 3.12 environment" in one_sentence(done)
    assert (shell.folder / "venv/thesis.txt").read_text() == "important"


@pytest.mark.parametrize("says, sentence", [
    ("error: dns error: failed to lookup address information", "No network: "),
    ("OSError: [Errno 28] No space left on device", "The disk filled up while installing into "),
    ("no such option", "Installing requirements.txt failed: "),
])
def test_failed_install_says_why_and_is_made_anew(shell, says, sentence):
    path = path_with(shell, python3=PYTHON, cc=COMPILER)
    body = 'NEEDED_GB=0; ensure_venv; echo ready'
    failed = shell.run(body, PATH=path, DCASE_VENV="venv", INSTALLER_EXIT="1", INSTALLER_SAYS=says)
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith(sentence)
    again = shell.run(body, PATH=path, DCASE_VENV="venv")
    assert again.stdout.startswith("Setting up a Python environment") and again.stdout.endswith("ready\n")


def test_environment_is_made_once_also_by_two_at_a_time(shell):
    root = shell.folder / "tree"
    (root / "common").mkdir(parents=True)
    for name in ("shell.sh", "venv.sh"):
        shutil.copy(ROOT / "common" / name, root / "common")
    (root / "requirements.txt").write_text("# nothing\n")
    variables = shell.environment(PATH=path_with(shell, python3=PYTHON, cc=COMPILER))
    script = 'source "$1/common/shell.sh"; NEEDED_GB=0; ensure_venv; "$PY" -c "import sys; print(sys.prefix)"'

    def start():
        return subprocess.Popen(["bash", "-c", script, "-", str(root)], env=variables, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    both = [start(), start()]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert sum("Setting up a Python environment" in text for text in outputs) == 1, outputs
    assert all(text.endswith(f"{root}/.venv\n") for text in outputs), outputs
    assert start().communicate(timeout=60)[0] == f"{root}/.venv\n"
    (root / "requirements.txt").write_text("# other\n")
    assert start().communicate(timeout=60)[0].startswith("Updating the Python environment")


# ---------------------------------------------------------------- the commands at the root

def test_run_names_its_tasks_for_an_unknown_one():
    done = subprocess.run([ROOT / "run.sh", "task9"], capture_output=True, text=True)
    assert one_sentence(done).startswith("There is no task 'task9' to run; tasks: task1_asc")
    done = subprocess.run([ROOT / "run.sh", "--smoke"], capture_output=True, text=True)
    assert one_sentence(done).startswith("--smoke stands where the name of a task is expected")


@pytest.mark.parametrize("command", ["run.sh", "test.sh"])
def test_help_of_the_commands(command):
    done = subprocess.run([ROOT / command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and f"./{command}" in done.stdout


def test_run_hands_on_to_the_task():
    done = subprocess.run([ROOT / "run.sh", "task1_asc", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--seeds" in done.stdout


def test_stage_that_always_runs_leaves_no_stamp_and_keeps_the_later_ones(shell):
    body = THREE_STAGES.replace("stage 1 prepare", 'KEEP=$STAGE_KEY STAGE_KEY=always\nstage 1 prepare').replace(
        "stage 2 train", "STAGE_KEY=$KEEP\nstage 2 train")  # fmt: skip
    shell.run(body)
    shell.run(body)
    assert shell.log() == "prepare train score prepare" and shell.stamps() == ["10-score", "2-train"]
    assert "stage 1 prepare (seed 0): runs every time" in shell.run(body, "--list").stdout


def test_tables_are_left_to_the_caller_that_asks_for_it(shell):
    assert "the tables" not in shell.run(THREE_STAGES, TABLES_LATER="1").stdout
