"""The four ways in which images come to the side of the Inception network: each of them gives FIDs of its own.

Between any two the features differ by a per cent or so, which moves FID by more than many published improvements (Parmar et
al. 2022). So each is written after the program whose numbers it is for, and its name stands in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ResizeFn = Callable[[Tensor, int], Tensor]
"""float32 [N, C, H, W] from 0 to 255, side -> [N, C, side, side], still from 0 to 255."""


def tf1(images: Tensor, side: int) -> Tensor:
    """As `tf.compat.v1.image.resize_bilinear`, which FID was defined with: a product with two matrices."""
    rows = tf1_matrix(images.shape[2], side).to(images.device)
    columns = tf1_matrix(images.shape[3], side).to(images.device)
    return rows @ images @ columns.T


def tf1_matrix(before: int, after: int) -> Tensor:
    """float32 [after, before]: pixel i is read at i * before / after, with no half-pixel shift and no antialias."""
    place = torch.arange(after, dtype=torch.float32) * (before / after)
    low = place.floor().long()
    high = (low + 1).clamp(max=before - 1)
    share = place - low
    matrix = torch.zeros(after, before)
    matrix.scatter_add_(1, low[:, None], 1 - share[:, None])
    matrix.scatter_add_(1, high[:, None], share[:, None])
    return matrix


def torch_aa(images: Tensor, side: int) -> Tensor:
    """Bilinear with antialias, as torchmetrics has it since 1.8."""
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)


def halfpixel(images: Tensor, side: int) -> Tensor:
    """Bilinear without antialias, as pytorch-fid has it."""
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def clean(images: Tensor, side: int) -> Tensor:
    """As clean-fid: Pillow's bicubic filter on each channel in float32, which is antialiased, then clipped."""
    rows = pillow_matrix(images.shape[2], side).to(images.device)
    columns = pillow_matrix(images.shape[3], side).to(images.device)
    return (rows @ images @ columns.T).clamp(0, 255)


def pillow_matrix(before: int, after: int) -> Tensor:
    """float32 [after, before]: Keys' cubic kernel (1981) with a = -1/2, as wide as the larger of a pixel before and after.

    From places in float64 as Pillow has them: `F.interpolate` rounds them to float32, which moves grey levels by 0.002.
    """
    scale = before / after
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(before, dtype=torch.float64) + 0.5
    x = ((pixels - centres[:, None]) / max(scale, 1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (kernel / kernel.sum(1, keepdim=True)).float()


@dataclass(frozen=True)
class Resize:
    apply: ResizeFn
    name: str
    """In records."""
    middle: float = 128.0
    """Grey level that becomes 0, and how many above it become 1."""

    def __call__(self, images: Tensor, side: int) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C, side, side] around 0; in float32 inside an autocast too."""
        with torch.autocast(images.device.type, enabled=False):
            return (self.apply(images.float(), side) - self.middle) / self.middle


RESIZES = {
    "tf1": Resize(tf1, "TensorFlow 1 bilinear"),
    "torch-aa": Resize(torch_aa, "torch bilinear with antialias"),
    "halfpixel": Resize(halfpixel, "torch bilinear without antialias", 127.5),
    "clean": Resize(clean, "Pillow bicubic with antialias"),
}
"""By the name in `evaluation.resize`."""
