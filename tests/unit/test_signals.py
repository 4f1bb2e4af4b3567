"""A notice latches a flag; nothing else happens until the loop asks for it."""

import os
import signal
import subprocess
import sys

import pytest

from helpers.runs import arguments
from scalegan import signals
from scalegan.signals import NOTICES, StopNotice


@pytest.fixture
def notice():
    made = StopNotice(None)
    yield made
    made.close()


def tell(number):
    os.kill(os.getpid(), number)


def test_without_a_notice_nobody_is_asked_to_stop(notice):
    assert not notice.asked()


@pytest.mark.parametrize("number", NOTICES)
def test_a_notice_is_answered_and_stays(notice, number):
    tell(number)
    assert notice.asked()
    assert notice.asked()


def test_term_and_cont_in_either_order_is_one_notice(notice):
    """As Slurm sends them."""
    tell(signal.SIGTERM)
    tell(signal.SIGCONT)
    tell(signal.SIGTERM)
    assert notice.asked()


def test_ctrl_c_that_comes_twice_at_once_is_one(notice):
    """From the terminal and from the launcher."""
    tell(signal.SIGINT)
    tell(signal.SIGINT)
    assert notice.asked()


def test_a_second_ctrl_c_stops_at_once(notice, monkeypatch):
    tell(signal.SIGINT)
    monkeypatch.setattr(signals, "SAME", -1.0)
    with pytest.raises(KeyboardInterrupt):
        tell(signal.SIGINT)


START = """
import os, runpy, signal, sys

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == during:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), getattr(signal, number))

during, number, how = sys.argv[1:4]
sys.argv = sys.argv[3:]
sys.meta_path.insert(0, Importing())
runpy.run_module(how, run_name="__main__", alter_sys=True)
"""


def started(shards, run, during, number, *how):
    """A training that gets the signal `number` while it imports `during`, or the one that goes on with it without."""
    command = [sys.executable, "-c", START, during, number, *how, *arguments(shards, run, 64, train__device="cpu")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"SCALEGAN_ATTEMPT": "7.0"})


@pytest.mark.parametrize(
    ("how", "during", "number"),
    [
        pytest.param(["scalegan.train"], "scalegan.config", "SIGTERM", marks=pytest.mark.slow),
        (["scalegan.train"], "torch", "SIGUSR1"),
        pytest.param(["scalegan", "train"], "torch", "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_notice_that_comes_while_a_training_starts_is_kept(shards, tmp_path, how, during, number):
    """Schedulers send TERM once, and torch takes seconds to import."""
    stopped = started(shards, tmp_path / "run", during, number, *how)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped at 0 images on request, checkpoint saved" in stopped.stdout
    assert (tmp_path / "run" / "requeue").read_text() == "0 7.0\n"


def test_ctrl_c_while_a_training_starts_ends_it(shards, tmp_path):
    done = started(shards, tmp_path / "run", "torch", "SIGINT", "scalegan.train")
    assert done.returncode == 130
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["--dry_run", "--debug"])
def test_a_look_at_a_training_ends_by_term(shards, tmp_path, what):
    done = started(shards, tmp_path / "run", "scalegan.config", "SIGTERM", "scalegan.train", what)
    assert done.returncode == -signal.SIGTERM


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in NOTICES]
    StopNotice(None).close()
    assert [signal.getsignal(number) for number in NOTICES] == before
