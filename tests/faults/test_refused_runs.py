"""What a run refuses before its first step, told once by one process: another configuration, a second writer, lost files."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch

from helpers.launcher import start
from helpers.runs import ERROR, arguments, command, configured, error_lines, metrics, newest, training
from helpers.shards import make_shards
from helpers.worlds import run_world
from scalegan import settings
from scalegan.data.index import read_index
from scalegan.errors import UserError
from scalegan.run import Lock, claim

pytestmark = pytest.mark.faults


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
    assert error_lines(ended[0].stderr) == [f"{ERROR}process 1: {newest(tmp_path / 'run')} is not there"]
    assert error_lines(ended[1].stderr) == []


def without_weights(argv):
    """One on a machine without the package that brings them."""
    from scalegan.models import projected

    def find(given):
        raise UserError("the weights are not there")

    if os.environ["RANK"] == "1":
        projected.lite0_path = find
    return command(argv)


@pytest.mark.distributed
def test_weights_that_one_process_alone_lacks_are_told_once(shards, tmp_path):
    argv = arguments(shards, tmp_path / "run", 64, model__critic_family="projected")
    ended = run_world(tmp_path, 2, without_weights, argv)
    assert [e.value for e in ended] == [2, 2], ended
    assert error_lines(ended[0].stderr) == [f"{ERROR}process 1: the weights are not there"]
    assert error_lines(ended[1].stderr) == []
    assert not (tmp_path / "run").exists()


def with_weights_on_one_machine(argv, weights):
    os.environ["SCALEGAN_INCEPTION_WEIGHTS"] = str(weights)
    return command(argv)


@pytest.mark.distributed
def test_weights_of_the_evaluation_that_one_process_alone_lacks_are_told_before_the_first_step(shards, tmp_path):
    (tmp_path / "weights.pth").touch()
    argv = arguments(shards, tmp_path / "run", 64, evaluation__extractor="inception")
    files = [tmp_path / "weights.pth", tmp_path / "nowhere.pth"]
    ended = run_world(tmp_path, 2, with_weights_on_one_machine, [argv, argv], files, each=True)
    assert [e.value for e in ended] == [2, 2], ended
    (line,) = [line for e in ended for line in error_lines(e.stderr)]
    assert line.startswith(f"{ERROR}process 1: weights {files[1]} of extractor inception do not exist")
    assert not (tmp_path / "run").exists()


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
    assert [line for e in ended for line in error_lines(e.stderr)] == [
        f"{ERROR}--run {tmp_path / 'a_file'} is a file: give a folder"
    ]
    assert not any("Traceback" in e.stderr for e in ended)


@pytest.mark.distributed
def test_a_batch_that_does_not_divide_is_told_once_by_the_first_process(shards, tmp_path):
    argv = arguments(shards, tmp_path / "run", 64, train__batch=33)
    ended = run_world(tmp_path, 2, command, argv)
    assert [e.value for e in ended] == [2, 2]
    assert error_lines(ended[0].stderr) == [
        f"{ERROR}train.batch 33 is not divisible by 2 processes x train.accumulate 1: try --train.batch 32"
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
    assert len(error_lines(errors)) == 1
    assert errors.index(ERROR) < errors.index("Traceback"), "our line comes before the launcher's own words"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_run_folder_of_another_configuration_is_refused_with_the_difference(shards, tmp_path, processes):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64))
    before = files(tmp_path / "run")
    argv = arguments(shards, tmp_path / "run", 128, optim__lr_g=0.5, model__z_dim=7)
    ended = run_world(tmp_path, processes, command, argv)
    assert [e.value for e in ended] == [2] * processes
    (line,) = error_lines(ended[0].stderr)
    assert "another configuration (model.z_dim: 100 -> 7; optim.lr_g: 0.0002 -> 0.5)" in line
    assert all(not error_lines(e.stderr) for e in ended[1:])
    assert files(tmp_path / "run") == before


def test_it_is_refused_in_5_s(shards, tmp_path):
    run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64))
    changed = arguments(shards, tmp_path / "run", 64, optim__lr_g=0.5)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "scalegan", "train", *changed], capture_output=True, text=True)
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


@pytest.mark.parametrize(
    ("wrong", "advice", "mended"),
    [
        ({"loss__penalty_form": "difference"}, "set --loss.penalty_form exact", {}),
        ({"model__family": "biggan", "model__z_dim": 1}, "give at least 3", {"model__family": "biggan", "model__z_dim": 8}),
    ],
)
def test_what_is_refused_before_anything_came_of_a_run_can_be_mended_in_its_folder(shards, tmp_path, wrong, advice, mended):
    (refused,) = run_world(tmp_path, 1, command, arguments(shards, tmp_path / "run", 64, loss__r1_gamma=1, **wrong))
    assert refused.value == 2
    assert advice in refused.stderr
    (ended,) = run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", 64, loss__r1_gamma=1, **mended))
    assert ended.value is True, ended


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


def without_bf16(config):
    from scalegan import outputs

    outputs.has_bf16 = lambda device: False
    return training(config)


def test_a_run_that_is_told_of_a_faster_precision_takes_it(shards, tmp_path):
    (ended,) = run_world(tmp_path, 1, without_bf16, configured(shards, tmp_path / "run", 64, train__precision="bf16"))
    assert ended.value is True, ended
    advice = re.search(r"and slow: (--.*) will be faster", (tmp_path / "run" / "log.txt").read_text())
    longer = [*arguments(shards, tmp_path / "run", 128, train__precision="bf16"), *advice[1].split()]
    (ended,) = run_world(tmp_path, 1, training, settings.parse(longer).config)
    assert ended.value is True, ended


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


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"data__path": "other"}, r"data.sha256: [0-9a-f]{64} -> [0-9a-f]{64}"),
        ({"optim__lr_g": 0.5}, r"optim.lr_g: 0.0002 -> 0.5"),
    ],
    ids=["images", "settings"],
)
def test_a_process_with_other_images_or_settings_is_told_of_before_anything_is_written(shards, tmp_path, other, told):
    """As on a machine whose copy of the shards is an older one, or where the command was changed."""
    if "data__path" in other:
        other = {"data__path": make_shards(tmp_path / "other", seed=1).root}
    argv = [arguments(shards, tmp_path / "run", 64, **changes) for changes in ({}, other)]
    ended = run_world(tmp_path, 2, command, argv, each=True)
    assert [e.value for e in ended] == [2, 2], ended
    (line,) = [line for e in ended for line in error_lines(e.stderr)]
    assert re.search(rf"process 1: it has other settings or images than process 0 \({told}\): give every machine the", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_machines_may_have_the_same_images_elsewhere(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "copy")
    configs = [configured(path, tmp_path / "run", 64, data__workers=n) for n, path in enumerate((shards, tmp_path / "copy"))]
    ended = run_world(tmp_path, 2, training, configs, each=True)
    assert [e.value for e in ended] == [True, True], ended


def test_other_images_are_refused_in_5_s(tmp_path):
    make_shards(tmp_path / "shards")
    run_world(tmp_path, 1, training, configured(tmp_path / "shards", tmp_path / "run", 64))
    shutil.rmtree(tmp_path / "shards")
    make_shards(tmp_path / "shards", seed=1)
    began = time.monotonic()
    command = [sys.executable, "-m", "scalegan", "train", *arguments(tmp_path / "shards", tmp_path / "run", 64)]
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
    (line,) = error_lines(ended[0].stderr)
    assert f"run folder {tmp_path / 'run'} is being written by process {os.getpid()} on " in line
    assert all(not error_lines(e.stderr) for e in ended[1:])
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_second_writer_is_refused_in_5_s(shards, tmp_path):
    lock = Lock(tmp_path / "run")
    began = time.monotonic()
    command = [sys.executable, "-m", "scalegan", "train", *arguments(shards, tmp_path / "run", 64)]
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
    found = error_lines(capsys.readouterr().err)
    assert len(found) == told
    assert not told or f"machine {os.uname().nodename}: {tmp_path}/nowhere/index.json is missing" in found[0]


def no_preset(run, shards):
    return ["--config", "nowhere.yaml"]


def another_run(run, shards):
    run.mkdir()
    claim(run, configured(shards, run, 64, optim__lr_g=0.5), read_index(shards).sha256)
    return []


def a_file(run, shards):
    run.touch()
    return []


def a_writer(run, shards):
    a_writer.lock = Lock(run)  # until the process ends
    return []


@pytest.mark.parametrize(("local", "told"), [("0", True), ("1", False)])
@pytest.mark.parametrize("there", [no_preset, another_run, a_file, a_writer])
def test_what_is_wrong_on_another_machine_alone_is_told_by_its_first_process(
    shards, tmp_path, monkeypatch, capsys, there, local, told
):
    """As of a run folder on a disk of each machine's own, or of a preset that one of them lacks."""
    argv = arguments(shards, tmp_path / "run", 64) + there(tmp_path / "run", shards)
    for name, value in {"RANK": "3", "LOCAL_RANK": local, "WORLD_SIZE": "4", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert command(argv) == 2
    found = error_lines(capsys.readouterr().err)
    assert len(found) == told
    assert all(line.startswith(f"{ERROR}machine {os.uname().nodename}: ") for line in found)


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
