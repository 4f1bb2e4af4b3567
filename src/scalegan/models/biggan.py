"""BigGAN (Brock et al. 2019, appendix B, table 4) for images of any height and width.

SNGAN's residual blocks, with: latents cut into a chunk for each resolution, which together with one shared embedding of the
class makes the gains and biases of its batch norms; self-attention at one resolution; orthogonal weights at the start; a
spectral norm in both networks. At 128 x 128 with 96 to 1536 channels and attention at 64 they have the published numbers of
parameters. Without classes the chunks alone make gains and biases.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.errors import require
from scalegan.model_config import ModelConfig
from scalegan.models import resnet
from scalegan.models.batch_norm import BatchNorm, ConditionalBatchNorm
from scalegan.models.conditions import check_class_norms, class_embedding
from scalegan.models.layers import at_least_float32, halvings, normalise_weights, stage_widths


class Attention(nn.Module):
    """Each place looks at all others, x + gain * out(values of similar places); the identity at the start, as the gain is 0.

    Keys and values are the largest of 2 x 2 places (Zhang et al. 2019, section 3; Wang et al. 2018). By plain products, as the
    fused kernels have no gradient of their gradient.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, inner = max(1, channels // 8), max(1, channels // 2)
        self.queries, self.keys = (nn.Conv2d(channels, narrow, 1, bias=False) for _ in range(2))
        self.values = nn.Conv2d(channels, inner, 1, bias=False)
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries(x).flatten(2)
        keys, values = (F.max_pool2d(layer(x), 2, ceil_mode=True).flatten(2) for layer in (self.keys, self.values))
        similar = at_least_float32(queries.transpose(1, 2) @ keys).softmax(dim=2)  # [N, places, places / 4]
        seen = values @ similar.to(values.dtype).transpose(1, 2)
        change: Tensor = self.gain * self.out(seen.view(len(x), -1, *x.shape[2:]))
        return x + change.to(x.dtype)


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] -> images [N, C, H, W] in [-1, 1]."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)
        check_class_norms(config, sizes)
        widths = stage_widths(config.width, config.max_width, len(sizes))[::-1]
        require(
            config.z_dim >= len(sizes),
            f"model.z_dim is {config.z_dim}: biggan cuts the latents into a chunk for each of the {len(sizes)} resolutions of "
            f"{height} x {width} images, give at least {len(sizes)}",
        )
        self.chunks = [(config.z_dim + i) // len(sizes) for i in reversed(range(len(sizes)))]
        self.embed = class_embedding(config, classes, config.class_dim) if config.conditional else None
        self.embed_in_norms = config.class_norms
        self.base = (widths[0], *sizes[0])
        self.project = nn.Linear(self.chunks[0] + config.class_inputs, math.prod(self.base))
        of_class = config.class_dim if config.class_norms else 0
        self.blocks = nn.ModuleList(
            resnet.UpBlock(a, b, size, partial(projected_norm, config, chunk + of_class))
            for a, b, size, chunk in zip(widths, widths[1:], sizes[1:], self.chunks[1:], strict=False)
        )
        found = attentive(config, sizes)
        self.looks = nn.ModuleList(
            Attention(b) if size == found else nn.Identity() for b, size in zip(widths[1:], sizes[1:], strict=True)
        )
        self.norm = BatchNorm(widths[-1], group=config.norm_group)
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.apply(start_orthogonal)
        normalise_weights(self, nn.Conv2d, nn.Linear)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        first, *chunks = torch.split(latents, self.chunks, dim=1)
        if self.embed is not None:
            embedded = self.embed(labels)
            if self.embed_in_norms:
                chunks = [torch.cat([embedded, chunk], dim=1) for chunk in chunks]
            else:
                first = torch.cat([first, embedded], dim=1)
        x = self.project(first).view(-1, *self.base).to(memory_format=torch.channels_last)
        for block, condition, look in zip(self.blocks, chunks, self.looks, strict=True):
            x = look(block(x, condition))
        return at_least_float32(self.to_image(F.relu(self.norm(x)))).tanh()


class Discriminator(resnet.Discriminator):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N]."""

    def layers_of(self, config: ModelConfig, shape: tuple[int, int, int]) -> list[nn.Module]:
        found = attentive(config, halvings(*shape[1:]))
        layers: list[nn.Module] = []
        for size, block in resnet.down_blocks(config, shape, wide=True):
            layers.append(block)
            if size == found and block.halved:
                layers.append(Attention(block.second.out_channels))
        return layers

    def start(self, module: nn.Module) -> None:
        start_orthogonal(module)


def projected_norm(config: ModelConfig, inputs: int, channels: int) -> BatchNorm:
    """Gain and bias of each image are projections of so many numbers."""
    gains, biases = (nn.Linear(inputs, channels, bias=False) for _ in range(2))
    return ConditionalBatchNorm(channels, gains, biases, group=config.norm_group)


def attentive(config: ModelConfig, sizes: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The finest of `sizes` whose shorter side is at most `attention`; None where that is the first or the last of them."""
    fitting = [size for size in sizes if min(size) <= config.attention]
    return fitting[-1] if 1 < len(fitting) < len(sizes) else None


def start_orthogonal(module: nn.Module) -> None:
    """Orthogonal matrices (Saxe et al. 2014): no direction is stretched."""
    if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
        nn.init.orthogonal_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
