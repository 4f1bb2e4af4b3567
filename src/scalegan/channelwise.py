"""Convolutions of each channel by itself in steps of two, for the filters that change sizes and for frozen backbones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def strided(convolve: Callable[..., Tensor], x: Tensor, kernels: Tensor, bias: Tensor | None = None, *, padding: int) -> Tensor:
    """`convolve` is `F.conv2d` or `F.conv_transpose2d`; x [N, C, H, W], kernels [C, 1, k, k]; the result has the dtype of x.

    On a CPU in no less than float32: there is no bfloat16 kernel there for the transposed one, nor for the gradient of the
    other, and what stands in takes many times as long, also where a CPU has bfloat16 in hardware (torch 2.13).
    """
    if x.device.type != "cpu":
        return convolve(x, kernels, bias, stride=2, padding=padding, groups=x.shape[1])
    with torch.autocast("cpu", enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return convolve(wide, kernels.to(wide.dtype), bias, stride=2, padding=padding, groups=x.shape[1]).to(x.dtype)
