"""StyleGAN2: layers against their formulas, the start at unit scale, published sizes, no chance but the latents' bits."""

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scalegan.config import AugmentConfig, Config, TrainConfig
from scalegan.critic import Critic
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator, build_generator
from scalegan.models.batch_norm import RunningMean
from scalegan.models.equalised import Conv2d, Linear, activate, mapping, unit_moment
from scalegan.models.noise import noise_keys, normal_noise
from scalegan.models.resampling import LowPass
from scalegan.models.stylegan2 import MinibatchStd, ModulatedConv2d, crossovers
from scalegan.path_length import DIRECTIONS, Maker

SMALL = ModelConfig(
    family="stylegan2", z_dim=8, width=4, max_width=8, critic_width=4, critic_max_width=8, map_layers=2, class_dim=4
)


def labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def networks(config: ModelConfig = SMALL, shape: tuple[int, int, int] = (3, 16, 20), classes: int = 0):
    torch.manual_seed(0)
    generator, discriminator = build_generator(config, shape, classes), build_discriminator(config, shape, classes)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)  # they start at 0, and would hide what noise does
    return generator, discriminator


# --- sizes


def generator_parameters(resolution: int, width: int, depth: int) -> int:
    """Of the paper's table of layers, by hand: w, latents and labels have 512 numbers."""
    widths = {r: min(512, width * resolution // r) for r in (2**i for i in range(2, resolution.bit_length()))}
    total = depth * (512 * 512 + 512) + 512 * 4 * 4
    for r, channels in widths.items():
        ins = [channels] if r == 4 else [widths[r // 2], channels]
        total += sum((512 + 1) * a + 9 * a * channels + 1 + channels for a in ins)  # style, weights, noise, bias
        total += (512 + 1) * channels + 3 * channels + 3  # to RGB
    return total


def discriminator_parameters(resolution: int, width: int) -> int:
    widths = [min(512, width * 2**i) for i in range(resolution.bit_length() - 2)]
    total = 3 * widths[0] + widths[0]
    for a, b in pairwise(widths):
        total += 9 * a * a + a + 9 * a * b + b + a * b  # two convolutions and the skip
    return total + 9 * 513 * 512 + 512 + 512 * 16 * 512 + 512 + 512 + 1


@pytest.mark.parametrize(
    ("resolution", "width", "depth", "published"),
    [
        (1024, 32, 8, (30_370_060, 29_012_513)),  # config F of the paper
        (1024, 32, 2, (28_794_124, 29_012_513)),  # `auto` of ADA at 1024, as its users' logs have it
        (256, 64, 8, (24_767_458, 24_001_089)),  # the ADA paper's at 256
    ],
)
def test_the_networks_have_the_published_numbers_of_parameters(resolution, width, depth, published):
    config = ModelConfig(family="stylegan2", z_dim=512, width=width, critic_width=width, map_layers=depth)
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in build(config, (3, resolution, resolution), 0).parameters())
            for build in (build_generator, build_discriminator)
        ]
    assert counts == [generator_parameters(resolution, width, depth), discriminator_parameters(resolution, width)]
    assert counts == list(published)


# --- layers


def with_weights_of_its_own(conv: ModulatedConv2d, x: Tensor, w: Tensor) -> Tensor:
    """The same by a convolution of as many groups as images, each with its weights modulated and demodulated (eq. 1, 3)."""
    count, channels, height, width = x.shape
    styles = w @ conv.style.weight.T / math.sqrt(w.shape[1]) + conv.style.bias
    weights = conv.weight[None] / math.sqrt(channels * conv.weight.shape[-1] ** 2) * styles[:, None, :, None, None]
    if conv.demodulate:
        weights = weights / (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    outputs, kernel = weights.shape[1], weights.shape[-1]
    flat = x.reshape(1, count * channels, height, width)
    if conv.low_pass is None:
        made = F.conv2d(flat, weights.flatten(0, 1), padding=kernel // 2, groups=count)
        return made.view(count, outputs, height, width)
    transposed = weights.transpose(1, 2).flatten(0, 1)
    spread = F.conv_transpose2d(flat, transposed, stride=2, groups=count)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 4
    made = F.conv2d(spread.transpose(0, 1), torch.outer(taps, taps)[None, None], padding=1)
    return made.view(count, outputs, 2 * height, 2 * width)


@pytest.mark.parametrize(("kernel", "demodulate", "up"), [(3, True, False), (3, True, True), (1, False, False)])
def test_scaling_input_and_output_is_scaling_each_images_weights(kernel, demodulate, up):
    torch.manual_seed(0)
    conv = ModulatedConv2d(5, 6, kernel, 7, demodulate=demodulate, up=up).double()
    x, w = torch.randn(3, 5, 8, 6, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(conv(x, w), with_weights_of_its_own(conv, x, w))


@pytest.mark.parametrize("up", [False, True])
def test_demodulation_keeps_a_variance_of_1_whatever_the_style(up):
    torch.manual_seed(0)
    conv = ModulatedConv2d(64, 64, 3, 16, up=up)
    made = conv(torch.randn(4, 64, 24, 24), 100 * torch.randn(4, 16))[..., 3:-3, 3:-3]
    expected = 1.0 if not up else conv_gain()
    assert made.var().item() == pytest.approx(expected, rel=0.1)


def conv_gain() -> float:
    """What doubling makes of the variance of white noise: zeros between pixels, and the filter over them with a gain of 4."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    return (taps.square().sum() ** 2 / 4).item()


def test_a_doubling_convolution_moves_nothing():
    """It is the image doubled, and then convolved."""
    torch.manual_seed(0)
    conv = ModulatedConv2d(3, 2, 3, 4, demodulate=False, up=True).double()
    x, w = torch.randn(1, 3, 9, 8, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    doubled = LowPass().double().doubled(x, (18, 16))
    expected = F.conv2d(doubled, conv.weight.flip(2, 3) * conv.scale, padding=1)
    inner = slice(2, -2)
    torch.testing.assert_close(conv(x, w)[..., inner, inner], expected[..., inner, inner])


@pytest.mark.parametrize("size", [(8, 6), (9, 7)])
def test_a_halving_convolution_sees_what_the_skip_beside_it_sees(size):
    """A kernel of the middle pixel alone is no more than the halving."""
    x = torch.randn(1, 3, *size)
    conv, skip = Conv2d(3, 3, 3, down=True), Conv2d(3, 3, 1, bias=False, down=True)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = skip.weight[:, :, 0, 0] * skip.scale / conv.scale
    torch.testing.assert_close(conv(x), skip(x))


def test_equalised_weights_start_at_unit_variance_over_their_rate():
    torch.manual_seed(0)
    for layer, std in ((Linear(300, 300), 1.0), (Linear(300, 300, rate=0.01), 100.0), (Conv2d(64, 64, 3), 1.0)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.bias.abs().max() == 0
    x = torch.randn(500, 300)
    assert Linear(300, 200, rate=0.01)(x).std().item() == pytest.approx(1.0, rel=0.05)
    made = activate(Linear(300, 300)(x))
    assert made.square().mean().item() == pytest.approx((1 + 0.2**2) / 2 * 2, rel=0.05)


def test_the_rate_of_a_layer_is_that_of_its_steps():
    """One step of Adam moves the output of the mapping's layers by a hundredth of another's."""
    moved = []
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        layer, x = Linear(50, 1, rate=rate), torch.randn(1, 50)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        before = layer(x)
        before.sum().backward()
        optimizer.step()
        moved.append((layer(x) - before).item())
    assert moved[1] == pytest.approx(moved[0] / 100, rel=1e-2)


def test_the_mapping_keeps_its_scale_and_forgets_that_of_its_input():
    torch.manual_seed(0)
    layers, z = mapping(512, 512, 8), torch.randn(64, 512)
    assert 0.5 < layers(unit_moment(z)).square().mean() < 2
    torch.testing.assert_close(unit_moment(5 * z), unit_moment(z))
    torch.testing.assert_close(unit_moment(z).square().mean(1), torch.ones(64))


def test_the_networks_start_at_unit_scale():
    torch.manual_seed(0)
    config = ModelConfig(family="stylegan2", z_dim=64, width=64, max_width=64, critic_width=64, critic_max_width=64)
    images = build_generator(config, (3, 32, 32), 0)(torch.randn(16, 64), labels(16))
    assert 0.5 < images.square().mean().sqrt() < 4  # four stages add to it
    plain = torch.randn(16, 3, 1, 1).expand(-1, -1, 32, 32)  # the low-pass filters would take away noise
    logits = build_discriminator(config, (3, 32, 32), 0)(plain, labels(16)).logits
    assert 0.2 < logits.square().mean().sqrt() < 5


# --- minibatch standard deviation


def test_the_spread_is_that_of_each_group_of_consecutive_images():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 5)
    made = MinibatchStd(3)(x)
    assert torch.equal(made[:, :4], x)
    for group in (slice(0, 3), slice(3, 6)):
        expected = x[group].std(0, correction=0).mean()
        torch.testing.assert_close(made[group, 4], expected.expand(3, 3, 5), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made[0, 4], made[3, 4])


def test_a_part_of_whole_groups_has_the_spread_that_it_has_in_the_whole():
    x = torch.randn(12, 4, 3, 3)
    assert torch.equal(MinibatchStd(4)(x)[4:12], MinibatchStd(4)(x[4:12]))


def test_a_batch_that_is_no_multiple_of_a_group_is_one():
    x = torch.randn(5, 4, 3, 3)
    assert torch.equal(MinibatchStd(4)(x), MinibatchStd(5)(x))


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, std_group=2), replace(SMALL, std_group=0)])
def test_steepness_and_its_gradient_equal_autograds(config):
    _, discriminator = networks(config)
    critic = Critic(discriminator, AugmentConfig()).double()
    images = torch.randn(4, 3, 16, 20, dtype=torch.float64)
    scores = critic(images, labels(4), None, True)
    ours = torch.autograd.grad(scores.squared_grad_norm.mean(), list(critic.parameters()), allow_unused=True)
    leaves = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(leaves, labels(4), None).logits.sum(), leaves, create_graph=True)
    squared_grad_norm = gradient.square().flatten(1).sum(1)
    theirs = torch.autograd.grad(squared_grad_norm.mean(), list(critic.parameters()), allow_unused=True)
    torch.testing.assert_close(scores.squared_grad_norm, squared_grad_norm)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("group", [0, 2])
def test_the_critic_says_truly_whether_it_couples_samples(group):
    _, critic = networks(replace(SMALL, std_group=group))
    images = torch.randn(4, 3, 16, 20)
    alone, together = critic(images[1:2], labels(1)).logits, critic(images, labels(4)).logits[1:2]
    assert critic.couples_samples is (group > 0)
    assert torch.allclose(alone, together, atol=1e-6) is not critic.couples_samples


# --- chance


@pytest.mark.parametrize("training", [True, False])
def test_an_image_is_a_function_of_its_latents_whatever_the_company(training):
    generator, _ = networks()
    generator.double().train(training)
    z = torch.randn(6, 8, dtype=torch.float64)
    whole = generator(z, labels(6))
    torch.testing.assert_close(generator(z[2:5], labels(3)), whole[2:5])
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_noise_starts_without_effect_and_has_some_once_it_is_learnt():
    torch.manual_seed(0)
    generator = build_generator(SMALL, (1, 16, 16), 0).eval()
    z = torch.randn(3, 8)
    keys = noise_keys(z)
    ws = generator.styles(z, labels(3), keys)
    assert torch.equal(generator.synthesise(ws, keys), generator.synthesise(ws, keys + 1))
    generator.stages[1].convs[0].noise_strength.data.fill_(0.5)
    assert not torch.allclose(generator.synthesise(ws, keys), generator.synthesise(ws, keys + 1))


def test_styles_are_mixed_in_training_alone():
    generator, _ = networks()
    z = torch.randn(500, 8)
    keys, layers = noise_keys(z), 2 * len(generator.stages)
    own = generator.eval().styles(z, labels(500), keys)
    assert torch.equal(own, own[:, :1].expand_as(own))
    ws = generator.train().styles(z, labels(500), keys)
    first = (ws == own).all(2).sum(1)  # layers before the crossover
    assert (first >= 1).all()
    assert (first < layers).float().mean().item() == pytest.approx(0.9, abs=0.04)
    mixed, crossover = ws[first < layers], first[first < layers]
    after = torch.arange(layers) >= crossover[:, None]
    assert torch.equal(mixed[after], mixed[:, -1:].expand_as(mixed)[after])  # one other w from there on


def test_crossovers_fall_anywhere_alike():
    keys = noise_keys(torch.randn(6000, 4))
    found = crossovers(keys, 7, 1.0)
    counts = torch.bincount(found, minlength=8).tolist()
    assert counts[0] == 0
    assert counts[7] == 0
    assert all(count == pytest.approx(1000, abs=150) for count in counts[1:7])
    assert (crossovers(keys, 7, 0.0) == 7).all()


# --- the mean of w


def test_w_is_averaged_over_the_images_of_late_in_training_alone():
    generator, _ = networks(replace(SMALL, mixing=0.0))
    z = torch.randn(10, 8)
    generator.eval()(z, labels(10))
    assert generator.w_mean.mean.abs().max() == 0
    generator.train()(z, labels(10))
    expected = 0.002 * generator.mapping(unit_moment(z)).mean(0)
    torch.testing.assert_close(generator.w_mean.mean, expected)


def test_what_is_not_finite_is_not_averaged():
    mean = RunningMean()
    mean.update(torch.tensor([2.0, 4.0]), 0.5)
    mean.update(torch.tensor([torch.nan]), 0.5)
    assert mean.mean == 1.5


def test_truncation_draws_images_to_the_mean_one():
    generator, _ = networks()
    generator.eval().w_mean.mean.normal_()
    z = torch.randn(4, 8)
    keys, spread = noise_keys(z), []
    for truncation in (1.0, 0.5, 0.0):
        generator.truncation = truncation
        ws = generator.styles(z, labels(4), keys)
        spread.append((ws - generator.w_mean.mean).square().sum().sqrt())
    torch.testing.assert_close(spread[1], spread[0] / 2)
    assert spread[2] == 0


# --- path lengths


def test_a_path_length_is_that_of_the_jacobian():
    """|J_w^T y|^2 of an explicit Jacobian, mean over the layers of w; and the images of the plain forward."""
    generator, _ = networks(replace(SMALL, mixing=0.5), shape=(2, 8, 9))
    maker = Maker(generator).double().train()
    z = torch.randn(2, 8, dtype=torch.float64)
    fakes, keys = maker(z, labels(2), True), noise_keys(z)
    torch.testing.assert_close(fakes.images, maker(z, labels(2)).images)
    ws = generator.styles(z, labels(2), keys).detach()
    y = normal_noise(keys, DIRECTIONS, 2 * 8, 9).view(2, 2, 8, 9).double() / math.sqrt(8 * 9)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda w, i=i: generator.synthesise(w, keys[i : i + 1])[0], ws[i : i + 1])
        along = torch.einsum("chwnld,chw->ld", jacobian, y[i])
        torch.testing.assert_close(fakes.squared_grad_norm[i], along.square().sum(1).mean())


def test_directions_are_normal_and_other_ones_than_the_noise():
    keys = noise_keys(torch.randn(20, 4))
    y, noise = (normal_noise(keys, stream, 16, 16).flatten() for stream in (DIRECTIONS, 0))
    assert y.std().item() == pytest.approx(1.0, abs=0.03)
    assert (y * noise).mean().abs() < 0.05


# --- the rest


@pytest.mark.parametrize("head", ["projection", "classifier"])
def test_in_bfloat16_images_logits_and_penalty_are_near_those_of_float32(head):
    config = replace(SMALL, conditional=True, class_head=head)
    generator, discriminator = networks(config, classes=3)
    maker, critic = Maker(generator.eval()), Critic(discriminator, AugmentConfig())
    z, chosen = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            fakes = maker(z, chosen, True)
            scores = critic(fakes.images.detach(), chosen, None, True)
        assert {fakes.images.dtype, fakes.squared_grad_norm.dtype, scores.logits.dtype, scores.squared_grad_norm.dtype} == {
            torch.float32
        }
        (scores.logits.mean() + scores.squared_grad_norm.mean() + fakes.squared_grad_norm.mean()).backward()
        found.append((fakes.images, fakes.squared_grad_norm, scores.logits, scores.squared_grad_norm))
    for exact, rounded in zip(*found, strict=True):
        assert (exact - rounded).abs().max() < 0.1 * exact.abs().max()
    assert all(p.grad.isfinite().all() for network in (maker, critic) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e5])
@pytest.mark.parametrize("part", ["style.bias", "weight"])
def test_in_float16_styles_and_weights_may_be_of_any_size(part, size):
    """A demodulated convolution is the same for all of them, but float16 ends at 65,504."""
    generator, _ = networks()
    z, chosen = torch.randn(4, 8), labels(4)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, ModulatedConv2d) and module.demodulate:
                module.get_parameter(part).copy_(size * module.get_parameter(part))
                if part == "style.bias":
                    module.style.weight.mul_(size)
        exact = generator.eval()(z, chosen)
        with torch.autocast("cpu", torch.float16):
            rounded = generator(z, chosen)
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(("half", "largest"), [(torch.float16, 256.0), (torch.bfloat16, math.inf)])
def test_float16_alone_is_held_to_a_range(half, largest):
    """One that a sum of 512 x 9 products of them does not leave; bfloat16 has the exponents of float32."""
    generator, critic = networks()
    block, layer = critic.blocks[0], generator.stages[0].to_image
    with torch.autocast("cpu", half), torch.no_grad():
        seen = (
            activate(1e3 * torch.ones(2, dtype=half)),
            block(1e4 * torch.ones(1, 4, 16, 20)),
            layer(1e4 * torch.ones(1, 8, 4, 5), torch.ones(1, 8)),
        )
    for found in seen:
        assert found.dtype == half
        assert (found.abs().max() == 256) if half == torch.float16 else (256 < found.abs().max() < largest)


@pytest.mark.parametrize(
    ("group", "processes", "accumulate", "fits"),
    [(4, 2, 1, True), (4, 4, 4, True), (8, 4, 4, False), (6, 1, 1, False), (0, 4, 4, True)],
)
def test_a_process_has_to_hold_whole_groups(group, processes, accumulate, fits):
    config = Config(model=replace(SMALL, std_group=group), train=TrainConfig(batch=64, accumulate=accumulate))
    told = f"model.std_group {group} does not divide the .* images of a round on each of {processes} processes"
    with nullcontext() if fits else pytest.raises(UserError, match=told):
        config.check(processes)


def test_a_path_length_penalty_needs_a_w():
    with pytest.raises(UserError, match=r"loss\.path_weight 2\.0 needs .* model\.family dcgan does not have"):
        Config(loss=LossConfig(path_weight=2.0)).check(1)
    Config(model=SMALL, loss=LossConfig(path_weight=2.0)).check(1)


@pytest.mark.parametrize("field", ["map_layers", "mixing", "std_group"])
def test_its_settings_are_refused_by_another_family(field):
    with pytest.raises(UserError, match=f"model.{field} is a setting of model.family stylegan2"):
        ModelConfig(**{field: 2 if field != "mixing" else 0.5})
