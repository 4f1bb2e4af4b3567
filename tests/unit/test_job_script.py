"""slurm/*.sh between a batch system and a launcher that only stand in for them; the real ones are in tests/slurm."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from helpers.runs import arguments

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/bash
printf '%s\\n' "$@" >"$SEEN/srun"
while [[ $1 != bash ]]; do shift; done
[[ ${SLURM_EXPORT_ENV:-ALL} = ALL ]] || set -- env -i PATH="$PATH" SEEN="$SEEN" "$@"
((SLURM_NNODES > 1)) || SLURM_NODEID=0 SLURMD_NODENAME=n0 exec "$@"
for ((node = 0; node < SLURM_NNODES; node++)); do
  SLURM_NODEID=$node SLURMD_NODENAME=n$node "$@" || rc=$?
done
exit ${rc:-0}
"""
ACCELERATE = f"""#!/bin/bash
printf '%s\\n' "$PWD" "$@" >"$SEEN/accelerate"
env >"$SEEN/environment"
grep SigIgn /proc/self/status >"$SEEN/signals"
exec {sys.executable} -c "${{TRAINING:-}}"
"""
SCONTROL = """#!/bin/bash
[[ $1 != show ]] || { echo n0; exit; }
[[ -z ${REFUSES:-} ]] || exit 1
echo "$@" >"$SEEN/scontrol"
kill -KILL $PPID
"""
ASKS = "import os; open(os.environ['SCALEGAN_RUN'] + '/requeue', 'w').write('320 ' + os.environ['SCALEGAN_ATTEMPT'])"


@dataclass
class Job:
    """What `sbatch slurm/kiwi.sh` would run, as job 7 in `folder`."""

    folder: Path

    def __call__(self, *options: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "kiwi",
            "SLURM_JOB_NODELIST": "n0",
            "SLURM_NNODES": "1",
            "SLURM_CPUS_PER_TASK": "8",
            "SCALEGAN_ROOT": str(ROOT),
            "SEEN": str(self.seen),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", ROOT / "slurm" / "kiwi.sh", *options],
            env=os.environ | environment | variables,
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def seen(self) -> Path:
        return self.folder / "seen"

    def of(self, program: str) -> list[str]:
        """What a program was called with."""
        return (self.seen / program).read_text().splitlines()

    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.of("environment") if "=" in line)

    def ignored(self, number: int) -> bool:
        """By the launcher, when it starts."""
        return bool(int(self.of("signals")[0].split()[1], 16) >> number - 1 & 1)


@pytest.fixture
def job(tmp_path):
    for name, text in {"srun": SRUN, "accelerate": ACCELERATE, "scontrol": SCONTROL}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "seen").mkdir()
    return Job(tmp_path)


def option(words, name):
    return words[words.index(name) + 1]


def test_a_job_launches_the_training_once_a_node_and_ends_as_it_does(job):
    done = job("--train.batch", "64", TRAINING="raise SystemExit(3)")
    assert done.returncode == 3, done.stderr
    words = job.of("accelerate")
    assert words[words.index("-m") :][:4] == ["-m", "scalegan.train", "--config", str(ROOT / "configs" / "kiwi.yaml")]
    assert option(words, "--train.batch") == "64"
    assert option(words, "--num_machines") == "1"
    assert option(words, "--main_process_ip") == "n0"


def test_the_run_folder_is_an_absolute_path(job):
    """In a container, or by another start, the folder that a relative one begins in may be another."""
    job()
    assert job.of("accelerate")[-2:] == ["--run", str(job.folder / "runs" / "kiwi")]
    job("--run", "of/mine")
    assert job.of("accelerate")[-2:] == ["--run", str(job.folder / "of" / "mine")]
    assert (job.folder / "of" / "mine").is_dir()


# --- the environment


