"""Notices to stop that come while a training is still starting: remembered from its first line on, before torch is imported.

A scheduler sends TERM once, and an unprepared process dies of it: the job would be lost, where it could have been requeued.
"""

from __future__ import annotations

import signal

KEPT = (signal.SIGUSR1, signal.SIGTERM)
"""Ctrl-C is not among them: it ends at once what has not begun."""
_arrived: list[int] = []


def remember() -> None:
    """From now on, until `signals.StopNotice` takes over."""
    for number in KEPT:
        signal.signal(number, lambda number, _: _arrived.append(number))


def forget() -> None:
    """Signals end this process again: it is no training."""
    for number in KEPT:
        signal.signal(number, signal.SIG_DFL)
    if take():
        signal.raise_signal(signal.SIGTERM)


def take() -> bool:
    """Whether a notice came; the next to ask is told of later ones only."""
    came = bool(_arrived)
    _arrived.clear()
    return came
