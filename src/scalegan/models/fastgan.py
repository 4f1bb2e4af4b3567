"""FastGAN (Liu et al. 2021, "Towards faster and stabilized GAN training for high-fidelity few-shot image synthesis") for
images of any height and width.

The generator's small maps excite channels of maps 16 times as large, where the image is large enough to have both. The
discriminator also learns to paint what it sees from its own features, so that it has to look at all of a few images
instead of knowing them by some detail: the whole view from its 8 x 8 map, and a quarter from the 16 x 16 map. The error is
the mean square; the paper's perceptual one would need the weights of a VGG.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.model_config import ModelConfig
from scalegan.models.batch_norm import BatchNorm, Norm, critic_normalisation
from scalegan.models.conditions import ClassHead, Judgement, class_input
from scalegan.models.dcgan import start_dcgan
from scalegan.models.layers import Halve, Slope, at_least_float32, downsample, halvings, in_float32, normalise_weights, upsample
from scalegan.models.noise import noise_keys, normal_noise
from scalegan.models.resize import Resize, area

REACH = 4
"""Doublings from a map to the one it excites."""
POOLED = (4, 4)
"""Size at which a map is looked at to excite another."""
SMALLEST = 6
"""Shorter side from which on the discriminator's last map is not halved again: 6 to 11, about the paper's 8."""
STRIDED = 512
"""Shorter side from which on the discriminator begins by halving."""
SMALL_VIEW = 128
"""Largest shorter side of the view that the low-resolution branch sees."""
DECODER = (4, 8, 8, 16)
"""What the channels of the discriminator's last map are divided by from stage to stage of a decoder."""


class Noise(nn.Module):
    """Adds noise, the same to all channels, at a strength that is learnt and 0 at the start."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return x + (self.strength * normal_noise(keys, self.layer, height, width)).to(x.dtype)


class Gated(nn.Module):
    """Convolution, noise where its layer has a number, normalisation, gated linear unit."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm, layer: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, 2 * channels_out, 3, padding=1, bias=False)
        self.noise = Noise(layer) if layer is not None else None
        self.norm = norm(2 * channels_out)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """x [N, C, H, W]; keys [N] where there is noise."""
        x = self.conv(x)
        if self.noise is not None:
            x = self.noise(x, keys)
        return F.glu(self.norm(x), dim=1)


class Excitation(nn.Module):
    """A small map [N, channels_in, *size] -> factors [N, channels_out, 1, 1] in (0, 1) for a large one (eq. 1)."""

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.pool = Resize(size, POOLED, area)
        self.gather = nn.Conv2d(channels_in, channels_out, POOLED, bias=False)
        self.weigh = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.weigh(F.silu(self.gather(self.pool(x)))))


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] -> images [N, C, H, W] in [-1, 1].

    The noise comes from the latents' bits, or from `keys` int64 [N] where these are given.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.sizes = sizes = halvings(height, width)
        widths = generator_widths(config.width, config.max_width, len(sizes))
        norm = partial(BatchNorm, group=config.norm_group)
        self.embed = class_input(config, classes) if config.conditional else None
        inputs = config.z_dim + config.class_inputs
        self.base = (2 * widths[0], *sizes[0])
        self.project = nn.Linear(inputs, 2 * widths[0] * sizes[0][0] * sizes[0][1], bias=False)
        self.norm = norm(2 * widths[0])
        self.stages = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths)):
            noisy = i % 2 == 0  # every other stage has two convolutions, with noise
            layers = [Gated(a, b, norm, 2 * i), Gated(b, b, norm, 2 * i + 1)] if noisy else [Gated(a, b, norm)]
            self.stages.append(nn.ModuleList(layers))
        pairs = zip(widths, widths[REACH:], sizes, strict=False)
        self.excitations = nn.ModuleList(Excitation(small, large, size) for small, large, size in pairs)
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1, bias=False)
        self.apply(start_dcgan)
        for part in (self.project, self.stages, self.excitations, self.to_image):
            normalise_weights(part, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)

    def forward(self, latents: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        keys = noise_keys(latents) if keys is None else keys
        if self.embed is not None:
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        x = self.project(latents).view(-1, *self.base).to(memory_format=torch.channels_last)
        maps = [F.glu(self.norm(x), dim=1)]
        for i, (layers, size) in enumerate(zip(self.stages, self.sizes[1:], strict=True)):
            x = upsample(maps[-1], size)
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, keys)
            if i + 1 >= REACH:
                x = x * self.excitations[i + 1 - REACH](maps[i + 1 - REACH])
            maps.append(x)
        return at_least_float32(self.to_image(maps[-1])).tanh()


