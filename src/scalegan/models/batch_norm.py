"""Batch normalisation that is the same on any number of processes, and other statistics that run along with a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from scalegan.model_config import ModelConfig
from scalegan.models.layers import at_least_float32


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


@dataclass(frozen=True)
class Share:
    """Which processes form a group of images together: those of group `group` of `groups`, `processes` of them."""

    group: int
    groups: int
    processes: int
    place: int
    """Of this process among all."""

    def total(self, x: Tensor) -> Tensor:
        """The sum of `x` over the processes of our group, by one all-reduce of all groups."""
        return self._in_slots(x, self.group, self.groups)[self.group]

    def each(self, x: Tensor) -> Tensor:
        """`x` of each process of our group, one after the other in its first dimension, by one all-reduce of all groups."""
        slots = self._in_slots(x, self.place, self.groups * self.processes)
        return slots.view(self.groups, self.processes, *x.shape)[self.group]

    def moments(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [C] of the group from those of each process; all hold as many images.

        By the distances of the means: E x^2 - (E x)^2 would leave nothing of a variance that is small beside the mean.
        """
        means, variances = self.each(torch.stack([mean, var])).unbind(1)
        middle = means.mean(0)
        return middle, variances.mean(0) + (means - middle).square().mean(0)

    def _in_slots(self, x: Tensor, slot: int, slots: int) -> Tensor:
        """[slots, *] with the sum of `x` over the processes that gave the same slot."""
        ours = (torch.arange(slots, device=x.device) == slot).to(x.dtype)
        return sum_over_processes(ours.view(-1, *[1] * x.ndim) * x)


