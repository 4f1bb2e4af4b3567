"""What every feature network says of itself, and the pixels that it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scalegan.errors import UserError
from scalegan.pixels import to_uint8

DIVERGED = "images have NaN in them: the generator that made them has diverged, take an earlier checkpoint"


class FeatureNetwork(nn.Module):
    """uint8 images [N, 3, H, W] -> float32 features [N, num_features], each a function of its image alone."""

    num_features: int
    cpu_batch: int = 8
    """Images of one CPU pass: the maps of more do not fit the cache."""
    resize: str
    """How images come to the size that the network sees; stands in every record, as the numbers depend on it."""


def quantised(images: Tensor) -> Tensor:
    """uint8 as it is; floats from -1 to 1 -> uint8, rounded to the nearest and clamped. Raises `UserError` for NaN.

    What is compared are images as a file holds them. To cut instead of to round, or to let 256 wrap around to 0, moves FID.
    """
    if images.dtype == torch.uint8:
        return images
    if images.isnan().any():
        raise UserError(DIVERGED)
    return to_uint8(images)
