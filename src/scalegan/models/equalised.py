"""Layers with an equalised learning rate (Karras et al. 2018, section 4.1).

Weights start as N(0, 1) and are scaled at each use, so that Adam, whose steps are as long for all, moves every layer by the
same share of its weights. Activations have a gain of sqrt(2), which keeps the scale from layer to layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.models.layers import at_least_float32
from scalegan.models.resampling import LowPass, evened

SLOPE = 0.2
LIMIT = 256.0


class Linear(nn.Module):
    """x [N, inputs] -> [N, outputs] in float32, also under autocast: styles and logits are not to be rounded.

    `rate` multiplies the learning rate of weights and bias; `bias` is where the latter starts.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.rate, self.scale = rate, rate / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(at_least_float32(x), self.weight * self.scale, self.bias * self.rate)


class Conv2d(nn.Module):
    """Convolution that keeps the size, or, with `down`, halves it through the low-pass filter, odd sizes rounded up."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(channels_in * kernel**2)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.low_pass = LowPass() if down else None

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in, H, W] -> [N, out, H, W], or half of H and W."""
        weight = self.weight * self.scale
        reach = weight.shape[-1] // 2
        if self.low_pass is None:
            return F.conv2d(x, weight, self.bias, padding=reach)
        if not reach:
            return F.conv2d(self.low_pass.halved(x), weight, self.bias)
        return F.conv2d(self.low_pass.smoothed(evened(x), padding=1 + reach), weight, self.bias, stride=2)


def activate(x: Tensor) -> Tensor:
    return limited(F.leaky_relu(x, SLOPE) * math.sqrt(2))


def limited(x: Tensor) -> Tensor:
    """Float16 within 256, so that sums of products stay finite (as in Karras et al. 2020b); other types as they are."""
    return x.clamp(-LIMIT, LIMIT) if x.dtype == torch.float16 else x


def unit_moment(x: Tensor) -> Tensor:
    """Vectors [N, width] scaled to a mean square of 1, in float32."""
    x = at_least_float32(x)
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def mapping(inputs: int, width: int, depth: int) -> nn.Sequential:
    """Vectors [N, inputs] -> [N, width], learning at a hundredth of the rate (Karras et al. 2019, appendix C)."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [Linear(width if i else inputs, width, rate=0.01), Activation()]
    return nn.Sequential(*layers)


class Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return activate(x)
