"""Pixels as files hold them, and as networks take and make them."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], on the same device and in the same memory format."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 to 255, rounded to the nearest."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
