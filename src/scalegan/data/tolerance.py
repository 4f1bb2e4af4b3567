"""Images that cannot be read, under `data.on_error` skip: all processes leave out the same ones, within one budget."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from scalegan.config import DataConfig
from scalegan.data.index import Index
from scalegan.errors import UserError

BEFORE = "an image left out before this start"  # in place of what was wrong with it


class Tolerance:
    """Counts the distinct images that could not be read, and stops when they are more than `data.skip_budget` allows.

    A process notes what it comes across itself, and with every line of metrics and checkpoint what the others did, so that the
    budget is one for all, and a shard that one has lost is left out by all. Checkpoints keep the count, so that a run which is
    often started again stops where an undisturbed one does.
    """

    def __init__(self, index: Index, data: DataConfig) -> None:
        self.samples = index.samples
        self.budget = data.skip_budget
        self.unreadable: dict[int, str] = {}
        self.lost: dict[int, str] = {}
        """Shard -> what is wrong with it, of those of which nothing can be read."""

    def note(self, found: dict[int, str]) -> None:
        """`found`: sample -> what is wrong with it."""
        for sample in sorted(found.keys() - self.unreadable.keys()):
            self.unreadable[sample] = found[sample]
            warnings.warn(f"left out: {found[sample]}", stacklevel=2)
            self._check()

    def share(self, noted: Iterable[Iterable[tuple[int, str]]], lost: Iterable[Iterable[tuple[int, str]]] = ()) -> None:
        """What each process has noted, in the same order on all of them: they go on or stop together."""
        for shards in lost:
            self.lost = self.lost | dict(shards)
        everyone = [pair for unreadable in noted for pair in unreadable]
        self.unreadable = dict(sorted(everyone, key=lambda pair: pair[1] != BEFORE))  # the last is one that can be told
        self._check()

    def restore(self, samples: Iterable[int]) -> None:
        """What was left out before this start."""
        self.unreadable = dict.fromkeys(samples, BEFORE) | self.unreadable
        self._check()

    def _check(self) -> None:
        found = len(self.unreadable)
        if found > self.budget * self.samples:
            problem = f"{found} of {self.samples} images cannot be read, more than data.skip_budget {self.budget:g} allows"
            way_out = "repair them, or go on with a larger --data.skip_budget"
        elif found == self.samples:
            problem, way_out = f"none of the {found} images can be read", "repair them"
        else:
            return
        raise UserError(f"{problem}; the last: {list(self.unreadable.values())[-1]}; {way_out}")
