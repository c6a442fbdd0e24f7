#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the default test suite in an environment of its own: bash tools/run_tests.sh [pytest arguments].
#   bash tools/run_tests.sh -m slow            the long checks
#   bash tools/run_tests.sh tests/methods -x   a part of the suite
# Without arguments it runs in as many processes as there are cores, 2 to 8, and once more what failed if a test hung;
# with arguments in one process, unless -n says otherwise.
# The environment is .venv-tests in the checkout (another place: MMPETL_VENV) and is reused while the requirement files stay the same.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
cd "$MMPETL_ROOT"
mmpetl_venv "$MMPETL_ROOT/.venv-tests" runtime viz convert export docs dense dev

# one thread per process: the models of the tests are tiny, and sums come out the same on every machine
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
export MPLBACKEND=Agg PYTHONUNBUFFERED=1
# Many tests start processes: each would compile the source of all that it imports, some 7 s, where bytecode is not kept.
export PYTHONDONTWRITEBYTECODE="" PYTHONPYCACHEPREFIX="${PYTHONPYCACHEPREFIX:-${MMPETL_VENV:-$MMPETL_ROOT/.venv-tests}/bytecode}"
[ $# -eq 0 ] || exec python -m pytest --durations=15 "$@" </dev/null
cores=$(nproc 2>/dev/null || echo 2)
# tests/conftest.py ends a test that hangs and notes it here
MMPETL_HUNG="$(mktemp)" && export MMPETL_HUNG
trap 'rm -f "$MMPETL_HUNG"' EXIT
python -m pytest --durations=15 -n "$((cores < 2 ? 2 : cores > 8 ? 8 : cores))" --dist loadscope </dev/null && exit 0 || status=$?
[ -s "$MMPETL_HUNG" ] || exit "$status"
printf 'Ended because they hung:\n%s\nWhat failed runs once more, in one process.\n' "$(cat "$MMPETL_HUNG")"
# 5: nothing is left; the tests of a process that was ended have run again in another one
python -m pytest --last-failed --last-failed-no-failures none -v </dev/null || { status=$?; [ "$status" = 5 ] || exit "$status"; }
