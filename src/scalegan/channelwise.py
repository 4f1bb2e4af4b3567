"""Convolutions by kernels that are never learnt: of each channel by itself for the filters that change sizes, and of frozen
backbones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _Filter(torch.autograd.Function):
    """`_convolve` whose gradient is that of x alone, to any order: the gradient of either kind is the other one.

    PyTorch's own gradient of a gradient also makes those of the kernels, wanted or not, and of grouped convolutions by one for
    each group: thousands of them in a penalised step of a critic.
    """

    @staticmethod
    def forward(
        x: Tensor, kernels: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int, size: tuple[int, int] | None
    ) -> Tensor:
        return _convolve(x, kernels, bias, stride, padding, groups, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, kernels, _, ctx.stride, ctx.padding, ctx.groups, size = inputs
        ctx.size = tuple(x.shape[2:]) if size is None else None
        ctx.save_for_backward(kernels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (kernels,) = ctx.saved_tensors
        to_x = _Filter.apply(gradients[0], kernels, None, ctx.stride, ctx.padding, ctx.groups, ctx.size)  # type: ignore[no-untyped-call]
        return to_x, None, None, None, None, None, None


def _convolve(
    x: Tensor, kernels: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int, size: tuple[int, int] | None
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # in a backward pass it may be on, or no more
        if size is None:
            return F.conv2d(x, kernels, bias, stride, padding, groups=groups)
        reached = [(n - 1) * stride - 2 * padding + kernels.shape[-1] for n in x.shape[2:]]
        missing = [wanted - n for wanted, n in zip(size, reached, strict=True)]
        return F.conv_transpose2d(x, kernels, bias, stride, padding, missing, groups)


def filtered(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int,
    groups: int,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """x [N, C, H, W] by kernels that get no gradient, as `F.conv2d`; with `size`, as `F.conv_transpose2d` to [N, C, *size].

    In steps of two of each channel by itself a CPU takes no less than float32, and gives the data type of x: there is no
    bfloat16 kernel for the transposed one, nor for the gradient of the other, and what stands in takes many times as long, also
    where a CPU has bfloat16 in hardware (torch 2.13).
    """
    wide = x.device.type == "cpu" and stride == 2 and groups > 1
    dtype = torch.promote_types(x.dtype, torch.float32) if wide else _under_autocast(x)
    cast = (x.to(dtype), kernels.to(dtype), None if bias is None else bias.to(dtype))
    # A compiler leaves out by itself what nobody needs, and Dynamo would lose the gradient of a Function's gradient.
    convolve = _convolve if torch.compiler.is_compiling() else _Filter.apply
    found: Tensor = convolve(*cast, stride, padding, groups, size)
    return found.to(x.dtype) if wide else found


def _under_autocast(x: Tensor) -> torch.dtype:
    """What a convolution of x computes in."""
    device = x.device.type
    halved = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if halved else x.dtype
