"""Networks make images of any size, start as their papers say, and score samples apart where they say so."""

from contextlib import nullcontext

import pytest
import torch

from scalegan.config import Config, ModelConfig, TrainConfig
from scalegan.errors import UserError
from scalegan.models import build_discriminator, build_generator
from scalegan.models.layers import BatchNorm, halvings

SHAPES = [(3, 64, 64), (3, 100, 100), (1, 28, 28), (1, 104, 88), (1, 208, 176), (3, 33, 17), (1, 9, 300)]
SMALL = ModelConfig(z_dim=8, width=4, max_width=16, critic_width=4, critic_max_width=16)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_height_and_width(shape):
    images = build_generator(SMALL, shape, 0)(torch.randn(2, 8), torch.zeros(2, dtype=torch.int64))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert build_discriminator(SMALL, shape, 0)(images, torch.zeros(2, dtype=torch.int64)).shape == (2,)


def test_sizes_halve_rounding_up_until_one_side_is_under_8():
    assert halvings(64, 64) == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert halvings(100, 100)[0] == (7, 7)
    assert halvings(104, 88) == [(7, 6), (13, 11), (26, 22), (52, 44), (104, 88)]


def test_at_64_the_networks_are_the_papers():
    """3.6 and 2.8 million parameters: the counts of Radford et al.'s layers, written out."""
    config = ModelConfig(z_dim=100, width=64, critic_width=64)
    generator, discriminator = build_generator(config, (3, 64, 64), 0), build_discriminator(config, (3, 64, 64), 0)
    layers = [(100, 512), (512, 256), (256, 128), (128, 64), (64, 3)]
    norms = 2 * (512 + 256 + 128 + 64)
    assert sum(p.numel() for p in generator.parameters()) == 16 * sum(a * b for a, b in layers) + norms
    layers = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert sum(p.numel() for p in discriminator.parameters()) == 16 * sum(a * b for a, b in layers) + 2 * (128 + 256 + 512)


def test_dcgan_starts_at_its_spread():
    generator = build_generator(ModelConfig(), (3, 64, 64), 0)
    assert generator.project.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.norms[0].weight.mean().item() == pytest.approx(1.0, abs=0.01)


def test_a_kaiming_critic_keeps_its_scale_at_the_start():
    torch.manual_seed(0)
    config = ModelConfig(critic_norm="none", init="kaiming", critic_width=32, critic_max_width=256)
    logits = build_discriminator(config, (3, 64, 64), 0)(torch.randn(64, 3, 64, 64), torch.zeros(64, dtype=torch.int64))
    assert 0.2 < logits.square().mean().sqrt() < 5


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_critic_says_truly_whether_it_couples_samples(norm):
    torch.manual_seed(0)
    critic = build_discriminator(ModelConfig(critic_norm=norm, critic_width=8, critic_max_width=32), (3, 32, 32), 0)
    images, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    alone = critic(images[:2], labels[:2])
    together = critic(images, labels)[:2]
    assert critic.couples_samples is (norm == "batch")
    assert torch.allclose(alone, together, atol=1e-6) is not critic.couples_samples


def test_a_conditional_model_looks_at_the_label():
    torch.manual_seed(0)
    config = ModelConfig(z_dim=8, width=8, critic_width=8, conditional=True, critic_norm="none")
    generator, critic = build_generator(config, (1, 16, 16), 3), build_discriminator(config, (1, 16, 16), 3)
    z = torch.randn(1, 8)
    first, second = (generator.eval()(z, torch.tensor([label])) for label in (0, 2))
    assert (first - second).abs().max() > 1e-3
    assert critic(first, torch.tensor([0])) != critic(first, torch.tensor([2]))


def test_batch_norm_equals_torchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(6, 5, 4, 3) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("running", [True, False])
def test_batch_norm_in_groups_is_that_of_each_group(running):
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5, group=4, running=running), torch.nn.BatchNorm2d(5, momentum=1.0)
    x = torch.randn(12, 5, 4, 3) * 2 + 1
    expected, variances = [], []
    for part in x.split(4):
        expected.append(theirs(part))
        variances.append(theirs.running_var.clone())
    torch.testing.assert_close(ours(x), torch.cat(expected))
    if running:
        torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))


@pytest.mark.parametrize(("group", "processes", "accumulate", "fits"), [
    (32, 2, 1, True), (32, 4, 1, True), (32, 2, 2, False), (16, 2, 2, True), (24, 1, 1, False), (0, 4, 4, True),
])  # fmt: skip
def test_groups_of_batch_norm_have_to_fit_the_processes(group, processes, accumulate, fits):
    config = Config(model=ModelConfig(norm_group=group), train=TrainConfig(batch=64, accumulate=accumulate))
    with nullcontext() if fits else pytest.raises(UserError, match=f"model.norm_group {group} does not fit the"):
        config.check(processes)
