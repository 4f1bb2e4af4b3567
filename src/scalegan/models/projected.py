"""The critic of Projected GAN (Sauer et al. 2021, "Projected GANs converge faster"): it sees images through the features of
a network that was trained on ImageNet, EfficientNet-Lite0, mixed at random over channels and scales.

Backbone and mixing are held, and gradients flow through them to the images. A side under `backbone_size` pixels is stretched
to that, by default the 224 that the backbone has learnt on, as the paper has it; larger ones stay as they are. Each head begins
with a 3 x 3 convolution of its map, where the paper doubles the maps and halves them once more. Features are those of the
extractor lite0: its Frechet distance flatters this critic.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.evaluation.lite0 import Backbone
from scalegan.evaluation.weights import LITE0_SHA256, lite0_path, read_checked
from scalegan.model_config import ModelConfig
from scalegan.models.batch_norm import Norm, critic_normalisation
from scalegan.models.conditions import ClassHead, Judgement
from scalegan.models.dcgan import start_dcgan
from scalegan.models.layers import Halve, Slope, in_float32, normalise_weights
from scalegan.models.resize import Resize, linear

STAGES = {1: 24, 2: 40, 4: 112, 6: 320}
"""Stages of the backbone whose maps are looked at, of 1/4, 1/8, 1/16 and 1/32 of the size, and their channels."""
PATCH = 4
"""Side of what a logit sees of the coarsest map, where that is as large."""


class Mixing(nn.Module):
    """Maps of the backbone, from fine to coarse -> as many of `widths` channels, each of all channels and all coarser scales.

    Channels by 1 x 1 convolutions (section 3.2, CCM), scales from the coarsest on by enlarging, adding and 3 x 3 convolutions
    (CSM). The weights are drawn once from N(0, 1 / fan_in), never learnt, and kept in checkpoints.
    """

    def __init__(self, channels: list[int], widths: list[int], sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.count = len(widths)
        self.resizes = nn.ModuleList(Resize(small, large, linear) for large, small in pairwise(sizes))
        for i, (inputs, width) in enumerate(zip(channels, widths, strict=True)):
            self.register_buffer(f"channels_{i}", drawn(width, inputs, 1))
            self.register_buffer(f"scales_{i}", drawn(width, width, 3))
        for i, (width, coarser) in enumerate(pairwise(widths)):
            self.register_buffer(f"up_{i}", drawn(width, coarser, 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        mixed: list[Tensor] = []
        for i in reversed(range(self.count)):
            x = F.conv2d(maps[i], self.get_buffer(f"channels_{i}"))
            if mixed:
                x = x + self.resizes[i](F.conv2d(mixed[0], self.get_buffer(f"up_{i}")))
            mixed.insert(0, F.conv2d(x, self.get_buffer(f"scales_{i}"), padding=1))
        return mixed


class Discriminator(nn.Module):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N, K], as many patches of each of four scales."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        _, height, width = shape
        enlarged = (max(config.backbone_size, height), max(config.backbone_size, width))
        self.enlarge = Resize((height, width), enlarged, linear)
        self.backbone = Backbone(pretrained()).to(torch.get_default_dtype())
        widths = [min(config.critic_max_width, config.critic_width * 2**i) for i in range(len(STAGES))]
        sizes = [(-(-enlarged[0] // 2**n), -(-enlarged[1] // 2**n)) for n in range(2, 2 + len(STAGES))]
        self.mixing = Mixing(list(STAGES.values()), widths, sizes)
        self.couples_samples = config.norm_of_critic == "batch"
        norm, bias = critic_normalisation(config), not self.couples_samples
        self.heads = nn.ModuleList(descent(widths[i:], norm, bias=bias) for i in range(len(STAGES)))
        patch = (min(PATCH, sizes[-1][0]), min(PATCH, sizes[-1][1]))
        self.patches = nn.ModuleList(nn.Conv2d(widths[-1], 1, patch, bias=bias) for _ in STAGES)
        self.head = ClassHead(config, len(STAGES) * widths[-1], classes) if config.conditional else None
        self.apply(start_dcgan)
        if self.head is not None:
            nn.init.normal_(self.head.classes.weight, std=0.02)
        normalise_weights(self, nn.Conv2d, nn.Linear, nn.Embedding)

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        pixels = (self.enlarge(images).expand(-1, 3, -1, -1).flip(2, 3) + 1) * 127.5
        maps = self.backbone(pixels)
        mixed = self.mixing([maps[stage] for stage in STAGES])
        features = [head(x) for head, x in zip(self.heads, mixed, strict=True)]
        patches = [in_float32(patch, x).flatten(1) for patch, x in zip(self.patches, features, strict=True)]
        logits = torch.cat(patches, dim=1)
        seen = torch.cat([x.mean((2, 3)) for x in features], dim=1)
        return Judgement(logits, {}) if self.head is None else self.head(seen, labels, logits)


def pretrained() -> dict[str, Tensor]:
    """The weights of the backbone. Raises `UserError` where they are missing or are others."""
    return read_checked(lite0_path(""), LITE0_SHA256)


def descent(widths: list[int], norm: Norm, *, bias: bool) -> nn.Module:
    """From a map down to the size of the coarsest."""
    layers: list[nn.Module] = [nn.Conv2d(widths[0], widths[0], 3, padding=1, bias=bias), norm(widths[0]), Slope()]
    for a, b in pairwise(widths):
        layers += [Halve(a, b, bias=bias), norm(b), Slope()]
    return nn.Sequential(*layers)


def drawn(channels_out: int, channels_in: int, kernel: int) -> Tensor:
    """A convolution's weights, which keep the variance of what they mix."""
    weight: Tensor = torch.randn(channels_out, channels_in, kernel, kernel) / (channels_in * kernel**2) ** 0.5
    return weight
