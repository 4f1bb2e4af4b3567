"""Structural similarity at several scales (Wang, Simoncelli & Bovik 2003), of pairs and of samples to their nearest images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scalegan.evaluation.ssim import WINDOW, similarity_maps

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, the finest first."""


def scales(height: int, width: int) -> int:
    """Scales at which the window fits into images of this size: 5 from 176 pixels on, 0 below 11."""
    side, count = min(height, width), 0
    while side >= WINDOW and count < len(WEIGHTS):
        side, count = side // 2, count + 1
    return count


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """uint8 [n, C, H, W] twice, sides from 11 on -> float32 [n].

    Small images have fewer scales, whose weights are made to have the sum of all five. Negative terms count as 0, and
    edges are treated as in torchmetrics.
    """
    x, y = a.float(), b.float()
    count = scales(*x.shape[2:])
    weights = torch.tensor(WEIGHTS[:count], device=x.device)
    edge = WINDOW // 2
    terms = []
    for scale in range(count):
        luminance, contrast = similarity_maps(x, y)
        if scale < count - 1:
            terms.append(contrast[..., edge:-edge, edge:-edge].flatten(1).mean(1))
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        else:
            terms.append((luminance * contrast).flatten(1).mean(1))
    return (torch.stack(terms, 1).relu() ** (weights * (sum(WEIGHTS) / weights.sum()))).prod(1)
