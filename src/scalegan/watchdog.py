"""A process whose steps have stopped: its stacks are written down, and it ends, instead of holding a cluster for nothing."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "stacks"
GRACE = 5.0
"""Seconds between writing down the stacks and the end: the other processes wait for this one, and are to write theirs."""
FIRST = 4.0
"""The first step may take this many times as long: shards are fetched, workers started and networks compiled for it."""


class Watchdog:
    """Counts the time since the last `begin` or `step`. Past the limit, all threads' stacks go to RUN/stacks and the process
    ends, also where nothing can be written there. `limit` is in seconds, and `FIRST` times that for the first step.

    Every process has its own: where one hangs, the others wait for it in the next exchange, and their steps stop too. A
    `limit` of 0 watches nothing.
    """

    def __init__(self, limit: float, run_dir: Path, rank: int) -> None:
        self.limit, self.path, self.rank = limit, run_dir / FOLDER / f"process{rank}.txt", rank
        self.images_seen, self.allowed = 0, FIRST * limit
        self._since: float | None = None  # None while nothing is watched
        self._suspended = 0.0  # seconds that the watching thread could not run
        self._closed = threading.Event()
        if limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, images_seen: int) -> None:
        """From now on a first step is waited for."""
        self.images_seen, self._since = images_seen, self._now()

    def step(self, images_seen: int) -> None:
        """A step was finished, and the next one is waited for."""
        self.images_seen, self._since, self.allowed = images_seen, self._now(), self.limit

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take any time: an evaluation, a grid of samples."""
        self._since = None
        try:
            yield
        finally:
            self._since = self._now()

    def close(self) -> None:
        self._since = None
        self._closed.set()

    def _now(self) -> float:
        return time.monotonic() - self._suspended

    def _watch(self) -> None:
        """Every `period`. What it wakes late by does not count: a scheduler may suspend the process (SIGSTOP) for hours."""
        period = min(1.0, self.limit / 10)
        due = time.monotonic() + period
        while not self._closed.wait(period):
            self._suspended += time.monotonic() - due
            due = time.monotonic() + period
            since = self._since
            if since is not None and self._now() - since > self.allowed:
                self._end()

    def _end(self) -> None:
        """Stacks and reason to standard error first: the run folder may be what does not answer, or has no room."""
        faulthandler.dump_traceback_later(2 * GRACE, exit=True)  # by a thread of C, whatever this one meets from here on
        try:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            print(
                f"scalegan: error: process {self.rank} on {os.uname().nodename}: no step in {self.allowed:g} s after image "
                f"{self.images_seen} (train.hang_minutes): stacks are above, and in {self.path} where that can be written; the "
                "same command goes on where it last saved",
                file=sys.stderr,
                flush=True,
            )
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
            time.sleep(GRACE)
        finally:
            os._exit(1)  # the thread that hangs can be told nothing
