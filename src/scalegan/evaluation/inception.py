"""Inception-v3 as TensorFlow's FID graph of 2015-12-05 has it: the network that the Frechet inception distance is defined by.

It differs from other Inception-v3s in two places: average pools leave the padding out of the count, and the last block
pools by maximum. The files of pytorch-fid and of torch-fidelity hold the same weights under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegan.evaluation.network import FeatureNetwork
from scalegan.evaluation.resize import RESIZES
from scalegan.evaluation.weights import folded

SIDE = 299
BN_EPS = 1e-3


class Inception(FeatureNetwork):
    """Pooled features of the FID network, with batch norm folded into the convolutions.

    `resize` is one of `scalegan.evaluation.resize.RESIZES`.
    """

    num_features = 2048

    def __init__(self, state: Mapping[str, Tensor], resize: str = "tf1") -> None:
        super().__init__()
        self.resized = RESIZES[resize]
        self.resize = f"{resize}: {self.resized.name} to {SIDE}x{SIDE}"
        self.convolutions = nn.ModuleDict()
        for key in state:
            if key.endswith(".conv.weight"):
                name = key.removesuffix(".conv.weight")
                self.convolutions[name.replace(".", "/")] = folded_convolution(state, name)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 2048]."""
        x = self.resized(images, SIDE).contiguous(memory_format=torch.channels_last)
        x = self.conv(x, "Conv2d_1a_3x3", stride=2)
        x = self.conv(x, "Conv2d_2a_3x3")
        x = self.conv(x, "Conv2d_2b_3x3", padding=1)
        x = F.max_pool2d(x, 3, 2)
        x = self.conv(x, "Conv2d_3b_1x1")
        x = self.conv(x, "Conv2d_4a_3x3")
        x = F.max_pool2d(x, 3, 2)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.block_35(x, block)
        x = self.shrink_35(x, "Mixed_6a")
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.block_17(x, block)
        x = self.shrink_17(x, "Mixed_7a")
        x = self.block_8(x, "Mixed_7b", average_pool(x))
        x = self.block_8(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
        return x.float().mean((2, 3))

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        return F.conv2d(x, self.layer(name).weight, self.layer(name).bias, stride, padding).relu_()

    def layer(self, name: str) -> nn.Conv2d:
        found = self.convolutions[name.replace(".", "/")]
        assert isinstance(found, nn.Conv2d)
        return found

    def same(self, x: Tensor, *names: str) -> Tensor:
        """Convolutions one after the other that keep height and width."""
        for name in names:
            height, width = self.layer(name).weight.shape[2:]
            x = self.conv(x, name, padding=(height // 2, width // 2))
        return x

    def block_35(self, x: Tensor, b: str) -> Tensor:
        return torch.cat(
            [
                self.same(x, f"{b}.branch1x1"),
                self.same(x, f"{b}.branch5x5_1", f"{b}.branch5x5_2"),
                self.same(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2", f"{b}.branch3x3dbl_3"),
                self.same(average_pool(x), f"{b}.branch_pool"),
            ],
            1,
        )

    def shrink_35(self, x: Tensor, b: str) -> Tensor:
        twice = self.same(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
        return torch.cat(
            [
                self.conv(x, f"{b}.branch3x3", stride=2),
                self.conv(twice, f"{b}.branch3x3dbl_3", stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            1,
        )

    def block_17(self, x: Tensor, b: str) -> Tensor:
        return torch.cat(
            [
                self.same(x, f"{b}.branch1x1"),
                self.same(x, *(f"{b}.branch7x7_{i}" for i in (1, 2, 3))),
                self.same(x, *(f"{b}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
                self.same(average_pool(x), f"{b}.branch_pool"),
            ],
            1,
        )

    def shrink_17(self, x: Tensor, b: str) -> Tensor:
        return torch.cat(
            [
                self.conv(self.same(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", stride=2),
                self.conv(self.same(x, *(f"{b}.branch7x7x3_{i}" for i in (1, 2, 3))), f"{b}.branch7x7x3_4", stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            1,
        )

    def block_8(self, x: Tensor, b: str, pooled: Tensor) -> Tensor:
        once = self.same(x, f"{b}.branch3x3_1")
        twice = self.same(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
        return torch.cat(
            [
                self.same(x, f"{b}.branch1x1"),
                self.same(once, f"{b}.branch3x3_2a"),
                self.same(once, f"{b}.branch3x3_2b"),
                self.same(twice, f"{b}.branch3x3dbl_3a"),
                self.same(twice, f"{b}.branch3x3dbl_3b"),
                self.same(pooled, f"{b}.branch_pool"),
            ],
            1,
        )


def average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def folded_convolution(state: Mapping[str, Tensor], name: str) -> nn.Conv2d:
    weight, bias = folded(state, f"{name}.conv", f"{name}.bn", BN_EPS)
    outputs, inputs, height, width = weight.shape
    layer = nn.Conv2d(inputs, outputs, (height, width))
    layer.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
