#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Check mmpetl on a GPU in 9 minutes: bash tools/gpu_check.sh [--out FOLDER] [--minutes 9] [--device cuda|cpu|meta] [--few]
# Leaves FOLDER/gpu_check.md and gpu_check.json; the exit status is 1 if a check failed.
# On a bare machine without network, which has torch: WHEELS=FOLDER bash tools/gpu_check.sh, with wheels of what is missing there
# (mmengine, mmcv-lite, mmpretrain, mmaction2 and what they need), for example from
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d FOLDER NAME==VERSION
# with the names and versions of requirements/*.txt and requirements/constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
site=''
if [ -n "${WHEELS:-}" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD:$PWD/tests${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # deterministic products, for runs that resume bit by bit
"$PYTHON" benchmarks/gpu_check.py "$@"
