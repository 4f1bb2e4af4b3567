"""Adversarial losses and penalties as pure functions in float32. Small is good for the network that is being trained.

Logits are [N] and large where the critic takes an image for real. D(x) = sigmoid(logit) is never formed: log D =
-softplus(-logit) and log(1 - D) = -softplus(logit) stay finite and keep their gradient where the probability has long
rounded to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """J_D = -mean log D(x) - mean log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1, negated)."""
    return softplus(-real).mean() + softplus(fake).mean()


def non_saturating(fake: Tensor) -> Tensor:
    """J_G = -mean log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


def minimax(fake: Tensor) -> Tensor:
    """J_G = mean log(1 - D(G(z))): the other side of J_D; its gradient vanishes where the critic is sure."""
    return -softplus(fake).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """J_D = mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))) (Lim and Ye 2017; Miyato et al. 2018, eq. 16)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def least_squares(real: Tensor, fake: Tensor) -> Tensor:
    """J_D = mean (D(x) - 1)^2 / 2 + mean D(G(z))^2 / 2 (Mao et al. 2017, eq. 9)."""
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def least_squares_generator(fake: Tensor) -> Tensor:
    """J_G = mean (D(G(z)) - 1)^2 / 2 (Mao et al. 2017, eq. 9)."""
    return 0.5 * (fake - 1).square().mean()


def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """J_D = mean D(G(z)) - mean D(x) (Arjovsky et al. 2017, eq. 3, negated); wants a critic whose slope is bounded."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """J_G = -mean D(G(z)); `hinge` has the same."""
    return -fake.mean()


def relativistic(better: Tensor, worse: Tensor) -> Tensor:
    """mean -log sigmoid(better - worse), pair by pair (Jolicoeur-Martineau 2018; Huang et al. 2024, eq. 2, "RpGAN").

    J_D is that of (real, fake), J_G that of (fake, real).
    """
    return softplus(worse - better).mean()


@dataclass(frozen=True)
class Loss:
    """What the two networks minimise. `generator` takes the logits of fakes, and a `paired` one those of reals besides."""

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[..., Tensor]
    paired: bool = False
    """Each fake is judged beside a real image, of the same class."""
    boundary: float | None = 0.0
    """Logit from which on the critic says real; None where only differences of logits mean anything."""

    def accuracy(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Shares [] of real and of generated images that the critic tells right."""
        if self.boundary is None:
            right = (real > fake).float().mean()
            return right, right
        return (real > self.boundary).float().mean(), (fake < self.boundary).float().mean()


LOSSES = {
    "non_saturating": Loss(cross_entropy, non_saturating),
    "minimax": Loss(cross_entropy, minimax),
    "hinge": Loss(hinge, wasserstein_generator),
    "least_squares": Loss(least_squares, least_squares_generator, boundary=0.5),
    "wasserstein": Loss(wasserstein, wasserstein_generator, boundary=None),
    "relativistic": Loss(relativistic, relativistic, paired=True, boundary=None),
}


@dataclass(frozen=True)
class Auxiliary:
    """A further loss that a discriminator takes at its images, beside its logits. The critic minimises it at real ones."""

    weight: str
    """Field of `LossConfig` with its weight."""
    generator: bool
    """Whether the generator minimises it at its own images too."""


AUXILIARY = {
    "class": Auxiliary("class_weight", generator=True),
    "reconstruction": Auxiliary("reconstruction_weight", generator=False),
}
"""`class`: cross entropy of an auxiliary classifier, which learns from real images alone, as early fakes are of no class.
`reconstruction`: error with which a critic paints the view it was given from its own features (Liu et al. 2021, eq. 4)."""


def zero_centred(squared_grad_norm: Tensor, gamma: float) -> Tensor:
    """gamma/2 E |d logit / d image|^2 from the squared gradient norms [N].

    R1 at real images, R2 at generated ones (Mescheder et al. 2018, eq. 9 and 10).
    """
    return 0.5 * gamma * squared_grad_norm.mean()


def gradient_penalty(squared_grad_norm: Tensor, weight: float, centre: float) -> Tensor:
    """weight E (|d logit / d image| - centre)^2 at mixed images (Gulrajani et al. 2017, eq. 3, with centre 1)."""
    tiny = 1e-12  # the root of an exact 0 has no slope
    return weight * ((squared_grad_norm + tiny).sqrt() - centre).square().mean()


class Diversity(NamedTuple):
    reward: Tensor
    """[] mean of min(|G(z1, y) - G(z2, y)| / |z1 - z2|, limit)."""
    mean: Tensor
    """[] the same without a limit."""


def diversity(images: Tensor, others: Tensor, latents: Tensor, other_latents: Tensor, limit: float) -> Diversity:
    """How much samples of the same class differ, in proportion to their latents (Yang et al. 2019, eq. 2).

    images and others [N, C, H, W] in [-1, 1], made from latents and other_latents [N, z_dim]; both distances are means of
    absolute differences. The generator is to maximise it, up to the limit.
    """
    apart = (images - others).abs().flatten(1).mean(1) / (latents - other_latents).abs().mean(1)
    return Diversity(apart.clamp(max=limit).mean(), apart.mean())


def path_length(squared_grad_norm: Tensor, typical: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """weight E (|J_w^T y| - a)^2 with a = `typical` [] (Karras et al. 2020, eq. 4), and the lengths [N].

    From the squared lengths [N]. As they are means over the layers and y has variance 1 / (height width), a weight of 2 is
    the paper's ln 2 / (r^2 (ln r - ln 2)) at r x r pixels (appendix B).
    """
    tiny = 1e-12  # see `gradient_penalty`
    lengths = (squared_grad_norm + tiny).sqrt()
    return weight * (lengths - typical).square().mean(), lengths
