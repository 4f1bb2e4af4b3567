# shellcheck shell=bash
# What every job in this folder does: one launcher per node, one process per GPU, a notice before the end, requeue until done.
# Sourced by the job scripts; `scalegan_job ARGS` trains with ARGS. Settings from outside (more in docs/clusters.md):
#
#   sbatch's own flags and SBATCH_* variables: nodes, GPUs and their type, time, account, partition, memory, ...
#   SCALEGAN_ARGS       extra training options, split at blanks; appended to those of the job script and the command line
#   SCALEGAN_SETUP      a file to source first: modules, conda, a virtual environment; it may set the other variables
#   SCALEGAN_SRUN       extra options for srun, such as --container-image=... (pyxis), split at blanks
#   SCALEGAN_EXEC       a command that starts the launcher, such as `apptainer exec --nv gan.sif`, split at blanks
#   SCALEGAN_PROCESSES  processes per node (default: the job's GPUs per node, or 1 without GPUs)
#   SCALEGAN_THREADS    threads per process (default: the task's CPUs, divided evenly)
#   MAX_RESTARTS        how often the job may requeue itself (default: 100)
#
# A job is requeued only if its training wrote the file RUN/requeue: then its checkpoint is safe and there is work left. Exit
# codes would not do, because launchers change them. A cancelled job is never requeued. A job that has work left but is not
# requeued exits with 75, so that jobs that depend on its success (afterok) do not start.

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

# A function of its own, because a sourced file sees the arguments of its caller.
scalegan_setup() {
  # shellcheck disable=SC1090
  source "$SCALEGAN_SETUP"
}

# Signals the step, once it exists, until it has ended: a training that is still starting may miss a single signal.
scalegan_tell() {
  [[ -z $step || -n $teller ]] || {
    while sleep 1 && kill -USR1 "$step" 2>/dev/null; do sleep 9; done &
    teller=$!
  }
}

