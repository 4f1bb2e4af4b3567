"""Fixtures that several folders of tests share; this file also puts `tests` on the path, for `helpers`."""

import pytest

from helpers import runs
from helpers.shards import make_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of 200 labelled images, 16 x 16 RGB."""
    folder = tmp_path_factory.mktemp("shards") / "shapes"
    make_shards(folder)
    return folder


@pytest.fixture
def training(monkeypatch):
    """`helpers.runs.training` in this process: what it leaves out of a run is there again after the test."""
    from scalegan.outputs import Outputs

    for name in ("evaluate", "finished"):
        monkeypatch.setattr(Outputs, name, getattr(Outputs, name))
    return runs.training
