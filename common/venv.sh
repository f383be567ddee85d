# shellcheck shell=bash
# The Python environment of run.sh, test.sh and the tasks; sourced by shell.sh. ensure_venv is the way in.
#
# Environment variables:
#   PYTHON=/path/to/python     the Python to make the environment with (3.11 or 3.12)
#   DCASE_VENV=/path/to/folder the environment lies there instead of in .venv (a larger or a shared disk); one that
#                              exists there is brought to requirements.txt
#   CC=compiler                the C compiler for the packages that are built from source

unset PYTHONPATH PYTHONHOME     # left over from other environments, they would win over ours
NEEDED_GB=9     # measured: 8.3 at the height of the installation, 6.3 after it

# Make the environment where it is missing or not what requirements.txt says; set PY to its Python.
ensure_venv() {
  VENV=$(absolute_path "${DCASE_VENV:-$ROOT/.venv}")
  PY=$VENV/bin/python
  if venv_is_current; then return 0; fi
  mkdir -p "$(dirname "$VENV")"
  exec 9>"$VENV.lock"       # two commands started at once: the second waits, then finds the work done
  if command -v flock >/dev/null && ! flock -n 9; then
    echo "Another command is setting up $VENV; waiting for it."
    flock 9 || true         # some network disks cannot lock
  fi
  if ! venv_is_current; then set_up_venv; fi
  exec 9>&-
}

# The text that says which requirements and which Python an environment was made from.
venv_stamp() {
  "$PY" -I -S -c 'import hashlib, platform, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest(), platform.python_version())' "$ROOT/requirements.txt"
}

venv_is_current() {
  [ -f "$VENV/dcase-stamp" ] && [ "$(venv_stamp 2>/dev/null)" = "$(cat "$VENV/dcase-stamp")" ]
}

# An environment that works but holds other versions is updated in place; one that is half made is made anew.
set_up_venv() {
  local start=$SECONDS python="" compiler
  if [ ! -f "$VENV/dcase-unfinished" ] && base_python "$PY" >/dev/null && has_installer; then
    compiler=$(find_compiler "$PY") || exit 1
    rm -f "$VENV/dcase-stamp"
    echo "Updating the Python environment in $VENV to requirements.txt."
  else
    python=$(find_python) || exit 1
    compiler=$(find_compiler "$python") || exit 1
    remove_old_venv
    check_disk
    echo "Setting up a Python environment in $VENV (once; about 3 GB to download, 6 GB on disk, 2 to 10 minutes)."
    mkdir -p "$VENV"
    : >"$VENV/dcase-unfinished"
  fi
  if ! CC=$compiler make_and_fill "$python" 2>&1 | tee "$VENV/dcase-setup.log" | show_progress; then explain_failure; fi
  if [ -f "$VENV/dcase-unfinished" ]; then mv "$VENV/dcase-unfinished" "$VENV/dcase-made-here"; fi
  venv_stamp >"$VENV/dcase-stamp"
  echo "Python environment ready after $((SECONDS - start)) s."
}

