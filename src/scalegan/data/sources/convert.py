"""Runs the tasks of a source through a transform, in processes, and keeps the results in one temporary file.

The source is read in its own order, each volume or archive once; the shards are then written in shuffled order from that
file. So the result does not depend on the number of workers, and memory holds a few tasks, not the data set.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalegan.data.sources.base import MOST_DAMAGED, Damaged, Source
from scalegan.data.sources.encode import Transform
from scalegan.data.sources.processes import Result, in_processes, work
from scalegan.data.writer import Sample
from scalegan.errors import UserError

INLINE = 600
"""Fewer images than this are done sooner than worker processes have started."""


def run_tasks(source: Source, transform: Transform, workers: int) -> Generator[Result, None, None]:
    """Results in the order of the tasks; closed, it leaves no process."""
    few = source.unit == "images" and source.count < INLINE
    if workers < 2 or few or len(source.tasks) < 2:
        return (work(task, transform) for task in source.tasks)
    return in_processes(source.tasks, transform, min(workers, len(source.tasks)))


@dataclass
class Spool:
    """All encoded images in one file, and what is known about them."""

    path: Path

    def __post_init__(self) -> None:
        self.file = open(self.path, "w+b")  # noqa: SIM115 - closed by __exit__
        self.starts, self.lengths, self.labels, self.tasks = array("q"), array("q"), array("q"), array("q")
        self.task = 0
        self.png = bytearray()
        self.sizes: dict[tuple[int, int], str] = {}
        self.depths: dict[int, str] = {}
        self.deep: dict[bool, str] = {}
        self.counts: Counter[int] = Counter()
        self.facts: list[dict[str, Any]] = []
        self.transparent = 0
        self.enlarged: Counter[tuple[int, int]] = Counter()
        self.damaged: list[str] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, results: Result) -> None:
        """Store the images of one task; those of another size or number of channels are an error.

        What cannot be read is an error only where it is a lot: the others of it are yet to be found.
        """
        self.damaged += results.damaged
        if len(self.damaged) >= MOST_DAMAGED:
            self.check_readable()
        if results.facts:
            self.facts.append(results.facts)
        for image in results.images:
            self.tasks.append(self.task)
            self.sizes.setdefault((image.height, image.width), image.name)
            self.depths.setdefault(image.channels, image.name)
            if image.deep is not None:
                self.deep.setdefault(image.deep, image.name)
            self.check_alike()
            self.starts.append(self.file.tell())
            self.lengths.append(len(image.data))
            self.labels.append(image.label)
            self.png.append(image.suffix == "png")
            self.counts[image.label] += 1
            self.transparent += image.transparent
            if image.enlarged:
                self.enlarged[image.enlarged] += 1
            self.file.write(image.data)
        self.task += 1

    def check_readable(self) -> None:
        if self.damaged:
            raise Damaged(*self.damaged)

    def check_alike(self) -> None:
        if len(self.sizes) > 1:
            shown = " and ".join(f"{h}x{w} ({name})" for (h, w), name in self.sizes.items())
            raise UserError(f"images of several sizes, height x width: {shown}: choose one with --size, such as --size 64")
        if len(self.depths) > 1:
            names = {1: "grey", 3: "colour"}
            shown = " and ".join(f"{names[channels]} ({name})" for channels, name in sorted(self.depths.items()))
            raise UserError(f"both grey and colour images: {shown}: choose with --channels 1 or --channels 3")
        if len(self.deep) > 1:
            raise UserError(
                f"images of 8 bits ({self.deep[False]}) and of more ({self.deep[True]}), and --window cannot mean the "
                "intensities of both: save them alike, or give percentiles such as --window p1,p99"
            )

    def order(self, seed: int, first: int, end: int) -> NDArray[np.int64]:
        """Images `first` up to `end`, shuffled by uniform numbers of a counter-based generator: alike on every machine."""
        numbers = np.random.Generator(np.random.Philox(seed)).random(end - first)
        return first + np.argsort(numbers, kind="stable").astype(np.int64)

    def sample(self, number: int) -> Sample:
        data = os.pread(self.file.fileno(), self.lengths[number], self.starts[number])
        suffix: Literal["png", "jpg"] = "png" if self.png[number] else "jpg"
        return Sample(data, suffix, self.labels[number])

    def samples(self, order: NDArray[np.int64]) -> Iterator[Sample]:
        self.file.flush()
        for number in order.tolist():
            yield self.sample(number)
