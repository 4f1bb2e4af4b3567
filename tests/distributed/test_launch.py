"""The files in launch/: how many processes each really starts, and that they find each other."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.daily import one_a_day
from helpers.launcher import ACCELERATE, LAUNCH, TWO
from helpers.runs import error_lines
from helpers.shards import make_shards
from helpers.worlds import free_port

pytestmark = pytest.mark.distributed

FILES = {path.stem: yaml.safe_load(path.read_text()) for path in LAUNCH.glob("*.yaml")}

# Stands in for scalegan.train: sets up the processes as it does, adds 1 over all of them, and writes down what came out.
# On the CPU throughout: what is counted are processes, and a file for GPUs starts as many of them without any.
PROBE = """
import json, os, sys
import torch
from scalegan.config import TrainConfig
from scalegan.distributed import make_accelerator
accelerator = make_accelerator(TrainConfig(device="cpu", precision="fp32"))
one = torch.ones(())
total = int(accelerator.reduce(one, "sum"))
seen = {"rank": accelerator.process_index, "processes": accelerator.num_processes, "sum": total,
        "threads": torch.get_num_threads(), "machine": int(os.environ.get("GROUP_RANK", 0)),
        "debug": os.environ.get("ACCELERATE_DEBUG_MODE", ""), "type": accelerator.distributed_type.value}
with open(os.path.join(sys.argv[1], f"{os.getpid()}.json"), "w") as file:
    json.dump(seen, file)
accelerator.end_training()
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Start the probe, in several launches at once where several lists of options are given; what its processes saw."""
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    # A file such as `accelerate config` leaves behind must not be listened to.
    hidden = tmp_path / "home" / "accelerate"
    hidden.mkdir(parents=True)
    (hidden / "default_config.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 5\nmixed_precision: bf16\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def start(name, *launches):
        out = tmp_path / "seen"
        out.mkdir()
        command = [*ACCELERATE, "--config_file", str(LAUNCH / f"{name}.yaml")]
        started = [
            subprocess.Popen([*command, *options, str(probe), str(out)], stderr=subprocess.PIPE, text=True)
            for options in launches or [()]
        ]
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
        return sorted((json.loads(path.read_text()) for path in out.iterdir()), key=lambda seen: seen["rank"])

    return start


def test_each_file_is_tested():
    assert sorted(FILES) == ["cpu", "debug", "multi_gpu", "multi_node", "single_gpu"]


@pytest.mark.parametrize("name", one_a_day(["cpu", "multi_gpu", "debug", "single_gpu"]))
def test_a_file_starts_its_processes_in_one_world(launch, name):
    expected = FILES[name]["num_processes"]
    seen = launch(name)
    assert len(seen) == expected
    assert [s["rank"] for s in seen] == list(range(expected))
    assert {(s["processes"], s["sum"]) for s in seen} == {(expected, expected)}
    assert {s["debug"] for s in seen} == {"true" if name == "debug" else ""}
    assert expected == (2 if name in ("cpu", "multi_gpu") else 1)


@pytest.mark.slow
def test_the_number_of_processes_and_of_their_threads_can_be_given(launch):
    seen = launch("cpu", ["--num_processes", "3", "--num_cpu_threads_per_process", "2"])
    assert [(s["rank"], s["sum"], s["threads"]) for s in seen] == [(0, 3, 2), (1, 3, 2), (2, 3, 2)]


@pytest.mark.slow
def test_one_process_takes_all_cores_with_the_file_for_the_cpu(launch):
    import psutil

    seen = launch("cpu", ["--num_processes", "1"])
    assert [(s["processes"], s["threads"]) for s in seen] == [(1, psutil.cpu_count(logical=False))]


@pytest.mark.slow
def test_two_machines_form_one_world_in_the_order_of_their_numbers(launch):
    port = ["--main_process_port", str(free_port())]
    seen = launch("multi_node", ["--machine_rank", "1", *port], ["--machine_rank", "0", *port])
    assert [(s["rank"], s["machine"], s["sum"]) for s in seen] == [(0, 0, 4), (1, 0, 4), (2, 1, 4), (3, 1, 4)]


@pytest.mark.slow
def test_a_launch_that_makes_a_world_of_one_each_is_seen_through(tmp_path):
    """`accelerate launch --multi_gpu` without GPUs: Accelerate alone would let each process believe that it is the only one."""
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    subprocess.run([*ACCELERATE, *options, str(probe), str(tmp_path)], check=True, timeout=120, capture_output=True)
    assert [json.loads(path.read_text())["sum"] for path in tmp_path.glob("*.json")] == [2, 2]


# `scalegan` with an Accelerate that sees one process: on a CPU the real one goes by WORLD_SIZE, and waits for the other.
ALONE = """
import sys
from scalegan import cli, distributed
class Alone:
    num_processes = 1
