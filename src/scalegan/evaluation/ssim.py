"""Structural similarity (Wang et al. 2004) of samples to the images they are nearest to, and how varied a set of images is.

The largest similarity alone proves nothing: the mean of the training images has a high one. So it stands beside the score
of that mean image, and beside the diversity of samples and of real images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
RANGE = 255.0
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
THUMBNAIL = 32
NEIGHBOURS = 16
AT_ONCE = 4096


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """uint8 [n, C, H, W] twice, sides from 6 on -> SSIM float32 [n], the mean over channels and pixels.

    Gaussian window of 11x11 with sigma 1.5 and data range 255, as in the paper; at the edge the image is mirrored, as
    torchmetrics does it.
    """
    luminance, contrast = similarity_maps(a.float(), b.float())
    return (luminance * contrast).flatten(1).mean(1)


def similarity_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [n, C, H, W] twice -> likeness of the means, and of contrast and structure, around each pixel, [n, C, H, W]."""
    edge = [WINDOW // 2] * 4
    x, y = F.pad(a, edge, mode="reflect"), F.pad(b, edge, mode="reflect")
    mx, my, mxx, myy, mxy = smoothed(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    vx, vy, cov = mxx - mx * mx, myy - my * my, mxy - mx * my
    return (2 * mx * my + C1) / (mx * mx + my * my + C1), (2 * cov + C2) / (vx + vy + C2)


def smoothed(maps: Tensor) -> Tensor:
    """[..., H, W] -> [..., H - 10, W - 10] under the Gaussian window, as shifted sums: 10 times as fast here as `conv2d`."""
    taps = torch.exp(-((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights = (taps / taps.sum()).tolist()
    for axis in (-2, -1):
        length = maps.shape[axis] - WINDOW + 1
        total = maps.narrow(axis, 0, length) * weights[0]
        for shift in range(1, WINDOW):
            total.add_(maps.narrow(axis, shift, length), alpha=weights[shift])
        maps = total
    return maps


def measurable(height: int, width: int) -> bool:
    """Whether images of this size have an SSIM."""
    return min(height, width) > WINDOW // 2


def thumbnails(images: Tensor) -> Tensor:
    """uint8 [n, 1 or 3, H, W] -> grey uint8 [n, 32, 32] by area."""
    x = images.float()
    if x.shape[1] == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)).sum(1, keepdim=True)
    return F.adaptive_avg_pool2d(x, THUMBNAIL).round().to(torch.uint8)[:, 0]


def distances(thumbs: Tensor, others: Tensor) -> Tensor:
    """uint8 [n, 32, 32], [m, 32, 32] -> root mean square differences float64 [n, m], in grey levels."""
    x = thumbs.flatten(1).double()
    parts = (others[first : first + AT_ONCE].flatten(1).double() for first in range(0, len(others), AT_ONCE))
    return torch.cat([torch.cdist(x, part) for part in parts], 1) / THUMBNAIL


def nearest(thumbs: Tensor, real: Tensor) -> Tensor:
    """uint8 [n, 32, 32], [m, 32, 32] -> places int64 [n, min(16, m)] of the real images with the smallest distance."""
    return distances(thumbs, real).topk(min(NEIGHBOURS, len(real)), largest=False).indices


def best_matches(
    images: Tensor,
    real_thumbs: Tensor,
    read: Callable[[NDArray[np.int64]], Tensor],
    measure: Callable[[Tensor, Tensor], Tensor] = ssim,
) -> Tensor:
    """uint8 [n, C, H, W] -> the largest SSIM, or other `measure`, of each to its nearest real images, float32 [n].

    `read` gives the real images at places of `real_thumbs`, uint8 [k, C, H, W].
    """
    best = []
    for image, places in zip(images, nearest(thumbnails(images), real_thumbs), strict=True):
        real = read(places.numpy())
        best.append(measure(image.expand_as(real), real).max())
    return torch.stack(best)


def diversity(thumbs: Tensor) -> float:
    """uint8 [n, 32, 32], n > 1 -> mean over pairs of the root mean square difference, in grey levels."""
    return float(torch.pdist(thumbs.flatten(1).double()).mean()) / THUMBNAIL
