#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the default test suite in an environment of its own: bash tools/run_tests.sh [pytest arguments].
#   bash tools/run_tests.sh -m slow            the long checks
#   bash tools/run_tests.sh tests/methods -x   a part of the suite
# Without arguments it runs in as many processes as there are cores, 2 to 8; with arguments in one, unless -n says otherwise.
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
if [ $# -eq 0 ]; then
    cores=$(nproc 2>/dev/null || echo 2)
    set -- -n "$((cores < 2 ? 2 : cores > 8 ? 8 : cores))" --dist loadscope
fi
exec python -m pytest --durations=15 "$@" </dev/null