# Print the full path of a Python, behind any link or environment; fail where it is not 3.11 or 3.12.
base_python() {
  "$1" -c 'import sys
print(sys._base_executable)
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

has_installer() {
  command -v uv >/dev/null || "$PY" -m pip --version >/dev/null 2>&1
}

# Print the Python to build with. 3.11 comes first: it is what the pins were proved on.
find_python() {
  local name python=""
  if [ -n "${PYTHON:-}" ]; then
    python=$(base_python "$PYTHON") ||
      die "PYTHON=$PYTHON is no working Python 3.11 or 3.12: name one that is, or unset PYTHON."
  else
    for name in python3.11 python3.12 python3 python ""; do
      [ -n "$name" ] || die "No Python 3.11 or 3.12 found (looked for python3.11, python3.12 and python3): install one" \
        "(Debian 12: \`apt install python3 python3-venv python3-dev\`), or name it with PYTHON=/path/to/python."
      if python=$(base_python "$name"); then break; fi
    done
  fi
  command -v uv >/dev/null || "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make environments, its venv module is missing: install it (Debian, Ubuntu:" \
      "\`apt install python3-venv\`, with the version of that Python)."
  echo "$python"
}

# Print a C compiler that can build an extension for the Python given.
find_compiler() {
  local python=$1 name include
  for name in "${CC:-cc}" gcc clang ""; do
    [ -n "$name" ] || die "No C compiler found, and sed_scores_eval is built from source: install one (Debian, Ubuntu:" \
      "\`apt install build-essential\`; macOS: \`xcode-select --install\`), or name it with CC=/path/to/compiler."
    if command -v "${name%% *}" >/dev/null; then break; fi
  done
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  # shellcheck disable=SC2086  # CC may hold options
  $name -x c -fsyntax-only -I"$include" - <<<'#include <Python.h>' >/dev/null 2>&1 ||
    die "The C compiler ($name) cannot use the headers of $python ($include/Python.h): install them (Debian, Ubuntu:" \
      "\`apt install build-essential python3-dev\`, with the version of that Python)."
  echo "$name"
}

# DCASE_VENV may name anything: delete only what this script made.
remove_old_venv() {
  if [ ! -e "$VENV" ] || rmdir "$VENV" 2>/dev/null; then return 0; fi
  if [ "$VENV" = "$ROOT/.venv" ] || [ -f "$VENV/dcase-unfinished" ] || [ -f "$VENV/dcase-made-here" ]; then
    rm -rf "$VENV"
  else
    die "$VENV exists and holds no Python 3.11 or 3.12 environment: move it away, or name another folder with DCASE_VENV."
  fi
}

check_disk() {
  local free_kb
  free_kb=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 { print $4 }')
  if ((free_kb < NEEDED_GB * 1000 * 1000)); then
    die "$VENV needs $NEEDED_GB GB of free disk, $((free_kb / 1000 / 1000)) GB found: free some, or name a folder" \
      "on another disk with DCASE_VENV."
  fi
}

# Create the environment where a Python is named, then install the pins. Source builds get the pinned build tools too:
# they would change with the years otherwise.
make_and_fill() {
  local python=$1
  if [ -n "$python" ] && command -v uv >/dev/null; then
    uv venv --allow-existing --seed --python "$python" "$VENV" || return
  elif [ -n "$python" ]; then
    "$python" -m venv "$VENV" || return
  fi
  cd "$VENV" || return      # pip splits the paths of constraint files at spaces, so this one is relative
  grep -iE '^(setuptools|numpy|cython)==' "$ROOT/requirements.txt" >build-constraints.txt
  if command -v uv >/dev/null; then
    uv pip install --python "$PY" --build-constraint build-constraints.txt -r "$ROOT/requirements.txt"
  else
    PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt \
      "$PY" -m pip install --no-input --progress-bar off --disable-pip-version-check -r "$ROOT/requirements.txt"
  fi
}

# Of the installer's hundreds of lines, those that tell a waiting person that it goes on.
show_progress() {
  local large='Downloading [^ ]+ \([0-9]{2,}[0-9.]* ?M.?B\)'
  grep --line-buffered -oE "$large|Building wheel for [^ ]+|Installing collected packages" || true
}

explain_failure() {
  local log=$VENV/dcase-setup.log
  local offline='NewConnectionError|name resolution|dns error|[Ff]ailed to (connect|lookup)|ConnectTimeout|Network is unreachable'
  if grep -q 'No space left on device' "$log"; then
    die "The disk filled up while installing into $VENV (or the temporary folder ${TMPDIR:-/tmp}): free some, or set" \
      "DCASE_VENV and TMPDIR to folders on another disk, then run the same command again."
  elif grep -qE "$offline" "$log"; then
    die "No network: the Python package index could not be reached. Connect, or name a mirror (PIP_INDEX_URL, with uv" \
      "UV_INDEX_URL), then run the same command again; details are in $log."
  fi
  tail -n 20 "$log" >&2
  die "Installing requirements.txt failed: its last lines are above, all of them in $log. Run the same command to try again."
}
