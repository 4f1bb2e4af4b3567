"""The job scripts as they are, on a real Slurm of two nodes: whatever happens to a job, it ends with the same weights."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.daily import by_the_day
from helpers.runs import SMALL, newest
from helpers.slurm import NODES, Cluster, missing, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

CHECKOUT = Path(__file__).parents[2]
IMAGES = 32 * 600
STEPS = {"train.images": IMAGES, "log.every": 640, "log.checkpoint": 6400, "log.keep": 1, "train.device": "cpu"}
LONG = 5000
"""Steps that take longer than a time limit of a minute: two minutes on two cores of 2026, 41 steps a second."""
WORKERS = {"data.reader": "stream", "data.workers": 1}
"""Images by a loader worker of each process; the others keep them in memory. The bytes at the end are to be the same."""
ACCIDENTS = 8
"""Tests of minutes each, of which one a day runs in `make test-slurm`, all of them in `make test-all`."""
NETWORKS = SMALL | {"model.norm_group": 0, "model.critic_norm": "spectral", "loss.r1_gamma": 0.1, "log.wandb": "off"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@contextmanager
def submitting(cluster, shards, folder):
    """sbatch slurm/NAME.sh, with networks made tiny and one process a node unless told otherwise; gives the job's number."""
    jobs = []

    def sbatch(name, *flags, processes=1, images=IMAGES, more=None, **variables):
        options = NETWORKS | STEPS | {"train.images": images, "data.path": shards, "run": folder / "run"} | (more or {})
        environment = {
            "SCALEGAN_ARGS": " ".join(f"--{key}={value}" for key, value in options.items()),
            "SCALEGAN_THREADS": "1",
            "SCALEGAN_PROCESSES": str(processes),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        } | variables
        command = ["sbatch", "--parsable", f"--output={folder}/%j.out", *flags, f"slurm/{name}.sh"]
        jobs.append(cluster.run(*command, extra=environment, cwd=CHECKOUT).strip())
        return jobs[-1]

    try:
        yield sbatch
    finally:  # a job that is left over would keep the nodes from the next test
        for job in jobs:
            cluster.run("scancel", "--quiet", job)
            wait_for(f"job {job} to leave", 60, lambda job=job: cluster.state(job) not in ("RUNNING", "COMPLETING", "PENDING"))


@pytest.fixture
def submit(cluster, shards, tmp_path):
    with submitting(cluster, shards, tmp_path) as sbatch:
        yield sbatch


