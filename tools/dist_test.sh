#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Test with several processes: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT. Without a GPU the processes share the CPU.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_dist.sh"
[ $# -ge 3 ] || { echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2; exit 2; }
CONFIG="$1" CHECKPOINT="$2" GPUS="$3"; shift 3
mmpetl_torchrun "$GPUS" test.py "$CONFIG" "$CHECKPOINT" "$@"
