"""The residual networks of SNGAN and BigGAN: published sizes, the start, layers against their formulas, spectral norm."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from scalegan import settings
from scalegan.config import AugmentConfig
from scalegan.critic import Critic
from scalegan.ema import make_ema, update_ema
from scalegan.errors import UserError
from scalegan.model_config import ModelConfig
from scalegan.models import biggan, build_discriminator, build_generator, layers, resnet
from scalegan.models.batch_norm import BatchNorm, ConditionalBatchNorm
from scalegan.models.layers import SpectralNorm, normalise_weights

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
SMALL = {"z_dim": 9, "width": 4, "max_width": 8, "critic_width": 4, "critic_max_width": 8}
RESNET = ModelConfig(family="resnet", **SMALL)
BIGGAN = ModelConfig(family="biggan", attention=16, class_dim=5, **SMALL)
CIFAR = ModelConfig(family="resnet", z_dim=128, width=256, max_width=256, critic_width=128, critic_max_width=128, critic_tail=2)
IMAGENET128 = {"z_dim": 120, "class_dim": 128, "width": 96, "max_width": 1536, "critic_width": 96, "critic_max_width": 1536}


def count(network):
    return sum(p.numel() for p in network.parameters())


def same_labels(n):
    return torch.zeros(n, dtype=torch.int64)


def without_a_start(monkeypatch):
    """Memory that nobody writes to costs nothing."""
    for start in ("orthogonal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, start, lambda weight, **_: weight)
    monkeypatch.setattr(SpectralNorm, "iterate", lambda self, weight, times: None)


# --- sizes


def test_at_32_the_resnets_are_those_of_sngan_for_cifar10():
    """4.3 and 1.05 million parameters: the layers of Miyato et al. 2018, table 4, written out.

    torch-mimicry 0.1.16 has the same, and with ten classes (gains and biases of six norms, a projection) those further down.
    """

    def conv(a, b, side=3):
        return a * b * side**2 + b

    up = conv(256, 256) + conv(256, 256) + conv(256, 256, 1) + 4 * 256
    generator = 128 * 4 * 4 * 256 + 4 * 4 * 256 + 3 * up + 2 * 256 + conv(256, 3)
    first = conv(3, 128) + conv(128, 128) + conv(3, 128, 1)
    down = 2 * conv(128, 128) + conv(128, 128, 1)
    discriminator = first + down + 2 * (2 * conv(128, 128)) + 128 + 1
    assert (generator, discriminator) == (4_276_739, 1_053_825)
    assert count(build_generator(CIFAR, (3, 32, 32), 0)) == generator
    critic = build_discriminator(CIFAR, (3, 32, 32), 0)
    assert count(critic) == discriminator
    assert critic.layers(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 8, 8)
    conditional = replace(CIFAR, conditional=True)
    counts = [count(build(conditional, (3, 32, 32), 10)) for build in (build_generator, build_discriminator)]
    # One gain and one bias of all images become ten: nine more.
    assert counts == [generator + 6 * 9 * 2 * 256, discriminator + 10 * 128] == [4_304_387, 1_055_105]


def test_at_128_biggan_has_the_published_numbers_of_parameters(monkeypatch):
    """Of Brock et al. 2019, table 4, as Google's compare_gan counts them in its resnet_biggan_test.py."""
    without_a_start(monkeypatch)
    config = ModelConfig(family="biggan", conditional=True, attention=64, **IMAGENET128)
    counts = [count(build(config, (3, 128, 128), 1000)) for build in (build_generator, build_discriminator)]
    assert counts == [70_433_988, 87_982_370]


