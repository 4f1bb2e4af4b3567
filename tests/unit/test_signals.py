"""A notice latches a flag; nothing else happens until the loop asks for it."""

import os
import signal

import pytest

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


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in NOTICES]
    StopNotice(None).close()
    assert [signal.getsignal(number) for number in NOTICES] == before
