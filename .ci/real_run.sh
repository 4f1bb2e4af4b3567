#!/usr/bin/env bash
# Real images from shards to a figure, on two processes: kiwi, brain and Fashion-MNIST, a few minutes in all.
# usage: .ci/real_run.sh DATA [OUT]
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(realpath "$1")
out=${2:-runs/ci}
bin=${VENV:-.venv}/bin
export OMP_NUM_THREADS=1 WANDB_MODE=offline

rm -rf "$out"
mkdir -p "$out"

# short_run NAME PRESET IMAGES: a preset cut short, on the shards NAME, by two processes; then measured and sampled by one.
short_run() {
    local run=$out/$1
    "$bin/accelerate" launch --config_file launch/cpu.yaml -m scalegan.train --config "configs/$2.yaml" \
        --run "$run" --data.path "$out/data/$1" --train.images "$3" --log.every 1024 --log.samples "$3" \
        --log.checkpoint "$3" --evaluation.every 0 --evaluation.samples 256 --evaluation.real 256
    "$bin/scalegan" evaluate "$run"
    "$bin/scalegan" sample "$run" --n 16 --seed 0 --out "$run/sampled"
    "$bin/python" .ci/check_run.py "$run" "$3"
}

"$bin/scalegan" shards "$data/fruits360" "$out/data/kiwi" --classes Kiwi --size 64
short_run kiwi kiwi_small 4096

"$bin/scalegan" shards "$data/brain" "$out/data/brain" --size 104x88 --channels 1
short_run brain brain_small 2048

"$bin/scalegan" shards "$data/fashion-mnist" "$out/data/fashion"
short_run fashion fashion_small 8192

"$bin/scalegan" plot "$out/kiwi"
"$bin/scalegan" doctor "$out/kiwi"
