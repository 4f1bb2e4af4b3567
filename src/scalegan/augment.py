"""What the critic sees of an image, real or fake, is a random view of it (Zhao et al. 2020; Karras et al. 2020b).

All randomness comes in as `draws` [N, WIDTH] of uniform numbers, one row an image, so that an image's view depends neither
on the other images nor on the number of processes. Every step is a plain operator that can be differentiated twice. Pixels
are moved by `gather`, which is exact, and on CUDA deterministic where `torch.use_deterministic_algorithms` asks for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.augment_config import COLOURS, AugmentConfig, in_pixels


class Numbers(NamedTuple):
    """The uniform numbers [N] that images use up, whichever augmentations are on."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    down: Tensor
    right: Tensor
    mirror: Tensor
    hole_y: Tensor
    hole_x: Tensor
    rotate90: Tensor
    scale: Tensor
    rotate_first: Tensor
    aniso: Tensor
    rotate_last: Tensor
    translate_y: Tensor
    translate_x: Tensor
    hue: Tensor
    luma_flip: Tensor


WIDTH = len(Numbers._fields)
STREAMS = (("augment", "augmented", 8), ("warp", "warped", WIDTH - 8))
"""Purposes that numbers and gates are drawn for, and how many: those of later augmentations apart, as they change no others."""

_SPECIAL = {"mirror": 1.0, "luma_flip": 1.0, "hole_y": 2.0, "hole_x": 2.0, "rotate90": 0.0}
NOTHING = np.array([_SPECIAL.get(name, 0.5) for name in Numbers._fields])
"""Numbers in whose place nothing is done: the middle of a range, no mirror, a hole outside of the image, no quarter turn."""


def _places(*names: str) -> list[int]:
    return [Numbers._fields.index(name) for name in names]


_SECOND, _FIRST = _places("right", "hole_x", "translate_x"), _places("down", "hole_y", "translate_y")
"""Two numbers of one augmentation, which is done or not."""
_COLOURS = _places(*COLOURS)
_ROTATIONS = _places("rotate_first", "rotate_last")


def gates(uniform: NDArray[np.float64], config: AugmentConfig) -> NDArray[np.float64]:
    """uniform [N, WIDTH] in (0, 1) -> [N, WIDTH], of which each is under p as often as its augmentation is to be done at p."""
    made = uniform.copy()
    made[:, _SECOND] = made[:, _FIRST]
    made[:, _COLOURS] /= config.colour
    # Of two rotations, at least one is done with probability p: each with 1 - sqrt(1 - p) (Karras et al. 2020b, appendix B).
    made[:, _ROTATIONS] = 1 - np.square(1 - made[:, _ROTATIONS])
    return made


def gated(numbers: Tensor, p: Tensor | float) -> Tensor:
    """numbers [3, N, WIDTH], draws, gates and `NOTHING` in float64 -> [N, WIDTH]: draws where gates are under `p`."""
    draws, gates, nothing = numbers.unbind()
    return torch.where(gates < p, draws, nothing).to(torch.get_default_dtype())


def augment(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """images [N, C, H, W] in [-1, 1] and draws [N, WIDTH] in (0, 1) -> images of the same shape."""
    numbers = Numbers(*draws.to(images.device).unbind(1))
    if config.warped:
        images = _resample(images, *_warp(images, numbers, config))
    elif config.shift or config.mirror or config.rotate90:
        images = _move(images, numbers, config)
    images = _recolour(images, numbers, config)
    if config.cutout:
        images = images * _outside_hole(images, numbers.hole_y, numbers.hole_x, config.cutout)
    return images


# --- whole pixels


def _move(images: Tensor, numbers: Numbers, config: AugmentConfig) -> Tensor:
    """Each pixel is one of the image, or 0 where it comes from outside."""
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)
    row, column = _before_moves(row, column, (height, width), numbers, config)
    there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return _taken(images, row.clamp(0, height - 1) * width + column.clamp(0, width - 1)) * there[:, None]


