"""Noise inside a generator as a function of the latents' bits: image i has the same on any number of processes, in training,
evaluation and sampling, and a generator needs no random numbers besides its latents.

Integer hashes by torch's own operators (the finaliser of SplitMix64, Steele et al. 2014, which passes BigCrush), keyed by
image, layer and pixel. The integers are the same on every device. The normals are formed from them in float64 and rounded,
so that what two libraries' logarithms and cosines differ by is seen in fewer than one of 10^7 of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - 2**64
"""From one counter to the next: the odd number near 2^64 by the golden ratio, in int64 as all here."""
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
LOW = 2**32 - 1


def noise_keys(latents: Tensor) -> Tensor:
    """Latents [N, z_dim] -> int64 [N], one key an image, by the bits of its latents as float32."""
    bits = latents.detach().float().contiguous().view(torch.int32).long()
    # A sum of hashed words, each told its place, is the same in any order of addition.
    return _mixed(_mixed(bits + _counters(bits.shape[1], bits.device)).sum(1))


def normal_noise(keys: Tensor, layer: int, height: int, width: int) -> Tensor:
    """Keys int64 [N] -> float32 [N, 1, height, width], standard normal, other numbers for each image, layer and pixel."""
    streams = _mixed(keys + layer)
    words = _mixed(streams[:, None] + _counters(height * width, keys.device))
    radius = (-2 * _uniform(_shifted(words, 32)).log()).sqrt()
    angle = 2 * math.pi * _uniform(words & LOW)
    return (radius * angle.cos()).float().view(-1, 1, height, width)  # Box and Muller 1958, one of the two


def _counters(count: int, device: torch.device) -> Tensor:
    # The mask leaves all as it is. Without it a compiler draws the product into the counter of its loop, where C++ takes an
    # overflow for impossible: the loop ran on beyond the end of the latents.
    return torch.bitwise_and(torch.arange(1, count + 1, device=device), LOW) * GAMMA


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int64 in which each bit of `x` changes each bit of the result with probability 1/2."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """x >> by with zeros from the left: torch shifts copies of the sign in."""
    return torch.bitwise_and(x >> by, 2 ** (64 - by) - 1)


def _uniform(words: Tensor) -> Tensor:
    """Integers below 2^32 -> float64 in (0, 1)."""
    return (words.double() + 0.5) * 2.0**-32