@pytest.mark.parametrize(("row", "shape", "classes", "published"), [
    ("SNGAN, CIFAR-10, 32 x 32", (3, 32, 32), 0, [4_276_739, 1_053_825]),
    ("BigGAN, ImageNet, 128 x 128", (3, 128, 128), 1000, [70_433_988, 87_982_370]),
])  # fmt: skip
def test_the_documented_settings_are_taken_and_have_the_published_numbers(
    monkeypatch, tmp_path, row, shape, classes, published
):
    without_a_start(monkeypatch)
    settings_of = re.search(rf"^\| {row} \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    sections = [yaml.safe_load(section) for section in re.findall("`(.*?)`", settings_of[1])]
    told = {name: value for section in sections for name, value in section.items()} | {"data": {"path": "x"}}
    (tmp_path / "documented.yaml").write_text(yaml.safe_dump(told))
    config = settings.parse(["--config", str(tmp_path / "documented.yaml")]).config
    config.check(1)
    assert [count(build(config.model, shape, classes)) for build in (build_generator, build_discriminator)] == published


@pytest.mark.parametrize(("shape", "attention", "side"), [
    ((128, 128), 64, (64, 64)), ((64, 64), 32, (32, 32)), ((100, 100), 32, (25, 25)), ((104, 88), 32, (26, 22)),
    ((32, 32), 32, None), ((28, 28), 32, None), ((32, 32), 16, (16, 16)), ((64, 64), 0, None), ((64, 64), 4, None),
])  # fmt: skip
def test_attention_is_at_the_finest_resolution_that_is_small_enough(shape, attention, side):
    assert biggan.attentive(replace(BIGGAN, attention=attention), layers.halvings(*shape)) == side


def test_both_networks_of_biggan_attend_at_the_same_resolution():
    seen = []
    networks = build_generator(BIGGAN, (1, 33, 47), 0), build_discriminator(BIGGAN, (1, 33, 47), 0)
    for network in networks:
        (attention,) = (m for m in network.modules() if isinstance(m, biggan.Attention))
        attention.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2:]))
    networks[1](networks[0](torch.randn(2, 9), same_labels(2)), same_labels(2))
    assert seen == [(9, 12), (9, 12)]


# --- the start


def test_sngan_starts_at_xavier_and_its_images_at_their_spread():
    """In front of tanh are 9 x 256 rectified N(0, 1), each with a weight of variance 2 / (9 x 259): N(0, 0.99)."""
    torch.manual_seed(0)
    generator, critic = build_generator(CIFAR, (3, 32, 32), 0), build_discriminator(CIFAR, (3, 32, 32), 0)
    for layer, gain in ((generator.blocks[0].first, math.sqrt(2)), (generator.blocks[1].skip, 1), (generator.to_image, 1)):
        side = layer.kernel_size[0] ** 2
        expected = gain * math.sqrt(2 / (side * (layer.in_channels + layer.out_channels)))
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    started = critic.layers[2].first.parametrizations.weight.original
    assert started.std().item() == pytest.approx(math.sqrt(4 / (9 * 256)), rel=0.03)
    images = generator(torch.randn(6, 128), same_labels(6))
    expected = torch.tanh(torch.randn(100_000) * math.sqrt(256 / 259)).square().mean().sqrt()
    assert images.square().mean().sqrt().item() == pytest.approx(expected.item(), rel=0.15)


def test_biggan_starts_with_orthogonal_weights_and_the_class_in_its_norms():
    torch.manual_seed(0)
    generator = build_generator(replace(BIGGAN, conditional=True, width=8, max_width=32), (3, 32, 32), 4)
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.parametrizations.weight.original.flatten(1)
            small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            torch.testing.assert_close(small, torch.eye(len(small)), atol=1e-5, rtol=0)
            assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)
    assert generator.project.in_features == 3  # of 9 latents in chunks of 3, 2, 2, 2
    assert generator.blocks[0].norms[0].gains.in_features == 2 + 5


# --- layers against their formulas


def test_blocks_are_those_of_the_paper():
    """In the order of the paper's figures: pixels are repeated, and averaged, on both paths where the paper has it."""
    torch.manual_seed(0)
    up, x = resnet.UpBlock(3, 5, (12, 10), BatchNorm), torch.randn(4, 3, 6, 5)

    def wider(h):
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    h = up.first(wider(F.relu(F.batch_norm(x, None, None, training=True))))
    h = up.second(F.relu(F.batch_norm(h, None, None, training=True)))
    torch.testing.assert_close(up(x, same_labels(4)), h + up.skip(wider(x)))

    down = resnet.DownBlock(3, 4, 5, lambda channels: nn.Identity(), first=False, halved=True)
    h = down.second(F.relu(down.first(F.relu(x))))
    torch.testing.assert_close(down(x)[..., :2], F.avg_pool2d(h + down.skip(x), 2))
    torch.testing.assert_close(down(x)[..., 2:], (h + down.skip(x))[..., 4:].unflatten(2, (3, 2)).mean(3))
    first = resnet.DownBlock(3, 4, 5, lambda channels: nn.Identity(), first=True, halved=True)
    h = first.second(F.relu(first.first(x[..., :4])))
    torch.testing.assert_close(first(x[..., :4]), F.avg_pool2d(h, 2) + first.skip(F.avg_pool2d(x[..., :4], 2)))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (5, 1)])
