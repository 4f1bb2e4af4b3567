"""What is done to a run on purpose: killed processes, another configuration, a second writer, gradients that are no numbers."""

import contextlib
import datetime
import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.launcher import start
from helpers.runs import (
    FULL,
    arguments,
    configured,
    contents,
    disturbed_training,
    metrics,
    newest,
    stopped_training,
    tensors,
    training,
)
from helpers.shards import make_shards
from helpers.worlds import free_port, run_world
from scalegan import settings
from scalegan.errors import UserError
from scalegan.run import Lock

pytestmark = pytest.mark.faults

LINE = "scalegan: error: "
LONG = 32 * 100


def lines(text):
    """Our own error lines."""
    return [line for line in text.splitlines() if line.startswith(LINE)]


def command(argv):
    """`scalegan train`, as one process of a launcher; returns the exit code."""
    from scalegan import cli

    return cli.main(["train", *argv])


# --- killed


TODAY = datetime.date.today().toordinal()
"""One seed a day for those who test often; the name of the test says which."""
KILLED = FULL | {
    "model.critic_norm": "spectral",
    "data.reader": "stream",
    "log.checkpoint": 96,
    "log.samples": 128,
    "log.keep": 1,
}


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """The run folder that nobody disturbed, by the number of processes."""
    made = {}

    def run(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            ended = run_world(folder, processes, training, configured(shards, folder / "run", 32 * 14, **KILLED))
            assert [e.value for e in ended] == [True] * processes, ended
            made[processes] = contents(folder / "run")
        return made[processes]

    return run


KILLINGS = [(p, workers, all_) for p in (1, 2, 4) for workers in (0, 2) for all_ in (True, False)]
"""How many processes train, how many workers load for each, and whether all are killed or one; every seed has its turn."""


@pytest.mark.distributed
@pytest.mark.parametrize("seed", [TODAY, *(pytest.param(s, marks=pytest.mark.slow) for s in range(20))])
def test_a_killed_run_goes_on_to_the_same_bytes(shards, tmp_path, undisturbed, seed):
    """The clock goes back to the last checkpoint, and with it metrics.jsonl, losses.csv and all that is random."""
    chance = random.Random(seed)
    processes, workers, all_ = KILLINGS[seed % len(KILLINGS)]
    step, killed = chance.randint(0, 12), None if all_ else chance.randrange(processes)
    config = configured(shards, tmp_path / "run", 32 * 14, **KILLED | {"data.workers": workers})
    ended = run_world(tmp_path, processes, stopped_training, config, killed, signal.SIGKILL, 32 * step)
    assert all(e.exitcode != 0 for e in ended)
    assert all(ended[rank].exitcode == -signal.SIGKILL for rank in (range(processes) if killed is None else [killed]))
    last = 32 * step // 96 * 96  # or the one before, where it was still being written
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()]
    assert max(saved, default=0) in (last, last - 96)
    again = run_world(tmp_path, processes, training, config)
    assert [e.value for e in again] == [True] * processes, again
    ours, theirs = contents(tmp_path / "run"), undisturbed(processes)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


# --- told to stop


