#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train with several processes: bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT. Without a GPU the processes share the CPU.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_dist.sh"
[ $# -ge 2 ] || { echo "usage: bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]" >&2; exit 2; }
CONFIG="$1" GPUS="$2"; shift 2
mmpetl_torchrun "$GPUS" train.py "$CONFIG" "$@"