def test_attention_is_the_identity_at_first_and_then_torchs(size):
    torch.manual_seed(0)
    attention, x = biggan.Attention(16), torch.randn(2, 16, *size)
    assert torch.equal(attention(x), x)
    nn.init.constant_(attention.gain, 0.7)
    keys, values = (F.max_pool2d(f(x), 2, ceil_mode=True).flatten(2).mT for f in (attention.keys, attention.values))
    seen = F.scaled_dot_product_attention(attention.queries(x).flatten(2).mT, keys, values, scale=1.0)
    torch.testing.assert_close(attention(x), x + 0.7 * attention.out(seen.mT.unflatten(2, size)))


def test_each_chunk_of_the_latents_reaches_the_image():
    torch.manual_seed(0)
    generator = build_generator(BIGGAN, (3, 32, 32), 0).eval()
    latents = torch.randn(1, 9)
    images = [generator(latents + step, same_labels(1)) for step in torch.eye(9)[[0, 3, 5, 7]]]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(images, [*images[1:], images[0]], strict=True))


def test_more_resolutions_than_latents_are_refused():
    with pytest.raises(UserError, match=r"model.z_dim is 2: biggan cuts the latents"):
        build_generator(replace(BIGGAN, z_dim=2), (3, 32, 32), 0)


@pytest.mark.parametrize("family", ["resnet", "biggan"])
def test_images_too_small_for_class_norms_are_refused_with_the_way_out(family):
    told = r"images of 7x31 have one resolution in \w+, .* cannot tell the class: set --model.class_via concat"
    config = ModelConfig(family=family, conditional=True, width=8, max_width=8)
    with pytest.raises(UserError, match=told):
        build_generator(config, (3, 7, 31), 2)
    generator = build_generator(replace(config, class_via="concat"), (3, 7, 31), 2)
    latents = torch.randn(2, config.z_dim, generator=torch.Generator().manual_seed(0))
    first, second = (generator(latents, torch.full((2,), label)) for label in range(2))
    assert not torch.equal(first, second)


# --- conditional batch norm


