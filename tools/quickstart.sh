#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to an adapted model: bash tools/quickstart.sh [DATA] [all]
#   DATA: quickdraw20 (default) or digits10 (needs no data download)
#   all: AdaptFormer and LoRA with AdaptFormer too; else a linear probe and LoRA
# Makes the environment .venv, fetches DINOv2 ViT-S/14 and the data, trains from configs/quickstart, tests each saved adapter, prints a table
# and draws a plot. What is there is reused: delete work_dirs/quickstart to train again. Environment variables: MMPETL_CACHE (downloads),
# MMPETL_QUICKSTART_DIR (runs), and those of tools/_venv.sh.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
cd "$MMPETL_ROOT"
whole=$SECONDS

methods=(linear lora)
if [ "${!#}" = all ] && [ $# -gt 0 ]; then methods+=(adaptformer lora_adaptformer); set -- "${@:1:$#-1}"; fi
data="${1:-quickdraw20}"
cache="${MMPETL_CACHE:-$HOME/.cache/mmpetl}"
case "$data" in
    quickdraw20) task='Quick, Draw! (20 classes)'; out=work_dirs/quickstart; options=() ;;
    digits10)
        task='scikit-learn digits (10 classes)'; out=work_dirs/quickstart_digits10
        options=(--cfg-options model.head.num_classes=10)
        for loader in train val test; do options+=("${loader}_dataloader.dataset.data_root=$cache/digits10"); done ;;
    *) mmpetl_die "unknown data $data: choose quickdraw20 or digits10" ;;
esac
out="${MMPETL_QUICKSTART_DIR:-$out}"

mmpetl_venv "$MMPETL_ROOT/.venv" runtime quickstart
mmpetl_say "Environment: $((SECONDS - whole)) s."
export MPLBACKEND=Agg PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"  # threads that spin while they wait cost a shared machine a multiple of the time

[ "$data" = digits10 ] || mmpetl_npm
began=$SECONDS
python tools/fetch_data.py dinov2-vits14 "$data"
mmpetl_say "Weights and data: $((SECONDS - began)) s."

# What a finished run depends on: the configs, the data, the version. A run with another stamp is trained again.
stamp="$(cat configs/quickstart/*.py configs/_base_/default_runtime.py configs/_base_/{backbones/dinov2-small,datasets/quickdraw20,schedules/quickstart}.py \
    mmpetl/version.py "$cache/$data/about.json" | cksum) $data"

for method in "${methods[@]}"; do
    run="$out/$method"; mkdir -p "$run"
    if [ "$(cat "$run/finished" 2>/dev/null)" = "$stamp" ]; then
        mmpetl_say "== $method: trained and tested before, reused ($run)"
        continue
    fi
    rm -f "$run/finished" "$run"/*.json
    mmpetl_say "== $method: training from configs/quickstart/$method.py (log: $run/train.log)"
    began=$SECONDS
    # no validation: the test images are looked at once, by the saved adapter below
    mmpetl_logged "$run/train.log" python tools/train.py "configs/quickstart/$method.py" --work-dir "$run" --overwrite --no-validate "${options[@]}"
    echo $((SECONDS - began)) >"$run/seconds"
    mmpetl_say "== $method: testing the saved adapter"
    mmpetl_logged "$run/test.log" python tools/test.py "configs/quickstart/$method.py" "$run/adapter.safetensors" \
        --work-dir "$run" --out "$run/test.json" --out-item metrics "${options[@]}"
    printf '%s\n' "$stamp" >"$run/finished"
done

python tools/quickstart_report.py "$out" "${methods[@]}" --task "$task"
mmpetl_say "Done in $(((SECONDS - whole) / 60)) min $(((SECONDS - whole) % 60)) s, installation included."
