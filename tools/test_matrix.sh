#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests with several Pythons and torches:
#   bash tools/test_matrix.sh                         the default suite on the corners 3.10:2.11.0 3.12:2.11.0 3.12:2.14.1 3.13:2.14.1
#   bash tools/test_matrix.sh 3.10 3.11 3.13:2.14.1   PYTHON, with the torch that requirements/constraints.txt pairs with it, or PYTHON:TORCH
#   bash tools/test_matrix.sh 3.10 3.13 -- tests/test_generic.py -n 2    a part, with pytest's arguments after --
#   --if-there         a Python that is not on PATH, or packages that cannot be had, are a line and no failure
#   --seconds N        start nothing later than N seconds from now, and end what runs then; neither is a failure
# Environments are kept in work_dirs/matrix/. A Python that is not on PATH is fetched by uv where uv is installed. The table goes to
# work_dirs/matrix/table.md, each run's output beside it. Status 1 if a run fails: its last lines are shown.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="$root/work_dirs/matrix"
mkdir -p "$out"

corners=() if_there=0 limit=0
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case "$1" in
        --if-there) if_there=1 ;;
        --seconds) limit="$2"; shift ;;
        *) corners+=("$1") ;;
    esac
    shift
done
[ "${1:-}" = -- ] && shift
[ ${#corners[@]} -gt 0 ] || corners=(3.10:2.11.0 3.12:2.11.0 3.12:2.14.1 3.13:2.14.1)

find_python() {
    local version="$1" kept
    for kept in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do [ -x "$kept" ] && { echo "$kept"; return; }; done
    if command -v "python$version" >/dev/null && "python$version" -c 'import venv, ensurepip' 2>/dev/null; then
        command -v "python$version"
    elif [ "$if_there" = 1 ]; then
        return 1
    elif command -v uv >/dev/null; then
        uv python find "$version" 2>/dev/null || { uv python install "$version" >&2 && uv python find "$version"; }
    else
        echo "error: there is no python$version: install it, or uv, which fetches it (pip install uv)" >&2
        return 1
    fi
}

# A command within what is left of the time: its status, 124 when that was over.
in_time() {
    local left=$((limit > 0 ? limit - SECONDS : 864000))
    [ "$left" -gt 0 ] || return 124
    timeout "$left" "$@"
}

# Makes the environment of a corner, without tests.
environment=". '$root/tools/_venv.sh'; mmpetl_venv x $(grep -oE '^mmpetl_venv .*' "$root/tools/run_tests.sh" | cut -d' ' -f3-)"

failed=0
printf '| Python | torch | result | minutes |\n| --- | --- | --- | --: |\n' | tee "$out/table.md"
for corner in "${corners[@]}"; do
    version="${corner%%:*}" log="$out/${corner/:/-}.txt" begin=$SECONDS status=0 result='no interpreter' torch=none
    if MMPETL_PYTHON="$(find_python "$version")"; then
        MMPETL_VENV="$out/python${corner/:/-}" MMPETL_TORCH="$(echo "$corner" | cut -s -d: -f2)"
        export MMPETL_PYTHON MMPETL_VENV MMPETL_TORCH
        [ "$if_there" = 0 ] || in_time bash -euc "$environment" >"$log" 2>&1 || status=$?
        if [ $status = 0 ]; then
            in_time bash "$root/tools/run_tests.sh" "$@" >"$log" 2>&1 || status=$?
            [ $status = 0 ] || [ $status = 124 ] || { failed=1; tail -n 50 "$log" >&2; }
            result="$(grep -aE '^(=+ )?[0-9]+ (passed|failed|error|skipped).* in ' "$log" | tail -n 1 | sed -E 's/^=+ //; s/ in .*//')"
            torch="$("$MMPETL_VENV/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || echo none)"
        else
            result='no packages'
        fi
        [ $status != 124 ] || result='the time was over'
    elif [ "$if_there" = 0 ]; then
        failed=1
    fi
    printf '| %s | %s | %s | %s |\n' "$version" "$torch" "${result:-did not run, see $log}" "$(((SECONDS - begin + 30) / 60))" | tee -a "$out/table.md"
done
exit $failed
