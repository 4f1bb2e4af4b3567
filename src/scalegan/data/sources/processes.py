"""A source's tasks in processes, each with a pipe of its own.

A queue that all share, as Python's process pool has it, is stuck for good when a worker is killed amid its answer: nobody
else may write, and what has been written is no whole message. Here that worker's pipe ends, and this process hears of it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from scalegan.data.blocked import blocked_signals
from scalegan.data.sources.base import Task, noting
from scalegan.data.sources.encode import Encoded, Transform
from scalegan.errors import UserError


class Result(NamedTuple):
    """What came of one task."""

    images: list[Encoded]
    facts: dict[str, Any]
    damaged: list[str]
    """A clause about each file that cannot be read."""


def work(task: Task, transform: Transform) -> Result:
    result = Result([], {}, [])
    with noting(result.damaged):
        pictures, facts = task.open()
        result.facts.update(facts)
        for picture in pictures:
            with noting(result.damaged):
                result.images.append(transform(picture))
    return result


def in_processes(tasks: Sequence[Task], transform: Transform, workers: int) -> Generator[Result, None, None]:
    """Results in the order of the tasks; what a task raises is raised here when its turn comes, a
    `UserError` as it is, a fault as a `RuntimeError` with its traceback.

    A `UserError` if a worker is killed. However it ends, no worker is left: they are killed, as they own nothing but memory.
    """
    with ExitStack() as cleaning:
        idle = _start(workers, transform, cleaning)
        busy: dict[Connection, int] = {}
        done: dict[int, Result | BaseException] = {}
        given = 0
        for turn in range(len(tasks)):
            while turn not in done:
                while idle and given < min(len(tasks), turn + 2 * workers + 1):  # further ahead would only fill memory
                    busy[idle[-1]] = given
                    _send(idle.pop(), tasks[given])
                    given += 1
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    done[busy.pop(ready)] = _receive(ready)
                    idle.append(ready)
            result = done.pop(turn)
            if isinstance(result, BaseException):
                raise result
            yield result


def _start(workers: int, transform: Transform, cleaning: ExitStack) -> list[Connection]:
    context = multiprocessing.get_context("spawn")
    ends = []
    with blocked_signals():
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, transform), daemon=True)
            process.start()
            theirs.close()  # its worker has the only copy: the pipe ends with it
            ends.append(ours)
            cleaning.callback(ours.close)
            cleaning.callback(process.join)
            cleaning.callback(process.kill)
    return ends


def _send(end: Connection, task: Task) -> None:
    try:
        end.send(task)
    except BrokenPipeError:
        raise _killed() from None


def _receive(end: Connection) -> Result | BaseException:
    try:
        result: Result | BaseException = end.recv()
    except (EOFError, OSError):  # by where in its answer it was
        raise _killed() from None
    return result


def _killed() -> UserError:
    return UserError("a worker process was killed, most likely for want of memory: try fewer --workers")


def _serve(end: Connection, transform: Transform) -> None:
    """One worker: tasks in, results out, until it is killed, or ends itself because its parent was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(join: Callable[[], None] = parent.join) -> None:
        join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        task: Task = end.recv()
        try:
            end.send(work(task, transform))
        except UserError as error:
            end.send(error)
        except Exception:
            end.send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))  # not every exception can travel itself
