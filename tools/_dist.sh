# SPDX-License-Identifier: Apache-2.0
# Shell functions shared by the dist_*.sh and slurm_*.sh scripts.

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python}"

# Start GPUS processes of tools/SCRIPT on this machine (one of NNODES): mmpetl_torchrun GPUS SCRIPT ARGUMENTS...
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT; without PORT a single machine takes a free one.
mmpetl_torchrun() {
    local gpus="$1" script="$2" port="${PORT:-}"; shift 2
    case "$gpus" in
        '' | *[!0-9]* | 0) echo "error: the number of GPUs (processes) must be a whole number >= 1, got '$gpus'" >&2; exit 2 ;;
    esac
    if [ -z "$port" ]; then
        port=29500
        [ "${NNODES:-1}" != 1 ] ||
            port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    fi
    exec "$PYTHON" -m torch.distributed.run --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="$port" --nproc-per-node="$gpus" \
        "$TOOLS/$script" "$@" --launcher pytorch
}

# Start GPUS processes of tools/SCRIPT through Slurm: mmpetl_srun PARTITION JOB SCRIPT ARGUMENTS...
# Environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS.
mmpetl_srun() {
    local partition="$1" job="$2" script="$3" gpus="${GPUS:-8}" per_node; shift 3
    per_node="${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}"
    export MASTER_PORT="${MASTER_PORT:-$((12000 + RANDOM % 20000))}"
    command -v srun >/dev/null 2>&1 || { echo 'error: srun is not on this machine: use dist_*.sh without Slurm' >&2; exit 1; }
    # shellcheck disable=SC2086  # SRUN_ARGS holds several words
    exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "$PYTHON" -u "$TOOLS/$script" "$@" --launcher slurm
}
