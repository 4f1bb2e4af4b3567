"""`scalegan doctor`: every finding is one line that ends in what to do."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from scalegan import checkpoint, cli, doctor, launcher, machine, run
from scalegan.config import Config, DataConfig
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")


def only(findings, state: str) -> str:
    """The text of the single finding, which has to be of this state."""
    found = list(findings)
    assert [finding.state for finding in found] == [state], found
    return found[0].text


def test_a_machine_that_trains_has_no_failure(capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "warn"}
    assert {"torch", "accelerate", "device", "disk", "gloo", "weights"} <= {line.split()[1] for line in lines[:-1]}


def test_a_failure_makes_the_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda folder: [machine.ok("a", "b"), machine.fail("c", "d")])
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok    a            b\nfail  c            d\nmend what failed first\n"


@pytest.mark.parametrize(
    ("findings", "last"),
    [
        ([machine.ok("a", "b")], "all is well"),
        ([machine.ok("training", "too early to tell: more")], "this machine is well; the run cannot be judged yet"),
        ([machine.warn("a", "b"), machine.ok("training", "too early to tell: more")], "training works; the warnings say"),
    ],
)
def test_a_run_that_cannot_be_judged_is_not_well(capsys, monkeypatch, findings, last):
    monkeypatch.setattr(doctor, "examine", lambda folder: findings)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)


def test_a_missing_package_is_a_finding_and_no_crash(monkeypatch):
    def missing():
        raise ModuleNotFoundError("no", name="torch")

    monkeypatch.setattr(machine, "devices", missing)
    monkeypatch.setattr(machine, "gloo", list)
    assert any(f == machine.fail("device", "torch is not installed: install scalegan again") for f in doctor.examine(None))


def test_old_packages_are_told_from_new_ones(monkeypatch):
    assert doctor.numbers("2.9.1") < doctor.numbers("2.11") < doctor.numbers("2.13.0+cpu")
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.0.1")
    assert all("older than" in finding.text for finding in doctor.packages() if finding.state == "fail")
    assert [finding.state for finding in doctor.packages()] == ["fail"] * 4


def test_a_gpu_that_cannot_be_looked_at_is_a_finding_beside_the_others(monkeypatch):
    """To look at it takes memory there, and a full one has none left for that."""

    def free(number):
        if number == 0:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
        return 79e9, 80e9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    full, other = machine.devices()
    assert (full.state, other) == ("fail", machine.ok("device", "cuda:1 H100, 79 of 80 GB free"))
    assert full.text.startswith("cuda:0 H100 cannot be used (CUDA error: out of memory): another process ")
    assert full.text.endswith(" (nvidia-smi)")


def test_more_threads_than_cores_is_a_warning(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert "export OMP_NUM_THREADS=1" in only(machine.threads(), "warn")


def test_one_thread_is_no_threads(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert only(machine.threads(), "ok").endswith("cores for 1 process of 1 thread")


def test_small_limits_are_warnings(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64e6, 0, 64e6))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 256))
    texts = {finding.subject: finding.text for finding in machine.limits() if finding.state == "warn"}
    assert "ulimit -n 4096" in texts["open files"]
    assert not Path("/dev/shm").is_dir() or "--shm-size" in texts["/dev/shm"]


@pytest.mark.parametrize(("free", "state"), [(50e9, "ok"), (2e9, "warn"), (0.1e9, "fail")])
def test_disk_is_that_of_the_run(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100e9, 0, free))
    assert str(tmp_path) in only(machine.disk(tmp_path / "runs" / "not" / "yet"), state)


def test_one_process_needs_no_rendezvous():
    assert only(machine.rendezvous(), "ok") == "1 process (WORLD_SIZE is not set)"


@pytest.mark.parametrize(
    ("environment", "state", "hint"),
    [
        ({"SLURM_NTASKS": "4"}, "warn", "scripts in slurm/"),
        ({"WORLD_SIZE": "2"}, "fail", "without MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "fail", "RANK 2 is not below WORLD_SIZE 2"),
    ],
)
def test_what_the_launcher_said_is_checked(monkeypatch, environment, state, hint):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hint in only(machine.rendezvous(), state)


def test_a_world_size_that_is_no_number_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        list(machine.rendezvous())


def test_master_has_to_resolve_and_its_port_to_be_free(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert [finding.state for finding in machine.rendezvous()] == ["ok", "ok", "fail"]
    assert [finding.state for finding in machine.rendezvous()] == ["ok", "ok", "ok"]
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    states = [(finding.subject, finding.state) for finding in machine.rendezvous()]
    assert states == [("launch", "ok"), ("master", "fail")]


@pytest.mark.parametrize(
    ("environment", "own", "state"),
    [
        ({"SLURM_NNODES": "2"}, "127.0.1.1", "warn"),
        ({"SLURM_NNODES": "2", "GLOO_SOCKET_IFNAME": "ib0"}, "127.0.1.1", "ok"),
        ({"SLURM_NNODES": "2"}, "10.0.0.7", "ok"),
    ],
)
def test_of_several_machines_the_own_name_must_lead_others_here(monkeypatch, environment, own, state):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "address_of", lambda name: own if name else "")
    monkeypatch.setattr(machine, "address_of", launcher.address_of)
    (found,) = [finding for finding in machine.rendezvous() if finding.subject == "address"]
    assert found.state == state
    assert state == "ok" or "at 127.0.1.1, its own loopback: set GLOO_SOCKET_IFNAME" in found.text


def test_processes_that_cannot_talk_are_one_line(monkeypatch, capfd):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    text = only(machine.gloo(), "fail")
    assert "GLOO_SOCKET_IFNAME" in text
    assert "nosuch0" in text
    assert "Traceback" not in capfd.readouterr().err


def test_git_and_the_medical_extra_are_only_missed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "scalegan fetch fruits360" in only(doctor.git(), "warn")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert all("pip install 'scalegan[medical]'" in finding.text for finding in doctor.extras())


def test_wandb_online_without_a_key_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "offline (no API key" in only(doctor.wandb(), "ok")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "wandb login" in only(doctor.wandb(), "warn")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "off" in only(doctor.wandb(), "ok")


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run as training leaves it: 128 images seen, two checkpoints."""
    index = write_shards([Sample(b"x", "png")] * 4, tmp_path / "shards", height=8, width=6, channels=1)
    folder = tmp_path / "run"
    folder.mkdir()
    run.claim(folder, Config(data=DataConfig(path=str(tmp_path / "shards"))), index.sha256)
    for images_seen in (64, 128):
        checkpoint.save(folder, images_seen, {"generator": {"weight": torch.ones(3)}}, {})
    (folder / "metrics.jsonl").write_text(json.dumps({"images_seen": 128, "loss/D": 1.25, "accuracy/real": 0.5}) + "\n")
    return folder


