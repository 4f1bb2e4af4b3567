"""Adversarial losses as pure functions of logits [N] in float32. Small is good for the network that is being trained.

D(x) = sigmoid(logit) is never formed: log D = -softplus(-logit) and log(1 - D) = -softplus(logit) stay finite and keep
their gradient where the probability has long rounded to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """J_D = -mean log D(x) - mean log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1, negated)."""
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def non_saturating(fake_logits: Tensor) -> Tensor:
    """J_G = -mean log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake_logits).mean()


def minimax(fake_logits: Tensor) -> Tensor:
    """J_G = mean log(1 - D(G(z))): the other side of J_D; its gradient vanishes where the critic is sure."""
    return -softplus(fake_logits).mean()


GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"non_saturating": non_saturating, "minimax": minimax}


def r1_penalty(steepness: Tensor, gamma: float) -> Tensor:
    """gamma/2 E |d logit / d image|^2 from the squared gradient norms [N] (Mescheder et al. 2018, eq. 9)."""
    return 0.5 * gamma * steepness.mean()