def tell(numbers):
    """Send signals to this process and all that it has started, as a batch system does."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    for number in numbers:
        for pid in sorted(family):
            os.kill(pid, number)


def told(config, numbers, workers):
    def disturb():
        assert len(multiprocessing.active_children()) == workers
        tell(numbers)

    return disturbed_training(config, 32 * 5, disturb)


@pytest.mark.parametrize(
    ("workers", "start_method"),
    [
        (2, "forkserver"),
        pytest.param(2, "fork", marks=pytest.mark.slow),
        pytest.param(0, "forkserver", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGCONT, signal.SIGTERM), *(pytest.param((n,), marks=pytest.mark.slow) for n in (signal.SIGUSR1, signal.SIGTERM))],
    ids=lambda numbers: "+".join(n.name for n in numbers),
)
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.distributed)])
def test_signals_to_every_process_of_the_step_lose_no_step(
    shards, tmp_path, undisturbed, processes, numbers, workers, start_method
):
    loader = {"data.workers": workers, "data.start_method": start_method}
    config = configured(shards, tmp_path / "run", 32 * 14, **KILLED | loader)
    stopped = run_world(tmp_path, processes, told, config, numbers, workers)
    assert [(e.value, e.exitcode) for e in stopped] == [(False, 0)] * processes, stopped
    at = int((tmp_path / "run" / "requeue").read_text())
    assert at == int(newest(tmp_path / "run").name) == (32 * 6 if processes == 1 else 32 * 7)
    again = run_world(tmp_path, processes, training, config)
    assert [e.value for e in again] == [True] * processes, again
    ours, theirs = contents(tmp_path / "run"), undisturbed(processes)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


# --- told to stop, or a mistake found, in an evaluation


EVALUATED = {"evaluation__every": 32 * 4, "evaluation__batch": 8, "log__snapshots": 32 * 4, "ema__power": "[0.1]"}


def evaluating(config, at, disturb):
    """Training with evaluations by features that cost nothing; `disturb` is called in the first pass of the one at `at`."""
    import torch
    from torch import nn

    from scalegan import outputs, train
    from scalegan.evaluation import evaluator
    from scalegan.evaluation.features import Extractor

    now = []

    class Areas(nn.Module):
        num_features, cpu_batch, resize = 48, 8, "none"

        def forward(self, images):
            if now == [at]:
                now.clear()
                disturb()
            return nn.functional.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)

    def noted(self, ema, images_seen, evaluate=outputs.Outputs.evaluate):
        now[:] = [images_seen]
        return evaluate(self, ema, images_seen)

    made = Extractor("lite0", Areas(), "no weights", torch.device("cpu"), 8)
    evaluator.load_extractor = lambda config, device, team: made
    outputs.Outputs.evaluate = noted
    outputs.Outputs.finished = lambda self, images_seen: self.say(f"done: {images_seen}")
    return train.train(config)


def told_in_an_evaluation(config, at, rank):
    def tell_this_process():
        if int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), signal.SIGUSR1)

    return evaluating(config, at, tell_this_process)


def mistaken_in_an_evaluation(config, at, rank):
    def fail():
        if int(os.environ.get("RANK", "0")) == rank:
            raise UserError("images have NaN in them")

    return evaluating(config, at, fail)


@pytest.fixture(scope="module")
def evaluated(shards, tmp_path_factory):
    """What a run with evaluations leaves that nobody disturbed, by the number of processes."""
    made = {}

    def run(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("evaluated")
            config = configured(shards, folder / "run", 32 * 10, **EVALUATED)
            ended = run_world(folder, processes, told_in_an_evaluation, config, None, 0)
            assert [e.value for e in ended] == [True] * processes, ended
            made[processes] = all_but_seconds(folder / "run")
        return made[processes]

    return run


def all_but_seconds(run):
    left = contents(run)
    records = [json.loads(line) | {"seconds": 0} for line in left.pop("evaluations.jsonl").splitlines()]
    state = json.loads((newest(run) / "manifest.json").read_text())["state"]
    return left, records, state["best"], state["done"]


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.distributed)])
@pytest.mark.parametrize("at", [32 * 4, 32 * 8, 32 * 10], ids=["the first", "another", "of the last pass"])
@pytest.mark.parametrize("how", [told_in_an_evaluation, mistaken_in_an_evaluation], ids=["notice", "mistake"])
def test_what_comes_in_an_evaluation_costs_no_step_and_it_is_made_again(shards, tmp_path, evaluated, processes, rank, at, how):
    config = configured(shards, tmp_path / "run", 32 * 10, **EVALUATED)
    stopped = run_world(tmp_path, processes, how, config, at, rank)
    notice = how is told_in_an_evaluation
    if notice:
        assert [(e.value, e.exitcode) for e in stopped] == [(False, 0)] * processes, stopped
    else:
        assert [str(e.value) for e in stopped] == ["images have NaN in them"] * processes, stopped
    assert (tmp_path / "run" / "requeue").exists() == notice
    assert int(newest(tmp_path / "run").name) == at
    again = run_world(tmp_path, processes, told_in_an_evaluation, config, None, 0)
    assert [e.value for e in again] == [True] * processes, again
    assert not (tmp_path / "run" / "requeue").exists()
    ours, theirs = all_but_seconds(tmp_path / "run"), evaluated(processes)
    assert ours[1:] == theirs[1:]
    assert ours[0].keys() == theirs[0].keys()
    assert [name for name in theirs[0] if ours[0][name] != theirs[0][name]] == []


# --- a disk that is full


def on_a_small_disk(config, folder):
    """Training on a real file system, which process 0 fills, and later frees; returns what was said."""
    from scalegan import outputs
    from scalegan.steps import Game

    said, say = [], outputs.Outputs.say
    outputs.Outputs.say = lambda self, text: (said.append(text), say(self, text))

    step = Game.generator_step
    hog, first = folder / "hog", os.environ.get("RANK", "0") == "0"

    def generator_step(self, reals, seen):
        if first and seen == 32 * 4:
            with contextlib.suppress(OSError), hog.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        if first and seen == 32 * 9:
            hog.unlink()
        return step(self, reals, seen)

    Game.generator_step = generator_step
    assert training(config)
    return said


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(shards, tmp_path, small_disk, processes):
    often = {"log__checkpoint": 96, "log__every": 32, "log__samples": 224, "log__step_losses": True}
    config = configured(shards, small_disk / "run", 32 * 14, **often)
    ended = run_world(tmp_path, processes, on_a_small_disk, config, small_disk)
    assert [e.exitcode for e in ended] == [0] * processes, ended
    said = ended[0].value
    lost = [line for line in said if "NOT saved" in line]
    # The second would have been of a run whose lines are not all in their files.
    reasons = r"checkpoint at (\d+) images was NOT saved: (.*No space left|the disk has no room for lines of .*samples.jsonl)"
    assert [re.match(reasons, line)[1] for line in lost] == ["192", "288"]
    assert [line for line in said if line.startswith("samples at 224 images were NOT written: No space left")]
    assert int(newest(small_disk / "run").name) == 32 * 14
    reference = configured(shards, tmp_path / "reference", 32 * 14, **often)
    run_world(tmp_path, processes, training, reference)
    ours, theirs = contents(small_disk / "run"), contents(tmp_path / "reference")
    assert {"metrics.jsonl", "losses.csv", "samples.jsonl"} <= ours.keys()
    assert [name for name in theirs if ours.get(name) != theirs[name]] == ["000000224.png"]


# --- a process that hangs


def hanging(config, rank, images_seen):
    def asleep_for_ever():
        if int(os.environ.get("RANK", "0")) == rank:
            time.sleep(3600)

    return disturbed_training(config, images_seen, asleep_for_ever)


@pytest.mark.distributed
def test_a_process_that_hangs_ends_the_run_with_the_stacks_of_all(shards, tmp_path):
    config = configured(shards, tmp_path / "run", LONG, train__hang_minutes=0.05, log__checkpoint=64)
    began = time.monotonic()
    ended = run_world(tmp_path, 2, hanging, config, 1, 32 * 5)
    assert time.monotonic() - began < 3 + 5 + 30, "the limit, the grace, and starting"
    assert [e.exitcode for e in ended] == [1, 1]
    for rank, where in enumerate(("all_reduce", "asleep_for_ever")):
        assert "no step in 3 s after image 160" in lines(ended[rank].stderr)[0]
        assert where in (tmp_path / "run" / "stacks" / f"process{rank}.txt").read_text()
    assert int(newest(tmp_path / "run").name) == 128


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=[pytest.mark.distributed, pytest.mark.slow])])
def test_a_first_step_that_hangs_ends_the_run_too(shards, tmp_path, processes):
    config = configured(shards, tmp_path / "run", LONG, train__hang_minutes=0.05)
    began = time.monotonic()
    ended = run_world(tmp_path, processes, hanging, config, processes - 1, 0)
    assert time.monotonic() - began < 4 * 3 + 5 + 30, "four times the limit, the grace, and starting"
    assert [e.exitcode for e in ended] == [1] * processes
    assert all("no step in 12 s after image 0" in lines(e.stderr)[0] for e in ended)
    assert "asleep_for_ever" in (tmp_path / "run" / "stacks" / f"process{processes - 1}.txt").read_text()


def hanging_before(config, where):
    """One that does not come to its data: at the index, where the other process never comes, or at the checkpoints."""
    from scalegan import checkpoint, train

    def asleep_for_ever(*_, **__):
        time.sleep(3600)

    if where == "rendezvous":
        world = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": free_port()}
        os.environ |= {name: str(value) for name, value in world.items()} | {"MASTER_ADDR": "127.0.0.1"}
    elif where == "index":
        train.read_index = asleep_for_ever
    else:
        checkpoint.latest = asleep_for_ever
    return training(config)


@pytest.mark.parametrize("where", ["rendezvous", *(pytest.param(w, marks=pytest.mark.slow) for w in ("index", "checkpoints"))])
def test_what_hangs_before_the_data_is_opened_ends_too(shards, tmp_path, where):
    config = configured(shards, tmp_path / "run", LONG, train__hang_minutes=0.05)
    began = time.monotonic()
    (ended,) = run_world(tmp_path, 1, hanging_before, config, where)
    assert time.monotonic() - began < 4 * 3 + 5 + 30, "four times the limit, the grace, and starting"
    assert ended.exitcode == 1
    assert "no step in 12 s after image 0" in lines(ended.stderr)[0]
    stacks = (tmp_path / "run" / "stacks" / "process0.txt").read_text()
    assert ("rendezvous" if where == "rendezvous" else "asleep_for_ever") in stacks


def slow_pictures(config):
    """Of process 0 alone, while the others have nothing to do."""
    from scalegan import outputs

    outputs.Outputs.samples = lambda self, *_: time.sleep(4) if self.main else None
    return training(config)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_what_takes_long_between_steps_is_no_hang(shards, tmp_path, processes):
    config = configured(shards, tmp_path / "run", 32 * 4, train__hang_minutes=0.05, log__samples=64)
    ended = run_world(tmp_path, processes, slow_pictures, config)
    assert [e.value for e in ended] == [True] * processes, ended
    assert not (tmp_path / "run" / "stacks").exists(), "the end of so short a run comes before the watchdog's"


# --- met by one process before the first step


def without_checkpoints(argv):
    """One that cannot read what process 0 has found, as on another machine."""
    from scalegan import checkpoint

    def read(path):
        raise UserError(f"{path} is not there")

    if os.environ["RANK"] == "1":
        checkpoint.read = read
    return command(argv)


@pytest.mark.distributed
def test_a_checkpoint_that_one_process_alone_cannot_read_is_told_once(shards, tmp_path):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64))
    ended = run_world(tmp_path, 2, without_checkpoints, arguments(shards, tmp_path / "run", 128))
    assert [e.value for e in ended] == [2, 2], ended
    assert lines(ended[0].stderr) == [f"{LINE}process 1: {newest(tmp_path / 'run')} is not there"]
    assert lines(ended[1].stderr) == []


def gone(argv):
    """Process 0 ends before the trainer is made, or in a dry run before the first step."""
    from scalegan import train
    from scalegan.steps import Game

    if os.environ["RANK"] == "0":
        train.claim = Game.prime = lambda *_: os._exit(3)
    return command(argv)


@pytest.mark.distributed
@pytest.mark.parametrize("how", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_a_process_that_is_lost_before_the_first_step_costs_the_others_no_traceback(shards, tmp_path, how):
    ended = run_world(tmp_path, 2, gone, arguments(shards, tmp_path / "run", 64) + how)
    assert ended[0].exitcode == 3
    assert ended[1].value == 2, ended
    assert "Traceback" not in ended[1].stderr


# --- refused


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
@pytest.mark.parametrize("run", ["a_file", "a_file/run"])
def test_a_file_in_the_place_of_the_run_folder_is_told_once(shards, tmp_path, run, processes):
    (tmp_path / "a_file").touch()
    ended = run_world(tmp_path, processes, command, arguments(shards, tmp_path / run, 64))
    assert [e.value for e in ended] == [2] * processes, ended
    assert [line for e in ended for line in lines(e.stderr)] == [f"{LINE}--run {tmp_path / 'a_file'} is a file: give a folder"]
    assert not any("Traceback" in e.stderr for e in ended)


@pytest.mark.distributed
def test_a_batch_that_does_not_divide_is_told_once_by_the_first_process(shards, tmp_path):
    argv = arguments(shards, tmp_path / "run", 64, train__batch=33)
    ended = run_world(tmp_path, 2, command, argv)
    assert [e.value for e in ended] == [2, 2]
    assert lines(ended[0].stderr) == [
        f"{LINE}train.batch 33 is not divisible by 2 processes x train.accumulate 1: try --train.batch 32"
    ]
    assert ended[1].stderr == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
@pytest.mark.parametrize(
    "wrong",
    [
        {"train__batch": 33},
        pytest.param({"data__path": "nowhere"}, marks=pytest.mark.slow),
        pytest.param(
            {"train__device": "cuda"}, marks=[pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="GPU")]
        ),
    ],
    ids=str,
)
def test_the_launcher_passes_the_line_on_and_fails(shards, tmp_path, wrong):
    process = start(arguments(shards, tmp_path / "run", 64, **wrong))
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert len(lines(errors)) == 1
    assert errors.index(LINE) < errors.index("Traceback"), "our line comes before the launcher's own words"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_run_folder_of_another_configuration_is_refused_with_the_difference(shards, tmp_path, processes):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64))
    before = files(tmp_path / "run")
    argv = arguments(shards, tmp_path / "run", 128, optim__lr_g=0.5, model__z_dim=7)
    ended = run_world(tmp_path, processes, command, argv)
    assert [e.value for e in ended] == [2] * processes
    (line,) = lines(ended[0].stderr)
    assert "another configuration (model.z_dim: 100 -> 7; optim.lr_g: 0.0002 -> 0.5)" in line
    assert all(not lines(e.stderr) for e in ended[1:])
    assert files(tmp_path / "run") == before


def test_it_is_refused_in_5_s(shards, tmp_path):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64))
    changed = arguments(shards, tmp_path / "run", 64, optim__lr_g=0.5)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "scalegan.cli", "train", *changed], capture_output=True, text=True)
    assert time.monotonic() - began < 5
    assert done.returncode == 2
    assert "optim.lr_g: 0.0002 -> 0.5" in done.stderr


def test_what_may_change_goes_on_with_override_resume_and_stays_on_record(shards, tmp_path):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64))
    changed = [*arguments(shards, tmp_path / "run", 128, optim__lr_g=0.5), "--override_resume"]
    (refused,) = run_world(tmp_path, 1, command, [*changed, "--model.z_dim=7"])
    assert refused.value == 2
    assert "another configuration (model.z_dim: 100 -> 7): undo that, or give --run another folder\n" in refused.stderr
    (plain,) = run_world(tmp_path, 1, command, arguments(shards, tmp_path / "run", 128, optim__lr_g=0.5))
    assert plain.value == 2
    assert "or go on all the same with --override_resume" in plain.stderr
    (ended,) = run_world(tmp_path, 1, training, settings.parse(changed).config)
    assert ended.value is True, ended
    assert [line["lr/G"] for line in metrics(tmp_path / "run")] == [0.0002, 0.5]
    (record,) = json.loads((tmp_path / "run" / "run.json").read_text())["overridden"]
    assert record == {"after_checkpoint": "000000064", "changes": ["optim.lr_g: 0.0002 -> 0.5"]}


@pytest.mark.parametrize("newest_told", [True, False])
def test_a_run_that_lost_its_run_json_is_known_by_its_checkpoints(shards, tmp_path, newest_told):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 128, log__checkpoint=64))
    (tmp_path / "run" / "run.json").unlink()
    if not newest_told:
        (newest(tmp_path / "run") / "manifest.json").write_text("{")
    changed = arguments(shards, tmp_path / "run", 192, optim__lr_g=0.5)
    (refused,) = run_world(tmp_path, 1, command, changed)
    assert refused.value == 2
    assert "another configuration (optim.lr_g: 0.0002 -> 0.5): undo that, or give --run another folder, or" in refused.stderr
    (refused,) = run_world(tmp_path, 1, command, [*changed, "--override_resume", "--model.z_dim=7"])
    assert refused.value == 2
    assert "another configuration (model.z_dim: 100 -> 7): undo that, or give --run another folder\n" in refused.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    again = configured(shards, tmp_path / "run", 192, train__precision="auto")
    (ended,) = run_world(tmp_path, 1, on_another_cpu, again, True)
    assert ended.value is True, ended
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["train"]["precision"] == "fp32"


def test_other_images_are_refused_to_a_run_that_lost_its_run_json(tmp_path):
    make_shards(tmp_path / "shards")
    config = configured(tmp_path / "shards", tmp_path / "run", 64)
    run_world(tmp_path, 1, training, config)
    (tmp_path / "run" / "run.json").unlink()
    shutil.rmtree(tmp_path / "shards")
    make_shards(tmp_path / "shards", seed=1)
    (ended,) = run_world(tmp_path, 1, training, config)
    assert re.search("another configuration .data: [0-9a-f]{64} -> [0-9a-f]{64}.: undo that", str(ended.value))


def on_another_cpu(config, has_bf16):
    from scalegan import distributed

    distributed.has_bf16 = lambda device: has_bf16
    return training(config)


def test_a_run_keeps_the_precision_it_began_with_on_another_machine(shards, tmp_path):
    for images, has_bf16 in ((64, False), (128, True)):
        config = configured(shards, tmp_path / "run", images, train__precision="auto")
        (ended,) = run_world(tmp_path, 1, on_another_cpu, config, has_bf16)
        assert ended.value is True, ended
        assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["train"]["precision"] == "fp32"


@pytest.mark.distributed
def test_machines_that_differ_in_auto_precision_are_told(shards, tmp_path):
    config = configured(shards, tmp_path / "run", 64, train__precision="auto")
    ended = run_world(tmp_path, 2, on_another_cpu, [config, config], [False, True], each=True)
    assert all("auto is bf16 and fp32 on these machines: say which" in str(e.value) for e in ended), ended
    assert not (tmp_path / "run").exists()


def test_other_images_are_refused_in_5_s(tmp_path):
    make_shards(tmp_path / "shards")
    run_world(tmp_path, 1, training, configured(tmp_path / "shards", tmp_path / "run", 64))
    shutil.rmtree(tmp_path / "shards")
    make_shards(tmp_path / "shards", seed=1)
    began = time.monotonic()
    command = [sys.executable, "-m", "scalegan.cli", "train", *arguments(tmp_path / "shards", tmp_path / "run", 64)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert time.monotonic() - began < 5
    assert done.returncode == 2
    assert re.search("another configuration .data: [0-9a-f]{64} -> [0-9a-f]{64}.: undo that", done.stderr)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_other_images_under_the_same_path_are_another_configuration(tmp_path):
    make_shards(tmp_path / "shards")
    config = configured(tmp_path / "shards", tmp_path / "run", 64)
    run_world(tmp_path, 1, training, config)
    shutil.rmtree(tmp_path / "shards")
    make_shards(tmp_path / "shards", seed=1)
    (ended,) = run_world(tmp_path, 1, training, config)
    assert re.search("another configuration .data: [0-9a-f]{64} -> [0-9a-f]{64}.: undo that", str(ended.value))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_second_writer_is_refused(shards, tmp_path, processes):
    lock = Lock(tmp_path / "run")
    ended = run_world(tmp_path, processes, command, arguments(shards, tmp_path / "run", 64))
    lock.close()
    assert [e.value for e in ended] == [2] * processes
    (line,) = lines(ended[0].stderr)
    assert f"run folder {tmp_path / 'run'} is being written by process {os.getpid()} on " in line
    assert all(not lines(e.stderr) for e in ended[1:])
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_second_writer_is_refused_in_5_s(shards, tmp_path):
    lock = Lock(tmp_path / "run")
    began = time.monotonic()
    command = [sys.executable, "-m", "scalegan.cli", "train", *arguments(shards, tmp_path / "run", 64)]
    done = subprocess.run(command, capture_output=True, text=True)
    lock.close()
    assert time.monotonic() - began < 5
    assert done.returncode == 2
    assert f"is being written by process {os.getpid()} on " in done.stderr


@pytest.mark.parametrize(("local", "told"), [("0", True), ("1", False)])
def test_shards_missing_on_another_machine_are_told_by_its_first_process(tmp_path, monkeypatch, capsys, local, told):
    for name, value in {"RANK": "3", "LOCAL_RANK": local, "WORLD_SIZE": "4", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert command(arguments(tmp_path / "nowhere", tmp_path / "run", 64)) == 2
    found = lines(capsys.readouterr().err)
    assert len(found) == told
    assert not told or f"machine {os.uname().nodename}: {tmp_path}/nowhere/index.json is missing" in found[0]


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    """Lustre mounted without its option for locks answers so."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "Function not implemented")))
    Lock(tmp_path / "run").close()
    assert "is on a file system without locks: see that one training at a time writes there" in capsys.readouterr().out


