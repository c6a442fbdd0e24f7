#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests with several Pythons, each with the torch that requirements/constraints.txt pairs with it:
#   bash tools/test_matrix.sh                         the default suite with Python 3.10 (oldest torch) and 3.13 (newest)
#   bash tools/test_matrix.sh 3.10 3.11 3.12 3.13     four of them
#   bash tools/test_matrix.sh 3.10 3.13 -- tests/test_generic.py -n 2    a part, with pytest's arguments after --
# Environments are kept in work_dirs/matrix/. A Python that is not on PATH is fetched by uv where uv is installed. The table goes to
# work_dirs/matrix/table.md, each run's output beside it. Status 1 if a run fails.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="$root/work_dirs/matrix"
mkdir -p "$out"

versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do versions+=("$1"); shift; done
[ "${1:-}" = -- ] && shift
[ ${#versions[@]} -gt 0 ] || versions=(3.10 3.13)

find_python() {
    local version="$1"
    if command -v "python$version" >/dev/null && "python$version" -c 'import venv, ensurepip' 2>/dev/null; then
        command -v "python$version"
    elif command -v uv >/dev/null; then
        uv python find "$version" 2>/dev/null || { uv python install "$version" >&2 && uv python find "$version"; }
    else
        echo "error: there is no python$version: install it, or uv, which fetches it (pip install uv)" >&2
        return 1
    fi
}

failed=0
printf '| Python | torch | result | minutes |\n| --- | --- | --- | --: |\n' | tee "$out/table.md"
for version in "${versions[@]}"; do
    log="$out/$version.txt"
    begin=$SECONDS
    if python="$(find_python "$version")"; then
        MMPETL_PYTHON="$python" MMPETL_VENV="$out/python$version" bash "$root/tools/run_tests.sh" "$@" >"$log" 2>&1 || failed=1
        result="$(grep -aE '^(=+ )?[0-9]+ (passed|failed|error|skipped).* in ' "$log" | tail -n 1 | sed -E 's/^=+ //; s/ in .*//')"
        torch="$("$out/python$version/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || echo none)"
    else
        failed=1 result='no interpreter' torch=none
    fi
    printf '| %s | %s | %s | %s |\n' "$version" "$torch" "${result:-did not run, see $log}" "$(((SECONDS - begin + 30) / 60))" | tee -a "$out/table.md"
done
exit $failed
