#!/usr/bin/env bash
# Kiwis of Fruits-360 at 100 x 100 on two nodes.
#   sbatch slurm/kiwi.sh [training options, such as --train.batch 256]
#   sbatch --account=... --partition=... --nodes=4 --gpus-per-node=a100:4 --cpus-per-task=32 slurm/kiwi.sh
#   sbatch --gpus-per-node=0 slurm/kiwi.sh                            # on CPUs
# Environment and restarts: slurm/common.sh. To resume a run that ended early, submit the same command again.
#SBATCH --job-name=kiwi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1            # one launcher per node; it starts one process per GPU
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180            # notice to this script; Slurm may send it up to 60 s early
#SBATCH --requeue
#SBATCH --open-mode=append             # a requeued job appends to the same log
#SBATCH --output=%x-%j.out

# Slurm runs a copy of this file from its spool, so the checkout is where sbatch was called, or SCALEGAN_ROOT.
: "${SCALEGAN_ROOT:=${SLURM_SUBMIT_DIR:-$PWD}}"
export SCALEGAN_ROOT
# shellcheck source=slurm/common.sh
source "$SCALEGAN_ROOT/slurm/common.sh" || { echo "call sbatch in the checkout of scalegan, or set SCALEGAN_ROOT to it" >&2; exit 2; }

scalegan_job --config "$SCALEGAN_ROOT/configs/kiwi.yaml" "$@"
