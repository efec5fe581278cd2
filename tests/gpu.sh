#!/usr/bin/env bash
# Everything worth doing on a GPU machine, in less than 8 minutes: tests/gpu.sh [OPTIONS]
#
# PYTHON names the interpreter of an environment that has the extras `gpu` and `test`; .venv/bin/python
# by default. Where no package registry is reached, WHEELS names a folder of wheels instead, and an
# environment is made of them. OPTIONS go to the measurements (python -m tests.gpu --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD

if [ -n "${WHEELS:-}" ]; then
    python3 -m venv --system-site-packages .venv-gpu
    .venv-gpu/bin/pip install --quiet --no-index --find-links "$WHEELS" -e '.[gpu,test]'
    PYTHON=.venv-gpu/bin/python
fi
PYTHON=${PYTHON:-.venv/bin/python}

status=0
"$PYTHON" -m tests.gpu "$@" || status=$?
printf '\n== tests on the GPU\n'
timeout 150 "$PYTHON" -m pytest -q -n0 -m gpu -p no:cacheprovider -W default || status=$?
exit "$status"
