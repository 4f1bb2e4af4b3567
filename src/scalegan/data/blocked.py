"""Child processes that no signal reaches: what a scheduler or Ctrl-C sends to all is the parent's to act on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Children inherit the block, for life; this process acts afterwards on what arrived in the meantime.

    The block is of this thread alone. Another one may be handed a signal, for which Python then calls the handler in the
    main thread: so that does no more than take it down, lest it raise amid the start of a child.
    """
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in SIGNALS if main}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # the first child that multiprocessing starts; doing so lifts the block
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: installed by no Python code
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for late in arrived:
            signal.raise_signal(late)