class Down(nn.Module):
    """Half the size: the mean of two convolutions and of one of the pooled map."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm, bias: bool) -> None:
        super().__init__()
        second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        self.main = nn.Sequential(
            Halve(channels_in, channels_out, bias=bias), norm(channels_out), Slope(), second, norm(channels_out), Slope()
        )
        self.direct = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=bias), norm(channels_out), Slope())

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = (self.main(x) + self.direct(downsample(x))) / 2
        return mean


class Decoder(nn.Module):
    """A map [N, channels_in, h, w] -> an image [N, channels, h * 2^stages, w * 2^stages] in [-1, 1]."""

    def __init__(self, channels_in: int, width: int, stages: int, channels: int, norm: Norm) -> None:
        super().__init__()
        widths = [channels_in, *(max(1, width // d) for d in DECODER[:stages])]
        self.stages = nn.ModuleList(Gated(a, b, norm) for a, b in pairwise(widths))
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(upsample(x, (2 * x.shape[2], 2 * x.shape[3])))
        return at_least_float32(self.to_image(x)).tanh()


class Painter(nn.Module):
    """Paints views from two maps that a discriminator has of them, and says how far off it is (section 3.2)."""

    pattern: Tensor

    def __init__(self, shape: tuple[int, int, int], widths: tuple[int, int], halved: tuple[int, int], norm: Norm) -> None:
        """widths: channels of the map before the last and of the last; halved: how often each is halved from the view."""
        super().__init__()
        channels, height, width = shape
        self.part_up, self.whole_up = (min(times, len(DECODER)) for times in halved)
        self.part_down, self.whole_down = halved[0] - self.part_up, halved[1] - self.whole_up
        self.part = Decoder(widths[0], widths[1], self.part_up, channels, norm)
        self.whole = Decoder(widths[1], widths[1], self.whole_up, channels, norm)
        self.register_buffer("pattern", normal_noise(torch.zeros(1, dtype=torch.int64), 0, height, width), persistent=False)

    def forward(self, views: Tensor, before: Tensor, last: Tensor) -> Tensor:
        """Error [N] of the whole view as painted from the last map, plus that of a quarter from the one before (eq. 4)."""
        whole, target = self.whole(last), pooled(views, self.whole_down)
        height, width = target.shape[-2:]
        error = squared_error(whole[..., :height, :width], target)

        where, target = self.quarters(views), pooled(views, self.part_down)
        height, width = before.shape[-2:]
        part = self.part(quarter(before, where, (height - height // 2, width - width // 2)))
        times = 2**self.part_up  # an odd map's halves share a line, and what it covers may end beyond the view
        height, width = target.shape[2] - height // 2 * times, target.shape[3] - width // 2 * times
        return error + squared_error(part[..., :height, :width], quarter(target, where, (height, width)))

    def quarters(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the quarter of each view is the lower, and whether the right one: booleans [N].

        By two binary digits of a random projection of the view, after the point: evenly spread, without random numbers of
        their own, and unlike a hash of the bits not to be turned by rounding in the last place.
        """
        place = (views.detach() * self.pattern).sum((1, 2, 3))
        return place % 1 >= 0.5, place % 0.5 >= 0.25


