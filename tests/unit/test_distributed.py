"""Set-ups that would go wrong unnoticed are refused in one line."""

import os
from contextlib import nullcontext

import pytest
import torch
from accelerate.state import AcceleratorState

from helpers.runs import arguments, command, error_lines, newest
from scalegan import distributed, launcher, sampling
from scalegan.config import Config, TrainConfig
from scalegan.distributed import as_one, control_group, from_main, in_company, make_accelerator, settle_precision
from scalegan.errors import MachineError, UserError
from scalegan.evaluation.team import Team
from scalegan.trainer import Trainer


def test_cores_are_counted_on_a_system_without_sets_of_them(monkeypatch):
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert launcher.cores() == os.cpu_count()


@pytest.mark.parametrize(("rank", "local", "looks"), [(0, "0", 3), (2, "0", 2), (3, "1", 1)])
def test_the_first_of_a_machine_looks_before_its_others(monkeypatch, tmp_path, rank, local, looks):
    """So that what each machine has to fetch is fetched once there."""
    monkeypatch.setenv("LOCAL_RANK", local)
    found = []
    assert Team(rank).look(lambda: found.append(rank) or tmp_path) == tmp_path
    assert len(found) == looks


def test_alone_there_is_no_group_and_the_own_value_counts():
    assert control_group() is None
    assert from_main(5, None) == 5


def test_an_exception_as_value_is_raised():
    with pytest.raises(UserError, match="so it is"):
        from_main(UserError("so it is"), None)


def test_what_one_process_meets_alone_is_its_own_error():
    with pytest.raises(UserError, match=r"^so it is$"), as_one(None):
        raise UserError("so it is")
    with as_one(None):
        pass


def test_a_launcher_that_tells_half_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2 but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        make_accelerator(TrainConfig(device="cpu"))


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_mpirun_alone_is_refused_and_beside_a_launcher_is_let_through(monkeypatch, name):
    for other in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match=f"{name} is 2 but WORLD_SIZE is not set, so each process would train alone"):
        launcher.world_size()
    for other, value in {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(other, value)
    assert launcher.world_size() == 8, "two machines of four processes each"


def test_a_launcher_that_accelerate_disagrees_with_is_refused(monkeypatch):
    class Alone:
        num_processes = 1

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "Accelerator", lambda **_: Alone())
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")  # so that it is put back
    with pytest.raises(UserError, match="the launcher started 2 processes but Accelerate sees 1") as told:
        make_accelerator(TrainConfig(device="cpu"))
    assert "\n" not in str(told.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"train.device is cuda but torch sees no GPU here: use --train.device cpu"):
        make_accelerator(TrainConfig(device="cuda"))


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_gpu_that_accelerate_was_told_not_to_use_is_refused(monkeypatch, device):
    """It would train on the CPU without a word, in the precision that is fast on the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(UserError, match=rf"ACCELERATE_USE_CPU\) and train.device is {device}.*: use --train.device cpu "):
        make_accelerator(TrainConfig(device=device, precision="fp32"))
    assert make_accelerator(TrainConfig(device="cpu", precision="fp32")).device == torch.device("cpu")


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(UserError, match=r"fp16 needs a GPU: use --train.precision bf16 or fp32"):
        make_accelerator(TrainConfig(device="cpu", precision="fp16"))


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("auto", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU"))]
)
def test_cuda_graphs_on_the_cpu_are_refused(device):
    with pytest.raises(UserError, match=r"^train.cuda_graphs needs a GPU, .*: use --train.cuda_graphs false$"):
        make_accelerator(TrainConfig(device=device, precision="fp32", compile=True, cuda_graphs=True))


def test_float32_is_real_where_it_is_asked_for(float32_switches):
    """GPUs since Ampere multiply float32 with 10 bits in convolutions unless they are told."""
    for precision, expected in (("bf16", "tf32"), ("fp32", "ieee")):
        AcceleratorState._reset_state(True)
        make_accelerator(TrainConfig(device="cpu", precision=precision))
        assert torch.backends.cudnn.conv.fp32_precision == expected
    assert {switch.fp32_precision for switch in float32_switches} == {"ieee"}
    assert not torch.backends.cudnn.allow_tf32  # raises where its parts disagree, as torch.compile would find out


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_makes_a_gpu_deterministic_is_set_when_the_group_of_processes_is_made(monkeypatch, deterministic):
    """NCCL's group looks at it once, when it is made."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    found = []

    class Accelerator:
        num_processes = 1

        def __init__(self, **_):
            found.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))

    monkeypatch.setattr(distributed, "Accelerator", Accelerator)
    try:
        make_accelerator(TrainConfig(device="cuda", precision="bf16", deterministic=deterministic))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == [(True, ":4096:8") if deterministic else (False, None)]


@pytest.mark.parametrize(
    ("here", "gpus", "told"),
    [
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, 1, "2 processes were started on this machine and torch sees 1 GPU here"),
        ({"LOCAL_RANK": "2"}, 2, "3 processes were started on this machine and torch sees 2 GPUs here"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2, None),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, 1, None),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, here, gpus, told):
    """Accelerate gives two of them the same one, and NCCL's word for that would pass for a process that was lost."""

    class Accelerator:
        num_processes = 4

        def __init__(self, **_):
            pass

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(distributed, "Accelerator", Accelerator)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | here).items():
        monkeypatch.setenv(name, value)
    with nullcontext() if told is None else pytest.raises(MachineError, match=f"^{told}: start one for each GPU "):
        make_accelerator(TrainConfig(device="cuda", precision="bf16"))


def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch):
    config = Config(train=TrainConfig(device="cpu"))
    for there, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(distributed, "has_bf16", lambda device, there=there: there)
        assert settle_precision(config).train.precision == precision
        assert settle_precision(config, "fp16").train.precision == "fp16", "a run goes on as it began"
        chosen = Config(train=TrainConfig(precision="bf16"))
        assert settle_precision(chosen, "fp32") == chosen


def full(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 8.00 GiB")


def test_a_full_gpu_is_one_line_and_the_run_may_begin_otherwise(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "take_steps", full)
    assert command(arguments(shards, tmp_path / "run", 64)) == 2
    (told,) = error_lines(capsys.readouterr().err)
    assert told.startswith("scalegan: error: the GPU has no memory left: raise train.accumulate ")
    assert told.endswith("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB")
    assert not (tmp_path / "run" / "run.json").exists(), "else another batch would be refused"


def test_a_gpu_that_only_an_evaluation_fills_takes_no_step(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "images_of", full)
    options = {"log__samples": 32, "evaluation__every": 32}
    assert command(arguments(shards, tmp_path / "run", 64, **options)) == 2
    out, err = capsys.readouterr()
    assert "samples at 32 images were NOT made: the GPU has no memory left: raise train.accumulate" in out
    (told,) = error_lines(err)
    assert told.startswith("scalegan: error: the GPU has no memory left: raise train.accumulate ")
    assert newest(tmp_path / "run").name == "000000032"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_whose_gpu_is_full_says_so_itself_where_the_command_line_will_not(monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(UserError, match=r"^the GPU has no memory left: .* GPU 0 has .* 8.00 GiB$"), in_company():
        full(None)
    found = error_lines(capsys.readouterr().err)
    assert [line.split("left")[0] for line in found] == ["scalegan: error: process 1: the GPU has no memory "] * int(rank)