def test_a_class_has_its_own_gain_and_bias_which_start_at_1_and_0():
    torch.manual_seed(0)
    config = ModelConfig(family="dcgan", conditional=True, class_via="norm", z_dim=8, width=4, max_width=8)
    norm = build_generator(config, (3, 16, 16), 3).norms[0]
    x, labels = torch.randn(6, 8, 4, 3) * 2 + 1, torch.tensor([0, 1, 2, 2, 1, 0])
    plain = nn.BatchNorm2d(8, affine=False)
    torch.testing.assert_close(norm(x, labels), plain(x))
    for table in (norm.gains, norm.biases):
        nn.init.normal_(table.weight)
    gain, bias = 1 + norm.gains.weight[labels], norm.biases.weight[labels]
    expected = plain(x) * gain[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(norm(x, labels), expected)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    half = norm(x.bfloat16(), labels)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("family", ["dcgan", "resnet"])
def test_a_class_learns_from_its_own_images_alone(family):
    torch.manual_seed(0)
    config = replace(RESNET, family=family, conditional=True, class_via="norm")
    generator = build_generator(config, (3, 16, 16), 3)
    assert generator.embed is None
    generator(torch.randn(4, 9), torch.tensor([0, 2, 2, 0])).square().sum().backward()
    tables = [t for m in generator.modules() if isinstance(m, ConditionalBatchNorm) for t in (m.gains, m.biases)]
    assert len(tables) == {"dcgan": 4, "resnet": 8}[family]
    for table in tables:
        moved = table.weight.grad.abs().amax(1)
        assert moved[0] > 0 == moved[1]
        assert moved[2] > 0


@pytest.mark.parametrize(
    ("family", "norm", "norms"), [("dcgan", "batch", False), ("resnet", "spectral", True), ("r3gan", "none", False)]
)
def test_auto_is_what_the_paper_has(family, norm, norms):
    config = ModelConfig(family=family, conditional=True)
    assert (config.norm_of_critic, config.class_norms) == (norm, norms)
    assert config.class_inputs == (0 if norms else 32)
    assert replace(config, family="dcgan", critic_norm="none").norm_of_critic == "none"


# --- gradients of gradients, half precision


CRITICS = {
    "resnet, spectral": replace(RESNET, conditional=True),
    "resnet, batch": replace(RESNET, critic_norm="batch"),
    "biggan, spectral": replace(BIGGAN, conditional=True, class_head="classifier"),
    "biggan, none": replace(BIGGAN, conditional=True, critic_norm="none"),
}


def make_critic(config, shape=(1, 33, 21)):
    torch.manual_seed(0)
    critic = Critic(build_discriminator(config, shape, 3), AugmentConfig()).double().eval()  # power iterations stand still
    for module in critic.modules():
        if isinstance(module, biggan.Attention):
            nn.init.constant_(module.gain, 0.5)
    images = torch.randn(4, *shape, dtype=torch.float64)
    return critic, images, torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("case", CRITICS)
def test_steepness_and_its_gradient_equal_autograds(case):
    critic, images, labels = make_critic(CRITICS[case])
    before = images.clone()
    scores = critic(images, labels, None, True)
    scores.squared_grad_norm.mean().backward()
    assert torch.equal(images, before)
    ours = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.zero_grad()

    leaves = images.clone().requires_grad_()
    logits = critic(leaves, labels, None).logits
    (gradient,) = torch.autograd.grad(logits.sum(), leaves, create_graph=True)
    squared_grad_norm = gradient.square().flatten(1).sum(1)
    squared_grad_norm.mean().backward()
    theirs = [p.grad for p in critic.parameters() if p.grad is not None]
    torch.testing.assert_close(scores.squared_grad_norm, squared_grad_norm)
    for a, b in zip(ours, theirs, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "config", [replace(RESNET, conditional=True), replace(BIGGAN, conditional=True)], ids=["resnet", "biggan"]
)
def test_under_autocast_both_networks_and_the_penalty_are_near_float32(config):
    torch.manual_seed(0)
    generator = build_generator(config, (3, 32, 24), 3).eval()
    critic, _, labels = make_critic(config, (3, 32, 24))
    critic.float()
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            images = generator(torch.randn(4, 9, generator=torch.Generator().manual_seed(1)), labels)
            found.append((images, *critic(images, labels, None, True)))
    for ours, theirs in zip(*found, strict=True):
        if isinstance(ours, torch.Tensor):
            assert theirs.dtype == torch.float32
            torch.testing.assert_close(theirs, ours, rtol=0.1, atol=0.1)


# --- spectral norm


def test_spectral_norm_is_torchs():
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    theirs.load_state_dict(ours.state_dict())
    normalise_weights(ours, nn.Conv2d)
    nn.utils.parametrizations.spectral_norm(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = torch.randn(2, 3, 6, 6)
        torch.testing.assert_close(ours(x), theirs(x))
    for network in (ours, theirs):
        network.zero_grad()
        network(x).square().sum().backward()
    gradients = [network.parametrizations.weight.original.grad for network in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_power_iterations_go_on_inside_a_penalty():
    critic, images, labels = make_critic(CRITICS["biggan, spectral"])
    critic.train()
    buffers = [m._u for m in critic.modules() if isinstance(m, SpectralNorm) and len(m._u) > 1]
    before = [u.clone() for u in buffers]
    critic(images, labels, None, True).squared_grad_norm.sum().backward()
    assert len(buffers) > 10
    assert not any(torch.equal(u, old) for u, old in zip(buffers, before, strict=True))


def test_averaged_weights_have_a_spectral_norm_of_their_own():
    """Weights that turn at every step: the singular vectors of their average are no average, nor those of the last weights."""
    torch.manual_seed(0)
    network = nn.Linear(12, 9, bias=False)
    normalise_weights(network, nn.Linear)
    ema = make_ema(network)
    trained = network.parametrizations.weight.original
    for _ in range(300):
        with torch.no_grad():
            trained.copy_(0.1 + 2 * torch.linalg.qr(torch.randn(12, 9))[0].T)
        network(torch.zeros(1, 12))
        update_ema(ema, network, 0.98)
    assert torch.linalg.matrix_norm(ema.weight, 2).item() == pytest.approx(1, abs=0.01)


def test_an_average_with_spectral_norms_is_loaded_and_makes_the_same_images():
    torch.manual_seed(0)
    config = replace(BIGGAN, conditional=True)
    generator = build_generator(config, (3, 20, 28), 3)
    ema, latents, labels = make_ema(generator), torch.randn(4, 9), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        generator(latents, labels)
        update_ema(ema, generator, 0.8)
    loaded = build_generator(config, (3, 20, 28), 3)
    loaded.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    loaded.eval()
    images = ema(latents, labels)
    assert torch.equal(images, ema(latents, labels))  # looking at it does not change it
    assert torch.equal(loaded(latents, labels), images)
