# shellcheck shell=bash
# What every job in this folder does: one launcher per node, one process per GPU, a notice before the end, requeue until done.
# Sourced by the job scripts; `scalegan_job ARGS` trains with ARGS. Settings from outside (more in docs/clusters.md):
#
#   sbatch's own flags and SBATCH_* variables: nodes, GPUs and their type, time, account, partition, memory, ...
#   SCALEGAN_ARGS       extra training options, split at blanks; appended to those of the job script and the command line
#   SCALEGAN_SETUP      a file to source first: modules, conda, a virtual environment
#   SCALEGAN_SRUN       extra options for srun, such as --container-image=... (pyxis), split at blanks
#   SCALEGAN_EXEC       a command that starts the launcher, such as `apptainer exec --nv gan.sif`, split at blanks
#   SCALEGAN_PROCESSES  processes per node (default: its number of GPUs, or 1 without GPUs)
#   SCALEGAN_THREADS    threads per process (default: the task's CPUs, divided evenly)
#   MAX_RESTARTS        how often the job may requeue itself (default: 100)
#
# A job is requeued only if the training wrote the file RUN/requeue: then its checkpoint is safe and there is work left. Exit
# codes would not do, because launchers change them. A cancelled job is never requeued.

scalegan_log() { printf '%(%F %T)T %s[%s] %s\n' -1 "${SLURM_JOB_NAME:-job}" "${SLURM_RESTART_COUNT:-0}" "$*"; }

scalegan_stop() {
  scalegan_log "error: $*" >&2
  exit 2
}

# The run folder, which both the training and this script must know: --run if given, else runs/JOB.
scalegan_run_folder() {
  local found=runs/$SLURM_JOB_NAME
  while (($#)); do
    case $1 in
    --run) found=${2:-$found} ;;
    --run=*) found=${1#--run=} ;;
    esac
    shift
  done
  printf '%s\n' "$found"
}

# Signals a step until it has ended: a training that is still importing its libraries would miss a single signal.
scalegan_tell() {
  while kill -USR1 "$1" 2>/dev/null; do sleep 10; done
}

scalegan_job() {
  set -uo pipefail
  local -a more srun_options prefix
  read -ra more <<<"${SCALEGAN_ARGS:-}"
  read -ra srun_options <<<"${SCALEGAN_SRUN:-}"
  read -ra prefix <<<"${SCALEGAN_EXEC:-}"
  set -- "$@" "${more[@]}"
  [[ -n ${SLURM_JOB_NODELIST:-} ]] || scalegan_stop "this is a job for sbatch: sbatch slurm/kiwi.sh"
  if [[ -n ${SCALEGAN_SETUP:-} ]]; then
    # shellcheck disable=SC1090
    source "$SCALEGAN_SETUP" || scalegan_stop "SCALEGAN_SETUP=$SCALEGAN_SETUP failed"
  fi
  if ((${#prefix[@]} + ${#srun_options[@]} == 0)) && ! command -v accelerate >/dev/null; then
    scalegan_stop "no accelerate on the PATH: activate the environment before sbatch, or name a file that does so in SCALEGAN_SETUP"
  fi

  local run marker master
  run=$(scalegan_run_folder "$@")
  marker=$run/requeue
  mkdir -p "$run" || scalegan_stop "the run folder $run cannot be created"
  rm -f "$marker"

  # Never fall back to localhost: each node would train by itself.
  master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  [[ -n $master ]] || scalegan_stop "scontrol does not name the first host of $SLURM_JOB_NODELIST"

  local gpus=${SLURM_GPUS_ON_NODE:-0} cpus=${SLURM_CPUS_PER_TASK:-1}
  local processes=${SCALEGAN_PROCESSES:-$((gpus > 0 ? gpus : 1))}
  export SCALEGAN_MASTER=$master
  export SCALEGAN_PORT=$((10000 + SLURM_JOB_ID % 20000)) # differs between jobs that share a node; below the ephemeral ports
  export SCALEGAN_WORLD=$((SLURM_NNODES * processes))
  export SCALEGAN_THREADS=${SCALEGAN_THREADS:-$((cpus / processes > 0 ? cpus / processes : 1))}
  # shellcheck disable=SC2153
  export SCALEGAN_LAUNCH=$SCALEGAN_ROOT/launch/multi_node.yaml
  export SRUN_CPUS_PER_TASK=$cpus # srun stopped inheriting --cpus-per-task in 22.05
  export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1

  local -a device=()
  ((gpus > 0)) && device=(--train.device cuda) # GPUs that torch cannot see are an error, not a slow training on the CPU

  scalegan_log "$SLURM_NNODES nodes x $processes processes, $SCALEGAN_THREADS threads each, rank 0 on $master:$SCALEGAN_PORT, run $run"
  local step='' interrupted='' term='' teller='' rc
  trap 'interrupted=1; scalegan_log "notice: the training saves and stops"
    [[ -z $step || -n $teller ]] || { scalegan_tell "$step" & teller=$!; }' USR1
  trap 'interrupted=1; term=1; scalegan_log "TERM: cancelled, requeued from outside, or a node failed"' TERM

  # srun forwards USR1 to every process of the step. The launcher must ignore it, or it would die; the workers install their
  # own handlers. Single quotes, because $SLURM_NODEID must be expanded on each node.
  # shellcheck disable=SC2016
  srun --kill-on-bad-exit=1 --label ${srun_options[@]+"${srun_options[@]}"} \
    bash -c 'trap "" USR1; exec "$@"' launcher ${prefix[@]+"${prefix[@]}"} \
    bash -c 'exec accelerate launch --config_file "$SCALEGAN_LAUNCH" \
      --num_machines "$SLURM_NNODES" --num_processes "$SCALEGAN_WORLD" --machine_rank "$SLURM_NODEID" \
      --rdzv_backend static --same_network --main_process_ip "$SCALEGAN_MASTER" --main_process_port "$SCALEGAN_PORT" \
      --num_cpu_threads_per_process "$SCALEGAN_THREADS" --mixed_precision no --dynamo_backend no --max_restarts 0 \
      -m scalegan.train "$@"' launch "${device[@]}" "$@" --run "$run" &
  step=$!
  [[ -z $interrupted || -n $teller ]] || { # the notice came before the step existed
    scalegan_tell "$step" &
    teller=$!
  }
  while :; do # a trap interrupts `wait`
    interrupted=''
    wait "$step"
    rc=$?
    [[ -n $interrupted ]] || break
  done
  [[ -z $teller ]] || kill "$teller" 2>/dev/null
  scalegan_log "srun ended with $rc"

  if [[ -z $term && -e $marker ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-100})); then
      trap '' TERM # requeueing sends TERM to this shell
      scalegan_log "requeueing the job, to resume at $(<"$marker") images"
      scontrol requeue "$SLURM_JOB_ID" && sleep 60
    else
      scalegan_log "not requeued: MAX_RESTARTS=${MAX_RESTARTS:-100} reached; the same sbatch command resumes the run"
    fi
  fi
  exit "$rc"
}
