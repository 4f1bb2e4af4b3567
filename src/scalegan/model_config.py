"""What the networks are: one family for the generator, the same or another for the critic, and the size of both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from scalegan.errors import require

FIELDS_OF = {
    "critic_norm": ("dcgan",),
    "norm_group": ("dcgan",),
    "init": ("dcgan",),
    "blocks": ("r3gan",),
    "group_width": ("r3gan",),
    "map_layers": ("stylegan2",),
    "mixing": ("stylegan2",),
    "std_group": ("stylegan2",),
}
"""Fields of `ModelConfig` that only some families know."""
STYLED = ("stylegan2",)
"""Families whose generator makes intermediate latents w first, and images of them."""
AT_LEAST_1 = (
    "z_dim", "width", "max_width", "critic_width", "critic_max_width", "class_dim", "blocks", "group_width", "map_layers",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    family: Literal["dcgan", "r3gan", "stylegan2"] = "dcgan"
    """Network family: convolutions with normalisation (Radford et al. 2015), residual blocks without (Huang et al. 2024), or
    convolutions modulated by a style (Karras et al. 2020)."""
    critic_family: Literal["same", "dcgan", "r3gan", "stylegan2"] = "same"
    """Family of the critic, where it is not that of the generator."""
    z_dim: int = 100
    """Numbers in one latent vector."""
    width: int = 64
    """Generator channels at the highest resolution; doubled at each coarser one up to `max_width`."""
    max_width: int = 512
    """Most generator channels."""
    critic_width: int = 64
    """Critic channels after its first convolution; doubled at each coarser resolution up to `critic_max_width`."""
    critic_max_width: int = 512
    """Most critic channels."""
    critic_norm: Literal["batch", "spectral", "none"] = "batch"
    """Normalisation inside the critic: of its activations, of its weights (Miyato et al. 2018), or none; a gradient penalty
    does not want `batch`."""
    norm_group: int = 0
    """Images that batch norm is taken over: consecutive ones of the batch, so that processes need not wait for each other
    in every layer; 0 is the whole batch of all of them."""
    init: Literal["dcgan", "kaiming"] = "dcgan"
    """Start of the critic's weights: N(0, 0.02) as in the DCGAN paper (and always in the generator), or Kaiming's."""
    conditional: bool = False
    """Tell generator and critic the class of each image; needs labelled data."""
    class_dim: int = 32
    """Numbers that a class is embedded into for the generator."""
    class_head: Literal["projection", "classifier"] = "projection"
    """How the critic uses the class: its features are projected on the class (Miyato and Koyama 2018), or it has to tell the
    class besides, and the generator to be told right (Odena et al. 2017)."""
    class_start: int = 0
    """Images seen before the classes are told apart at all (Shahbazi et al. 2022): for few images a class."""
    class_ramp: int = 0
    """Images over which the classes then come in, evenly."""
    blocks: int = 2
    """Residual blocks at each resolution (r3gan)."""
    group_width: int = 16
    """Channels of one group of a grouped convolution (r3gan)."""
    map_layers: int = 8
    """Layers of the mapping network from latents, or the critic's class, to styles (stylegan2)."""
    mixing: float = 0.9
    """Probability in training that an image takes the styles of its finer layers from other latents (stylegan2)."""
    std_group: int = 4
    """Consecutive images of the batch whose spread the critic is shown (stylegan2); 0 is off."""

    def __post_init__(self) -> None:
        require(self.norm_group != 1 and self.norm_group >= 0, f"model.norm_group is {self.norm_group}: give 0, or 2 or more")
        require(self.std_group != 1 and self.std_group >= 0, f"model.std_group is {self.std_group}: give 0, or 2 or more")
        require(0 <= self.mixing <= 1, f"model.mixing is {self.mixing}: give a probability from 0 to 1")
        for name in AT_LEAST_1:
            require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}: give at least 1")
        for name in ("class_start", "class_ramp"):
            require(getattr(self, name) >= 0, f"model.{name} is {getattr(self, name)}: give 0 or more images")
        self._check_fields()
        self._check_groups()

    @property
    def critic(self) -> str:
        """The family of the critic."""
        return self.family if self.critic_family == "same" else self.critic_family

    @property
    def ramped(self) -> bool:
        """Whether classes are told apart only later."""
        return self.class_start > 0 or self.class_ramp > 0

    def _check_fields(self) -> None:
        """A setting that nothing here looks at is a mistake."""
        for field in dataclasses.fields(self):
            changed = getattr(self, field.name) != field.default
            known = FIELDS_OF.get(field.name, (self.family,))
            ours = self.family if self.critic == self.family else f"{self.family} with a critic {self.critic}"
            require(
                not changed or self.family in known or self.critic in known,
                f"model.{field.name} is a setting of model.family {' and '.join(known)}, which is {ours} here: leave it out",
            )
            told = field.name in ("class_head", "class_start", "class_ramp")
            require(
                not changed or not told or self.conditional,
                f"model.{field.name} does nothing without classes: set --model.conditional true, or leave it out",
            )

    def _check_groups(self) -> None:
        names = ["width", "max_width"] * (self.family == "r3gan")
        names += ["critic_width", "critic_max_width"] * (self.critic == "r3gan")
        for name in names:
            require(
                2 * getattr(self, name) % self.group_width == 0,
                f"model.{name} {getattr(self, name)}: r3gan wants twice it to be a multiple of model.group_width "
                f"{self.group_width}",
            )
