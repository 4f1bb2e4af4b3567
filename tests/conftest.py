"""Fixtures that several folders of tests share; this file also puts `tests` on the path, for `helpers`."""

import sys

import pytest

from helpers import runs
from helpers.shards import make_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of 200 labelled images, 16 x 16 RGB."""
    folder = tmp_path_factory.mktemp("shards") / "shapes"
    make_shards(folder)
    return folder


@pytest.fixture(autouse=True)
def no_accelerator_stays():
    """A process has one precision for Accelerate; the tests of one process have several."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def float32_switches():
    """What torch multiplies float32 with on CUDA, as it comes: TF32 in convolutions; afterwards as it was."""
    import torch

    switches = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.fp32_precision = True, "none"
    assert [switch.fp32_precision for switch in switches] == ["tf32", "tf32", "none"]
    yield switches[0], switches[2]
    torch.backends.cudnn.allow_tf32 = before[1] == "tf32"
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.fixture
def training(monkeypatch):
    """`helpers.runs.training` in this process: what it leaves out of a run is there again after the test."""
    from scalegan.outputs import Outputs

    for name in ("evaluate", "finished"):
        monkeypatch.setattr(Outputs, name, getattr(Outputs, name))
    return runs.training
