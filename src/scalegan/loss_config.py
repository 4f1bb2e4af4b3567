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
    """`non_saturating`: J_G = -mean log D(G(z)); `minimax`: J_G = mean log(1 - D(G(z))); `relativistic` compares each fake
    with a real image (RpGAN). All formulas are in losses.py."""
    own: str = ""
    """A loss of your own in place of `name`: a scalegan.losses.Loss, such as my.module.LOSS (docs/own_networks.md)."""
    r1_gamma: float = 0.0
    """Weight of the R1 penalty, gamma/2 * |d logit/d image|^2 on real images (Mescheder et al. 2018); 0 is off."""
    r2_gamma: float = 0.0
    """Weight of the R2 penalty: the same on generated images."""
    gp_weight: float = 0.0
    """Weight of the gradient penalty between real and generated images, w * (|d logit/d image| - `gp_centre`)^2 (WGAN-GP)."""
    gp_centre: float = 1.0
    """Gradient norm that the gradient penalty aims at: 1, or 0 for the zero-centred form."""
    penalty_every: int = 1
    """Apply the penalties every so many critic steps (lazy regularisation); their weights are multiplied by the same number."""
    penalty_form: Literal["exact", "difference"] = "exact"
    """`exact` differentiates through the critic's gradient. `difference` estimates it from the logits of two nearby images,
    along one random direction per image: R1 and R2 in expectation, noisier and cheaper."""
    penalty_step: float = 0.01
    """Distance of these two images per pixel, in units of the [-1, 1] range (`difference` only)."""
    class_weight: float = 1.0
    """Weight of the loss of an auxiliary classifier (`model.class_head classifier`), for critic and generator."""
    reconstruction_weight: float = 1.0
    """Weight of the error of a `fastgan` critic in reconstructing real images from its own features."""
    diversity_weight: float = 0.0
    """Weight of a reward for the generator if two samples of a class differ in proportion to their latents (Yang et al. 2019,
    eq. 2): prevents a single image per class. 0 is off."""
    diversity_limit: float = 0.2
    """Difference, mean |image - image| / mean |z - z|, above which the reward stops growing. For real images of one class it is
    about 0.9 times their mean |image - image|, with pixels from -1 to 1."""
    path_weight: float = 0.0
    """Weight of the path length penalty (Karras et al. 2020, eq. 4; theirs is 2): a step in the intermediate latents should
    change the image by the same amount everywhere. model.family stylegan2 only; 0 is off."""
    path_every: int = 4
    """Apply the path length penalty every so many generator steps; its weight is multiplied by the same number."""
    path_decay: float = 0.01
    """Weight of one penalised step in the running mean of path lengths, which is the target of the penalty."""

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
            "loss.penalty_form difference estimates only the squared norm of a gradient: "
            "set --loss.gp_centre 0, or --loss.penalty_form exact",
        )
        require(
            not self.own or self.name == "non_saturating",
            f"loss.name {self.name} has no effect with loss.own: leave it out, or go back by --loss.name non_saturating",
        )

    @property
    def penalised(self) -> bool:
        return self.r1_gamma > 0 or self.r2_gamma > 0 or self.gp_weight > 0