@pytest.fixture(scope="module")
def undisturbed(cluster, shards, tmp_path_factory):
    """What a job that nobody disturbs ends with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with submitting(cluster, shards, folder) as sbatch:
        job = sbatch("kiwi")
        assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(folder, job)
    return result(folder / "run")


def log(folder, job):
    return (folder / f"{job}.out").read_text()


def begun(folder, job):
    """The log, which is not there before the job is."""
    return log(folder, job) if (folder / f"{job}.out").is_file() else ""


def result(run):
    """The bytes that no disturbance may change."""
    return {path.name: path.read_bytes() for path in [*newest(run).glob("*.safetensors"), run / "metrics.jsonl"]}


def at_work(run):
    """The training is well on its way, past its first checkpoint."""
    wait_for(f"{run} to be on its way", 120, lambda: (run / "checkpoints").is_dir() and any((run / "checkpoints").glob("0*")))


def environment(pid):
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def differing(run, undisturbed):
    found = result(run)
    assert found.keys() == undisturbed.keys()
    return [name for name in undisturbed if found[name] != undisturbed[name]]


@pytest.mark.parametrize(
    ("name", "flags", "processes"),
    [
        ("kiwi", (), 2),
        pytest.param("kiwi", ("--gpus-per-node=0", "--cpus-per-task=2", "--partition=high"), 1, marks=pytest.mark.slow),
        pytest.param("brain", (), 1, marks=pytest.mark.slow),
        pytest.param("fruits360", ("--cpus-per-task=4", "--gpus-per-node=a100:1", "--exclusive"), 1, marks=pytest.mark.slow),
    ],
)
def test_each_script_trains_on_two_nodes(cluster, submit, tmp_path, name, flags, processes):
    """With what a cluster may ask for: an account, a file to source first, a container to start in, options of srun."""
    setup, container, step = tmp_path / "setup.sh", tmp_path / "container.sh", tmp_path / "step.out"
    setup.write_text("export SCALEGAN_THREADS=1\n")
    container.write_text('echo "in a container with $1"\nexec "$@"\n')
    asked = {
        "SCALEGAN_THREADS": "9",
        "SCALEGAN_SETUP": str(setup),
        "SCALEGAN_EXEC": f"bash {container}",
        "SCALEGAN_SRUN": f"--output={step} --open-mode=append",
    }
    if "--exclusive" in flags:
        asked["SCALEGAN_PROCESSES"] = ""  # as many as there are GPUs
    job = submit(name, "--account=lab", *flags, processes=processes, images=3200, **asked)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, job) + step.read_text()
    assert cluster.field(job, "Account") == "lab"
    assert f"2 nodes x {processes} processes, 1 threads each, rank 0 on {NODES[0]}:" in log(tmp_path, job)
    said = step.read_text()
    assert said.count("in a container with bash") == 2
    assert f"done: {3200} images" in said
    assert int(newest(tmp_path / "run").name) == 3200
    assert not (tmp_path / "run" / "requeue").exists()


def test_a_notice_before_the_end_costs_nothing(cluster, submit, tmp_path, undisturbed):
    """What `--signal=B:USR1@180` of the script makes Slurm send, sent now."""
    job = submit("kiwi")
    at_work(tmp_path / "run")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for_restart(job)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, job)
    assert cluster.field(job, "Restarts") == "1"
    assert "requeueing the job" in log(tmp_path, job)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(7, ACCIDENTS)
def test_a_job_that_was_queued_again_often_enough_ends_and_goes_on_when_submitted_again(cluster, submit, tmp_path, undisturbed):
    job = submit("kiwi", MAX_RESTARTS="0")
    at_work(tmp_path / "run")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED", log(tmp_path, job)
    assert cluster.field(job, "ExitCode") == "75:0", "it has work left"
    assert "not requeued: MAX_RESTARTS=0 reached" in log(tmp_path, job)
    assert cluster.field(job, "Restarts") == "0"
    again = submit("kiwi", MAX_RESTARTS="0")
    assert cluster.wait_for_state(again, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, again)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(0, ACCIDENTS)
def test_a_notice_while_the_training_still_imports_is_not_lost(cluster, submit, tmp_path, undisturbed):
    job = submit("kiwi")
    wait_for(f"job {job} to start its step", 60, lambda: "nodes x" in begun(tmp_path, job))
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for_restart(job)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, job)
    assert "requeueing the job" in log(tmp_path, job)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(1, ACCIDENTS)
def test_the_time_limit_gives_notice_by_itself(cluster, submit, shards, tmp_path):
    """Slurm looks at the time now and then alone: with a limit of one minute its notice comes after 20 to 60 seconds."""
    (tmp_path / "undisturbed").mkdir()
    images = 32 * LONG
    job = submit("kiwi", "--time=1", "--signal=B:USR1@40", images=images)
    cluster.wait_for_restart(job, seconds=180)
    assert "notice: the training saves and stops" in log(tmp_path, job)
    assert "requeueing the job" in log(tmp_path, job)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=600) == "COMPLETED", log(tmp_path, job)
    with submitting(cluster, shards, tmp_path / "undisturbed") as sbatch:
        other = sbatch("kiwi", images=images)
        ended = cluster.wait_for_state(other, "COMPLETED", "FAILED", seconds=600)
        assert ended == "COMPLETED", log(tmp_path / "undisturbed", other)
    assert differing(tmp_path / "run", result(tmp_path / "undisturbed" / "run")) == []


@by_the_day(2, ACCIDENTS)
def test_a_preempted_job_comes_back(cluster, submit, tmp_path, undisturbed):
    job = submit("kiwi", more=WORKERS)
    at_work(tmp_path / "run")
    urgent = cluster.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=2",
        "--gpus-per-node=2",
        "--output=/dev/null",
        "--wrap=srun sleep 2",
    ).strip()
    cluster.wait_for_state(urgent, "COMPLETED")
    cluster.wait_for_restart(job)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, job)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(3, ACCIDENTS)
def test_a_job_requeued_from_outside_goes_on(cluster, submit, tmp_path, undisturbed):
    job = submit("kiwi")
    at_work(tmp_path / "run")
    cluster.run("scontrol", "requeue", job)
    cluster.wait_for_restart(job)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, job)
    assert "TERM: cancelled, requeued from outside" in log(tmp_path, job)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(4, ACCIDENTS)
def test_a_node_that_fails_costs_the_steps_since_the_checkpoint(cluster, submit, tmp_path, undisturbed):
    """Slurm holds the job back for two minutes by itself, in which what it was before is cleared off the node that returns."""
    job = submit("kiwi")
    at_work(tmp_path / "run")
    cluster.lose_node(job, NODES[1])
    wait_for("Slurm to notice", 120, lambda: int(cluster.field(job, "Restarts")) == 1)
    cluster.start_node(NODES[1])
    cluster.wait_for_restart(job, seconds=200, at_once=False)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, job)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(5, ACCIDENTS)
def test_a_cancelled_job_saves_and_stays_away(cluster, submit, tmp_path, undisturbed):
    job = submit("kiwi", more=WORKERS)
    at_work(tmp_path / "run")
    before = int(newest(tmp_path / "run").name)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    wait_for("its processes to end", 60, lambda: not cluster.processes(job, NODES[0]) + cluster.processes(job, NODES[1]))
    assert int(newest(tmp_path / "run").name) > before
    time.sleep(5)
    assert cluster.state(job) == "CANCELLED"
    again = submit("kiwi", more=WORKERS)
    assert cluster.wait_for_state(again, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, again)
    assert differing(tmp_path / "run", undisturbed) == []


@by_the_day(6, ACCIDENTS)
def test_a_killed_worker_ends_the_job_and_the_next_goes_on(cluster, submit, tmp_path, undisturbed):
    job = submit("kiwi")
    at_work(tmp_path / "run")
    (worker,) = [pid for pid in cluster.processes(job, NODES[1]) if b"RANK=1" in environment(pid)]
    os.kill(worker, signal.SIGKILL)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=90) == "FAILED"
    assert cluster.field(job, "Restarts") == "0"
    again = submit("kiwi")
    assert cluster.wait_for_state(again, "COMPLETED", "FAILED") == "COMPLETED", log(tmp_path, again)
    assert differing(tmp_path / "run", undisturbed) == []
