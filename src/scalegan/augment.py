"""Differentiable augmentation (Zhao et al. 2020): what the critic sees of an image, real or fake, is a random view of it.

All randomness comes in as `draws` [N, WIDTH] of uniform numbers, one row an image, so that an image's view does not depend
on the number of processes. Shift and mirror are products with selection matrices: exact, twice differentiable, and
deterministic on every device, which gather and its scattered gradient are not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.config import AugmentConfig

WIDTH = 8
"""Uniform numbers that one image uses up, whichever augmentations are on."""


NOTHING = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 2.0, 2.0])
"""Numbers in whose place nothing is done: the middle of a range, no mirror, a hole outside of the image."""


def spared(draws: NDArray[np.float64], gates: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """`draws` [N, WIDTH] in which each augmentation is done with probability `p`, by `gates` [N, WIDTH] in (0, 1)."""
    gates = gates.copy()
    gates[:, 4], gates[:, 7] = gates[:, 3], gates[:, 6]  # down and right are one shift, and so is the place of a hole
    return np.where(gates < p, draws, NOTHING)


def augment(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """images [N, C, H, W] in [-1, 1] and draws [N, 8] in (0, 1) -> images of the same shape."""
    brightness, saturation, contrast, down, right, mirror, hole_y, hole_x = draws.to(images.device).unbind(1)
    if config.shift or config.mirror:
        images = _move(images, down, right, mirror, config)
    if config.brightness:
        images = images + _scaled(brightness, config.brightness)
    if config.saturation and images.shape[1] == 3:
        images = _stretch(images, images.mean(1, keepdim=True), saturation, config.saturation)
    if config.contrast:
        images = _stretch(images, images.mean((1, 2, 3), keepdim=True), contrast, config.contrast)
    if config.cutout:
        images = images * _outside_hole(images, hole_y, hole_x, config.cutout)
    return images


def _scaled(draw: Tensor, limit: float) -> Tensor:
    """[N] uniform in (0, 1) -> [N, 1, 1, 1] uniform in (-limit, limit)."""
    return ((2 * draw - 1) * limit)[:, None, None, None]


def _stretch(images: Tensor, centre: Tensor, draw: Tensor, limit: float) -> Tensor:
    return centre + (images - centre) * (1 + _scaled(draw, limit))


def _move(images: Tensor, down: Tensor, right: Tensor, mirror: Tensor, config: AugmentConfig) -> Tensor:
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    from_row = row + _whole_pixels(down, config.shift, height)
    from_column = column + _whole_pixels(right, config.shift, width)
    if config.mirror:
        from_column = torch.where(mirror[:, None] < 0.5, width - 1 - from_column, from_column)
    rows = (from_row[:, :, None] == row).to(images.dtype)  # [N, H, H]: one 1 a row, none where it lies outside
    columns = (from_column[:, :, None] == column).to(images.dtype)  # [N, W, W]
    return torch.einsum("nyh,nchw,nxw->ncyx", rows, images, columns)


def _whole_pixels(draw: Tensor, share: float, size: int) -> Tensor:
    """[N] uniform in (0, 1) -> [N, 1] whole numbers, each from -limit to limit alike."""
    limit = int(share * size + 0.5)
    return torch.floor(draw * (2 * limit + 1)).long()[:, None] - limit


def _outside_hole(images: Tensor, hole_y: Tensor, hole_x: Tensor, share: float) -> Tensor:
    """[N, 1, H, W]: 0 in a square of `share` of the sides, centred anywhere on the image, else 1."""

    def inside(draw: Tensor, size: int) -> Tensor:
        length = int(share * size + 0.5)
        start = torch.floor(draw * size).long()[:, None] - length // 2
        place = torch.arange(size, device=images.device)
        return (place >= start) & (place < start + length)

    hole = inside(hole_y, images.shape[2])[:, None, :, None] & inside(hole_x, images.shape[3])[:, None, None, :]
    return (~hole).to(images.dtype)
