"""Layers that the network families share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is an all-reduce, to any order and under `torch.func` transforms."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])


def sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]
    return total


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch: the same output on any number of processes (Ioffe and Szegedy 2015).

    With one process it is `F.batch_norm`. With several, mean and variance are formed from sums over all of them, and the
    gradient flows back through the same sums. `running=False` keeps no running statistics, for a critic, which is
    never in evaluation mode and must not change by being looked at.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, running: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum, self.running = eps, momentum, running
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if running:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the same shape and dtype."""
        mean, var = (self.running_mean, self.running_var) if self.running else (None, None)
        if not self.training and self.running:
            return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        return self._over_processes(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        processes = dist.get_world_size()
        values = at_least_float32(x)
        local_var, local_mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        # Every process holds as many images, so that the moments of all are the means of theirs.
        total = sum_over_processes(torch.stack([local_mean, local_var + local_mean.square()])) / processes
        mean = total[0]
        var = total[1] - mean.square()
        if self.running:
            count = x.numel() / x.shape[1] * processes
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(var + self.eps) * self.weight
        shift = self.bias - mean * scale
        normalised: Tensor = values * scale[:, None, None] + shift[:, None, None]
        return normalised.to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is for convolutions; logits, norms and losses are summed in no less than float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes (height, width) from the coarsest to the image's own, each half of the next, rounded up.

    The coarsest is the first whose shorter side is under 8: 64 x 64 starts at 4 x 4, 100 x 100 at 7 x 7, 104 x 88 at 7 x 6.
    """
    sizes = [(height, width)]
    while min(sizes[0]) >= 8:
        h, w = sizes[0]
        sizes.insert(0, (-(-h // 2), -(-w // 2)))
    return sizes