distributed.Accelerator = lambda **_: Alone()
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_launcher_that_accelerate_disagrees_with_is_refused_within_5_s_of_the_imports(shards, tmp_path):
    told = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import scalegan.trainer"], check=True, timeout=120)
    imports = time.monotonic() - began
    options = [f"--data.path={shards}", f"--run={tmp_path / 'run'}", "--train.device=cpu"]
    began = time.monotonic()
    command = [sys.executable, "-c", ALONE, "train", *options]
    ended = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - began < imports + 5
    assert ended.returncode == 2
    (line,) = error_lines(ended.stderr)
    assert "the launcher started 2 processes but Accelerate sees 1: start with `accelerate launch" in line
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE is 2 but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start with `accelerate launch`",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            "OMPI_COMM_WORLD_SIZE is 2 but WORLD_SIZE is not set, so each process would train alone: start `accelerate launch`",
        ),
    ],
)
def test_a_launcher_that_tells_half_is_refused_in_5_s(shards, tmp_path, told, said):
    """One that sets only some of the variables: each process would train alone and write to the same folder."""
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | told
    command = [sys.executable, "-m", "scalegan.train", f"--data.path={shards}", f"--run={tmp_path / 'run'}"]
    began = time.monotonic()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - began < 5
    assert ended.returncode == 2
    lines = error_lines(ended.stderr)
    assert len(lines) == 1
    assert said in lines[0]
    assert not Path(tmp_path / "run").exists()


def test_evaluate_on_two_processes_leaves_the_record_of_one(tmp_path):
    folders = [make_shards(tmp_path / name, 21, seed=seed).root for seed, name in enumerate(("made", "real"))]
    records, printed = [], []
    for number, command in enumerate(([sys.executable, "-m"], TWO)):
        record = tmp_path / f"{number}.json"
        arguments = ["scalegan", "evaluate", str(folders[0]), "--against", str(folders[1]), "--metrics", "kid"]
        command = [*command, *arguments, "--batch", "8", "--device", "cpu", "--json", str(record)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / str(number))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        records.append(json.loads(record.read_text()))
        printed.append(done.stdout)
    alone, both = records
    assert (alone.pop("processes"), both.pop("processes")) == (1, 2)
    assert printed[1].count("fd_lite0") == printed[0].count("fd_lite0"), "one process prints"
    assert both.keys() == alone.keys()
    for name in alone.keys() - {"seconds"}:
        assert both[name] == (pytest.approx(alone[name], rel=1e-9) if isinstance(alone[name], float) else alone[name]), name


# A thread of gloo waits for the other process, which sleeps; this one refers to the group and to the work to the last.
BUSY = """
import atexit, sys, time
import torch, torch.distributed as dist
from scalegan import launcher
dist.init_process_group("gloo")
group = dist.new_group(backend="gloo")
dist.barrier(group=group)
atexit.register(print, "the end of", dist.get_rank())
if dist.get_rank():
    time.sleep(60)
work = dist.all_reduce(torch.ones(3), group=group, async_op=True)
dist.destroy_process_group()
print("done", end=" ")
launcher.leave(3)
"""


def test_a_process_ends_whatever_gloos_threads_are_at():
    """Else it waits for them, or now and then they abort it: see `launcher.leave`."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY], env=os.environ | world | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        said, _ = both[0].communicate(timeout=40)
        assert (both[0].returncode, said) == (3, "done the end of 0\n")
        assert both[1].poll() is None
    finally:
        for process in both:
            process.kill()
            process.communicate()
