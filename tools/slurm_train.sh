#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train through Slurm: bash tools/slurm_train.sh PARTITION JOB CONFIG [WORK_DIR] [arguments of train.py]
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_dist.sh"
[ $# -ge 3 ] || { echo "usage: bash tools/slurm_train.sh PARTITION JOB CONFIG [WORK_DIR] [arguments of train.py]" >&2; exit 2; }
PARTITION="$1" JOB="$2" CONFIG="$3"; shift 3
# mmpretrain's script has the work dir in fourth place, mmaction2's has not
if [ $# -ge 1 ] && [ "${1#-}" = "$1" ]; then
    set -- --work-dir "$@"
fi
mmpetl_srun "$PARTITION" "$JOB" train.py "$CONFIG" "$@"