def test_a_healthy_run_is_summed_up(run_dir):
    texts = {finding.subject: finding.text for finding in doctor.run_folder(run_dir) if finding.state == "ok"}
    assert texts["data"].startswith("4 images of 8x6 (height x width)")
    assert texts["checkpoint"].startswith("128 images seen")
    assert texts["metrics"] == "at 128 images: loss/D 1.25  accuracy/real 0.5"


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(run_dir):
    newest = run_dir / "checkpoints" / "000000128" / "generator.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    findings = [finding for finding in doctor.run_folder(run_dir) if finding.subject == "checkpoint"]
    assert [finding.state for finding in findings] == ["warn", "ok"]
    assert "generator.safetensors is damaged" in findings[0].text
    assert findings[1].text.startswith("64 images seen")


def test_data_that_changed_is_a_failure(run_dir, tmp_path):
    shutil.rmtree(tmp_path / "shards")
    assert {f.subject for f in doctor.run_folder(run_dir) if f.state == "fail"} == {"data"}
    write_shards([Sample(b"y", "png")] * 4, tmp_path / "shards", height=8, width=6, channels=1)
    failed = [finding.text for finding in doctor.run_folder(run_dir) if finding.state == "fail"]
    assert len(failed) == 1
    assert "not those this run began with" in failed[0]


