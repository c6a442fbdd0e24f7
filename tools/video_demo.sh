#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Motion decides the class: bash tools/video_demo.sh [METHOD ...]      methods: linear lora apt patt_adaptformer full (all), lora_untimed
# Makes the environment .venv, renders the clips (mp4), inflates DINOv2 ViT-S/14 to a video model, trains every method from
# configs/video_demo, tests each saved adapter on 2 clips x 3 crops of every video, prints a table and draws a plot. Some 13 minutes
# on two CPU cores, installation not counted; lora_untimed is blind to the order of the frames. What is there is reused: delete
# work_dirs/video_demo to train again. Environment variables: MMPETL_CACHE (downloads, clips, weights), MMPETL_VIDEO_DEMO_DIR (runs), and
# those of tools/_venv.sh.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
cd "$MMPETL_ROOT"

methods=("$@")
[ $# -gt 0 ] || methods=(linear lora apt patt_adaptformer full)
for method in "${methods[@]}"; do
    [ -f "configs/video_demo/$method.py" ] || mmpetl_die "unknown method $method: choose from $(cd configs/video_demo && echo *.py | sed 's/\.py//g')"
done
out="${MMPETL_VIDEO_DEMO_DIR:-work_dirs/video_demo}"
cache="${MMPETL_CACHE:-$HOME/.cache/mmpetl}"

mmpetl_venv "$MMPETL_ROOT/.venv" runtime quickstart
SECONDS=0
export MPLBACKEND=Agg PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore

mmpetl_npm
python tools/prepare_motion_clips.py

# What a finished run depends on: the configs, the clips, the version. A run with another stamp is trained again.
base=(configs/_base_/{default_runtime_video,backbones/videomae-dinov2-small,datasets/motion6,schedules/video_demo}.py)

for method in "${methods[@]}"; do
    run="$out/$method" config="configs/video_demo/$method.py"; mkdir -p "$run"
    stamp="$(cat "$config" "${base[@]}" mmpetl/version.py "$cache/motion6/about.json" | cksum)"
    if [ "$(cat "$run/finished" 2>/dev/null)" = "$stamp" ]; then
        mmpetl_say "== $method: trained and tested before, reused ($run)"
        continue
    fi
    rm -f "$run/finished" "$run"/*.json "$run"/*.pth
    mmpetl_say "== $method: training from $config (log: $run/train.log)"
    began=$SECONDS
    mmpetl_logged "$run/train.log" python tools/train.py "$config" --work-dir "$run" --overwrite
    echo $((SECONDS - began)) >"$run/seconds"
    mmpetl_say "== $method: testing the saved adapter on 2 clips x 3 crops"
    mmpetl_logged "$run/test.log" python tools/test.py "$config" "$run/adapter.safetensors" \
        --work-dir "$run" --out "$run/test.json" --out-item metrics
    printf '%s\n' "$stamp" >"$run/finished"
done

python tools/video_demo_report.py "$out" "${methods[@]}"
mmpetl_say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s (installation not counted)."
