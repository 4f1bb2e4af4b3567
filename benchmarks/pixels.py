"""A second judge of images that shares nothing with a pretrained network: their pixels, coarsely.

scalegan evaluate RUN --extractor benchmarks.pixels:Pixels
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 8


class Pixels(nn.Module):
    """uint8 images [N, 3, H, W] -> float32 [N, 192], the means of 8 x 8 areas from -1 to 1."""

    num_features = 3 * SIDE * SIDE
    resize = f"area to {SIDE}x{SIDE}"

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() / 127.5 - 1, SIDE).flatten(1)