def _before_moves(
    row: Tensor, column: Tensor, size: tuple[int, int], numbers: Numbers, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Where rows and columns, [N, H, W] or what broadcasts to it, were before the image was mirrored, turned, and shifted."""
    height, width = size
    row = row + _whole_pixels(numbers.down, config.shift, height)
    column = column + _whole_pixels(numbers.right, config.shift, width)
    if config.rotate90:
        quarters = torch.floor(4 * numbers.rotate90).long()[:, None, None]
        half, odd = quarters >= 2, quarters % 2 == 1
        row, column = torch.where(half, height - 1 - row, row), torch.where(half, width - 1 - column, column)
        row, column = torch.where(odd, column, row), torch.where(odd, height - 1 - row, column)
    if config.mirror:
        column = torch.where(numbers.mirror[:, None, None] < 0.5, width - 1 - column, column)
    return row, column


def _whole_pixels(draw: Tensor, share: float, size: int) -> Tensor:
    """[N] uniform in (0, 1] -> [N, 1, 1] whole numbers, each from -limit to limit alike."""
    limit = in_pixels(share, size)
    place = torch.floor(draw * (2 * limit + 1)).long() - limit
    return place.clamp(max=limit)[:, None, None]  # of 1, as one number of 2^25 is rounded to in float32


def _taken(images: Tensor, place: Tensor) -> Tensor:
    """images [N, C, H, W] and place [N, H, W], numbers of pixels -> those pixels [N, C, H, W]."""
    index = place.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(images.shape)


# --- between pixels


def _warp(images: Tensor, numbers: Numbers, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Rows and columns [N, H, W] that the pixels are seen from: whole moves, zoom, turn, stretch, turn, move, in reverse."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    x = x - _normal(numbers.translate_x, config.translate * width)[:, None, None]
    y = y - _normal(numbers.translate_y, config.translate * height)[:, None, None]
    x, y = _turned(x, y, numbers.rotate_last, config.rotate)
    stretch = _normal(numbers.aniso, config.aniso).exp2()[:, None, None]
    x, y = _turned(x / stretch, y * stretch, numbers.rotate_first, config.rotate)
    zoom = _normal(numbers.scale, config.scale).exp2()[:, None, None]
    return _before_moves(y / zoom + (height - 1) / 2, x / zoom + (width - 1) / 2, (height, width), numbers, config)


def _turned(x: Tensor, y: Tensor, draw: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    angle = ((2 * draw - 1) * math.radians(degrees))[:, None, None]
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _resample(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """images [N, C, H, W] at rows y and columns x [N, H, W], between pixels bilinear, reflected at their edges.

    Gathers, as grid_sample is not deterministic on CUDA, nor exact where nothing moves.
    """
    height, width = images.shape[2:]
    left, top = x.floor(), y.floor()
    across, down = x - left, y - top
    seen = torch.zeros((), device=images.device)
    for row, weight_y in ((top, 1 - down), (top + 1, down)):
        for column, weight_x in ((left, 1 - across), (left + 1, across)):
            place = _reflected(row, height) * width + _reflected(column, width)
            seen = seen + _taken(images, place) * (weight_y * weight_x)[:, None]
    return seen


def _reflected(place: Tensor, size: int) -> Tensor:
    """Whole numbers -> those from 0 to size - 1 that mirrors at both edges show in their place."""
    there = place.long() % (2 * size)
    return torch.minimum(there, 2 * size - 1 - there)


# --- colours


def _recolour(images: Tensor, numbers: Numbers, config: AugmentConfig) -> Tensor:
    coloured = images.shape[1] == 3
    if config.brightness:
        images = images + _change(numbers.brightness, config.brightness, config)
    if config.saturation and coloured:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * _factor(numbers.saturation, config.saturation, config)
    if config.contrast:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * _factor(numbers.contrast, config.contrast, config)
    if config.luma_flip:
        flipped = (numbers.luma_flip < 0.5).to(images.dtype)[:, None, None, None]
        images = images - 2 * flipped * images.mean(1, keepdim=True)
    if config.hue and coloured:
        images = _turned_hue(images, ((2 * numbers.hue - 1) * math.radians(config.hue))[:, None, None, None])
    return images


def _turned_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Rotation of RGB space about its grey axis (1, 1, 1) / sqrt(3), by Rodrigues' formula."""
    grey = images.mean(1, keepdim=True)
    across = (images.roll(1, 1) - images.roll(-1, 1)) / math.sqrt(3)
    return images * angle.cos() + grey * (1 - angle.cos()) + across * angle.sin()


def _change(draw: Tensor, size: float, config: AugmentConfig) -> Tensor:
    """[N] uniform in (0, 1) -> [N, 1, 1, 1], uniform in (-size, size) or normal."""
    change = _normal(draw, size) if config.spread == "normal" else (2 * draw - 1) * size
    return change[:, None, None, None]


def _factor(draw: Tensor, size: float, config: AugmentConfig) -> Tensor:
    change = _change(draw, size, config)
    return change.exp2() if config.spread == "normal" else 1 + change


def _normal(draw: Tensor, deviation: float) -> Tensor:
    """[N] uniform in (0, 1) -> [N] normal, cut at 4.9 standard deviations, as a float32 may be rounded to 1; 0 of 0.5."""
    return torch.erfinv((2 * draw - 1).clamp(-0.999999, 0.999999)) * (math.sqrt(2) * deviation)


def _outside_hole(images: Tensor, hole_y: Tensor, hole_x: Tensor, share: float) -> Tensor:
    """[N, 1, H, W]: 0 in a square of `share` of the sides, centred anywhere on the image, else 1."""

    def inside(draw: Tensor, size: int) -> Tensor:
        length = in_pixels(share, size)
        start = torch.floor(draw * size).long()[:, None] - length // 2
        place = torch.arange(size, device=images.device)
        return (place >= start) & (place < start + length)

    hole = inside(hole_y, images.shape[2])[:, None, :, None] & inside(hole_x, images.shape[3])[:, None, None, :]
    return (~hole).to(images.dtype)