def test_checkpoints_that_are_all_damaged_are_no_new_start(shards, tmp_path):
    config = configured(shards, tmp_path / "run", 64)
    run_world(tmp_path, 1, training, config)
    (newest(tmp_path / "run") / "ema.safetensors").write_bytes(b"")
    recorded = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (ended,) = run_world(tmp_path, 1, training, config)
    assert re.search("ema.safetensors is damaged.*and no other is whole: restore one, or give --run another", str(ended.value))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == recorded


# --- told to stop, under a real launcher


LAUNCHED = 32 * 60


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    ended = run_world(folder, 2, training, configured(shards, folder / "run", LAUNCHED, **FULL), True)
    assert [e.value for e in ended] == [True, True], ended
    return folder / "run"


@pytest.mark.distributed
@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("TERM to the launcher", marks=pytest.mark.slow)])
def test_a_launched_run_that_is_stopped_saves_and_goes_on(shards, tmp_path, unbroken, how):
    argv = arguments(shards, tmp_path / "run", LAUNCHED, **FULL)
    process = start(argv)
    recorded = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: recorded.exists() and recorded.read_bytes().count(b"\n") >= 2)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells the launcher and its processes
    else:
        process.terminate()
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 1, "of the launcher, whatever its processes end with"
    said = re.search(r"stopped at (\d+) images on request, checkpoint saved: run the same command to go on", output)
    assert said, output + errors
    stopped = int(said[1])
    assert stopped < LAUNCHED
    assert int(newest(tmp_path / "run").name) == stopped

    again = start(argv)
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert f"going on at {stopped} images of {LAUNCHED}" in output
    ours, theirs = contents(tmp_path / "run"), contents(unbroken)
    assert [name for name in theirs if name != "evaluations.jsonl" and ours[name] != theirs[name]] == []
    ours, theirs = (json.loads(record["evaluations.jsonl"]) for record in (ours, theirs))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}


