"""Resizing by matrix products: exact, twice differentiable, and deterministic on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def area(size: int, target: int) -> Tensor:
    """Matrix [target, size] in which each new pixel is the mean of what it covers; average pooling, where sizes divide."""
    edges = torch.arange(target + 1) * (size / target)
    pixel = torch.arange(size)
    covered = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return covered.clamp(min=0) * (target / size)


def linear(size: int, target: int) -> Tensor:
    """Matrix [target, size] of linear interpolation between the centres of pixels, smoothed where it makes smaller."""
    scale = size / target
    centre = (torch.arange(target)[:, None] + 0.5) * scale
    distance = (torch.arange(size) + 0.5 - centre).abs() / max(scale, 1.0)
    weight = (1 - distance).clamp(min=0)
    return weight / weight.sum(1, keepdim=True)


class Resize(nn.Module):
    """[N, C, *size] -> [N, C, *target], rows and columns each by a matrix of `method`."""

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], target: tuple[int, int], method: Callable[[int, int], Tensor]) -> None:
        super().__init__()
        self.still = size == target
        self.register_buffer("rows", method(size[0], target[0]), persistent=False)
        self.register_buffer("columns", method(size[1], target[1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.still:
            return x
        return torch.einsum("yh,nchw,xw->ncyx", self.rows.to(x.dtype), x, self.columns.to(x.dtype))
