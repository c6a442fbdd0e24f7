#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Test through Slurm: bash tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [arguments of test.py]
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_dist.sh"
[ $# -ge 4 ] || { echo "usage: bash tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [arguments of test.py]" >&2; exit 2; }
PARTITION="$1" JOB="$2" CONFIG="$3" CHECKPOINT="$4"; shift 4
mmpetl_srun "$PARTITION" "$JOB" test.py "$CONFIG" "$CHECKPOINT" "$@"
