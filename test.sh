#!/usr/bin/env bash
# Check the code: ruff, then the tests.
#
#   ./test.sh                        everything but the tests marked slow, on two processes
#   ./test.sh --slow                 all tests
#   ./test.sh tests/test_shell.py    other arguments go to pytest
#
# The exit code is 0 only where both were content. The Python environment is made in .venv on the first call.

source "$(dirname "${BASH_SOURCE[0]}")/common/shell.sh"

selection=(-m "not slow")
arguments=()
for argument in "$@"; do
  case $argument in
    --help | -h)
      print_help "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --slow) selection=() ;;
    *) arguments+=("$argument") ;;
  esac
done

ensure_venv
cd "$ROOT"
# Each test process gets one thread: several processes with all cores each are slower than one.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export MPLBACKEND=Agg       # no windows

code=0
"$PY" -m ruff check . || code=$?
"$PY" -m pytest -n 2 ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"} || code=$?
exit "$code"
