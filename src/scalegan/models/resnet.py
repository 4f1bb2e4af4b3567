"""SNGAN's residual networks (Miyato et al. 2018, appendix B.4; Miyato and Koyama 2018) for images of any height and width.

At 32 x 32 with 256 and 128 channels and `critic_tail: 2` they are the paper's CIFAR-10 networks layer by layer. BigGAN is
built of the same blocks (biggan.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.model_config import ModelConfig
from scalegan.models.batch_norm import BatchNorm, critic_normalisation
from scalegan.models.conditions import ClassHead, Judgement, batch_norm, check_class_norms, class_input
from scalegan.models.layers import at_least_float32, downsample, halvings, in_float32, normalise_weights, stage_widths, upsample


class UpBlock(nn.Module):
    """Twice the size: x -> norm, ReLU, up, conv3x3, norm, ReLU, conv3x3, beside a 1 x 1 convolution of x.

    `norm` makes the norm of so many channels; all of them are told the same condition.
    """

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], norm: Callable[[int], BatchNorm]) -> None:
        super().__init__()
        self.size = size
        self.norms = nn.ModuleList([norm(channels_in), norm(channels_out)])
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.relu(self.norms[0](x, condition))
        h = self.first(upsample(h, self.size))
        residual: Tensor = self.second(F.relu(self.norms[1](h, condition)))
        return residual + upsample(self.skip(x), self.size)  # a 1 x 1 convolution and a repetition of pixels may change places


class DownBlock(nn.Module):
    """Half the size, where `halved`: x -> ReLU, conv3x3, ReLU, conv3x3, mean of 2 x 2, beside a 1 x 1 convolution of x.

    `first`, at the image itself, leaves out the first ReLU. `norm` makes what comes in front of a ReLU. Nothing works in
    place: a gradient penalty comes back to x.
    """

    def __init__(
        self,
        channels_in: int,
        inner: int,
        channels_out: int,
        norm: Callable[[int], nn.Module],
        *,
        first: bool,
        halved: bool,
    ) -> None:
        super().__init__()
        self.halved = halved
        self.enter = nn.Identity() if first else nn.Sequential(norm(channels_in), nn.ReLU())
        self.first = nn.Conv2d(channels_in, inner, 3, padding=1)
        self.between = nn.Sequential(norm(inner), nn.ReLU())
        self.second = nn.Conv2d(inner, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if halved or channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.between(self.first(self.enter(x))))
        if not self.halved:
            return h + self.skip(x)  # type: ignore[no-any-return]
        return downsample(h) + self.skip(downsample(x))  # type: ignore[no-any-return]


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] -> images [N, C, H, W] in [-1, 1]."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)
        check_class_norms(config, sizes)
        widths = stage_widths(config.width, config.max_width, len(sizes))[::-1]
        self.embed = class_input(config, classes) if config.class_inputs else None
        self.base = (widths[0], *sizes[0])
        self.project = nn.Linear(config.z_dim + config.class_inputs, math.prod(self.base))

        def norm(channels: int) -> BatchNorm:
            return batch_norm(config, channels, classes)

        self.blocks = nn.ModuleList(UpBlock(a, b, s, norm) for a, b, s in zip(widths, widths[1:], sizes[1:], strict=False))
        self.norm = BatchNorm(widths[-1], group=config.norm_group)  # knows no class in the papers either
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.apply(start_xavier)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self.embed is not None:
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        x = self.project(latents).view(-1, *self.base).to(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, labels)
        return at_least_float32(self.to_image(F.relu(self.norm(x)))).tanh()


class Discriminator(nn.Module):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N]: the features are summed over all places."""

    couples_samples: bool

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.couples_samples = config.norm_of_critic == "batch"
        self.layers = nn.Sequential(*self.layers_of(config, shape))
        features = stage_widths(config.critic_width, config.critic_max_width, len(halvings(*shape[1:])))[-1]
        self.score = nn.Linear(features, 1)
        self.head = ClassHead(config, features, classes) if config.conditional else None
        self.apply(self.start)
        if config.norm_of_critic == "spectral":
            normalise_weights(self, nn.Conv2d, nn.Linear, nn.Embedding)

    def layers_of(self, config: ModelConfig, shape: tuple[int, int, int]) -> list[nn.Module]:
        return [block for _, block in down_blocks(config, shape)]

    def start(self, module: nn.Module) -> None:
        start_xavier(module)
        if isinstance(module, nn.Embedding):
            nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        h = at_least_float32(F.relu(self.layers(images))).sum(dim=(2, 3))
        logits = in_float32(self.score, h)[:, 0]
        return Judgement(logits, {}) if self.head is None else self.head(h, labels, logits)


def down_blocks(
    config: ModelConfig, shape: tuple[int, int, int], *, wide: bool = False
) -> list[tuple[tuple[int, int], DownBlock]]:
    """A block for each size from the image's own to the coarsest, with the size of what it returns.

    All but the last `critic_tail` halve the size. `wide` blocks have as many channels inside as they return, else as many as
    they are given.
    """
    channels, height, width = shape
    sizes = halvings(height, width)[::-1]
    widths = stage_widths(config.critic_width, config.critic_max_width, len(sizes))
    norm = critic_normalisation(config)
    blocks, size = [], 0
    for i, (a, b) in enumerate(zip([channels, *widths], widths, strict=False)):
        halved = i < len(sizes) - config.critic_tail
        size += halved
        blocks.append((sizes[size], DownBlock(a, b if wide or i == 0 else a, b, norm, first=i == 0, halved=halved)))
    return blocks


def start_xavier(module: nn.Module) -> None:
    """Uniform with variance gain^2 2 / (fan_in + fan_out); gain sqrt(2) in front of a ReLU, that is for 3 x 3 convolutions."""
    if isinstance(module, UpBlock | DownBlock):
        for conv in (module.first, module.second):
            nn.init.xavier_uniform_(conv.weight, gain=math.sqrt(2))
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