class _SharedBatchNorm(torch.autograd.Function):
    """Batch normalisation over several processes by PyTorch's fused kernels, some ten times as fast as by its formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, share: Share) -> tuple[Tensor, Tensor, Tensor]:
        zeros = torch.zeros_like(weight)
        mean, var = share.moments(*torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0))
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.share = eps, share
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, var = ctx.saved_tensors
        # First as if mean and variance were constants. What flows through them is linear in the normalised x, with the
        # gradients of weight and bias over the whole group as its coefficients: the kernel that normalises makes it too.
        inverse = torch.rsqrt(var + ctx.eps)  # CUDA's kernel for channels-last maps asks for it and the mean as saved
        direct, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, mean, inverse, False, ctx.eps, [True, True, True]
        )
        total = ctx.share.total(torch.stack([to_weight, to_bias]))
        scale = weight * inverse / (x.numel() / x.shape[1] * ctx.share.processes)
        through = F.batch_norm(x, mean, var, total[0] * scale, total[1] * scale, training=False, eps=ctx.eps)
        return direct - through, to_weight, to_bias, None, None


class BatchNorm(nn.Module):
    """Batch normalisation whose output is the same on any number of processes (Ioffe and Szegedy 2015).

    `group` 0 normalises over the batch of all processes: mean and variance are formed from sums over them, through which
    the gradient flows back, and they wait for each other in every layer. A `group` of n images normalises each n
    consecutive images of the batch by themselves (Hoffer et al. 2017, "Ghost Batch Normalization"): where a process holds
    whole groups, nothing is exchanged. `running=False` keeps no running statistics, for a critic, which is never in
    evaluation mode and must not change by being looked at; there it can be differentiated to any order. `affine=False` has
    no gain and bias of its own.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        group: int = 0,
        running: bool = True,
        affine: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.group, self.eps, self.momentum, self.running = group, eps, momentum, running
        for name, value in (("weight", torch.ones(channels)), ("bias", torch.zeros(channels))):
            if affine:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)  # the fused kernels want both
        if running:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [N, C, H, W] -> the same shape and dtype; a condition is only looked at by a `ConditionalBatchNorm`."""
        if not self.training and self.running:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        share = self._share(len(x))
        if share is None:
            return self._in_groups(x, self.group or len(x))
        return self._over_processes(x, share) if self.running else self._by_formula(x, share)

    def _share(self, images: int) -> Share | None:
        """Which processes we form a group with that hold `images` each; None where ours is complete without others."""
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if processes == 1 or (self.group and images % self.group == 0):
            return None
        together, place = self.group // images if self.group else processes, dist.get_rank()
        return Share(place // together, processes // together, together, place)

    def _in_groups(self, x: Tensor, size: int) -> Tensor:
        parts = x.chunk(len(x) // size)
        if self.running:
            means, variances = self.running_mean.new_zeros(2, len(parts), len(self.running_mean))
            moments = list(zip(means, variances, strict=True))
        else:
            moments = [(None, None)] * len(parts)
        normalised = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, momentum=1.0, eps=self.eps)
            for part, (mean, var) in zip(parts, moments, strict=True)
        ]
        if self.running:
            self._remember(means.mean(0), variances.mean(0))
        return torch.cat(normalised) if len(normalised) > 1 else normalised[0]

    def _over_processes(self, x: Tensor, share: Share) -> Tensor:
        normalised, mean, var = _SharedBatchNorm.apply(x, self.weight, self.bias, self.eps, share)  # type: ignore[no-untyped-call]
        count = x.numel() / x.shape[1] * share.processes
        self._remember(mean, var * (count / (count - 1)))
        return normalised  # type: ignore[no-any-return]

    def _by_formula(self, x: Tensor, share: Share) -> Tensor:
        """Through `torch.func` transforms and to any order, as a gradient penalty needs it."""
        values = at_least_float32(x)
        local_var, local_mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        mean, var = share.moments(local_mean, local_var)
        scale = torch.rsqrt(var + self.eps) * self.weight
        shift = self.bias - mean * scale
        normalised: Tensor = values * scale[:, None, None] + shift[:, None, None]
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        move(self.running_mean, mean, self.momentum)
        move(self.running_var, var, self.momentum)


class ConditionalBatchNorm(BatchNorm):
    """Batch normalisation with a gain and a bias of each image's own (de Vries et al. 2017, section 3).

    `gains` and `biases` map what an image is told, [N] or [N, width], to [N, C]; the gain is 1 plus the first.
    """

    def __init__(self, channels: int, gains: nn.Module, biases: nn.Module, *, group: int = 0) -> None:
        super().__init__(channels, group=group, affine=False)
        self.gains, self.biases = gains, biases

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        gain = 1 + at_least_float32(self.gains(condition))
        bias = at_least_float32(self.biases(condition))
        normalised = super().forward(x) * gain[:, :, None, None] + bias[:, :, None, None]
        return normalised.to(x.dtype)


@torch.no_grad()
def move(running: Tensor, value: Tensor, weight: float) -> None:
    """running <- (1 - weight) running + weight value, but for the numbers that would not be finite.

    Of these a running statistic would never get rid, though the optimizers leave such a step out. The host is not asked.
    """
    moved = torch.lerp(running, value, weight)
    running.copy_(torch.where(moved.isfinite(), moved, running))


class RunningMean(nn.Module):
    """The mean [*shape] of something that each image has, over the images of late: those of this process, until
    `average_running_statistics` makes it that of all."""

    mean: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))

    def update(self, values: Tensor, weight: float) -> None:
        """mean <- (1 - weight) mean + weight mean of `values` [N, *shape], unless they are not finite."""
        move(self.mean, values.mean(0), weight)


def spans_processes(*networks: nn.Module, images: int) -> bool:
    """Whether a batch norm in them takes images of other processes beside the `images` that this one holds."""
    norms = [m for network in networks for m in network.modules() if isinstance(m, BatchNorm)]
    return any(norm._share(images) is not None for norm in norms)


@torch.no_grad()
def average_running_statistics(network: nn.Module) -> None:
    """Each process has kept those of its own images: the mean is that of all, as every step of them is linear."""
    modules = list(network.modules())
    norms = [m for m in modules if isinstance(m, BatchNorm) and m.running and m.group]
    buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var)]
    buffers += [m.mean for m in modules if isinstance(m, RunningMean)]
    if not buffers or not dist.is_initialized():
        return
    total = torch.cat([b.flatten() for b in buffers])
    dist.all_reduce(total)
    means = (total / dist.get_world_size()).split_with_sizes([b.numel() for b in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer.copy_(mean.view_as(buffer))


Norm = Callable[[int], nn.Module]
"""A normalisation of so many channels."""


def critic_normalisation(config: ModelConfig) -> Norm:
    """Batch norm that can be differentiated to any order, or nothing."""
    if config.norm_of_critic == "batch":
        return partial(BatchNorm, group=config.norm_group, running=False)
    return lambda channels: nn.Identity()
