"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN!", config E) for images of any height and width.

Both networks are stages of residual blocks of grouped convolutions, with nothing that normalises: what keeps them in
bounds is a start at which each block is the identity, and the penalties R1 and R2. At 32 x 32, 64 x 64 and 256 x 256 they
have the published numbers of parameters.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.model_config import ModelConfig
from scalegan.models.conditions import ClassHead, Judgement, class_embedding
from scalegan.models.layers import at_least_float32, halvings, in_float32, stage_widths
from scalegan.models.resampling import LowPass

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
EXPANSION = 2
"""Channels inside a block, as a multiple of those outside."""
SLOPE = 0.2


class Block(nn.Module):
    """x + conv1x1(act(grouped conv3x3(act(conv1x1(x))))); the identity at the start, as the last weights are 0."""

    def __init__(self, channels: int, group_width: int, blocks: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.expand = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=inner // group_width)
        self.contract = nn.Conv2d(inner, channels, 1, bias=False)
        # Fixup (Zhang et al. 2019): three layers a block, `blocks` of them in the network.
        gain = math.sqrt(2 / (1 + SLOPE**2)) * blocks**-0.25
        for layer in (self.expand, self.mix):
            start(layer, gain)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.contract.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.expand(x), SLOPE)
        h = F.leaky_relu(self.mix(h), SLOPE)
        residual: Tensor = self.contract(h)
        return x + residual


class Resample(nn.Module):
    """Twice the size, or half of it, through the low-pass filter; other channels by a 1 x 1 convolution at the small end."""

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], *, up: bool) -> None:
        super().__init__()
        self.size, self.up, self.low_pass = size, up, LowPass()
        self.convert = start(nn.Conv2d(channels_in, channels_out, 1, bias=False)) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        return self.low_pass.doubled(self._convert(x), self.size) if self.up else self._convert(self.low_pass.halved(x))

    def _convert(self, x: Tensor) -> Tensor:
        return x if self.convert is None else self.convert(x)


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] -> images [N, C, H, W] around [-1, 1], which nothing holds them to."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)
        widths = stage_widths(config.width, config.max_width, len(sizes))[::-1]
        self.embed = embedding(config, classes, config.class_dim) if config.class_inputs else None
        inputs = config.z_dim + config.class_inputs
        self.basis = nn.Parameter(torch.randn(widths[0], *sizes[0]))
        self.scale = nn.Linear(inputs, widths[0], bias=False)
        layers: list[nn.Module] = []
        for i, (stage, size) in enumerate(zip(widths, sizes, strict=True)):
            if i:
                layers.append(Resample(widths[i - 1], stage, size, up=True))
            layers += [Block(stage, config.group_width, config.blocks * len(sizes)) for _ in range(config.blocks)]
        self.layers = nn.Sequential(*layers)
        self.to_image = start(nn.Conv2d(widths[-1], channels, 1, bias=False))
        start(self.scale)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self.embed is not None:
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        x = self.scale(latents)[:, :, None, None] * self.basis
        x = self.layers(x.contiguous(memory_format=torch.channels_last))
        return at_least_float32(self.to_image(x))


class Discriminator(nn.Module):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N]."""

    couples_samples = False

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)[::-1]
        widths = stage_widths(config.critic_width, config.critic_max_width, len(sizes))
        last = widths[-1]
        layers: list[nn.Module] = [start(nn.Conv2d(channels, widths[0], 1, bias=False))]
        for i, stage in enumerate(widths):
            if i:
                layers.append(Resample(widths[i - 1], stage, sizes[i], up=False))
            layers += [Block(stage, config.group_width, config.blocks * len(sizes)) for _ in range(config.blocks)]
        self.layers = nn.Sequential(*layers)
        self.pool = start(nn.Conv2d(last, last, sizes[-1], groups=last, bias=False))
        projects = config.conditional and config.class_head == "projection"
        self.score = start(nn.Linear(last, last if projects else 1, bias=False))
        self.embed = embedding(config, classes, last, gain=last**-0.5) if projects else None
        self.head = ClassHead(config, last, classes) if config.conditional and not projects else None

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        h = self.pool(self.layers(images)).flatten(1)
        scores = in_float32(self.score, h)
        if self.embed is not None:  # the projection alone, without a logit that knows no class
            return Judgement((scores * at_least_float32(self.embed(labels))).sum(1), {})
        return Judgement(scores[:, 0], {}) if self.head is None else self.head(h, labels, scores[:, 0])


def embedding(config: ModelConfig, classes: int, width: int, gain: float = 1.0) -> nn.Embedding:
    """A matrix product with the one-hot class, as which it starts."""
    layer = class_embedding(config, classes, width)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(classes))
    return layer


def start(layer: Layer, gain: float = 1.0) -> Layer:
    """Weights from N(0, gain^2 / fan_in)."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    return layer
