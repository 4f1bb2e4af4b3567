"""Checkpoints written beside the training: the step only copies the tensors; a thread hashes, writes, verifies and prunes."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scalegan import checkpoint


class Saver:
    """One checkpoint at a time, on process 0. A failure is kept until `problem` or `wait` asks; the checkpoint before stays."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.run_dir, self.keep = run_dir, keep
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self.whole = True
        """Whether the last one that was started or refused is on disk; to be asked after `wait`."""

    def start(
        self, images_seen: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best: Iterable[int]
    ) -> None:
        """Copy everything and begin to write; call `wait` before, for what became of the one under way.

        The copies stay on their device: on a GPU they queue up behind the step, and the thread waits, not the training.
        """
        copies = {part: {name: value.detach().clone() for name, value in values.items()} for part, values in tensors.items()}
        self._thread = threading.Thread(
            target=self._save, args=(images_seen, copies, copy.deepcopy(state), list(best)), name="checkpoint"
        )
        self._thread.start()

    def refuse(self, problem: str) -> None:
        """In place of `start`, where the checkpoint would be wrong."""
        self.whole, self._problem = False, problem

    def problem(self) -> str | None:
        """What went wrong with the last checkpoint, told once; None while it is being written, and when it is whole."""
        return None if self._thread is not None and self._thread.is_alive() else self.wait()

    def wait(self) -> str | None:
        """Until the checkpoint under way is on disk and verified; what went wrong, told once."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        problem, self._problem = self._problem, None
        return problem

    def _save(self, images_seen: int, tensors: dict[str, dict[str, Tensor]], state: Mapping[str, Any], best: list[int]) -> None:
        self.whole = False
        try:
            self._write(images_seen, tensors, state)
        except Exception as error:  # of a thread it would be lost
            self._problem = f"checkpoint at {images_seen} images was NOT saved: {error}"
            return
        self.whole = True
        try:
            checkpoint.prune(self.run_dir, images_seen, self.keep, best)
        except OSError as error:
            self._problem = f"an old checkpoint could not be deleted, and takes up room until the next is saved: {error}"

    def _write(self, images_seen: int, tensors: dict[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Write and read back. One that comes back damaged is deleted: it would take the place of one that is whole."""
        on_host = {part: {name: value.cpu() for name, value in values.items()} for part, values in tensors.items()}
        path = checkpoint.save(self.run_dir, images_seen, on_host, state)
        if damaged := checkpoint.read(path).problem():
            shutil.rmtree(path, ignore_errors=True)
            raise OSError(damaged)