DAMAGED = [
    ("config.yaml", b"", "cannot be read as a run's configuration"),
    ("config.yaml", b"- 1\n", "cannot be read as a run's configuration"),
    ("config.yaml", b"data: [\n", "cannot be read as a run's configuration"),
    ("config.yaml", b"data: 5\n", "cannot be read as a run's configuration"),
    ("config.yaml", b"\x89PNG\r\n", "cannot be read as a run's configuration"),
    ("run.json", b'{"config": {"model"', "is damaged: restore it"),
    ("run.json", b"[1]", "is damaged: restore it"),
    ("run.json", b"\x89PNG\r\n", "is damaged: restore it"),
    ("run.json", b"{}", "not those this run began with"),
]


@pytest.mark.parametrize(("name", "content", "expected"), DAMAGED)
def test_a_damaged_file_of_a_run_is_a_finding_beside_all_others(run_dir, name, content, expected):
    (run_dir / name).write_bytes(content)
    findings = list(doctor.run_folder(run_dir))
    (failed,) = [finding.text for finding in findings if finding.state == "fail"]
    assert expected in failed
    assert "\n" not in failed
    assert {finding.subject for finding in findings} == {"data", "checkpoint", "metrics"}


def test_a_damaged_file_that_two_checks_read_is_told_once(run_dir, monkeypatch):
    monkeypatch.setattr(machine, "gloo", list)
    (run_dir / "config.yaml").write_text("data: [\n")
    assert [finding.subject for finding in doctor.examine(run_dir) if finding.state == "fail"] == ["data"]


def test_of_two_damaged_files_the_one_that_stops_the_run_is_named(run_dir):
    for name in ("config.yaml", "run.json"):
        (run_dir / name).write_bytes(b"")
    (failed,) = [finding.text for finding in doctor.run_folder(run_dir) if finding.state == "fail"]
    assert failed.startswith(f"{run_dir / 'run.json'} is damaged")


def test_a_folder_that_is_no_run_is_a_failure(tmp_path):
    assert "is no run folder" in only(doctor.run_folder(tmp_path), "fail")


def test_a_run_that_has_just_begun_is_no_failure(run_dir):
    shutil.rmtree(run_dir / "checkpoints")
    os.unlink(run_dir / "metrics.jsonl")
    assert [finding.state for finding in doctor.run_folder(run_dir)] == ["ok", "warn", "warn"]


def test_a_run_is_diagnosed_with_figures_and_what_to_try(run_dir):
    lines = [{"images_seen": 64 * n, "skipped_steps": 0, "loss/D": 0.001} for n in range(1, 9)]
    scores = {"logits/real": 9.0, "logits/fake": -9.0, "accuracy/real": 1.0, "accuracy/fake": 1.0}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line | scores) + "\n" for line in lines))
    text = only(doctor.training(run_dir), "warn")
    assert text.startswith("discriminator too strong: The discriminator tells every fake")
    assert "\n                   - loss/D is 0.001 to 0.001 in the last 5 lines; a guess costs 1.39\n" in text
    assert "\n                   try: --loss.r1_gamma 0.1" in text


@pytest.mark.parametrize(("value", "state"), [(None, "fail"), (1.0, "ok")])
def test_a_diverged_run_is_a_failure_and_a_young_one_is_not(run_dir, value, state):
    line = {"images_seen": 64, "skipped_steps": 0, "loss/D": value, "logits/real": 0.0, "logits/fake": 0.0}
    (run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    only(doctor.training(run_dir), state)


def test_what_is_no_run_is_not_diagnosed(tmp_path):
    assert not list(doctor.training(tmp_path))