scalegan_job() {
  local step='' noticed='' cancelled='' interrupted='' teller='' rc
  trap 'noticed=1 interrupted=1; scalegan_log "notice: the training saves and stops"; scalegan_tell' USR1
  trap 'cancelled=1 interrupted=1; scalegan_log "TERM: cancelled, requeued from outside, or a node failed"' TERM

  [[ -n ${SLURM_JOB_NODELIST:-} ]] || scalegan_stop "this is a job for sbatch: sbatch slurm/kiwi.sh"
  [[ -z ${SCALEGAN_SETUP:-} ]] || scalegan_setup || scalegan_stop "SCALEGAN_SETUP=$SCALEGAN_SETUP failed"
  set +e -uo pipefail
  local -a more srun_options prefix
  read -rd "" -a more <<<"${SCALEGAN_ARGS:-}"
  read -rd "" -a srun_options <<<"${SCALEGAN_SRUN:-}"
  read -rd "" -a prefix <<<"${SCALEGAN_EXEC:-}"
  set -- "$@" ${more[@]+"${more[@]}"}
  if ((${#prefix[@]} + ${#srun_options[@]} == 0)) && ! command -v accelerate >/dev/null; then
    scalegan_stop "no accelerate on the PATH: activate the environment before sbatch, or name a file that does so in SCALEGAN_SETUP"
  fi

  local run marker master
  run=$(scalegan_run_folder "$@")
  [[ $run == /* ]] || run=$PWD/$run
  marker=$run/requeue
  mkdir -p "$run" || scalegan_stop "the run folder $run cannot be created"

  # Never fall back to localhost: each node would train by itself.
  master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  [[ -n $master ]] || scalegan_stop "scontrol does not name the first host of $SLURM_JOB_NODELIST"

  # The GPUs that were requested: with --exclusive, the node may have more than the step gets.
  local gpus=${SLURM_GPUS_ON_NODE:-0} cpus=$((${SLURM_CPUS_PER_TASK:-1} * ${SLURM_NTASKS_PER_NODE:-1}))
  [[ ! ${SLURM_GPUS_PER_NODE:-} =~ ^([^:,]+:)?([0-9]+)$ ]] || gpus=${BASH_REMATCH[2]}
  local processes=${SCALEGAN_PROCESSES:-$((gpus > 0 ? gpus : 1))}
  export SCALEGAN_MASTER=$master
  export SCALEGAN_PORT=$((10000 + SLURM_JOB_ID % 20000)) # differs between jobs that share a node; below the ephemeral ports
  export SCALEGAN_WORLD=$((SLURM_NNODES * processes))
  export SCALEGAN_THREADS=${SCALEGAN_THREADS:-$((cpus / processes > 0 ? cpus / processes : 1))}
  export SCALEGAN_FOLDER=$PWD SCALEGAN_RUN=$run
  export SCALEGAN_ATTEMPT=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} # the training signs RUN/requeue with this
  # shellcheck disable=SC2153
  export SCALEGAN_LAUNCH=$SCALEGAN_ROOT/launch/multi_node.yaml
  export SLURM_EXPORT_ENV=ALL # the step needs these variables even after sbatch --export=NONE
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600} # seconds to save after TERM; torch waits for 30
  export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1

  local -a device=()
  ((gpus > 0)) && device=(--train.device cuda) # GPUs that torch cannot see are an error, not a slow training on the CPU

  scalegan_log "$SLURM_NNODES nodes x $processes processes, $SCALEGAN_THREADS threads each, rank 0 on $master:$SCALEGAN_PORT, run $run"
  # srun forwards USR1 to every process of the step. The launcher must ignore it, or it would die, and TERM until it has a
  # handler; the workers install their own handlers. Containers may undo the first trap, hence the second. Single quotes,
  # because $SLURM_NODEID must be expanded on each node.
  # shellcheck disable=SC2016
  (
    trap '' USR1 # until srun has its handler
    exec srun --kill-on-bad-exit=1 --label --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$cpus" \
      ${srun_options[@]+"${srun_options[@]}"} \
      bash -c 'trap "" USR1; exec "$@"' launcher ${prefix[@]+"${prefix[@]}"} \
      bash -c 'trap "" USR1 TERM
      for folder in "$SCALEGAN_ROOT" "$SCALEGAN_RUN" "$SCALEGAN_FOLDER"; do
        cd "$folder" 2>/dev/null || { # containers may start in a folder of their own
          echo "scalegan: error: machine $SLURMD_NODENAME: no folder $folder here: mount it into the container" >&2
          exit 2
        }
      done
      exec accelerate launch --config_file "$SCALEGAN_LAUNCH" \
        --num_machines "$SLURM_NNODES" --num_processes "$SCALEGAN_WORLD" --machine_rank "$SLURM_NODEID" \
        --rdzv_backend static --same_network --main_process_ip "$SCALEGAN_MASTER" --main_process_port "$SCALEGAN_PORT" \
        --num_cpu_threads_per_process "$SCALEGAN_THREADS" --mixed_precision no --dynamo_backend no --max_restarts 0 \
        -m scalegan.train "$@"' launch ${device[@]+"${device[@]}"} "$@" --run "$run"
  ) &
  step=$!
  [[ -z $noticed ]] || scalegan_tell # the notice came before the step existed
  while :; do                        # a trap interrupts `wait`
    interrupted=''
    wait "$step"
    rc=$?
    [[ -n $interrupted ]] || break
  done
  [[ -z $teller ]] || kill "$teller" 2>/dev/null
  scalegan_log "srun ended with $rc"

  local images='' attempt='' job=$SLURM_JOB_ID
  # One task of an array has the number of the array, by which alone all of its tasks would be requeued.
  [[ $job != "${SLURM_ARRAY_JOB_ID:-}" ]] || job+=_$SLURM_ARRAY_TASK_ID
  [[ ! -e $marker ]] || read -r images attempt <"$marker"
  if [[ -z $cancelled && $attempt == "$SCALEGAN_ATTEMPT" ]]; then
    rc=75
    if ((${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-100})); then
      trap '' TERM # requeueing sends TERM to this shell
      scalegan_log "requeueing the job, to resume at $images images"
      scontrol requeue "$job" && sleep 60 && exit # meanwhile, Slurm ends this shell
      scalegan_log "not requeued: scontrol failed; the same sbatch command resumes the run"
    else
      scalegan_log "not requeued: MAX_RESTARTS=${MAX_RESTARTS:-100} reached; the same sbatch command resumes the run"
    fi
  fi
  exit "$rc"
}
