"""Adversarial losses equal the formulas they are named for, also where a sigmoid would have rounded to 0 or 1."""

import math

import pytest
import torch

from scalegan import losses


def test_undecided_logits_cost_two_log_two():
    zeros = torch.zeros(4)
    assert losses.discriminator_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))


def test_losses_equal_the_formulas_in_probabilities():
    real, fake = torch.randn(64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(losses.discriminator_loss(real, fake), -d_real.log().mean() - (1 - d_fake).log().mean())
    torch.testing.assert_close(losses.non_saturating(fake), -d_fake.log().mean())
    torch.testing.assert_close(losses.minimax(fake), (1 - d_fake).log().mean())


@pytest.mark.parametrize("name", losses.GENERATOR_LOSSES)
def test_generator_losses_fall_as_the_critic_is_fooled(name):
    loss = losses.GENERATOR_LOSSES[name]
    assert loss(torch.tensor([3.0])) < loss(torch.tensor([0.0])) < loss(torch.tensor([-3.0]))


def test_a_sure_critic_still_teaches_by_the_non_saturating_loss_alone():
    fake = torch.full((8,), -40.0, requires_grad=True)
    (strong,) = torch.autograd.grad(losses.non_saturating(fake), fake)
    (weak,) = torch.autograd.grad(losses.minimax(fake), fake)
    assert strong.abs().sum() == pytest.approx(1.0)
    assert weak.abs().sum() < 1e-15


def test_r1_is_half_gamma_times_the_mean_squared_norm():
    assert losses.r1_penalty(torch.tensor([2.0, 4.0]), gamma=0.5).item() == pytest.approx(0.25 * 3.0)
