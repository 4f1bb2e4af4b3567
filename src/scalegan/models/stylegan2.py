"""StyleGAN2 (Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN") for images of any height and width.

A mapping network makes intermediate latents w of the latents; a synthesis network of modulated convolutions paints by them,
adding to the image at each resolution; the discriminator is residual. Classes and the details of training on little data are
those of Karras et al. 2020, "Training generative adversarial networks with limited data" (ADA).

The generator has no random input but its latents: noise, and the second latents of style mixing, are hashed from their bits.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.model_config import ModelConfig
from scalegan.models.batch_norm import RunningMean
from scalegan.models.conditions import ClassHead, Judgement, class_embedding
from scalegan.models.equalised import Conv2d, Linear, activate, limited, mapping, unit_moment
from scalegan.models.layers import at_least_float32, halvings, in_float16, stage_widths
from scalegan.models.noise import noise_keys, normal_noise
from scalegan.models.resampling import LowPass

SECOND_LATENTS, CROSSOVER = -1, -2
"""Streams of `normal_noise` beside those of the layers, which are numbered from 0."""
W_MEAN_WEIGHT = 0.002
"""Of one batch in the running mean of w, 1 - 0.998."""


class ModulatedConv2d(nn.Module):
    """A convolution whose weights each image scales by its style: w' = s_i w_ijk (eq. 1).

    With `demodulate`, each output channel is divided by the norm of its weights, sqrt(sum_ik w'^2) (eq. 3). Both are done to
    the input and output of a convolution that all images share, which is the same and needs no weights of their own.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, w_dim: int, *, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.demodulate, self.scale = demodulate, 1 / math.sqrt(channels_in * kernel**2)
        self.style = Linear(w_dim, channels_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.low_pass = LowPass() if up else None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, in, H, W] and w [N, w_dim] -> [N, out, H, W], or twice H and W."""
        styles, weight = self.style(w), self.weight * self.scale
        if not self.demodulate:
            return limited(self._convolve(x * styles.to(x.dtype)[:, :, None, None], weight))
        if in_float16(x.device):  # where only products that are in range do; demodulation takes both factors out again
            styles = styles / styles.abs().amax(1, keepdim=True)
            weight = weight * (self.scale / weight.abs().amax((1, 2, 3), keepdim=True))
        y = self._convolve(x * styles.to(x.dtype)[:, :, None, None], weight)
        return y * self._norms(styles, weight).to(y.dtype)[:, :, None, None]

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.low_pass is None:
            return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        spread = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # 2H + 1 rows, the first and last half of one over
        return self.low_pass.smoothed(spread, padding=1, gain=4)

    def _norms(self, styles: Tensor, weight: Tensor) -> Tensor:
        """1 / sqrt(sum_ik (s_i w_ijk)^2) [N, out], in float32."""
        with torch.autocast(styles.device.type, enabled=False):
            return torch.rsqrt(F.linear(styles.square(), weight.square().sum((2, 3))) + 1e-8)


class StyledConv(nn.Module):
    """Modulated convolution, noise of learned strength, bias, activation; with `up`, to `size`, twice that of its input."""

    def __init__(self, channels_in: int, channels_out: int, w_dim: int, size: tuple[int, int], *, up: bool) -> None:
        super().__init__()
        self.size = size
        self.conv = ModulatedConv2d(channels_in, channels_out, 3, w_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """noise [N, 1, H, W], of the size of the output."""
        height, width = self.size
        x = self.conv(x, w)[..., :height, :width]
        x = x + self.noise_strength * noise.to(x.dtype) + self.bias.to(x.dtype)[:, None, None]
        return activate(x)


class Stage(nn.Module):
    """One resolution: two styled convolutions, the first of them to twice the size; the coarsest has the second alone."""

    def __init__(self, channels_in: int | None, channels_out: int, image: int, w_dim: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        convs = [StyledConv(channels_in, channels_out, w_dim, size, up=True)] if channels_in is not None else []
        self.convs = nn.ModuleList([*convs, StyledConv(channels_out, channels_out, w_dim, size, up=False)])
        self.to_image = ModulatedConv2d(channels_out, image, 1, w_dim, demodulate=False)
        self.image_bias = nn.Parameter(torch.zeros(image))
        self.low_pass = LowPass()

    def forward(self, x: Tensor, image: Tensor | None, ws: Tensor, layer: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Features and image of the coarser stage -> of this one, whose convolutions are layers `layer` and on.

        What they add to the image follows the w of the next layer. The image is float32.
        """
        for conv in self.convs:
            x = conv(x, ws[:, layer], normal_noise(keys, layer, *self.size))
            layer += 1
        ours = at_least_float32(self.to_image(x, ws[:, layer])) + self.image_bias[:, None, None]
        if image is None:
            return x, ours
        with torch.autocast(x.device.type, enabled=False):
            return x, ours + self.low_pass.doubled(image, self.size)


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] -> images [N, C, H, W] around [-1, 1], which nothing holds them to.

    The noise comes from the latents' bits, or from `keys` int64 [N] where these are given.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)
        widths = stage_widths(config.width, config.max_width, len(sizes))[::-1]
        w_dim = config.z_dim
        self.mixing = config.mixing
        self.truncation = 1.0
        """Share of the way from the mean of w at which images are sampled, in evaluation mode."""
        self.embed = class_embedding(config, classes, config.class_dim, unit_moment) if config.conditional else None
        self.mapping = mapping(w_dim + (config.class_dim if config.conditional else 0), w_dim, config.map_layers)
        self.w_mean = RunningMean(w_dim)
        self.path_length = RunningMean()
        """Mean of |J_w^T y|, for `scalegan.path_length`."""
        self.constant = nn.Parameter(torch.randn(widths[0], *sizes[0]))
        self.stages = nn.ModuleList(
            Stage(a, b, channels, w_dim, size) for a, b, size in zip([None, *widths], widths, sizes, strict=False)
        )

    def forward(self, latents: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        keys = noise_keys(latents) if keys is None else keys
        return self.synthesise(self.styles(latents, labels, keys), keys)

    def styles(self, latents: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        """w of each layer [N, layers, z_dim]: in training some of a second image's, in evaluation truncated to the mean."""
        w = self._mapped(latents, labels)
        if self.training:
            self.w_mean.update(w.detach(), W_MEAN_WEIGHT)
        else:
            w = torch.lerp(self.w_mean.mean, w, self.truncation)
        layers = 2 * len(self.stages)
        ws = w[:, None].expand(-1, layers, -1)
        if not self.training or not self.mixing:
            return ws
        second = normal_noise(keys, SECOND_LATENTS, 1, latents.shape[1])[:, 0, 0].to(latents.dtype)
        own = torch.arange(layers, device=keys.device) < crossovers(keys, layers, self.mixing)[:, None]
        return torch.where(own[:, :, None], ws, self._mapped(second, labels)[:, None])

    def synthesise(self, ws: Tensor, keys: Tensor) -> Tensor:
        """Images of ws [N, layers, z_dim] with the noise of keys int64 [N]."""
        x = self.constant.expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        coarsest, *others = self.stages
        x, image = coarsest(x, None, ws, 0, keys)
        for i, stage in enumerate(others):
            x, image = stage(x, image, ws, 2 * i + 1, keys)
        return image  # type: ignore[no-any-return]

    def _mapped(self, latents: Tensor, labels: Tensor) -> Tensor:
        inputs = [unit_moment(latents)]
        if self.embed is not None:
            inputs.append(self.embed(labels))
        return self.mapping(torch.cat(inputs, dim=1))  # type: ignore[no-any-return]


def crossovers(keys: Tensor, layers: int, probability: float) -> Tensor:
    """First layer [N] that takes the second w: with `probability` any but layer 0, else none."""
    uniform = torch.special.ndtr(normal_noise(keys, CROSSOVER, 1, 2)[:, 0, 0])  # [N, 2]
    anywhere = 1 + (uniform[:, 1] * (layers - 1)).long()
    return torch.where(uniform[:, 0] < probability, anywhere, layers)


class MinibatchStd(nn.Module):
    """A channel more, with how much the images of a group differ (Karras et al. 2018, section 3).

    Groups are consecutive images of the batch, so that a process which holds whole ones needs no other: then the statistic is
    the same on any number of processes. A batch that is no multiple of `group` is one group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C + 1, H, W]."""
        count = len(x)
        size = self.group if count % self.group == 0 else count
        groups = at_least_float32(x).reshape(-1, size, *x.shape[1:])
        spread = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # [groups]
        channel = spread.repeat_interleave(size).to(x.dtype)[:, None, None, None]
        return torch.cat([x, channel.expand(-1, 1, *x.shape[2:])], dim=1)


class Block(nn.Module):
    """Two convolutions, the second to half the size, beside a plain halving (Karras et al. 2020, figure 7c)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = Conv2d(channels_in, channels_in, 3)
        self.second = Conv2d(channels_in, channels_out, 3, down=True)
        self.skip = Conv2d(channels_in, channels_out, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = activate(self.second(activate(self.first(x)))) + self.skip(x)
        return limited(h * math.sqrt(0.5))


class Discriminator(nn.Module):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N]."""

    couples_samples: bool

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)
        widths = stage_widths(config.critic_width, config.critic_max_width, len(sizes))
        last = widths[-1]
        projects = config.conditional and config.class_head == "projection"
        self.couples_samples = config.std_group > 0
        self.from_image = Conv2d(channels, widths[0], 1)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.spread = MinibatchStd(config.std_group) if config.std_group else nn.Identity()
        self.conv = Conv2d(last + self.couples_samples, last, 3)
        self.hidden = Linear(last * math.prod(sizes[0]), last)
        self.score = Linear(last, last if projects else 1)
        self.embed = class_embedding(config, classes, config.class_dim, unit_moment) if projects else None
        self.mapping = mapping(config.class_dim, last, config.map_layers) if projects else None
        self.head = ClassHead(config, last, classes) if config.conditional and not projects else None

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        x = self.blocks(activate(self.from_image(images)))
        x = activate(self.conv(self.spread(x)))
        h = activate(self.hidden(x.flatten(1)))
        scores = self.score(h)
        if self.embed is not None and self.mapping is not None:  # the projection alone, on the mapped class
            classes = self.mapping(self.embed(labels))
            return Judgement((scores * classes).sum(1) / math.sqrt(scores.shape[1]), {})
        return Judgement(scores[:, 0], {}) if self.head is None else self.head(h, labels, scores[:, 0])
