"""Counter-based random numbers: every draw is a function of (seed, purpose, global sample index), and of nothing else.

A process draws the rows of its own slice and the union over processes is the same for any number of them. No generator
has a state, so none is saved: a resumed run draws what the first one would have drawn.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox 4x64).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

WORDS_A_BLOCK = 4  # one step of Philox' counter yields four 64-bit words


def key(seed: int, purpose: str) -> NDArray[np.uint64]:
    """The Philox key [2] of one stream of numbers: streams of other seeds or purposes are independent of it."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.frombuffer(digest[:16], dtype=np.uint64)


def bits(seed: int, purpose: str, first: int, count: int, width: int) -> NDArray[np.uint64]:
    """Random words [count, width]; row i belongs to global sample first + i, whichever slice it is drawn in."""
    blocks = -(-width // WORDS_A_BLOCK)
    generator = np.random.Philox(key=key(seed, purpose), counter=first * blocks)
    words = generator.random_raw(count * blocks * WORDS_A_BLOCK)
    return words.reshape(count, blocks * WORDS_A_BLOCK)[:, :width]


def uniform(seed: int, purpose: str, first: int, count: int, width: int) -> NDArray[np.float64]:
    """Uniform numbers [count, width] in (0, 1]."""
    words = bits(seed, purpose, first, count, width) >> np.uint64(11)  # the 53 bits that a float64 holds
    return (words.astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, purpose: str, first: int, count: int, width: int) -> NDArray[np.float32]:
    """Standard normal numbers [count, width], by Box and Muller's formula (1958): a fixed two uniforms for two normals."""
    half = -(-width // 2)
    u = uniform(seed, purpose, first, count, 2 * half)
    radius = np.sqrt(-2.0 * np.log(u[:, :half]))
    angle = 2.0 * np.pi * u[:, half:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs[:, :width].astype(np.float32)


def choice(seed: int, purpose: str, first: int, count: int, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices [count], each drawn with probability in proportion to `weights`."""
    edges = np.cumsum(weights) / np.sum(weights)
    index = np.searchsorted(edges, uniform(seed, purpose, first, count, 1)[:, 0], side="right")
    return np.minimum(index, len(weights) - 1)
