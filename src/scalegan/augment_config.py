"""How the critic's views are augmented, as a frozen dataclass that is checked once, and the pipes: named sets of strengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from scalegan.errors import require

SHARES = ("brightness", "saturation", "contrast", "shift", "cutout", "scale", "aniso", "translate", "colour", "p", "max_p")
ANGLES = ("rotate", "hue")
SWITCHES = ("mirror", "rotate90", "luma_flip")
STRENGTHS = tuple(n for n in (*SHARES, *ANGLES, *SWITCHES) if n not in ("colour", "p", "max_p"))
"""Fields that change images, each by itself."""
COLOURS = ("brightness", "saturation", "contrast", "hue", "luma_flip")
"""Those of them that are done as often as `colour` says."""


def in_pixels(share: float, size: int) -> int:
    """Whole pixels of a side that `shift` and `cutout` stand for."""
    return int(share * size + 0.5)


@dataclass(frozen=True)
class AugmentConfig:
    pipe: Literal["", "photo", "medical", "digits", "diffaugment"] = ""
    """A named set of values for the fields below (`PIPES` in augment_config.py): `photo` is ADA's; `medical` and `digits`
    neither mirror nor rotate by 90 degrees; `diffaugment` is that of Zhao et al. 2020. Fields that you set override it."""
    brightness: float = 0.0
    """Largest change of brightness, in units of the [-1, 1] range."""
    saturation: float = 0.0
    """Largest relative change of saturation (RGB only): a factor from 1 - s to 1 + s."""
    contrast: float = 0.0
    """Largest relative change of contrast: a factor from 1 - c to 1 + c."""
    spread: Literal["uniform", "normal"] = "uniform"
    """`uniform`: brightness, saturation and contrast change by at most the given value (DiffAugment). `normal`: the given value
    is a standard deviation, of brightness and of the base-2 logarithms of the two factors (ADA)."""
    luma_flip: bool = False
    """Invert brightness with probability 1/2 and keep the hue; for grey images this is the negative."""
    hue: float = 0.0
    """Largest rotation of the hue, in degrees up to 180 (RGB only)."""
    shift: float = 0.0
    """Largest shift, as a fraction of height and width. New pixels at the edge are 0 (mid-grey), or reflections if the image is
    resampled (`scale`, `rotate`, `aniso`, `translate`)."""
    mirror: bool = False
    """Mirror left to right with probability 1/2. Wrong for digits, and for brains if the side matters."""
    rotate90: bool = False
    """Rotate by 0, 90, 180 or 270 degrees (square images only). Wrong for anything with an upright position."""
    scale: float = 0.0
    """Zoom: standard deviation of its base-2 logarithm."""
    rotate: float = 0.0
    """Largest rotation in degrees, up to 180; applied independently before and after the stretch of `aniso`."""
    aniso: float = 0.0
    """Stretch of the width by a factor by which the height shrinks: standard deviation of its base-2 logarithm."""
    translate: float = 0.0
    """Subpixel shift: standard deviation, as a fraction of height and width."""
    cutout: float = 0.0
    """Side of the blanked square, as a fraction of height and width."""
    colour: float = 1.0
    """Probability of brightness, saturation, contrast, hue and luma flip, as a fraction of `p` (R3GAN: 0.5)."""
    p: float = 1.0
    """Probability of each augmentation, drawn independently for each image; below 1 the critic also sees unchanged images. Not
    used with `target`, which adapts it."""
    target: float = 0.0
    """Adaptive augmentation (Karras et al. 2020b): p starts at 0 and rises while the mean sign of the critic's logits for real
    images is above this value, else falls; 0.6 in the paper; 0 keeps p fixed."""
    speed: int = 500_000
    """Images over which an adaptive p can rise from 0 to 1."""
    every: int = 4
    """Steps between adjustments of an adaptive p."""
    max_p: float = 0.85
    """Largest adaptive p. Above about this the generator starts to generate augmented images (section 2.2 of the paper)."""

    def __post_init__(self) -> None:
        for name in (*SHARES, "target"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}: give a share from 0 to 1")
        for name in ANGLES:
            require(0 <= getattr(self, name) <= 180, f"augment.{name} is {getattr(self, name)}: give degrees from 0 to 180")
        for name in ("speed", "every"):
            require(getattr(self, name) >= 1, f"augment.{name} is {getattr(self, name)}: give at least 1")
        require(self.max_p > 0, "augment.max_p is 0: to do without augmentation, give --augment.target 0 --augment.pipe ''")
        require(self.colour > 0, "augment.colour is 0: to leave colours alone, set their strengths to 0")
        require(
            self.changing or not self.pipe,
            f"augment.pipe {self.pipe} has no strengths: in Python give them too, AugmentConfig(**PIPES[{self.pipe!r}])",
        )
        require(
            self.changing or not self.target,
            f"augment.target is {self.target} but no augmentation is on: give a pipe, such as --augment.pipe diffaugment, or "
            "set augment.target to 0",
        )

    @property
    def changing(self) -> bool:
        return any(getattr(self, name) for name in STRENGTHS)

    @property
    def active(self) -> bool:
        return self.changing and (self.p > 0 or self.target > 0)

    @property
    def warped(self) -> bool:
        """Whether pixels are mixed with their neighbours."""
        return any(getattr(self, name) for name in ("scale", "rotate", "aniso", "translate"))


OFF: dict[str, Any] = {name: AugmentConfig.__dataclass_fields__[name].default for name in (*STRENGTHS, "spread", "colour", "p")}

PIPES: dict[str, dict[str, Any]] = {
    # Karras et al. 2020b, appendix B: pixel blitting, geometry and colour ("bgc"). p is R3GAN's for 64 and 256 pixels.
    "photo": OFF
    | {"mirror": True, "rotate90": True, "shift": 0.125}
    | {"scale": 0.2, "rotate": 180.0, "aniso": 0.2, "translate": 0.125}
    | {"spread": "normal", "brightness": 0.2, "contrast": 0.5, "saturation": 1.0, "luma_flip": True, "hue": 180.0, "p": 0.3},
    # Position in the scanner, size of the patient, gain of the receiver; left stays left, and up stays up.
    "medical": OFF
    | {"shift": 0.05, "scale": 0.1, "rotate": 6.0, "aniso": 0.05}
    | {"spread": "normal", "brightness": 0.1, "contrast": 0.25, "p": 0.5},
    # A hand's slant and size; a mirrored or upended digit is another one, or none.
    "digits": OFF | {"shift": 0.1, "scale": 0.1, "rotate": 6.0, "aniso": 0.1, "p": 0.5},
    # Zhao et al. 2020, the policies color, translation and cutout: brightness x + [-0.5, 0.5], saturation x [0, 2], contrast
    # x [0.5, 1.5], shift by an eighth, a square of half the side.
    "diffaugment": OFF
    | {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5, "shift": 0.125, "cutout": 0.5}
    | {"spread": "uniform", "p": 1.0},
}
