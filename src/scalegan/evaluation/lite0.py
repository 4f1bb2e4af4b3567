"""EfficientNet-Lite0 (Tan & Le 2019; the Lite form of 2020, without squeeze-excitation and with ReLU6) as a feature extractor.

The network that Google trained in TensorFlow, in its own terms: 224x224 bilinear input, (x - 127) / 128, "SAME" padding.
`Backbone` is shared with the critic `projected`, through which gradients flow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegan.channelwise import filtered
from scalegan.evaluation.network import FeatureNetwork
from scalegan.evaluation.weights import folded

SIDE = 224
BN_EPS = 1e-3
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""Blocks, and stride of the first of them; widths and kernel sizes are those of the weights."""


class Backbone(nn.Module):
    """The convolutions of EfficientNet-Lite0, with batch norm folded into them, for mirrored images.

    TensorFlow's padding of a stride-2 convolution is larger by one at the right and bottom, which costs a padded copy of
    the largest feature maps (a sixth of the time). Seen in a mirror it is PyTorch's own symmetric padding: the surplus
    row and column at the far end are never reached. So images and kernels are mirrored, which the pooled features do not see.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = mirrored(state, "_conv_stem", "_bn0", stride=2)
        self.stages = nn.ModuleList()
        number = 0
        for count, stride in STAGES:
            names = [f"_blocks.{number + i}" for i in range(count)]
            self.stages.append(nn.Sequential(*(Block(state, n, 1 if i else stride) for i, n in enumerate(names))))
            number += count

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Mirrored pixels [N, 3, H, W] from 0 to 255 -> the map of each stage, 1/2 to 1/32 of the size, rounded up."""
        x = F.relu6(self.stem(((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)), inplace=True)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Lite0(FeatureNetwork):
    """Pooled features of EfficientNet-Lite0."""

    num_features = 1280
    cpu_batch = 8
    """On 2 cores 8 at a time are 147 images/s, 64 at a time 60."""
    resize = "bilinear with antialias to 224x224"

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = Backbone(state)
        self.head = mirrored(state, "_conv_head", "_bn1")

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 1280]."""
        x = images.flip(2, 3).float()
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        features = F.relu6(self.head(self.backbone(x)[-1]), inplace=True)
        return features.float().mean((2, 3))


class Convolution(nn.Module):
    """One that is never learnt: its weights are buffers, which no optimizer or gradient ever meets, and come from the package
    again instead of from a checkpoint."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        groups, padding = x.shape[1] // self.weight.shape[1], self.weight.shape[-1] // 2
        return filtered(x, self.weight, self.bias, stride=self.stride, padding=padding, groups=groups)


class Block(nn.Module):
    """Expand, filter each channel, project; with a shortcut where shape allows."""

    def __init__(self, state: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        expands = f"{name}._expand_conv.weight" in state
        self.expand = mirrored(state, f"{name}._expand_conv", f"{name}._bn0") if expands else None
        self.depthwise = mirrored(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = mirrored(state, f"{name}._project_conv", f"{name}._bn2")

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y: Tensor = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return x + y if x.shape == y.shape else y


def mirrored(state: Mapping[str, Tensor], convolution: str, norm: str, stride: int = 1) -> Convolution:
    """A folded convolution with its kernel turned by 180 degrees; depthwise where a kernel has one input channel."""
    weight, bias = folded(state, convolution, norm, BN_EPS)
    return Convolution(weight.flip(2, 3), bias, stride)
