"""The order is arithmetic: which sample stands in which slot depends on the seed and the position, and on nothing else."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegan.data.order import Order, permute, samples_at, shards_ahead, substitutes

quick = settings(max_examples=60, deadline=None)


def epoch_of(order: Order, epoch: int, batch: int) -> np.ndarray:
    """All samples of one epoch, by asking for every slot of as many batches as it has (batch divides the epoch)."""
    steps = order.epoch // batch
    seen = np.arange(steps)[:, None] * batch + epoch * order.epoch
    return samples_at(order, seen, np.arange(batch), batch).ravel()


@st.composite
def blocks_orders(draw: st.DrawFn) -> Order:
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda c: sum(c) > 0))
    streams = draw(st.integers(1, min(8, sum(counts))))
    return Order("blocks", draw(st.integers(0, 2**70)), sum(counts), tuple(counts), streams, draw(st.integers(1, 60)))


# --- full


def test_each_sample_comes_once_an_epoch() -> None:
    order = Order("full", seed=0, samples=1000)
    assert sorted(samples_at(order, 0, np.arange(1000), 1000).tolist()) == list(range(1000))


@quick
@given(samples=st.integers(1, 700), seed=st.integers(0, 2**70), epoch=st.integers(0, 10**9))
def test_every_epoch_of_any_size_is_a_permutation(samples: int, seed: int, epoch: int) -> None:
    order = Order("full", seed, samples)
    found = samples_at(order, epoch * samples, np.arange(samples), samples)
    assert sorted(found.tolist()) == list(range(samples))


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_of(Order("full", seed, 500), epoch, 500).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


@quick
@given(samples=st.integers(1, 10**12), position=st.integers(0, 10**15), seed=st.integers(0, 2**64))
def test_a_million_million_samples_need_no_memory(samples: int, position: int, seed: int) -> None:
    found = samples_at(Order("full", seed, samples), position, np.arange(64), 64)
    assert ((found >= 0) & (found < samples)).all()
    inside = position % samples + np.arange(64) < samples  # those of one epoch are distinct
    assert len(set(found[inside].tolist())) == inside.sum()


def test_the_largest_order_starts_at_once() -> None:
    began = time.perf_counter()
    samples_at(Order("full", 0, 10**12), 10**14, np.arange(64), 64)
    assert time.perf_counter() - began < 0.5


@quick
@given(
    samples=st.integers(1, 300),
    seen=st.integers(0, 10**6),
    processes=st.integers(1, 4),
    rounds=st.integers(1, 3),
    share=st.integers(1, 5),
)
def test_processes_and_rounds_cut_the_same_global_batch(
    samples: int, seen: int, processes: int, rounds: int, share: int
) -> None:
    order = Order("full", 3, samples)
    batch = processes * rounds * share
    parts = [
        samples_at(order, seen, np.arange((r * rounds + m) * share, (r * rounds + m + 1) * share), batch)
        for r in range(processes)
        for m in range(rounds)
    ]
    assert np.concatenate(parts).tolist() == samples_at(order, seen, np.arange(batch), batch).tolist()


def test_a_batch_may_straddle_two_epochs() -> None:
    order = Order("full", 1, 10)
    one, two = epoch_of(order, 0, 10), epoch_of(order, 1, 10)
    assert samples_at(order, 8, np.arange(4), 4).tolist() == [*one[8:], *two[:2]]


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_every_order_of_a_few_samples_is_as_likely(samples: int) -> None:
    epochs = 24_000
    order = Order("full", 11, samples)
    found = samples_at(order, np.arange(epochs)[:, None] * samples, np.arange(samples), samples)
    _, counts = np.unique(found, axis=0, return_counts=True)
    orders = {2: 2, 3: 6, 4: 24}[samples]
    assert len(counts) == orders
    chi_square = ((counts - epochs / orders) ** 2 / (epochs / orders)).sum()
    assert chi_square < orders + 4 * (2 * orders) ** 0.5


@pytest.mark.parametrize("samples", [64, 100, 1000])
def test_each_sample_is_as_likely_at_each_place(samples: int) -> None:
    epochs = 400_000 // samples
    order = Order("full", 5, samples)
    found = samples_at(order, np.arange(epochs)[:, None] * samples, np.arange(samples), samples)
    table = np.zeros((10, 10))
    np.add.at(table, (np.broadcast_to(np.arange(samples) * 10 // samples, found.shape), found * 10 // samples), 1)
    share = np.bincount(np.arange(samples) * 10 // samples) / samples
    expected = epochs * samples * share[:, None] * share[None]
    assert ((table - expected) ** 2 / expected).sum() < 81 + 4 * (2 * 81) ** 0.5


def test_neighbours_in_one_epoch_are_no_neighbours_in_the_next() -> None:
    order = Order("full", 2, 10_000)
    one, two = epoch_of(order, 0, 10_000), epoch_of(order, 1, 10_000)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.05


def test_a_place_maps_alike_whatever_else_is_asked_for() -> None:
    key = np.full(20, 9, dtype=np.uint64)
    together = permute(np.arange(20), np.repeat([10, 15], 10), 15, key)
    assert together[:10].tolist() == permute(np.arange(10), 10, 15, key[:10]).tolist()


# --- blocks


@quick
@given(order=blocks_orders(), epoch=st.integers(0, 10**6))
def test_blocks_show_each_sample_at_most_once_and_leave_over_fewer_than_streams(order: Order, epoch: int) -> None:
    found = epoch_of(order, epoch, order.streams).tolist()
    assert len(set(found)) == len(found) == order.epoch > order.samples - order.streams
    assert set(found) <= set(range(order.samples))


def test_every_sample_is_left_over_some_time_and_none_for_good() -> None:
    order = Order("blocks", 4, 23, (10, 13), streams=5, window=4)
    left = [set(range(23)) - set(epoch_of(order, epoch, 5).tolist()) for epoch in range(200)]
    assert all(len(samples) == 3 for samples in left)
    assert set.union(*left) == set(range(23))


@quick
@given(order=blocks_orders(), share=st.integers(1, 4), steps=st.integers(0, 50), data=st.data())
def test_blocks_are_alike_for_any_number_of_processes(order: Order, share: int, steps: int, data: st.DataObject) -> None:
    processes = data.draw(st.sampled_from([p for p in range(1, order.streams + 1) if order.streams % p == 0]))
    batch = order.streams * share
    own = batch // processes
    parts = [samples_at(order, steps * batch, np.arange(r * own, (r + 1) * own), batch) for r in range(processes)]
    assert np.concatenate(parts).tolist() == samples_at(order, steps * batch, np.arange(batch), batch).tolist()


@quick
@given(order=blocks_orders(), share=st.integers(1, 4))
def test_the_batch_size_changes_which_batch_a_sample_is_in_and_not_the_streams(order: Order, share: int) -> None:
    steps = order.segment // share
    batches = samples_at(
        order, np.arange(steps)[:, None] * share * order.streams, np.arange(share * order.streams), share * order.streams
    )
    ones = samples_at(order, np.arange(steps * share)[:, None] * order.streams, np.arange(order.streams), order.streams)
    assert (batches.reshape(steps, order.streams, share).transpose(1, 0, 2).reshape(order.streams, -1) == ones.T).all()


@quick
@given(order=blocks_orders(), epoch=st.integers(0, 1000), data=st.data())
def test_a_process_reads_only_the_shards_of_its_streams_and_shares_at_most_one_a_border(
    order: Order, epoch: int, data: st.DataObject
) -> None:
    processes = data.draw(st.sampled_from([p for p in range(1, order.streams + 1) if order.streams % p == 0]))
    ends = np.cumsum(order.counts)
    streams = order.streams // processes
    read = []
    for rank in range(processes):
        slots = np.arange(rank * streams, (rank + 1) * streams)
        seen = epoch * order.epoch + np.arange(order.segment)[:, None] * order.streams
        found = np.searchsorted(ends, samples_at(order, seen, slots, order.streams).ravel(), side="right")
        read.append(set(found.tolist()))
        ahead = shards_ahead(order, epoch * order.epoch, range(rank * streams, (rank + 1) * streams), order.segment)
        assert read[rank] == set(ahead.tolist())
    held = [shard for shards in read for shard in shards]
    assert len(held) <= len(set(held)) + processes
    if processes > 2:  # but for the shard that the rotation cuts, which the first reads at its start and others at the end
        cut = set(np.searchsorted(ends, order.layout(epoch).sample(np.array([0])), side="right").tolist())
        assert all(len((one & other) - cut) <= 1 for one, other in pairwise(read))


def test_the_next_shards_are_named_before_they_are_read() -> None:
    order = Order("blocks", 0, 1000, (50,) * 20, streams=4, window=60)
    ends = np.cumsum(order.counts)
    for place in range(0, 600, 7):
        seen = order.streams * place
        ahead = shards_ahead(order, seen, range(1, 3), 40)
        later = samples_at(order, seen + np.arange(40)[:, None] * order.streams, np.array([1, 2]), order.streams)
        assert set(np.searchsorted(ends, later.ravel(), side="right").tolist()) <= set(ahead.tolist())
        assert len(ahead) <= 2 * 7  # far from all 20 shards


def test_a_window_mixes_shards_that_hold_one_class_each() -> None:
    order = Order("blocks", 0, 8000, (100,) * 80, streams=4, window=1000)
    batch = samples_at(order, 0, np.arange(64), 64)
    per_stream = (batch.reshape(4, 16) // 100).tolist()
    assert all(len(set(shards)) >= 6 for shards in per_stream)  # 16 images of 10 or 11 open shards


def test_without_a_window_a_stream_is_read_front_to_back() -> None:
    order = Order("blocks", 0, 120, (30,) * 4, streams=2, window=1)
    found = samples_at(order, np.arange(60)[:, None] * 2, np.array([0]), 2).ravel()
    assert (np.diff(found) == 1).sum() >= 60 - 1 - 4  # all but the seams of four shards


def test_start_up_costs_time_by_shards_and_not_by_samples() -> None:
    began = time.perf_counter()
    order = Order("blocks", 0, 10**11, (10**7,) * 10**4, streams=64, window=4096)
    samples_at(order, 0, np.arange(64), 64)
    assert time.perf_counter() - began < 0.5


# --- substitutes


@quick
@given(order=blocks_orders(), step=st.integers(0, 30), attempt=st.integers(0, 5))
def test_a_substitute_comes_from_the_same_stream_and_epoch(order: Order, step: int, attempt: int) -> None:
    seen = step * order.streams
    found = substitutes(order, seen, np.arange(order.streams), order.streams, attempt)
    epoch = seen // order.streams // order.segment
    first = np.arange(order.segment)[:, None] * order.streams + epoch * order.epoch
    by_stream = samples_at(order, first, np.arange(order.streams), order.streams).T.tolist()
    assert all(sample in stream for sample, stream in zip(found.tolist(), by_stream, strict=True))


def test_substitutes_depend_on_the_position_and_the_attempt_alone() -> None:
    order = Order("full", 0, 10**6)
    whole = substitutes(order, 640, np.arange(64), 64, 0)
    assert substitutes(order, 640, np.arange(32, 64), 64, 0).tolist() == whole[32:].tolist()
    assert substitutes(order, 672, np.arange(32), 64, 0).tolist() == whole[32:].tolist()
    assert len(set(whole.tolist())) > 60
    assert not np.isin(substitutes(order, 640, np.arange(64), 64, 1), whole).any()