def test_the_file_to_source_first_sees_no_arguments_and_may_set_what_is_read_after_it(job, tmp_path):
    setup = tmp_path / "setup.sh"
    setup.write_text(
        'set -e; if [ -z "$NOT_SET_ANYWHERE" ]; then echo "arguments: <$*>"; fi\n'
        "export SCALEGAN_ARGS='--train.seed 5' SCALEGAN_EXEC='env CONTAINER=1' SCALEGAN_SRUN=--mpi=none\n"
    )
    done = job("--train.batch", "64", SCALEGAN_SETUP=str(setup), TRAINING="raise SystemExit(3)")
    assert done.returncode == 3, done.stderr
    assert "arguments: <>\n" in done.stdout
    assert option(job.of("accelerate"), "--train.seed") == "5"
    assert job.environment()["CONTAINER"] == "1"
    assert "--mpi=none" in job.of("srun")


def test_a_file_to_source_first_that_fails_ends_the_job(job, tmp_path):
    (tmp_path / "setup.sh").write_text("false\n")
    done = job(SCALEGAN_SETUP=str(tmp_path / "setup.sh"))
    assert done.returncode == 2
    assert "setup.sh failed" in done.stderr


def test_the_step_has_the_environment_of_the_job_after_export_none(job):
    done = job(SLURM_EXPORT_ENV="NONE")
    assert done.returncode == 0, done.stderr
    assert job.environment()["SCALEGAN_MASTER"] == "n0"


def test_the_step_has_the_cpus_of_the_job_unless_told_otherwise(job):
    job(SCALEGAN_SRUN="--cpus-per-task=3")
    words = job.of("srun")
    assert words.index("--cpus-per-task=8") < words.index("--cpus-per-task=3") < words.index("bash")


def test_a_job_of_several_tasks_a_node_has_one_launcher_there_with_the_cpus_of_all(job):
    """As elsewhere a task is a process: `sbatch --ntasks-per-node=4 --gpus-per-node=4`."""
    job(SLURM_NTASKS_PER_NODE="4", SLURM_NTASKS="8", SLURM_NNODES="2", SLURM_GPUS_PER_NODE="4")
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"} <= set(job.of("srun"))
    assert option(job.of("accelerate"), "--num_cpu_threads_per_process") == "8"
    assert option(job.of("accelerate"), "--num_processes") == "8"


@pytest.mark.parametrize(
    ("asked", "there", "processes"), [("2", "8", 2), ("a100:2", "8", 2), ("0", None, 1), (None, "4", 4), ("a:1,b:1", "2", 2)]
)
def test_processes_are_the_gpus_of_the_job_and_not_all_of_the_node(job, asked, there, processes):
    """A node that the job has for itself (--exclusive) may have more."""
    given = {"SLURM_GPUS_PER_NODE": asked, "SLURM_GPUS_ON_NODE": there}
    done = job(**{name: value for name, value in given.items() if value})
    assert done.returncode == 0, done.stderr
    words = job.of("accelerate")
    assert option(words, "--num_processes") == str(processes)
    assert ("--train.device" in words) == (asked != "0")


