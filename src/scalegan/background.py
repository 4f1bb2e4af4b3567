"""Checkpoints written beside the training: the step only copies the tensors; a thread hashes, writes, verifies and prunes."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalegan import checkpoint

Parts = Mapping[str, Mapping[str, Tensor]]
Copies = dict[str, dict[str, Tensor]]


class Saver:
    """One checkpoint at a time, on process 0. A failure is kept until `problem` or `wait` asks; the checkpoint before stays."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.run_dir, self.keep = run_dir, keep
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self.whole = True
        """Whether the last one that was started or refused is on disk; to be asked after `wait`."""

    def start(self, images_seen: int, tensors: Parts, state: Mapping[str, Any], best: Iterable[int]) -> None:
        """Copy everything and begin to write; call `wait` before, for what became of the one under way.

        The copies stay on their device: on a GPU they queue up behind the step, and the thread waits, not the training.
        """
        copies = {part: {name: value.detach().clone() for name, value in values.items()} for part, values in tensors.items()}
        made = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(
            target=self._save, args=(images_seen, copies, copy.deepcopy(state), list(best), made), name="checkpoint"
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

    def _save(
        self, images_seen: int, copies: Copies, state: Mapping[str, Any], best: list[int], made: torch.cuda.Event | None = None
    ) -> None:
        self.whole = False
        try:
            self._write(images_seen, to_host(copies, made), state)
        except Exception as error:  # of a thread it would be lost
            self._problem = f"checkpoint at {images_seen} images was NOT saved: {error}"
            return
        self.whole = True
        try:
            checkpoint.prune(self.run_dir, images_seen, self.keep, best)
        except OSError as error:
            self._problem = f"an old checkpoint could not be deleted, and takes up room until the next is saved: {error}"

    def _write(self, images_seen: int, tensors: Parts, state: Mapping[str, Any]) -> None:
        """Write and read back. One that comes back damaged is deleted: it would take the place of one that is whole."""
        path = checkpoint.save(self.run_dir, images_seen, tensors, state)
        if damaged := checkpoint.read(path).problem():
            shutil.rmtree(path, ignore_errors=True)
            raise OSError(damaged)


def to_host(copies: Copies, made: torch.cuda.Event | None) -> Copies:
    """What was copied on a GPU until `made`, in host memory, through a stream of its own: steps queue behind no transfer.

    Each `cpu` returns when its copy has arrived, so that its memory is free to be used by any stream after us. It is let go of
    at once, and not when the file is written, as steps may need it: `copies` is empty afterwards.
    """
    with torch.cuda.stream(torch.cuda.Stream(made.device)) if made else nullcontext():  # type: ignore[no-untyped-call]
        if made:
            made.wait()
        return {part: {name: values.pop(name).cpu() for name in list(values)} for part, values in copies.items()}
