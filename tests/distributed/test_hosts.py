"""Two hosts without a batch system: network namespaces with an address each, and `accelerate launch` on both."""

import os
import socket
import subprocess

import pytest

from helpers.launcher import ACCELERATE, LAUNCH
from helpers.runs import FULL, arguments, configured, contents, training
from helpers.worlds import run_world

pytestmark = pytest.mark.distributed

WIRE = "scalegan0"
"""The network interface of both hosts."""
ADDRESSES = ("10.213.7.1", "10.213.7.2")


@pytest.fixture
def hosts():
    """The names of two network namespaces that a virtual cable connects; each has a loopback of its own."""
    names = [f"scalegan{os.getpid()}{side}" for side in "ab"]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add {WIRE} netns {names[0]} type veth peer name {WIRE} netns {names[1]}"]
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [
            f"-n {name} addr add {address}/24 dev {WIRE}",
            f"-n {name} link set {WIRE} up",
            f"-n {name} link set lo up",
        ]
    try:
        for command in commands:
            try:
                subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def launched(hosts, training, **variables):
    """Exit code, output and errors of each host, with launch/multi_node.yaml as documented."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    started = []
    for number, host in enumerate(hosts):
        launch = [*ACCELERATE, "--config_file", str(LAUNCH / "multi_node.yaml"), "--num_machines=2", "--num_processes=2"]
        launch += [f"--machine_rank={number}", f"--main_process_ip={ADDRESSES[0]}", "--main_process_port=29500"]
        command = ["ip", "netns", "exec", host, *launch, "-m", "scalegan.train", *training]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=240) for process in started]
    return [(process.returncode, *words) for process, words in zip(started, said, strict=True)]


def test_two_hosts_train_as_two_processes_of_one(shards, tmp_path, hosts):
    """By static rendezvous, with no way from one loopback to the other."""
    changes = FULL | {"train.device": "cpu", "log.checkpoint": 128}
    ended = launched(hosts, arguments(shards, tmp_path / "two", 256, **changes), GLOO_SOCKET_IFNAME=WIRE)
    said = [(output, errors) for _, output, errors in ended]
    assert [code for code, _, _ in ended] == [0, 0], said
    assert "done: 256 images" in said[0][0]
    assert said[1][0] == "", "only process 0 speaks"

    alone = run_world(tmp_path, 2, training, configured(shards, tmp_path / "one", 256, **changes), True)
    assert [e.value for e in alone] == [True, True], alone
    ours, theirs = (contents(tmp_path / name) for name in ("two", "one"))
    ours.pop("evaluations.jsonl"), theirs.pop("evaluations.jsonl")  # which tell the seconds
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.skipif(
    not socket.gethostbyname(socket.gethostname()).startswith("127."), reason="the own name is no loopback here"
)
def test_hosts_whose_own_names_are_loopback_are_told_what_to_set(shards, tmp_path, hosts):
    """As Debian installs them. gloo offers the others the address that the own name has."""
    for code, _, errors in launched(hosts, arguments(shards, tmp_path / "two", 64, train__device="cpu")):
        assert code != 0
        (line,) = [line for line in errors.splitlines() if "scalegan: error:" in line]
        assert "set GLOO_SOCKET_IFNAME to the network interface between the machines" in line
