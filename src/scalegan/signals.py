"""Notices from outside: a signal only latches a flag, and all processes stop at the same step."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from types import FrameType

import torch
import torch.distributed as dist

from scalegan import early

NOTICES = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
SAME = 3.0
"""Seconds in which another SIGINT is the same Ctrl-C: a launcher may hand it on to workers that the terminal has told."""


class StopNotice:
    """Whether any process was told to stop; asked once a step, answered one step later so that nobody waits.

    `group` is a process group of the CPU (gloo), apart from the one that reduces gradients; None with one process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.latched = False
        self.group = group
        self._told = 0.0
        self._flag = torch.zeros(())
        self._work: dist.Work | None = None
        self._before = {number: signal.signal(number, self._latch) for number in NOTICES}
        if early.take():
            self.latched = True

    def _latch(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.latched:
            self._told = now
        elif number == signal.SIGINT and now - self._told > SAME:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.latched = True  # never unset: a TERM may be followed by a CONT or arrive twice

    def asked(self) -> bool:
        """Whether to stop before the next step. The same answer on every process."""
        if self.group is None:
            return self.latched
        answer = False
        if self._work is not None:
            self._work.wait()
            answer = bool(self._flag)
        self._flag = torch.tensor(float(self.latched))
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return answer

    def close(self) -> None:
        if self._work is not None:
            with suppress(RuntimeError):  # another process is gone: there is a better error under way than this one
                self._work.wait()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: installed by no Python code