@pytest.mark.parametrize(("given", "seconds"), [({}, "600"), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "45"}, "45")])
def test_the_launcher_waits_for_processes_that_save(job, given, seconds):
    job(**given)
    assert job.environment()["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == seconds


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU")
def test_gpus_that_torch_does_not_see_are_told_once_by_each_machine(job, shards):
    of_launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    command = [sys.executable, "-m", "scalegan.train", *arguments(shards, job.folder / "run", 64), "--train.device", "cuda"]
    training = (
        "import os, subprocess; "
        f"environment = os.environ | {of_launcher} | {{'RANK': os.environ['SLURM_NODEID']}}; "
        f"raise SystemExit(subprocess.call({command}, env=environment))"
    )
    done = job(SLURM_NNODES="2", SLURM_GPUS_PER_NODE="1", TRAINING=training)
    assert done.returncode == 2
    assert option(job.of("accelerate"), "--train.device") == "cuda"
    line = "train.device is cuda but torch sees no GPU here: use --train.device cpu, or check the driver and torch build\n"
    machine = os.uname().nodename
    assert done.stderr == f"scalegan: error: {line}scalegan: error: machine {machine}: {line}"


def test_options_may_stand_on_several_lines(job):
    """As a file to source first may set them."""
    options = "--train.seed 5\n  --train.images 64\n"
    done = job(SCALEGAN_ARGS=options, SCALEGAN_SRUN="--mpi=none\n--exact", SCALEGAN_EXEC="env\nCONTAINER=1")
    assert done.returncode == 0, done.stderr
    words = job.of("accelerate")
    assert (option(words, "--train.seed"), option(words, "--train.images")) == ("5", "64")
    assert {"--mpi=none", "--exact"} <= set(job.of("srun"))
    assert job.environment()["CONTAINER"] == "1"


# --- containers


def test_a_container_that_starts_elsewhere_trains_in_the_folder_of_the_job(job):
    (job.folder / "container.sh").write_text('cd /tmp\nexec "$@"\n')
    done = job(SCALEGAN_EXEC=f"bash {job.folder}/container.sh")
    assert done.returncode == 0, done.stderr
    assert job.of("accelerate")[0] == str(job.folder)


@pytest.mark.parametrize("name", ["SCALEGAN_ROOT", "SCALEGAN_RUN", "SCALEGAN_FOLDER"])
def test_a_container_without_the_folders_of_the_job_is_told_of_in_one_line(job, name):
    done = job(SCALEGAN_EXEC=f"env {name}=/not/there")
    assert done.returncode == 2
    assert done.stderr == "scalegan: error: machine n0: no folder /not/there here: mount it into the container\n"
    assert not (job.seen / "accelerate").exists()


@pytest.mark.parametrize("container", ["", "env --default-signal=USR1"], ids=["plain", "that resets signals"])
def test_the_launcher_starts_deaf_to_what_it_would_die_of(job, container):
    """It has a handler for TERM later, and none for USR1."""
    done = job(SCALEGAN_EXEC=container)
    assert done.returncode == 0, done.stderr
    assert job.ignored(10)
    assert job.ignored(15)
    assert not job.ignored(2)


# --- notice and requeue


def test_a_notice_before_there_is_a_step_reaches_it(job, tmp_path):
    (tmp_path / "setup.sh").write_text("kill -USR1 $$\n")
    waits = "import signal; signal.pthread_sigmask(0, [10]); print('told', bool(signal.sigtimedwait([10], 20)))"
    done = job(SCALEGAN_SETUP=str(tmp_path / "setup.sh"), TRAINING=waits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.index("notice: the training saves and stops") < done.stdout.index("told True")


def test_a_training_that_asks_for_it_is_requeued(job):
    done = job(TRAINING=ASKS)
    assert done.returncode == -9, "by Slurm"
    assert job.of("scontrol") == ["requeue 7"]
    assert "requeueing the job, to resume at 320 images" in done.stdout


@pytest.mark.parametrize(
    ("array", "asked"), [("7", "requeue 7_3"), ("5", "requeue 7")], ids=["with its number", "with another"]
)
def test_a_task_of_an_array_requeues_itself_alone(job, array, asked):
    """One of them has the number of the array, which scontrol takes for all of its tasks."""
    job(TRAINING=ASKS, SLURM_ARRAY_JOB_ID=array, SLURM_ARRAY_TASK_ID="3")
    assert job.of("scontrol") == [asked]


@pytest.mark.parametrize("of", ["6.0", "7.0", ""], ids=["of another job", "of this job before", "of no job"])
def test_what_others_ask_for_is_left_alone(job, of):
    """A second job on the folder of one that runs is refused, and the first one's wish is not the second's to undo."""
    marker = job.folder / "runs" / "kiwi" / "requeue"
    marker.parent.mkdir(parents=True)
    marker.write_text(f"320 {of}\n")
    done = job(TRAINING="raise SystemExit(2)", SLURM_RESTART_COUNT="1")
    assert done.returncode == 2
    assert not (job.seen / "scontrol").exists()
    assert marker.exists()


@pytest.mark.parametrize(
    ("why", "said"),
    [({"REFUSES": "1"}, "scontrol failed"), ({"MAX_RESTARTS": "0"}, "MAX_RESTARTS=0 reached")],
)
def test_a_job_with_work_left_that_is_not_requeued_has_not_succeeded(job, why, said):
    done = job(TRAINING=ASKS, **why)
    assert done.returncode == 75
    assert re.search(rf"not requeued: {said}; the same sbatch command resumes the run\n$", done.stdout)