def wait_for(condition):
    limit = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


# --- gradients that are no numbers


def poison(network, rank, first, last):
    """Make one gradient of the generator NaN, or one of the critic infinite, on process `rank` in the steps from first to last,
    before they are reduced."""
    from scalegan.steps import Game

    build, step = Game.__init__, Game._step

    def with_hook(self, *arguments):
        build(self, *arguments)
        self.steps_made = {"generator": 0, "critic": 0}
        parameter = list(getattr(self, f"bare_{network}").parameters())[1]

        def nan(gradient):
            here = int(os.environ.get("RANK", "0")) == rank and self.primed and first <= self.steps_made[network] <= last
            return torch.full_like(gradient, torch.inf if network == "critic" else torch.nan) if here else gradient

        self.primed = False
        parameter.register_hook(nan)

    def counted(self, optimizer, *arguments):
        result = step(self, optimizer, *arguments)
        self.steps_made["generator" if optimizer is self.opt_g else "critic"] += 1
        return result

    def prime(self, plain=Game.prime):
        plain(self)
        self.primed = True

    Game.__init__, Game._step, Game.prime = with_hook, counted, prime


def poisoned(config, network, rank, first, last):
    poison(network, rank, first, last)
    return training(config)


def poisoned_command(argv, rank, last):
    poison("critic", rank, 4, last)
    return command(argv)


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.distributed)])
@pytest.mark.parametrize("network", ["generator", "critic"])
def test_a_step_with_nan_on_one_process_is_skipped_on_all(shards, tmp_path, network, processes, rank):
    config = configured(shards, tmp_path / "run", 32 * 8, ema__half_life=64)
    ended = run_world(tmp_path, processes, poisoned, config, network, rank, 2, 3)
    assert [e.value for e in ended] == [True] * processes, ended
    assert [line["skipped_steps"] for line in metrics(tmp_path / "run")] == [0, 2, 0, 0]
    assert [line["skipped_in_a_row"] for line in metrics(tmp_path / "run")] == [0, 2, 0, 0]
    for part in ("generator", "critic", "ema"):
        assert all(np.isfinite(values).all() for values in tensors(tmp_path / "run", part).values())
    counts = {part: tensors(tmp_path / "run", f"opt_{part[0]}") for part in ("generator", "discriminator")}
    skipping = "generator" if network == "generator" else "discriminator"
    for part, moments in counts.items():
        assert {float(v) for name, v in moments.items() if name.endswith(".step")} == {6.0 if part == skipping else 8.0}


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.distributed)])
@pytest.mark.parametrize(("last", "every"), [(10_000, 64), (8, 32 * 20)], ids=["for good", "recovered before the next line"])
def test_too_many_in_a_row_stop_the_run_in_one_line(shards, tmp_path, processes, rank, last, every):
    argv = arguments(shards, tmp_path / "run", 32 * 40, train__nonfinite_limit=5, log__checkpoint=64, log__every=every)
    ended = run_world(tmp_path, processes, poisoned_command, argv, rank, last)
    assert [e.value for e in ended] == [2] * processes, ended
    (line,) = lines(ended[0].stderr)
    told = r"gradients were not finite in 5 steps in a row up to image 288 \(critic\.discriminator\.layers\.2\.weight\): "
    assert re.search(told, line)
    assert all(not lines(e.stderr) for e in ended[1:])
    assert all(np.isfinite(values).all() for values in tensors(tmp_path / "run", "generator").values())


