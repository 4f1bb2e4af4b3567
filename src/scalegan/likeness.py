"""How alike the fixed samples are to each other and to training images: what tells collapse and copying, as numbers.

Distances are root mean square differences of 32x32 grey thumbnails, in grey levels. Each stands beside the same of training
images among themselves, without which it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.data.loader import Batch
from scalegan.evaluation.class_diversity import ClassSums, diversity_in_class
from scalegan.evaluation.ssim import distances, diversity, thumbnails

AT_ONCE = 256
"""Images that are read before they are made small."""


class Likeness:
    """Compares samples with the training images `numbers`, int64 [m], which `read` gives; of them thumbnails are kept."""

    def __init__(self, numbers: NDArray[np.int64], read: Callable[[NDArray[np.int64]], Batch], classes: int) -> None:
        self.numbers = numbers
        self.by_class = ClassSums.none(classes)
        parts = []
        for first in range(0, len(numbers), AT_ONCE):
            batch = read(numbers[first : first + AT_ONCE])
            parts.append(thumbnails(batch.images))
            if classes:
                self.by_class.add(parts[-1], batch.labels)
        self.thumbs = torch.cat(parts)

    def record(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Of samples uint8 [n, C, H, W]: how far they are from each other (mean of all pairs; median to the nearest other
        one) and from their nearest training images (median), each beside what n training images have (`*_real`).

        With their classes, int64 [n], also how far those of one class are from each other, beside its training images.
        """
        thumbs, count = thumbnails(images), len(images)
        near = distances(thumbs, self.thumbs).min(1)
        return {
            "samples": count,
            "compared": len(self.numbers),
            "diversity": diversity(thumbs),
            "diversity_real": diversity(self.thumbs[:count]),
            "nearest_sample": to_nearest_other(thumbs, count),
            "nearest_sample_real": to_nearest_other(self.thumbs[:count], count),
            "nearest_train": float(near.values.median()),
            "nearest_train_real": to_nearest_other(self.thumbs, count),
            "nearest_images": self.numbers[near.indices.numpy()].tolist(),
            "nearest_distances": near.values.tolist(),
            **self.in_class(thumbs, labels),
        }

    def in_class(self, thumbs: Tensor, labels: Tensor | None) -> dict[str, float]:
        if labels is None:
            return {}
        return diversity_in_class(ClassSums.of(thumbs, labels, len(self.by_class.counts)), self.by_class)


def to_nearest_other(thumbs: Tensor, count: int) -> float:
    """uint8 [n, 32, 32] -> median over the first `count` of their distance to the nearest other one."""
    to_others = distances(thumbs[:count], thumbs).fill_diagonal_(torch.inf)
    return float(to_others.min(1).values.median())
