"""Which image stands where: `(seed, position) -> sample` by arithmetic, so that nothing about the order is ever saved.

Two forms. `full` permutes all samples anew each epoch, in O(1) memory: a small Feistel network on the smallest power of
two that holds them, walked along its cycle until it lands on a sample (Black and Rogaway 2002, "Ciphers with arbitrary
finite domains"). `blocks` is for shards that are costly to reach: the shards are permuted each epoch, laid end to end,
rotated by a random offset and cut into `streams` equal segments; each stream is read front to back, a window at a time,
and each window is permuted. A global batch takes batch / streams samples of every stream, and its slots are grouped by
stream, so that a process that owns a run of slots reads only the shards of its own streams.

In both each sample comes once an epoch (`blocks` leaves over fewer than `streams` samples, others each epoch), and the
global batches do not depend on who asks: not on processes, accumulation rounds or loader workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scalegan.config import DataConfig
    from scalegan.data.index import Index

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 6  # of the Feistel network; four are enough in theory for wide halves, small ones need a few more
SMALLEST_BITS = 6  # with fewer the network has too few keyed functions to reach every order of a handful of samples
MOST_KEPT = 2  # layouts of epochs kept at hand: a batch may straddle two

# One number a purpose, so that no two draws of a run share a key.
EPOCH, SHARDS, ROTATION, WINDOW, SUBSTITUTE, COMPARED, PROBED, PAIRED, MIXED = range(9)


@dataclass(frozen=True)
class Order:
    """An order of `samples` images; `counts` (images per shard), `streams` and `window` matter to `blocks` alone."""

    kind: Literal["full", "blocks"]
    seed: int
    samples: int
    counts: tuple[int, ...] = ()
    streams: int = 1
    window: int = 1

    @property
    def segment(self) -> int:
        """Images that one stream shows in an epoch."""
        return self.samples // self.streams

    @property
    def epoch(self) -> int:
        """Images of one epoch."""
        return self.samples if self.kind == "full" else self.segment * self.streams

    @cached_property
    def stride(self) -> int:
        """Images of one window: the segment cut into the fewest windows of at most `window`, as equal as can be."""
        windows = -(-self.segment // self.window)
        return -(-self.segment // windows)

    @cached_property
    def layouts(self) -> dict[int, Layout]:
        """The layouts of the epochs last asked for; a cache, no state."""
        return {}

    def layout(self, epoch: int) -> Layout:
        if epoch not in self.layouts:
            while len(self.layouts) >= MOST_KEPT:
                self.layouts.pop(next(iter(self.layouts)))
            self.layouts[epoch] = lay_out(self, epoch)
        return self.layouts[epoch]


@dataclass(frozen=True)
class Layout:
    """The shards of one epoch laid end to end: shard `shards[i]` begins at `ends[i] - its count` of the sequence."""

    shards: Ints  # in the order of this epoch
    first: Ints  # sample number that each of them begins with
    starts: Ints  # where each begins in the sequence
    rotation: int
    samples: int

    def sample(self, place: Ints) -> Ints:
        """Places of the rotated sequence -> samples."""
        place = (place + self.rotation) % self.samples
        at = np.searchsorted(self.starts, place, side="right") - 1
        return self.first[at] + place - self.starts[at]

    def shards_between(self, begin: int, end: int) -> Ints:
        """The shards that places begin..end-1 of the rotated sequence lie in, in the order they are read."""
        ends = np.array([begin, end - 1]) + self.rotation
        first, last = (np.searchsorted(self.starts, ends % self.samples, side="right") - 1).tolist()
        if begin + self.rotation < self.samples <= end - 1 + self.rotation:  # over the end of the sequence and on at its start
            return np.concatenate([self.shards[first:], self.shards[: min(last + 1, first)]])
        return self.shards[first : last + 1]


def make_order(data: DataConfig, index: Index, seed: int) -> Order:
    if data.order == "full":
        return Order("full", seed, index.samples)
    counts = tuple(shard.samples for shard in index.shards)
    return Order("blocks", seed, index.samples, counts, data.streams, data.window)


def samples_at(order: Order, images_seen: int | Ints, slots: Ints, batch: int) -> Ints:
    """The sample in each slot of the global batch of `batch` images that starts at `images_seen`.

    The two broadcast: `images_seen` [k, 1] and `slots` [n] give the samples [k, n] of k batches at once. In `blocks`
    order `batch` and `images_seen` are multiples of `streams`.
    """
    seen, slots = np.broadcast_arrays(np.asarray(images_seen, dtype=np.int64), np.asarray(slots, dtype=np.int64))
    if order.kind == "full":
        epoch, place = np.divmod(seen + slots, order.samples)
        return permute(place, order.samples, order.samples, draw(order.seed, EPOCH, epoch))
    stream, epoch, place = locate_slot(order, seen, slots, batch)
    window = place // order.stride
    begin = window * order.stride
    size = np.minimum(order.stride, order.segment - begin)
    key = draw(order.seed, WINDOW, epoch, stream, window)
    place = begin + permute(place - begin, size, order.stride, key)
    return on_layout(order, epoch, stream * order.segment + place)


def substitutes(order: Order, images_seen: int | Ints, slots: Ints, batch: int, attempt: int) -> Ints:
    """Samples to fill slots with whose own cannot be read: any of the same stream and epoch, drawn by the slot's position.

    A substitute may be unreadable too; then `attempt` goes up by one.
    """
    seen, slots = np.broadcast_arrays(np.asarray(images_seen, dtype=np.int64), np.asarray(slots, dtype=np.int64))
    number = draw(order.seed, SUBSTITUTE, seen + slots, np.asarray(attempt))
    if order.kind == "full":
        return (number % np.uint64(order.samples)).astype(np.int64)
    stream, epoch, _ = locate_slot(order, seen, slots, batch)
    place = (number % np.uint64(order.segment)).astype(np.int64)
    return on_layout(order, epoch, stream * order.segment + place)


def shards_ahead(order: Order, images_seen: int, streams: range, images: int) -> Ints:
    """The shards that each of `streams` reads from `images_seen` on for `images` images of its own, without repeats.

    Of `blocks` order only; whole windows, as a window is read all over. Nearest first.
    """
    epoch, place = divmod(images_seen // order.streams, order.segment)
    begin = place - place % order.stride
    found: dict[int, None] = {}
    while begin < place + images:
        end = min(begin + order.stride, order.segment)
        for stream in streams:
            shards = order.layout(epoch).shards_between(stream * order.segment + begin, stream * order.segment + end)
            found.update(dict.fromkeys(shards.tolist()))
        begin = end
        if end == order.segment:
            epoch, place, images, begin = epoch + 1, 0, images - (end - place), 0
    return np.fromiter(found, dtype=np.int64)


def locate_slot(order: Order, images_seen: Ints, slots: Ints, batch: int) -> tuple[Ints, Ints, Ints]:
    """Stream, epoch and place in the stream's segment of each slot."""
    stream, turn = np.divmod(slots, batch // order.streams)
    epoch, place = np.divmod(images_seen // order.streams + turn, order.segment)
    return stream, epoch, place


def on_layout(order: Order, epoch: Ints, place: Ints) -> Ints:
    samples = np.empty_like(place)
    for number in np.unique(epoch).tolist():
        here = epoch == number
        samples[here] = order.layout(number).sample(place[here])
    return samples


def lay_out(order: Order, epoch: int) -> Layout:
    counts = np.array(order.counts, dtype=np.int64)
    shards = np.argsort(draw(order.seed, SHARDS, np.asarray(epoch), np.arange(len(counts))), kind="stable")
    shards = shards[counts[shards] > 0]
    starts = np.cumsum(counts[shards]) - counts[shards]
    rotation = int(draw(order.seed, ROTATION, np.asarray([epoch]))[0] % np.uint64(order.samples))
    return Layout(shards, (np.cumsum(counts) - counts)[shards], starts, rotation, order.samples)


def permute(place: Ints, size: int | Ints, largest: int, key: Words) -> Ints:
    """Where `place` (0 <= place < size) goes in the permutation of `size` things that `key` chooses.

    `largest` is the size that all permutations of one family share their network with: what a place maps to must not
    depend on what else is asked for in the same call.
    """
    bits = max(SMALLEST_BITS, (largest - 1).bit_length())
    sizes = np.broadcast_to(np.asarray(size, dtype=np.uint64), place.shape).ravel()
    keys = np.broadcast_to(key, place.shape).ravel()
    walked = feistel(place.ravel().astype(np.uint64), bits, keys)
    outside = np.flatnonzero(walked >= sizes)
    while len(outside):
        walked[outside] = feistel(walked[outside], bits, keys[outside])
        outside = outside[walked[outside] >= sizes[outside]]
    return walked.astype(np.int64).reshape(place.shape)


def feistel(x: Words, bits: int, key: Words) -> Words:
    """A keyed permutation of 0..2^bits-1: each half is changed in turn by a keyed function of the other."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = x >> low_bits, x & low_mask
    for number in range(0, ROUNDS, 2):
        high = high ^ (scramble(low + key + step(number)) & high_mask)
        low = low ^ (scramble(high + key + step(number + 1)) & low_mask)
    return (high << low_bits) | low


def draw(seed: int, purpose: int, *numbers: Ints) -> Words:
    """A random 64-bit word for each tuple of numbers (broadcast together)."""
    word = scramble(np.array([seed % (1 << 64)], dtype=np.uint64) + step(purpose))
    for number in numbers:
        word = scramble(scramble(word) + np.asarray(number).astype(np.uint64))
    return word


def step(number: int) -> np.uint64:
    """`number` steps of 2^64 / golden ratio, which puts successive keys far apart."""
    return np.uint64((number + 1) * 0x9E3779B97F4A7C15 % (1 << 64))


def scramble(x: Words) -> Words:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): every bit of x reaches every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
