"""The networks and the loss of docs/own_networks.md in whole runs: on two processes, and stopped and continued."""

import os
import re
import signal
from pathlib import Path

import pytest

from helpers.runs import configured, contents, stopped_training, training
from helpers.worlds import run_world

pytestmark = pytest.mark.distributed

DOCS = Path(__file__).parents[2] / "docs" / "own_networks.md"
OWN = {
    "model__generator": "mine.Generator",
    "model__discriminator": "mine.Discriminator",
    "loss__own": "mine.LOSS",
    "loss__r1_gamma": 0.5,
}


def code():
    """The module of the documentation."""
    found = re.search(r"```python\n(import math.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    return found[1]


def there(folder, function, *arguments):
    """A process that was started in the folder."""
    os.chdir(folder)
    return function(*arguments)


def test_stopped_and_continued_on_two_processes_they_end_with_the_same_bytes(shards, tmp_path):
    (tmp_path / "mine.py").write_text(code())
    reference, config = (configured(shards, tmp_path / name, 32 * 5, **OWN) for name in ("reference", "run"))
    unbroken = run_world(tmp_path, 2, there, tmp_path, training, reference)
    assert [e.value for e in unbroken] == [True, True], unbroken
    stopped = run_world(tmp_path, 2, there, tmp_path, stopped_training, config, 0, signal.SIGTERM, 32)
    assert [e.value for e in stopped] == [False, False], stopped
    again = run_world(tmp_path, 2, there, tmp_path, training, config)
    assert [e.value for e in again] == [True, True], again
    assert contents(tmp_path / "run") == contents(tmp_path / "reference")


NORMED = {
    "generator": (
        """
import mine
from torch import nn

class Generator(mine.Generator):
    def __init__(self, *facts):
        super().__init__(*facts)
        self.norm = nn.BatchNorm1d(4)
""",
        "normed.Generator: the running statistics of its BatchNorm1d norm would be others on each process",
    ),
    "discriminator": (
        """
import mine
from torch import nn

class Discriminator(mine.Discriminator):
    couples_samples = True

    def __init__(self, config, *facts):
        super().__init__(config, *facts)
        self.hidden = nn.Sequential(self.hidden, nn.BatchNorm1d(config.critic_width))
""",
        "normed.Discriminator: its BatchNorm1d hidden.1 would normalise by the images of one process",
    ),
}


@pytest.mark.parametrize("network", NORMED)
def test_torchs_batch_norm_is_refused_on_two_processes(shards, tmp_path, network):
    module, said = NORMED[network]
    (tmp_path / "normed.py").write_text(module)
    (tmp_path / "mine.py").write_text(code())
    config = configured(shards, tmp_path / "run", 32, **OWN | {f"model__{network}": f"normed.{network.capitalize()}"})
    ended = run_world(tmp_path, 2, there, tmp_path, training, config)
    assert all(f"--model.{network} {said}" in str(e.value) for e in ended), ended
