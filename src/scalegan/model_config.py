"""What the networks are: one family for the generator, the same or another for the critic, and the size of both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from scalegan.errors import UserError, require

FIELDS_OF = {
    "critic_norm": ("dcgan", "resnet", "biggan", "fastgan", "projected"),
    "norm_group": ("dcgan", "resnet", "biggan", "fastgan", "projected"),
    "class_via": ("dcgan", "resnet", "biggan"),
    "critic_tail": ("resnet", "biggan"),
    "attention": ("biggan",),
    "init": ("dcgan",),
    "coarsest": ("dcgan",),
    "critic_stem": ("dcgan",),
    "blocks": ("r3gan",),
    "group_width": ("r3gan",),
    "map_layers": ("stylegan2",),
    "mixing": ("stylegan2",),
    "std_group": ("stylegan2",),
    "backbone_size": ("projected",),
}
"""Fields of `ModelConfig` that only some families know."""
LOOKED_AT_BY = {
    "class_via": ("family",),
    "critic_norm": ("critic",),
    "critic_tail": ("critic",),
    "init": ("critic",),
    "critic_stem": ("critic",),
    "backbone_size": ("critic",),
}
"""Those that only the generator's family (`family`), or only the critic's, looks at; the others are for both."""
AUTO = {
    "critic_norm": {"dcgan": "batch", "resnet": "spectral", "biggan": "spectral", "fastgan": "batch", "projected": "batch"},
    "class_via": {"dcgan": "concat", "resnet": "norm", "biggan": "norm"},
}
"""What `auto` is: the choice of each family's paper."""
ALWAYS_NORMALISED = ("fastgan", "projected")
"""Critics that normalise their weights whatever `critic_norm` is."""
STYLED = ("stylegan2",)
"""Families whose generator makes intermediate latents w first, and images of them."""
AT_LEAST_1 = (
    "z_dim", "width", "max_width", "critic_width", "critic_max_width", "class_dim", "blocks", "group_width", "critic_tail",
    "map_layers", "coarsest",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    family: Literal["dcgan", "resnet", "biggan", "fastgan", "stylegan2", "r3gan"] = "dcgan"
    """Network family: DCGAN (Radford et al. 2015), the residual networks of SNGAN (`resnet`, Miyato et al. 2018) or BigGAN
    (Brock et al. 2019), FastGAN for few images (Liu et al. 2021), StyleGAN2 (Karras et al. 2020), or R3GAN, residual blocks
    without normalisation (Huang et al. 2024)."""
    critic_family: Literal["same", "dcgan", "resnet", "biggan", "fastgan", "stylegan2", "r3gan", "projected"] = "same"
    """Family of the critic, if not that of the generator. `projected` is only a critic: heads on features of
    EfficientNet-Lite0, pretrained on ImageNet (Sauer et al. 2021); evaluate its runs with another extractor than lite0."""
    generator: str = ""
    """Your own generator instead of the family's: its class, such as my.module.Generator (docs/own_networks.md)."""
    discriminator: str = ""
    """Your own discriminator instead of the family's."""
    z_dim: int = 100
    """Dimension of the latent vector."""
    width: int = 64
    """Generator channels at the highest resolution; doubled at each coarser one, up to `max_width`."""
    max_width: int = 512
    """Largest number of generator channels."""
    critic_width: int = 64
    """Critic channels after its first convolution; doubled at each coarser resolution, up to `critic_max_width`."""
    critic_max_width: int = 512
    """Largest number of critic channels."""
    critic_norm: Literal["auto", "batch", "spectral", "none"] = "auto"
    """Normalisation in the critic: batch norm, spectral norm (Miyato et al. 2018) or none; avoid `batch` with a gradient
    penalty. `auto` follows the family's paper: `spectral` for resnet and biggan, else `batch`. `fastgan` and `projected` always
    use spectral norm, and with `batch` also batch norm."""
    coarsest: int = 7
    """Sides are halved until the shorter is at most so many pixels (dcgan): for 28 x 28 that is 7 x 7, and with 4 there is one
    stage more, 4 x 4."""
    critic_stem: int = 0
    """Channels of a 3 x 3 convolution with which the critic looks at the image before it halves it (dcgan); 0 is none, as in
    the paper."""
    norm_group: int = 0
    """Batch norm is computed over groups of this many consecutive images of the batch, so that processes that hold whole groups
    need not exchange sums in every layer; 0 is the whole batch over all processes."""
    init: Literal["dcgan", "kaiming"] = "dcgan"
    """Initialisation of the critic: N(0, 0.02) as in the DCGAN paper (always used for the generator), or Kaiming's."""
    conditional: bool = False
    """Class-conditional: generator and critic are given the class of each image; needs labelled data."""
    class_dim: int = 32
    """Dimension of the generator's class embedding."""
    class_via: Literal["auto", "concat", "norm"] = "auto"
    """How the generator is given the class: an embedding concatenated to the latents, or a gain and a bias for each class in
    its batch norms (de Vries et al. 2017), which biggan projects from the embedding. `auto` is `concat` for dcgan and `norm`
    for resnet and biggan."""
    class_head: Literal["projection", "classifier"] = "projection"
    """How the critic uses the class: `projection` of its features on the class (Miyato and Koyama 2018), or an auxiliary
    `classifier`, trained with the critic and satisfied by the generator (Odena et al. 2017)."""
    class_start: int = 0
    """Images of unconditional training before the class is used (Shahbazi et al. 2022): for few images per class."""
    class_ramp: int = 0
    """Images over which the class is then ramped in, linearly."""
    blocks: int = 2
    """Residual blocks at each resolution (r3gan)."""
    group_width: int = 16
    """Channels of one group of a grouped convolution (r3gan)."""
    critic_tail: int = 1
    """Residual blocks at the end of the critic that keep the resolution (resnet, biggan): the papers have 2 at 32 x 32, else
    1."""
    attention: int = 32
    """Self-attention in both networks, at the finest resolution whose shorter side is at most this, unless that is the image's
    own resolution or the coarsest; 0 is none (biggan; Zhang et al. 2019)."""
    map_layers: int = 8
    """Layers of the mapping network, from latents to styles, and of the critic's for classes (stylegan2)."""
    mixing: float = 0.9
    """Style mixing: probability in training that an image's finer layers take their styles from other latents (stylegan2)."""
    std_group: int = 4
    """Minibatch standard deviation: consecutive images of the batch over which it is computed (stylegan2); 0 is off."""
    backbone_size: int = 224
    """Smallest side of the images that the backbone sees; smaller images are enlarged to it (projected). The backbone was
    trained at 224, as in the paper; 96 has a fifth of the pixels."""

    def __post_init__(self) -> None:
        require(self.norm_group != 1 and self.norm_group >= 0, f"model.norm_group is {self.norm_group}: give 0, or 2 or more")
        require(self.std_group != 1 and self.std_group >= 0, f"model.std_group is {self.std_group}: give 0, or 2 or more")
        require(self.critic_stem >= 0, f"model.critic_stem is {self.critic_stem}: give 0 or more channels")
        require(0 <= self.mixing <= 1, f"model.mixing is {self.mixing}: give a probability from 0 to 1")
        for name in AT_LEAST_1:
            require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}: give at least 1")
        require(self.backbone_size >= 32, f"model.backbone_size is {self.backbone_size}: give a side of at least 32 pixels")
        require(self.attention >= 0, f"model.attention is {self.attention}: give a side in pixels, or 0 for none")
        for name in ("class_start", "class_ramp"):
            require(getattr(self, name) >= 0, f"model.{name} is {getattr(self, name)}: give 0 or more images")
        require(
            self.critic_norm != "none" or self.critic not in ALWAYS_NORMALISED,
            f"model.critic_norm is none: a critic {self.critic} always normalises its weights, give spectral or batch",
        )
        self._check_fields()
        self._check_groups()

    @property
    def critic(self) -> str:
        """The family of the critic."""
        return self.family if self.critic_family == "same" else self.critic_family

    @property
    def norm_of_critic(self) -> str:
        """`critic_norm`, with `auto` looked up."""
        return AUTO["critic_norm"].get(self.critic, "none") if self.critic_norm == "auto" else self.critic_norm

    @property
    def critic_group(self) -> int:
        """Consecutive images that layers of the critic compare with each other: 1 is none, 0 all that there are."""
        if self.discriminator:
            return 0
        if self.norm_of_critic == "batch":
            return self.norm_group
        return self.std_group or 1 if self.critic == "stylegan2" else 1

    @property
    def class_norms(self) -> bool:
        """Whether the generator is told the class in its batch norms."""
        via = AUTO["class_via"].get(self.family, "concat") if self.class_via == "auto" else self.class_via
        return self.conditional and via == "norm"

    @property
    def class_inputs(self) -> int:
        """Numbers beside the latents that tell the generator the class."""
        return self.class_dim if self.conditional and not self.class_norms else 0

    @property
    def ramped(self) -> bool:
        """Whether classes are told apart only later."""
        return self.class_start > 0 or self.class_ramp > 0

    @property
    def grouped(self) -> list[str]:
        """The widths that, doubled, are cut into groups of `group_width`."""
        names = ["width", "max_width"] * (self.family == "r3gan")
        return names + ["critic_width", "critic_max_width"] * (self.critic == "r3gan")

    def _check_fields(self) -> None:
        """Settings that nothing here looks at are a mistake. A preset's cannot be left out, but set back."""
        changed = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if strange := [field for field in changed if not self._looks_at(field.name)]:
            ours = self.family if self.critic == self.family else f"{self.family} with a critic {self.critic}"
            raise UserError(
                f"model.{strange[0].name} is a setting of model.family {' and '.join(FIELDS_OF[strange[0].name])}, but this is "
                f"{ours}: leave it out, or go back by {_defaults(strange)}"
            )
        told = [field for field in changed if field.name in ("class_head", "class_via", "class_start", "class_ramp")]
        if told and not self.conditional:
            raise UserError(
                f"model.{told[0].name} has no effect without classes: set --model.conditional true, or leave it out, or go "
                f"back by {_defaults(told)}"
            )

    def _looks_at(self, name: str) -> bool:
        """Whether a network of these families knows the setting."""
        lookers = [getattr(self, of) for of in LOOKED_AT_BY.get(name, ("family", "critic"))]
        return name not in FIELDS_OF or any(looker in FIELDS_OF[name] for looker in lookers)

    def _check_groups(self) -> None:
        for name in self.grouped:
            require(
                2 * getattr(self, name) % self.group_width == 0,
                f"model.{name} {getattr(self, name)}: with r3gan, twice this must be a multiple of model.group_width "
                f"{self.group_width}",
            )


def _defaults(fields: list[dataclasses.Field[Any]]) -> str:
    """The options that set them back."""
    return " ".join(f"--model.{field.name} {field.default}" for field in fields)
