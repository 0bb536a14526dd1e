#!/usr/bin/env bash
# Measures a work file on all GPUs of this machine, one shard on each at the same time, and merges the tables:
#
#     depthcomp tables plan torchvision:mobilenet_v2 --out work.json
#     scripts/fleet/all_gpus.sh work.json table.json
#
# A run that was interrupted goes on when it is started again. The GPUs must be of one model: merging refuses others
# and names them. Variables:
#
#     DEVICES    the GPUs, as CUDA_VISIBLE_DEVICES takes them (default: all that nvidia-smi lists, else "cpu");
#                each "cpu" is one shard, and these run in turn, as they would disturb each other
#     BACKEND    auto unless given
#     DEPTHCOMP  the command, depthcomp unless given
set -euo pipefail

if (($# != 2)); then
    echo "error: $# arguments were given, and a work file and a table are needed: $0 WORK TABLE" >&2
    exit 2
fi
work=$1 table=$2
read -r -a command <<<"${DEPTHCOMP:-depthcomp}"
read -r -a devices <<<"${DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ' ' || true)}"
((${#devices[@]})) || devices=(cpu)

# Becomes the measuring process, so it wants a subshell of its own.
measure() {
    local index=$1 device=$2
    if [[ $device != cpu ]]; then export CUDA_VISIBLE_DEVICES=$device; fi
    exec "${command[@]}" tables run "$work" --shard "$index/${#devices[@]}" --table "${shards[index]}" \
        --backend "${BACKEND:-auto}"
}

shards=() running=() failed=()
trap 'kill ${running[@]+"${running[@]}"} 2>/dev/null || true' EXIT # Ctrl-C does not reach what runs in the background
for index in "${!devices[@]}"; do
    shards+=("${table%.json}.$index.json")
    if [[ ${devices[index]} == cpu ]]; then
        (measure "$index" cpu) || failed+=("$index")
    else
        measure "$index" "${devices[index]}" &
        running[index]=$!
    fi
done
for index in "${!running[@]}"; do
    wait "${running[index]}" || failed+=("$index")
    unset "running[index]"
done
if ((${#failed[@]})); then
    echo "error: shards ${failed[*]} of ${#devices[@]} failed, their messages are above; start again to go on." >&2
    exit 1
fi
"${command[@]}" tables merge "${shards[@]}" --out "$table"
