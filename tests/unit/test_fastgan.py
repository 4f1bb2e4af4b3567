"""FastGAN: its layers by the paper's arithmetic, its noise, what excites what, and what the critic has to paint."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from scalegan.config import AugmentConfig
from scalegan.critic import Critic
from scalegan.ema import make_ema, update_ema
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator, build_generator
from scalegan.models.fastgan import generator_widths
from scalegan.models.layers import SpectralNorm

DOCS = Path(__file__).parents[2] / "docs" / "models.md"

SMALL = ModelConfig(family="fastgan", z_dim=8, width=4, max_width=16, critic_width=4, critic_max_width=32)
APART = replace(SMALL, critic_norm="spectral")


def labels(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int64)


def views(n: int, *shape: int) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# --- the networks


def test_channels_are_the_papers_at_256_and_1024():
    assert generator_widths(32, 1024, 7) == [1024, 512, 256, 128, 128, 64, 32]
    assert generator_widths(8, 512, 9) == [512, 512, 256, 128, 128, 64, 32, 16, 8]


def papers_parameters(n, z_dim):
    """Of generator and critic at 256, layer by layer: 4 to 256 with two convolutions in every other stage, and excitations from
    4, 8, 16 to 64, 128, 256; channels are multiples of n, 64 in the paper."""

    def gated(a, b):
        return 9 * a * 2 * b + 2 * 2 * b  # convolution without bias, scale and shift of the norm

    c = [16 * n, 8 * n, 4 * n, 2 * n, 2 * n, n, n // 2]
    generator = z_dim * 16 * 2 * c[0] + 2 * 2 * c[0]
    for i, (a, b) in enumerate(pairwise(c)):
        generator += gated(a, b) + (gated(b, b) + 2 if i % 2 == 0 else 0)  # with two noises
    generator += sum(16 * a * b + b * b for a, b in zip(c[:3], c[4:], strict=True)) + 9 * c[-1] * 3

    c = [n // 4, n // 2, n, 2 * n, 4 * n, 8 * n]
    critic = 27 * c[0] + 8 * n * 16 * n + 2 * 16 * n + 16 * 16 * n
    for a, b in pairwise(c):
        critic += 16 * a * b + 9 * b * b + a * b + 3 * 2 * b
    small = [n // 2, n, 2 * n, 4 * n]
    critic += 16 * 3 * small[0] + sum(16 * a * b + 2 * b for a, b in pairwise(small)) + 16 * small[-1]
    for first in (8 * n, 4 * n):
        d = [first, 2 * n, n, n, n // 2]
        critic += sum(gated(a, b) for a, b in pairwise(d)) + 9 * d[-1] * 3
    return [generator, critic]


def test_at_256_the_networks_are_the_papers():
    config = ModelConfig(family="fastgan", z_dim=256, width=4, max_width=128, critic_width=2, critic_max_width=128)
    assert [count(build(config, (3, 256, 256), 0)) for build in (build_generator, build_discriminator)] == papers_parameters(
        8, 256
    )


def test_at_256_the_documented_settings_are_the_papers(monkeypatch):
    monkeypatch.setattr(SpectralNorm, "iterate", lambda self, weight, times: None)
    sentence = re.search(r"At 256 x 256, ((?:`\w+ \d+`[, and]*)+) are the paper's", DOCS.read_text())
    documented = {name: int(value) for name, value in re.findall(r"`(\w+) (\d+)`", sentence[1])}
    config = ModelConfig(family="fastgan", **documented)
    counts = [count(build(config, (3, 256, 256), 0)) for build in (build_generator, build_discriminator)]
    assert counts == papers_parameters(64, 256)


@pytest.mark.parametrize(("side", "pairs"), [(28, 0), (32, 0), (64, 1), (100, 1), (128, 2), (256, 3)])
def test_a_map_excites_one_sixteen_times_as_large(side, pairs):
    assert len(build_generator(SMALL, (1, side, side), 0).excitations) == pairs


def test_an_excitation_scales_whole_channels():
    torch.manual_seed(0)
    generator = build_generator(SMALL, (3, 64, 64), 0).eval()
    (excitation,) = generator.excitations
    given = []
    excitation.register_forward_hook(lambda module, inputs, output: given.append((inputs[0], output)))
    latents = torch.randn(2, 8)
    images = generator(latents, labels(2))
    (small, factors), last = given[0], generator.to_image.weight.shape[1]
    assert small.shape[2:] == (4, 4)
    assert factors.shape == (2, last, 1, 1)
    assert 0 < factors.min() < factors.max() < 1
    excitation.register_forward_hook(lambda module, inputs, output: 0 * output)
    assert generator(latents, labels(2)).abs().max() == 0
    assert images.abs().max() > 0


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 33, 47), (3, 100, 100)])
def test_patches_of_both_branches_count_alike(shape):
    critic = build_discriminator(APART, shape, 0).eval()
    images = views(2, *shape)
    whole = critic(images, labels(2)).logits
    critic.small_patches[-1].register_forward_hook(lambda module, inputs, output: output + 1)
    assert ((critic(images, labels(2)).logits - whole).mean(1) - 0.5).abs().max() < 1e-6


# --- noise


def strong_noise(generator: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in generator.named_parameters():
        if name.endswith("noise.strength"):
            parameter.data.fill_(1.0)
    return generator


def test_noise_is_of_the_latents_alone():
    torch.manual_seed(0)
    generator = build_generator(SMALL, (3, 24, 20), 0).eval()
    latents = torch.randn(4, 8)
    plain = generator(latents, labels(4))
    noisy = strong_noise(generator)(latents, labels(4))
    assert (noisy - plain).abs().max() > 1e-2
    assert torch.equal(generator(latents, labels(4)), noisy)
    torch.testing.assert_close(generator(latents[2:3], labels(1)), noisy[2:3], rtol=1e-4, atol=1e-5)


def test_the_strength_of_noise_is_learnt():
    torch.manual_seed(0)
    generator = build_generator(SMALL, (3, 24, 20), 0)
    generator(torch.randn(4, 8), labels(4)).square().sum().backward()
    assert all(p.grad.abs() > 0 for name, p in generator.named_parameters() if name.endswith("noise.strength"))


def test_the_average_keeps_unit_vectors_of_spectral_norms():
    torch.manual_seed(0)
    generator = build_generator(SMALL, (3, 24, 20), 0)
    ema = make_ema(generator)
    for _ in range(3):
        for parameter in generator.parameters():
            parameter.data += torch.randn_like(parameter) * parameter.std(correction=0)
        generator(torch.randn(2, 8), labels(2))
        update_ema(ema, generator, 0.5)
    vectors = {name: v for name, v in ema.named_buffers() if name.endswith(("._u", "._v"))}
    assert len(vectors) >= 10
    assert all(abs(float(v.norm()) - 1) < 1e-5 for v in vectors.values())


# --- what the critic paints


def test_quarters_are_spread_evenly_and_belong_to_the_view():
    critic = build_discriminator(APART, (1, 28, 28), 0)
    many = views(1000, 1, 28, 28)
    lower, right = critic.painter.quarters(many)
    shares = [(a & b).float().mean().item() for a in (lower, ~lower) for b in (right, ~right)]
    assert all(0.2 < share < 0.3 for share in shares)
    again = critic.painter.quarters(many[300:310])
    assert torch.equal(torch.stack(again), torch.stack([lower[300:310], right[300:310]]))
    rounded = critic.painter.quarters(many * (1 + 1e-7))
    assert sum(int((a != b).sum()) for a, b in zip(rounded, (lower, right), strict=True)) <= 2
    brighter = critic.painter.quarters(many + torch.linspace(0.01, 0.5, 1000)[:, None, None, None])
    assert 0.4 < (brighter[0] == lower).float().mean() < 0.6


@pytest.mark.parametrize(("lower", "right"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_error_is_that_of_the_whole_view_and_of_the_quarter(lower, right):
    critic = build_discriminator(APART, (3, 64, 64), 0)
    images = views(2, 3, 64, 64)
    paintings = {}
    for name in ("whole", "part"):
        getattr(critic.painter, name).register_forward_hook(lambda m, i, output, name=name: paintings.setdefault(name, output))
    critic.painter.quarters = lambda v: (torch.full((2,), lower), torch.full((2,), right))
    found = critic(images, labels(2)).auxiliary["reconstruction"]
    corner = images[:, :, 32 * lower :, 32 * right :][:, :, :32, :32]
    assert paintings["part"].shape == (2, 3, 32, 32)
    expected = ((paintings["whole"] - images) ** 2).mean((1, 2, 3)) + ((paintings["part"] - corner) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(1, 33, 47), (3, 100, 100), (1, 104, 88), (1, 208, 176)])
def test_a_painting_lies_on_its_place_for_odd_sizes_too(shape):
    """Decoders that paint what lies under their map, as if it went on beyond the view, are right to the pixel."""
    critic = build_discriminator(APART, shape, 0)
    images = views(3, *shape)

    def decode(down, up):
        """The view at the size that is aimed at, cut by the map's quarter, in units of the map's pixels."""
        target = images
        for _ in range(down):
            target = F.avg_pool2d(target, 2, ceil_mode=True)
        sides = [-(-side // 2**up) for side in target.shape[2:]]
        padded = F.pad(target, (0, sides[1] * 2**up - target.shape[3], 0, sides[0] * 2**up - target.shape[2]))
        return padded, sides

    whole, _ = decode(critic.painter.whole_down, critic.painter.whole_up)
    critic.painter.whole.forward = lambda x: whole
    padded, (rows, columns) = decode(critic.painter.part_down, critic.painter.part_up)
    lower, right = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    critic.painter.quarters = lambda v: (lower, right)

    def part(x):
        times = 2**critic.painter.part_up
        assert x.shape[2:] == (rows - rows // 2, columns - columns // 2)
        tops, lefts = lower.long() * (rows // 2) * times, right.long() * (columns // 2) * times
        high, wide = x.shape[2] * times, x.shape[3] * times
        cut = [p[:, t : t + high, j : j + wide] for p, t, j in zip(padded, tops.tolist(), lefts.tolist(), strict=True)]
        return torch.stack(cut)

    critic.painter.part.forward = part
    assert critic(images, labels(3)).auxiliary["reconstruction"].abs().max() == 0


def test_painting_is_learnt_from_the_features():
    torch.manual_seed(0)
    critic = build_discriminator(replace(SMALL, critic_width=8), (1, 32, 32), 0)
    images = F.interpolate(views(8, 1, 4, 4), scale_factor=8)
    adam = torch.optim.Adam(critic.parameters(), lr=3e-3)
    errors = []
    for _ in range(15):
        adam.zero_grad(set_to_none=True)
        error = critic(images, labels(8)).auxiliary["reconstruction"].mean()
        error.backward()
        adam.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]
    assert critic.stem[0].weight.requires_grad
    assert critic.stem[0].parametrizations.weight.original.grad.abs().max() > 0


# --- what every critic has to stand


@pytest.mark.parametrize("config", [SMALL, APART], ids=["batch", "spectral"])
def test_steepness_and_its_gradient_equal_autograds(config):
    torch.manual_seed(0)
    critic = Critic(build_discriminator(replace(config, conditional=True), (3, 24, 20), 3), AugmentConfig()).double().eval()
    images, classes = views(4, 3, 24, 20).double(), torch.tensor([0, 1, 2, 1])
    scores = critic(images, classes, None, True)
    (scores.squared_grad_norm.sum() + scores.auxiliary["reconstruction"].sum()).backward()
    ours = {name: p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None}
    critic.zero_grad()

    leaves = images.clone().requires_grad_()
    scores = critic(leaves, classes, None)
    (gradient,) = torch.autograd.grad(scores.logits.mean(1).sum(), leaves, create_graph=True)
    (gradient.square().sum() + critic(images, classes, None).auxiliary["reconstruction"].sum()).backward()
    theirs = {name: p.grad for name, p in critic.named_parameters() if p.grad is not None}
    assert {name for name in ours if ours[name].abs().max() > 0} == {n for n in theirs if theirs[n].abs().max() > 0}
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-12)


def test_half_precision_is_for_convolutions_alone():
    torch.manual_seed(0)
    generator = strong_noise(build_generator(SMALL, (3, 64, 64), 0))
    critic = Critic(build_discriminator(SMALL, (3, 64, 64), 0), AugmentConfig())
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(4, 8), labels(4))
        scores = critic(images.detach(), labels(4), None, True)
        loss = images.sum() + scores.logits.sum() + scores.squared_grad_norm.sum() + scores.auxiliary["reconstruction"].sum()
    loss.backward()
    assert {t.dtype for t in (images, scores.logits, scores.squared_grad_norm, scores.auxiliary["reconstruction"])} == {
        torch.float32
    }
    parameters = [*generator.parameters(), *critic.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
