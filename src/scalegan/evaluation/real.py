"""The real side of an evaluation: every chosen image once, in one pass over all processes, then kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.data.index import Index
from scalegan.data.loader import Batch
from scalegan.data.order import COMPARED, draw, permute
from scalegan.evaluation import real_cache
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.names import check_real, compared
from scalegan.evaluation.real_cache import RealStatistics, Reference
from scalegan.evaluation.ssim import THUMBNAIL, best_matches, measurable, thumbnails
from scalegan.evaluation.team import Team, add_up

MOST_THUMBNAILS = 50_000

Progress = Callable[[str, int, int], None]
"""Called on each process, within `Team.as_one`, with what is being looked at, images done and images in all; it may raise
`GivenUp`."""
Keep = Callable[[Tensor, int], None]


class Reads(Protocol):
    @property
    def unreadable(self) -> int:
        """Images that could not be read so far, and were replaced."""

    def read(self, samples: NDArray[np.int64]) -> Batch: ...


class RealImages:
    """The images that are compared, and those between which the floor is taken: a function of the counts alone.

    A fixed choice, so that class-sorted shards do not give one class and every run on the data has the same floor.
    """

    def __init__(self, index: Index, wanted: int, reader: Reads, generated: int | None = None) -> None:
        """`generated` images are compared with them; None is as many as a half."""
        check_real(wanted, index.samples, index.root)
        self.index, self.reader = index, reader
        self.count = compared(wanted, index.samples)
        order = permute(np.arange(self.count), index.samples, index.samples, draw(0, COMPARED))  # nothing for those left out
        self.samples: NDArray[np.int64] = np.sort(order)
        """int64 [count], in the order they are read."""
        self.half = self.count // 2
        """Images of the first half."""
        self.beside = self.half if generated is None else min(generated, self.half)
        """Images of the second half that stand for generated ones in the floor."""
        self.in_first_half = torch.from_numpy(np.isin(self.samples, order[: self.half]))
        self.in_floor = torch.from_numpy(np.isin(self.samples, order[self.half : self.half + self.beside]))
        """Both bool [count]: the images of the first half, and those of the second that are held against it."""
        self.shown = np.unique(np.linspace(0, self.count - 1, min(self.count, MOST_THUMBNAILS)).astype(np.int64))
        """Places in `samples` that thumbnails are kept of."""

    @property
    def has_ssim(self) -> bool:
        return measurable(self.index.height, self.index.width)

    def read(self, first: int, count: int) -> Tensor:
        """uint8 [count, C, H, W] on the reader's device."""
        return self.reader.read(self.samples[first : first + count]).images

    def at(self, places: NDArray[np.int64]) -> Tensor:
        """The images at `places` [n] of `samples`: uint8 [n, C, H, W] on the reader's device."""
        return self.reader.read(self.samples[places]).images

    def read_shown(self, numbers: NDArray[np.int64]) -> Tensor:
        """The images of thumbnails: uint8 [n, C, H, W] on the CPU."""
        return self.reader.read(self.samples[self.shown[numbers]]).images.cpu()


def real_statistics(
    images: RealImages,
    extractor: Extractor,
    batch: int,
    team: Team,
    cache: Path,
    progress: Progress,
    keep: Keep | None = None,
) -> RealStatistics | None:
    """From the file, else measured by all processes and then saved. Complete on process 0, None on the others.

    `keep` is given the features of this process' images and the place of the first of them; they are then always measured.
    """
    of_features = extractor.name, extractor.weights_sha256, extractor.network.resize, extractor.dtype
    versions, counts = (torch.__version__, PIL.__version__), (images.count, (images.beside, images.half))
    reference = Reference(images.index.sha256, *of_features, extractor.device.type, *versions, *counts)
    path = reference.file(cache)
    known = real_cache.load(path) if team.first else None
    if team.from_first(known is not None) and keep is None:
        return known
    measured = measure(images, extractor, batch, team, progress, keep)
    if known is None and measured is not None and not measured.unreadable:
        real_cache.save(path, measured)
    return measured


def measure(
    images: RealImages, extractor: Extractor, batch: int, team: Team, progress: Progress, keep: Keep | None = None
) -> RealStatistics | None:
    index = images.index
    floor_of, rest = (FrechetDistance(extractor.width).to(extractor.device) for _ in range(2))
    thumbs = torch.zeros(len(images.shown), THUMBNAIL, THUMBNAIL, dtype=torch.uint8)
    total = torch.zeros(index.channels, index.height, index.width, dtype=torch.int64)
    with team.as_one():
        for first, size in team.blocks(images.count, batch):
            progress("real images", first, images.count)
            pixels = images.read(first, size)
            features = extractor(pixels)
            in_half, beside = (
                which[first : first + size].to(features.device) for which in (images.in_first_half, images.in_floor)
            )
            floor_of.update(features[in_half], real=True)
            floor_of.update(features[beside], real=False)
            rest.update(features[~(in_half | beside)], real=True)
            if keep is not None:
                keep(features, first)
            low, high = np.searchsorted(images.shown, (first, first + size))
            thumbs[low:high] = thumbnails(pixels[torch.from_numpy(images.shown[low:high] - first)]).cpu()
            total += pixels.long().sum(0).cpu()
    floor_of.sync()
    rest.sync()
    thumbs, total, unreadable = add_up(thumbs), add_up(total), int(add_up(torch.tensor(images.reader.unreadable)))
    counts = int(floor_of.fake_features_num_samples), int(floor_of.real_features_num_samples)
    total_count = sum(counts) + int(rest.real_features_num_samples)
    assert total_count == images.count, f"{total_count} real images were counted, not {images.count}"
    similarity = 0.0
    with team.as_one():
        if team.first and images.has_ssim:
            mean = (total.double() / images.count).round().to(torch.uint8)
            similarity = float(best_matches(mean[None], thumbs, images.read_shown))
    floor = 0.0
    with team.as_one():
        if team.first:
            floor = float(floor_of.distance())
    if not team.first:
        return None
    sums = (floor_of.real_features_sum + floor_of.fake_features_sum + rest.real_features_sum).cpu().numpy()
    squares = floor_of.real_features_cov_sum + floor_of.fake_features_cov_sum + rest.real_features_cov_sum
    half = floor_of.real_features_sum.cpu().numpy(), floor_of.real_features_cov_sum.cpu().numpy()
    of_all = sums, squares.cpu().numpy(), *half, images.count, counts
    return RealStatistics(*of_all, floor, thumbs.numpy(), similarity, unreadable)
