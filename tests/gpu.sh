#!/usr/bin/env bash
# Everything worth doing on a GPU machine, in less than 8 minutes: tests/gpu.sh [OPTIONS]
#
# PYTHON names the interpreter of an environment that has what the extras `gpu` and `test` install;
# .venv/bin/python by default. Boostline itself need not be installed there. OPTIONS go to the
# measurements (python -m tests.gpu --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD

PYTHON=${PYTHON:-.venv/bin/python}

status=0
# from a cold disk they take longer than a worker has
"$PYTHON" -c 'import cudf, cupy, xgboost' || true
printf '== tests on the GPU\n'
timeout -k 10 180 "$PYTHON" -m pytest -q -n0 -m gpu -p no:cacheprovider -W default || status=$?
printf '\n== measurements\n'
"$PYTHON" -m tests.gpu --minutes 5.4 "$@" || status=$?
exit "$status"