class Discriminator(nn.Module):
    """Images [N, C, H, W] and labels [N] -> `Judgement` with logits [N, K] of patches and the loss `reconstruction`.

    Half of the logits come from a trunk of maps, half from a branch that sees a small view.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        sizes = halvings(height, width)
        last = next((i for i, size in enumerate(sizes) if min(size) >= SMALLEST), len(sizes) - 1)
        sizes = sizes[last:][::-1]  # from the image's to that of the last map
        self.couples_samples = config.norm_of_critic == "batch"
        norm, bias = critic_normalisation(config), not self.couples_samples

        first = int(min(height, width) >= STRIDED)  # the size of the first map, among `sizes`
        widths = [min(config.critic_max_width, config.critic_width * 2**i) for i in range(len(sizes) - first)]
        begin = Halve(channels, widths[0], bias=False) if first else conv3x3(channels, widths[0])
        self.stem = nn.Sequential(begin, Slope())
        self.downs = nn.ModuleList(Down(a, b, norm, bias) for a, b in pairwise(widths))
        inner = min(config.critic_max_width, 2 * widths[-1])
        kernel = (min(4, sizes[-1][0]), min(4, sizes[-1][1]))
        self.patches = nn.Sequential(
            nn.Conv2d(widths[-1], inner, 1, bias=bias), norm(inner), Slope(), nn.Conv2d(inner, 1, kernel, bias=bias)
        )
        self.smaller = next((i for i, size in enumerate(sizes) if i and min(size) <= SMALL_VIEW), 0)
        half = [max(1, w // 2) for w in [*[widths[0]] * first, *widths]][self.smaller :]
        branch = small_branch(channels, half, norm, bias=bias)
        self.small_patches = nn.Sequential(*branch, nn.Conv2d(half[-1], 1, kernel, bias=bias))

        before = max(0, len(widths) - 2)
        self.painter = Painter(shape, (widths[before], widths[-1]), (before + first, len(sizes) - 1), norm)
        self.head = ClassHead(config, widths[-1], classes) if config.conditional else None
        self.apply(start_dcgan)
        if self.head is not None:
            nn.init.normal_(self.head.classes.weight, std=0.02)
        normalise_weights(self, nn.Conv2d, nn.Linear, nn.Embedding)

    def forward(self, images: Tensor, labels: Tensor) -> Judgement:
        before = last = self.stem(images)
        for down in self.downs:
            before, last = last, down(last)
        logits = judged(self.patches, last)
        small = judged(self.small_patches, pooled(images, self.smaller))
        judgement = Judgement(logits, {}) if self.head is None else self.head(last.mean((2, 3)), labels, logits)
        painted = {"reconstruction": self.painter(at_least_float32(images), before, last)}
        return Judgement(torch.cat([judgement.logits, small], dim=1), judgement.auxiliary | painted)


def judged(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Logits [N, K], by the last of the layers in float32."""
    *body, last = layers
    for layer in body:
        x = layer(x)
    return in_float32(last, x).flatten(1)


def small_branch(channels: int, widths: list[int], norm: Norm, *, bias: bool) -> list[nn.Module]:
    """From a small view to the size of the last map. `widths` begins with that of the view's own size, which has no map."""
    if len(widths) == 1:
        return [conv3x3(channels, widths[0]), Slope()]
    layers: list[nn.Module] = [Halve(channels, widths[1], bias=False), Slope()]
    for a, b in pairwise(widths[1:]):
        layers += [Halve(a, b, bias=bias), norm(b), Slope()]
    return layers


def squared_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """[N, C, H, W] twice -> [N]."""
    return (ours - theirs).square().mean((1, 2, 3))


def quarter(x: Tensor, where: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """The corner (lower, right) of `size` of each of x [N, C, H, W]."""
    lower, right = (side[:, None, None, None] for side in where)
    height, width = size
    rows = torch.where(lower, x[:, :, -height:], x[:, :, :height])
    return torch.where(right, rows[..., -width:], rows[..., :width])


def pooled(x: Tensor, times: int) -> Tensor:
    """`downsample`, so many times."""
    for _ in range(times):
        x = downsample(x)
    return x


def generator_widths(width: int, most: int, stages: int) -> list[int]:
    """Channels from the coarsest map to the image: 16, 8, 4, 2, 2, 1, 1/2, ... parts, of which the last is `width`."""
    halved = [i - (i >= 4) for i in range(stages)]
    return [min(most, width * 2 ** (halved[-1] - h)) for h in halved]


def conv3x3(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
