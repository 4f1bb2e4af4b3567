"""The averaged generator: what is sampled from, evaluated and kept."""

from __future__ import annotations

import copy

import torch
from torch import nn


def make_ema(generator: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode."""
    return copy.deepcopy(generator).eval().requires_grad_(False)


SPECTRAL_VECTORS = ("._u", "._v")
"""Endings of the names that torch gives to the singular vectors of a spectral norm."""


@torch.no_grad()
def update_ema(ema: nn.Module, generator: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * generator, over parameters and floating-point buffers alike.

    Batch-norm statistics are averaged with the weights they belong to: copied ones would describe another network. The
    vectors of spectral norms are copied: they turn from step to step, and a mean of unit vectors is shorter than 1.
    """
    averages, values = [], []
    for (name, average), value in zip(ema.state_dict().items(), generator.state_dict().values(), strict=True):
        if average.is_floating_point() and not name.endswith(SPECTRAL_VECTORS):
            averages.append(average)
            values.append(value)
        else:
            average.copy_(value)
    torch._foreach_lerp_(averages, values, 1.0 - decay)
