"""The averaged generator: what is sampled from, evaluated and kept."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from scalegan.models.layers import follow_weights


def make_ema(generator: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode."""
    return copy.deepcopy(generator).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(ema: nn.Module, generator: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * generator, over parameters and floating-point buffers alike.

    Batch-norm statistics are averaged with the weights they belong to: copied ones would describe another network. The
    singular vectors of a spectral norm are neither: from their average on, an iteration turns them to those of our weights.
    A tensor that several layers share is averaged once, though it has several names.
    """
    averages, values = [], []
    tensors = (chain(network.parameters(), network.buffers()) for network in (ema, generator))
    for average, value in zip(*tensors, strict=True):
        if average.is_floating_point():
            averages.append(average)
            values.append(value)
        else:
            average.copy_(value)
    torch._foreach_lerp_(averages, values, 1.0 - decay)
    follow_weights(ema)
