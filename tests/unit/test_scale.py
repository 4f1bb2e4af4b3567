"""What a larger data set, or a position further on, costs: a step nothing, and a start what its shards cost.

Costs are counted, not timed: calls of functions, and the most bytes that were allocated at once.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest

from scalegan.config import Config, DataConfig, TrainConfig
from scalegan.data.index import INDEX_NAME, Index, Shard, index_text, locate, make_index, read_index
from scalegan.data.loader import Plan, windows_at_hand
from scalegan.data.order import make_order, samples_at, shards_ahead
from scalegan.data.storage import Storage

Kind = Literal["full", "blocks"]
both_orders = pytest.mark.parametrize("kind", ["full", "blocks"])
FAR = 10**6
"""Epochs to where no run ever is."""


@dataclass(frozen=True)
class Cost:
    calls: int
    bytes: int


def cost(work: Callable[[], Any]) -> Cost:
    """Of `work`, done four times; the memory is the least of three, as threads of other tests may take some."""
    calls = 0

    def called(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return Cost(calls, min(peak(work) for _ in range(3)))


def peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def made_up(shards: int, samples: int) -> Index:
    """So many shards of so many images each, none of which is there."""
    parts = [Shard(f"{n:06d}.tar", samples, samples * 1000, f"{n:064x}", f"{n:06d}.npy", f"{n:064x}") for n in range(shards)]
    facts: dict[str, Any] = {"classes": (), "class_counts": (), "source": "", "licence": "", "details": {}}
    return make_index("", shards=tuple(parts), height=64, width=64, channels=3, **facts)


@pytest.fixture(scope="module")
def sizes() -> tuple[Index, Index]:
    """A million and a thousand million images, in shards of the same size."""
    return made_up(10, 100_000), made_up(10_000, 100_000)


def plan_of(index: Index, kind: Kind, processes: int = 4) -> Plan:
    data = DataConfig(order=kind, streams=2 * processes, window=1000)
    config = Config(data=data, train=TrainConfig(batch=16 * processes))
    config.check(processes)
    return Plan(make_order(data, index, seed=0), config.train.batch, 1, 16, 0)


def position(plan: Plan, epochs: int) -> int:
    """Where a step begins, a third of an epoch after so many."""
    return (epochs * plan.order.epoch + plan.order.epoch // 3) // plan.batch * plan.batch


def cost_of_steps(index: Index, kind: Kind, epochs: int) -> Cost:
    """Of the steps that are planned together, once the layout of their epoch has been made."""
    plan = plan_of(index, kind)
    steps = plan.ahead(position(plan, epochs))
    next(steps)
    return cost(lambda: next(steps))


def cost_of_border(index: Index, kind: Kind) -> Cost:
    """Of the steps that are planned together where an epoch ends."""
    plan = plan_of(index, kind)
    border = plan.order.epoch // plan.batch * plan.batch
    next(plan.ahead(border - plan.batch * 256))

    def cross() -> None:
        plan.order.layouts.pop(1, None)
        next(plan.ahead(border))

    return cost(cross)


def cost_of_resume(index: Index, kind: Kind, epochs: int) -> Cost:
    """Of all that is planned before the first step."""
    return cost(lambda: next(plan_of(index, kind).ahead(position(plan_of(index, kind), epochs))))


def cost_of_start(folder: Path, index: Index) -> Cost:
    folder.mkdir()
    (folder / INDEX_NAME).write_text(index_text(index))
    return cost(lambda: next(plan_of(read_index(folder, compare=False), "blocks").ahead(0)))


# --- a step


@both_orders
def test_a_step_costs_the_same_for_a_thousand_times_as_many_images(sizes: tuple[Index, Index], kind: Kind) -> None:
    small, large = (cost_of_steps(index, kind, epochs=1) for index in sizes)
    assert large.calls <= 2 * small.calls  # the permutation takes a round more for some sizes than for others
    assert large.bytes <= 1.5 * small.bytes


def test_the_end_of_an_epoch_costs_a_step_nothing_in_full_order(sizes: tuple[Index, Index]) -> None:
    small, large = (cost_of_border(index, "full") for index in sizes)
    assert large.calls <= 2 * small.calls
    assert large.bytes <= 1.5 * small.bytes
    assert large.bytes <= 1.5 * cost_of_steps(sizes[1], "full", epochs=1).bytes


def test_the_end_of_an_epoch_costs_at_most_some_words_a_shard_in_blocks_order(sizes: tuple[Index, Index]) -> None:
    small, large = (cost_of_border(index, "blocks") for index in sizes)
    assert large.calls <= 2 * small.calls
    assert large.bytes - small.bytes <= 100 * (len(sizes[1].shards) - len(sizes[0].shards))


@both_orders
def test_a_step_costs_the_same_after_a_million_epochs(sizes: tuple[Index, Index], kind: Kind) -> None:
    near, far = (cost_of_steps(sizes[1], kind, epochs) for epochs in (0, FAR))
    assert far.calls <= 2 * near.calls
    assert far.bytes <= 1.5 * near.bytes


def test_the_shards_to_fetch_cost_a_step_the_same_for_a_thousand_times_as_many(sizes: tuple[Index, Index]) -> None:
    plans = [plan_of(index, "blocks") for index in sizes]
    for plan in plans:
        plan.order.layout(0)
    small, large = (cost(lambda plan=plan: windows_at_hand(plan, position(plan, 0))) for plan in plans)
    assert large.calls <= 2 * small.calls
    assert large.bytes <= 2 * small.bytes


def test_opening_a_shard_costs_the_same_whatever_was_opened_before(shards: Path, tmp_path: Path) -> None:
    storages = []
    for known in (10, 10_000):
        storage = Storage(read_index(shards), DataConfig(str(shards), cache=str(tmp_path / f"{known}")))
        storage.record.parent.mkdir(parents=True)
        storage.record.write_text("".join(f"{number:064x}\n" for number in range(known)))
        open_and_close(storage)
        storages.append(storage)
    small, large = (cost(lambda storage=storage: open_and_close(storage)) for storage in storages)
    assert large.bytes <= 2 * small.bytes


def open_and_close(storage: Storage) -> None:
    os.close(storage.open(0))


# --- a start


@both_orders
def test_a_resume_costs_the_same_after_a_million_epochs(sizes: tuple[Index, Index], kind: Kind) -> None:
    near, far = (cost_of_resume(sizes[1], kind, epochs) for epochs in (0, FAR))
    assert far.calls <= 1.1 * near.calls
    assert far.bytes <= 1.1 * near.bytes


def test_a_start_costs_the_same_for_as_many_shards_of_a_thousand_times_as_many_images(tmp_path: Path) -> None:
    small, large = (cost_of_start(tmp_path / f"{samples}", made_up(200, samples)) for samples in (10_000, 10_000_000))
    assert large.calls <= 1.1 * small.calls
    assert large.bytes <= 1.1 * small.bytes


def test_a_start_costs_at_most_in_proportion_to_the_number_of_shards(tmp_path: Path) -> None:
    few, many = (cost_of_start(tmp_path / f"{shards}", made_up(shards, 10_000)) for shards in (200, 2000))
    assert many.calls <= 10 * few.calls
    assert many.bytes <= 10 * few.bytes


# --- what a process reads


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("epoch", [0, 7])
def test_processes_share_shards_only_at_their_borders(processes: int, epoch: int) -> None:
    index = made_up(50, 600)
    own: list[set[int]] = []
    for rank in range(processes):
        plan = replace(plan_of(index, "blocks", processes), rank=rank)
        order = plan.order
        turns = epoch * order.epoch + np.arange(order.segment)[:, None] * order.streams
        found, _ = locate(index, samples_at(order, turns, np.array(plan.streams), order.streams).ravel())
        own.append(set(found.tolist()))
        assert own[-1] == set(shards_ahead(order, epoch * order.epoch, plan.streams, order.segment).tolist())
    for shard in range(len(index.shards)):
        readers = [rank for rank, shards in enumerate(own) if shard in shards]
        assert len(readers) in (1, 2)
        if len(readers) == 2:  # the last one and the first meet where the rotation cuts
            assert readers[1] - readers[0] in (1, processes - 1)
    for rank, shards in enumerate(own):
        assert len(shards & own[(rank + 1) % processes]) <= (1 if processes > 2 else 2)