def poisoned_and_told(argv, rank):
    """Told to stop in the step after the last poisoned one, before the next line of metrics."""
    from scalegan.steps import Game

    poison("critic", rank, 4, 8)
    step = Game.generator_step

    def generator_step(self, reals, images_seen):
        if images_seen == 32 * 9:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, reals, images_seen)

    Game.generator_step = generator_step
    return command(argv)


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.distributed)])
def test_after_too_many_in_a_row_nothing_is_saved_that_could_not_go_on(shards, tmp_path, processes, rank):
    often = {"train__nonfinite_limit": 5, "log__checkpoint": 96, "log__every": 32 * 20}
    argv = arguments(shards, tmp_path / "run", 32 * 12, **often)
    ended = run_world(tmp_path, processes, poisoned_and_told, argv, rank)
    assert [e.value for e in ended] == [2] * processes, ended
    assert "gradients were not finite in 5 steps in a row up to image 288 " in lines(ended[0].stderr)[0]
    assert not (tmp_path / "run" / "requeue").exists()
    assert int(newest(tmp_path / "run").name) == 192
    again = run_world(tmp_path, processes, command, [*argv, "--optim.lr_g=0.0001", "--override_resume"])
    assert [e.value for e in again] == [0] * processes, again


# --- Ctrl-C of one process


def test_ctrl_c_of_a_run_on_one_process_saves_and_asks_for_it_again(shards, tmp_path):
    argv = [sys.executable, "-m", "scalegan.cli", "train", *arguments(shards, tmp_path / "run", LONG)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    recorded = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: recorded.exists() and recorded.read_bytes().count(b"\n") >= 2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    said = re.search(r"stopped at (\d+) images on request, checkpoint saved: run the same command to go on", output)
    assert said, output + errors
    assert (tmp_path / "run" / "requeue").read_text() == f"{said[1]}\n"
    assert int(newest(tmp_path / "run").name) == int(said[1]) < LONG
