"""The GAN of configs/kiwi_small.yaml as a bare PyTorch loop, in the two forms that training is held against.

Networks, losses, augmentation, lazy R1 and EMA are those of the preset, written with plain PyTorch and nothing of
scalegan's. `plain` is float32, contiguous, with unfused Adam, real and fake images in two forwards, and an average that goes
parameter by parameter, as such loops are usually written. `optimised` has all that scalegan does for speed: bfloat16
autocast where the CPU has it in hardware, channels_last, fused Adam, both sides in one forward where there is no penalty,
and an average in one call. In both forms the critic's weights ask for no gradient while the generator learns, which many
loops leave out.

Real images come from one uint8 tensor that is read before the clock starts: faster than any DataLoader, so that the bare
loops do not lose by their data.
"""

from __future__ import annotations

import copy
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

FORMS = ("plain", "optimised")


@dataclass(frozen=True)
class Recipe:
    """The numbers of configs/kiwi_small.yaml that a step depends on."""

    batch: int
    z_dim: int
    width: int
    critic_width: int
    r1_gamma: float
    penalty_every: int
    brightness: float
    shift: float
    rate: float
    betas_g: tuple[float, float]
    betas_d: tuple[float, float]
    half_life: int
    ramp: float


def generator(z_dim: int, width: int) -> nn.Sequential:
    """Latents [N, z_dim] -> images [N, 3, 64, 64] in [-1, 1]."""
    layers: list[nn.Module] = [nn.Linear(z_dim, 8 * width * 16, bias=False), nn.Unflatten(1, (8 * width, 4, 4))]
    for channels in (8 * width, 4 * width, 2 * width):
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
    network = nn.Sequential(*layers)
    for module in network:
        if isinstance(module, nn.Linear | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
    return network


def discriminator(width: int) -> nn.Sequential:
    """Images [N, 3, 64, 64] -> logits [N, 1]."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width * 16, 1))
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=0.2, nonlinearity="leaky_relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


class BareLoop:
    def __init__(self, recipe: Recipe, form: str) -> None:
        self.recipe = recipe
        self.optimised = form == "optimised"
        self.generator = generator(recipe.z_dim, recipe.width)
        self.discriminator = discriminator(recipe.critic_width)
        if self.optimised:
            self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        rate, fused = recipe.rate, self.optimised
        self.opt_g = torch.optim.Adam(self.generator.parameters(), lr=rate, betas=recipe.betas_g, fused=fused)
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=recipe.betas_d, fused=fused)

    def step(self, real: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """One turn on `real`, uint8 [N, 3, 64, 64]; `number` steps were made before. Returns the losses of D and G."""
        recipe, count = self.recipe, len(real)
        loss_d = self.discriminator_step(
            real,
            torch.randn(count, recipe.z_dim),
            torch.rand(count, 4),
            torch.rand(count, 4),
            number % recipe.penalty_every == 0,
        )
        loss_g = self.generator_step(torch.randn(count, recipe.z_dim), torch.rand(count, 4))
        self.average(recipe.batch * (number + 1))
        return loss_d, loss_g

    def discriminator_step(
        self, real: Tensor, latents: Tensor, real_draws: Tensor, fake_draws: Tensor, penalised: bool
    ) -> Tensor:
        self.opt_d.zero_grad()
        images = real.float() / 127.5 - 1
        with torch.no_grad(), self.autocast():
            fakes = self.generator(latents).float()
        if self.optimised and not penalised:
            logits = self.score(torch.cat([images, fakes]), torch.cat([real_draws, fake_draws]))
            real_logits, fake_logits = logits.chunk(2)
        else:
            images.requires_grad_(penalised)
            real_logits, fake_logits = self.score(images, real_draws), self.score(fakes, fake_draws)
        adversarial = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        loss = adversarial
        if penalised:
            (gradient,) = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
            penalty = 0.5 * self.recipe.r1_gamma * gradient.square().flatten(1).sum(1).mean()
            loss = loss + self.recipe.penalty_every * penalty
        loss.backward()  # type: ignore[no-untyped-call]
        self.opt_d.step()
        return adversarial.detach()

    def generator_step(self, latents: Tensor, draws: Tensor) -> Tensor:
        self.opt_g.zero_grad()
        self.discriminator.requires_grad_(False)
        with self.autocast():
            fakes = self.generator(latents).float()
        loss = softplus(-self.score(fakes, draws)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator.requires_grad_(True)
        self.opt_g.step()
        return loss.detach()

    def score(self, images: Tensor, draws: Tensor) -> Tensor:
        views = view(images, draws, self.recipe.brightness, self.recipe.shift)
        if not self.optimised:
            views = views.contiguous()  # else the whole critic would follow their channels_last
        with self.autocast():
            logits: Tensor = self.discriminator(views)
        return logits[:, 0].float()

    @torch.no_grad()
    def average(self, images_seen: int) -> None:
        recipe = self.recipe
        share = 1 - 0.5 ** (recipe.batch / min(recipe.half_life, recipe.ramp * images_seen))
        new, old = self.generator.state_dict(), self.ema.state_dict()
        names = [name for name, value in new.items() if value.is_floating_point()]
        if self.optimised:
            torch._foreach_lerp_([old[name] for name in names], [new[name] for name in names], share)
        else:
            for name in names:
                old[name].lerp_(new[name], share)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.optimised and torch.cpu._is_avx512_bf16_supported())


def view(images: Tensor, draws: Tensor, brightness: float, shift: float) -> Tensor:
    """Random brightness, shift and mirror from draws [N, 4] of uniform numbers, by indexing, as is usual."""
    count, _, height, width = images.shape
    bright, down, right, mirror = draws.unbind(1)
    rows = torch.arange(height) + whole_pixels(down, shift, height)
    columns = torch.arange(width) + whole_pixels(right, shift, width)
    columns = torch.where(mirror[:, None] < 0.5, width - 1 - columns, columns)
    padded = pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # what comes in from outside is the padding
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved + ((2 * bright - 1) * brightness)[:, None, None, None]


def whole_pixels(draw: Tensor, share: float, size: int) -> Tensor:
    limit = int(share * size + 0.5)
    return torch.floor(draw * (2 * limit + 1)).long()[:, None] - limit


def preloaded(folder: Path) -> Tensor:
    """Every image of the shards in a folder, by tarfile and Pillow: uint8 [N, 3, H, W]."""
    images = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png")):
                    file = tar.extractfile(member)
                    assert file is not None
                    images.append(np.array(Image.open(io.BytesIO(file.read())).convert("RGB")))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
