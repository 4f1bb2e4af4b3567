"""DCGAN for images of any height and width (Radford et al. 2015).

The generator doubles the size with 4 x 4 transposed convolutions of stride 2 and cuts off the row or column that an odd
size has too many; the discriminator halves it with 4 x 4 convolutions of stride 2. For 64 x 64 this is the paper's network
layer by layer. Ours is a convolution of the discriminator in front of them, at the image's own size (`model.critic_stem`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scalegan.model_config import ModelConfig
from scalegan.models.batch_norm import BatchNorm, ConditionalBatchNorm
from scalegan.models.conditions import ClassHead, Judgement, batch_norm, class_input
from scalegan.models.layers import at_least_float32, flat, halvings, in_float32, normalise_weights


def start_dcgan(module: nn.Module) -> None:
    """N(0, 0.02) for weights, N(1, 0.02) for the scale of a normalisation (Radford et al. 2015, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, BatchNorm) and not isinstance(module, ConditionalBatchNorm):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)


class Upsample(nn.Module):
    """Transposed convolution to twice the size, cut to (height, width)."""

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], *, bias: bool) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        doubled: Tensor = self.conv(x)
        return doubled[..., :height, :width]


def resolutions(height: int, width: int, coarsest: int) -> list[tuple[int, int]]:
    """`halvings`, with at least one: it is the convolution to twice or half the size that makes or sees the image."""
    sizes = halvings(height, width, coarsest)
    return sizes if len(sizes) > 1 else [(-(-height // 2), -(-width // 2)), *sizes]


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] -> images [N, C, H, W] in [-1, 1]."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = resolutions(height, width, config.coarsest)
        widths = [min(config.max_width, config.width * 2 ** (len(sizes) - 2 - i)) for i in range(len(sizes) - 1)]
        self.embed = class_input(config, classes) if config.class_inputs else None
        inputs = config.z_dim + config.class_inputs
        # A transposed convolution from 1 x 1 is a matrix product: written as one, it may start at any size.
        self.base = (widths[0], *sizes[0])
        self.project = nn.Linear(inputs, math.prod(self.base), bias=False)
        self.norms = nn.ModuleList(batch_norm(config, w, classes) for w in widths)
        self.ups = nn.ModuleList(Upsample(a, b, s, bias=False) for a, b, s in zip(widths, widths[1:], sizes[1:], strict=False))
        self.to_image = Upsample(widths[-1], channels, sizes[-1], bias=False)
        self.apply(start_dcgan)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self.embed is not None:
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        x = self.project(latents).view(-1, *self.base).to(memory_format=torch.channels_last)
        x = self.norms[0](x, labels).relu_()
        for norm, up in zip(list(self.norms)[1:], self.ups, strict=True):
            x = norm(up(x), labels).relu_()
        return at_least_float32(self.to_image(x)).tanh()


class Discriminator(nn.Module):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N]."""

    couples_samples: bool
    """Whether the score of an image depends on the others of its batch."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = resolutions(height, width, config.coarsest)
        widths = [min(config.critic_max_width, config.critic_width * 2**i) for i in range(len(sizes) - 1)]
        normed = config.norm_of_critic == "batch"
        self.couples_samples = normed and len(widths) > 1  # its first convolution has none (section 3)
        layers: list[nn.Module] = []
        if config.critic_stem:
            layers += [nn.Conv2d(channels, config.critic_stem, 3, padding=1, bias=not normed), nn.LeakyReLU(0.2)]
            channels = config.critic_stem
        for i, (a, b) in enumerate(zip([channels, *widths], widths, strict=False)):
            # Odd sizes are rounded up, as in the generator: one row more at the far side.
            odd_h, odd_w = (s % 2 for s in sizes[len(sizes) - 1 - i])
            layers.append(
                nn.Conv2d(a, b, 4, 2, 1, bias=not normed) if not (odd_h or odd_w) else _padded(a, b, odd_h, odd_w, not normed)
            )
            if normed and i > 0:
                layers.append(BatchNorm(b, group=config.norm_group, running=False))
            layers.append(nn.LeakyReLU(0.2, inplace=False))
        self.layers = nn.Sequential(*layers)
        features = widths[-1] * math.prod(sizes[0])
        self.score = nn.Linear(features, 1, bias=not normed)
        self.head = ClassHead(config, features, classes) if config.conditional else None
        if config.init == "dcgan":
            self.apply(start_dcgan)
        else:
            self.apply(_start_kaiming)
        if self.head is not None:
            nn.init.normal_(self.head.classes.weight, std=0.02)
        if config.norm_of_critic == "spectral":
            normalise_weights(self, nn.Conv2d, nn.Linear, nn.Embedding)

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        h = at_least_float32(flat(self.layers(images)))  # once for the score and the class
        logits = in_float32(self.score, h)[:, 0]
        return Judgement(logits, {}) if self.head is None else self.head(h, labels, logits)


def _padded(channels_in: int, channels_out: int, odd_h: int, odd_w: int, bias: bool) -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d((0, odd_w, 0, odd_h)), nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=bias))


def _start_kaiming(module: nn.Module) -> None:
    """Variance 2 / ((1 + 0.2^2) fan_in), which LeakyReLU 0.2 keeps from layer to layer (He et al. 2015, eq. 15)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0.2, nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
