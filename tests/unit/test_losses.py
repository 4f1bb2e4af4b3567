"""Losses and penalties equal the formulas they are named for, also where a sigmoid would have rounded to 0 or 1."""

import math

import pytest
import torch

from scalegan import losses
from scalegan.losses import LOSSES

LOG2 = math.log(2)


def logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(64, dtype=torch.float64, generator=generator) for _ in range(2))  # type: ignore[return-value]


def generator_loss(name: str, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    loss = LOSSES[name]
    return loss.generator(fake, real) if loss.paired else loss.generator(fake)


@pytest.mark.parametrize(
    ("name", "critic", "generator"),
    [
        ("non_saturating", 2 * LOG2, LOG2),
        ("minimax", 2 * LOG2, -LOG2),
        ("hinge", 2.0, 0.0),
        ("least_squares", 0.5, 0.5),
        ("wasserstein", 0.0, 0.0),
        ("relativistic", LOG2, LOG2),
    ],
)
def test_logits_of_zero_cost_what_the_formula_says(name, critic, generator):
    zeros = torch.zeros(4)
    assert LOSSES[name].critic(zeros, zeros).item() == pytest.approx(critic)
    assert generator_loss(name, zeros, zeros).item() == pytest.approx(generator)


def test_losses_equal_the_formulas_in_probabilities():
    real, fake = logits()
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(LOSSES["non_saturating"].critic(real, fake), -d_real.log().mean() - (1 - d_fake).log().mean())
    torch.testing.assert_close(LOSSES["non_saturating"].generator(fake), -d_fake.log().mean())
    torch.testing.assert_close(LOSSES["minimax"].generator(fake), (1 - d_fake).log().mean())
    pairs = torch.sigmoid(real - fake)
    torch.testing.assert_close(LOSSES["relativistic"].critic(real, fake), -pairs.log().mean())
    torch.testing.assert_close(LOSSES["relativistic"].generator(fake, real), -(1 - pairs).log().mean())


def test_the_hinge_is_content_with_a_margin_of_one():
    assert LOSSES["hinge"].critic(torch.tensor([1.0, 7.0]), torch.tensor([-1.0, -9.0])) == 0
    assert LOSSES["hinge"].critic(torch.tensor([0.5]), torch.tensor([-0.5])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_generator_losses_fall_as_the_critic_is_fooled(name):
    real = torch.tensor([0.3])
    values = [generator_loss(name, torch.tensor([fake]), real) for fake in (1.0, 0.0, -3.0)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", LOSSES)
def test_critic_losses_fall_as_the_critic_learns(name):
    unsure, surer = (LOSSES[name].critic(torch.tensor([sure]), torch.tensor([-sure])) for sure in (0.1, 0.4))
    assert surer < unsure


def test_a_sure_critic_still_teaches_by_the_non_saturating_loss_alone():
    fake = torch.full((8,), -40.0, requires_grad=True)
    (strong,) = torch.autograd.grad(losses.non_saturating(fake), fake)
    (weak,) = torch.autograd.grad(losses.minimax(fake), fake)
    assert strong.abs().sum() == pytest.approx(1.0)
    assert weak.abs().sum() < 1e-15


def test_accuracy_counts_from_the_boundary_of_the_loss():
    real, fake = torch.tensor([0.7, 0.2]), torch.tensor([0.3, -1.0])
    assert [share.item() for share in LOSSES["non_saturating"].accuracy(real, fake)] == [1.0, 0.5]
    assert [share.item() for share in LOSSES["least_squares"].accuracy(real, fake)] == [0.5, 1.0]
    assert [share.item() for share in LOSSES["relativistic"].accuracy(real, fake)] == [1.0, 1.0]


def test_zero_centred_is_half_gamma_times_the_mean_squared_norm():
    assert losses.zero_centred(torch.tensor([2.0, 4.0]), gamma=0.5).item() == pytest.approx(0.25 * 3.0)


@pytest.mark.parametrize(("centre", "expected"), [(1.0, 10 * (1 + 4) / 2), (0.0, 10 * (4 + 9) / 2)])
def test_the_gradient_penalty_counts_the_distance_of_the_norm_from_its_centre(centre, expected):
    assert losses.gradient_penalty(torch.tensor([4.0, 9.0]), 10.0, centre).item() == pytest.approx(expected)


def test_the_gradient_penalty_has_a_finite_slope_at_a_flat_critic():
    squared_grad_norm = torch.zeros(4, requires_grad=True)
    (slope,) = torch.autograd.grad(losses.gradient_penalty(squared_grad_norm, 10.0, 1.0), squared_grad_norm)
    assert torch.isfinite(slope).all()


def test_diversity_is_the_difference_of_images_over_that_of_latents_up_to_a_limit():
    images, others = torch.tensor([[[[0.5, -0.5]]], [[[1.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0]]], [[[-1.0, 1.0]]]])
    latents, other_latents = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 1.0]])
    found = losses.diversity(images, others, latents, other_latents, limit=10.0)
    assert (found.reward.item(), found.mean.item()) == (pytest.approx(0.5), pytest.approx(0.5))
    limited = losses.diversity(images, others, latents, other_latents, limit=0.2)
    assert (limited.reward.item(), limited.mean.item()) == (pytest.approx(0.2), pytest.approx(0.5))


def test_diversity_beyond_the_limit_earns_nothing_more():
    images = torch.full((2, 1, 1, 1), 0.1)
    images[1] = 0.9
    images.requires_grad_(True)
    zeros, latents = torch.zeros(2, 1, 1, 1), torch.ones(2, 3)
    (slope,) = torch.autograd.grad(losses.diversity(images, zeros, latents, 0 * latents, limit=0.5).reward, images)
    assert slope.flatten().tolist() == [0.5, 0.0]
