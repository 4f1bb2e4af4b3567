"""What critic and generator minimise: a loss by name, and the weights of what is added to it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scalegan.errors import require

DIFFERENCES = ("wasserstein", "relativistic")
"""Losses in which only differences of logits mean anything."""
WEIGHTS = ("r1_gamma", "r2_gamma", "gp_weight", "class_weight", "reconstruction_weight", "path_weight", "diversity_weight")


@dataclass(frozen=True)
class LossConfig:
    name: Literal["non_saturating", "minimax", "hinge", "least_squares", "wasserstein", "relativistic"] = "non_saturating"
    """`non_saturating`: J_G = -mean log D(G(z)); `minimax`: J_G = mean log(1 - D(G(z))); `relativistic` judges each fake
    beside a real image (RpGAN). The formulas are in losses.py."""
    own: str = ""
    """A loss of your own in place of `name`: a scalegan.losses.Loss, such as my.module.LOSS (docs/own_networks.md)."""
    r1_gamma: float = 0.0
    """Weight of the R1 penalty, gamma/2 * |d logit/d image|^2 on real images (Mescheder et al. 2018); 0 is off."""
    r2_gamma: float = 0.0
    """Weight of the R2 penalty: the same on generated images."""
    gp_weight: float = 0.0
    """Weight of the gradient penalty between real and generated images, w * (|d logit/d image| - `gp_centre`)^2 (WGAN-GP)."""
    gp_centre: float = 1.0
    """Slope that the gradient penalty draws the critic to: 1, or 0 for the zero-centred form."""
    penalty_every: int = 1
    """Critic steps from one penalty to the next; its weight is multiplied by the same number."""
    penalty_form: Literal["exact", "difference"] = "exact"
    """`exact` differentiates the gradient of the critic; `difference` takes its slope along one random direction an image from
    the logits of two images (R1 and R2 in expectation, noisier and cheaper)."""
    penalty_step: float = 0.01
    """How far apart these two images are in each pixel, in units of the [-1, 1] range."""
    class_weight: float = 1.0
    """Weight of the loss of an auxiliary classifier (`model.class_head classifier`), for critic and generator."""
    reconstruction_weight: float = 1.0
    """Weight of the error with which a `fastgan` critic paints real images from its own features."""
    diversity_weight: float = 0.0
    """Weight of the generator's reward for two samples of one class that differ, in proportion to their latents (Yang et al.
    2019, eq. 2): against one picture a class. 0 is off."""
    diversity_limit: float = 0.2
    """Difference from which on more earns nothing: mean |image - image| over mean |z - z|. Of real images of one class it is
    about 0.9 times their own mean |image - image|, pixels running from -1 to 1."""
    path_weight: float = 0.0
    """Weight of the path length penalty (Karras et al. 2020, eq. 4; theirs is 2): steps in the intermediate latents are to
    change images by the same amount everywhere; model.family stylegan2 only. 0 is off."""
    path_every: int = 4
    """Generator steps from one path length penalty to the next; its weight is multiplied by the same number."""
    path_decay: float = 0.01
    """Weight of one penalised step in the running mean of path lengths, which the penalty draws each of them to."""

    def __post_init__(self) -> None:
        for name in (*WEIGHTS, "gp_centre"):
            require(getattr(self, name) >= 0, f"loss.{name} is {getattr(self, name)}: give 0 or more")
        for name in ("penalty_every", "path_every"):
            require(getattr(self, name) >= 1, f"loss.{name} is {getattr(self, name)}: give at least 1")
        require(self.diversity_limit > 0, f"loss.diversity_limit is {self.diversity_limit}: give more than 0")
        require(0 < self.path_decay <= 1, f"loss.path_decay is {self.path_decay}: give a share above 0, up to 1")
        require(0 < self.penalty_step <= 1, f"loss.penalty_step is {self.penalty_step}: give a number above 0, up to 1")
        require(
            self.penalty_form == "exact" or self.gp_weight == 0 or self.gp_centre == 0,
            "loss.penalty_form difference knows the length of a gradient only in expectation of its square: "
            "set --loss.gp_centre 0, or --loss.penalty_form exact",
        )
        require(
            not self.own or self.name == "non_saturating", f"loss.name {self.name} does nothing beside loss.own: leave it out"
        )

    @property
    def penalised(self) -> bool:
        return self.r1_gamma > 0 or self.r2_gamma > 0 or self.gp_weight > 0
