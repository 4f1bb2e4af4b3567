"""What evaluation needs to know of the real images, kept in a file that is named after everything it depends on.

An .npz without pickle, written whole or not at all, with a checksum of its own; one that does not match is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalegan.files import if_possible, write_atomically

FORMAT = 3
"""To be raised when the numbers below come about in another way."""


@dataclass(frozen=True)
class Reference:
    """What the statistics depend on."""

    index_sha256: str
    extractor: str
    weights_sha256: str
    resize: str
    dtype: str
    device: str
    torch: str
    pillow: str
    images: int
    floor_counts: tuple[int, int]

    def file(self, folder: Path) -> Path:
        text = json.dumps(asdict(self) | {"format": FORMAT}, sort_keys=True)
        return folder / f"real-{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"


@dataclass(frozen=True)
class RealStatistics:
    features_sum: NDArray[np.float64]
    """[d]"""
    features_squares: NDArray[np.float64]
    """[d, d]: sum of outer products."""
    half_sum: NDArray[np.float64]
    """[d] of the first half alone, to hold as many generated images against."""
    half_squares: NDArray[np.float64]
    """[d, d] of the first half alone."""
    images: int
    """Images of which `features_sum` is."""
    floor_counts: tuple[int, int]
    """Images of the second half, and of the first, that `floor` compares."""
    floor: float
    """Frechet distance between these."""
    thumbnails: NDArray[np.uint8]
    """[m, 32, 32] of all images, or of some tens of thousands of them."""
    ssim_mean_image: float
    """Largest SSIM of the mean image to a real one; 0 for images too small to have one."""
    unreadable: int = 0
    """Images that could not be read, in whose place the next ones count twice; such statistics are not kept."""

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean [d] and covariance [d, d] of the features, over n - 1."""
        mean = self.features_sum / self.images
        return mean, (self.features_squares - self.images * np.outer(mean, mean)) / (self.images - 1)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "features_sum": self.features_sum,
            "features_squares": self.features_squares,
            "half_sum": self.half_sum,
            "half_squares": self.half_squares,
            "images": np.array(self.images, np.int64),
            "floor_counts": np.array(self.floor_counts, np.int64),
            "floor": np.array(self.floor, np.float64),
            "thumbnails": self.thumbnails,
            "ssim_mean_image": np.array(self.ssim_mean_image, np.float64),
        }


def checksum(arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def save(path: Path, statistics: RealStatistics) -> None:
    """Where it cannot be written, the images are looked at again next time, nothing more."""
    arrays = statistics.arrays()
    buffer = io.BytesIO()
    np.savez(buffer, checksum=checksum(arrays), **arrays)  # type: ignore[arg-type]
    with if_possible(f"{path}, the statistics of the real images,"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())


def load(path: Path) -> RealStatistics | None:
    """The statistics in a file, or None when there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not np.array_equal(arrays.pop("checksum"), checksum(arrays)):
            return None
        second, first = arrays["floor_counts"].tolist()
        return RealStatistics(
            arrays["features_sum"],
            arrays["features_squares"],
            arrays["half_sum"],
            arrays["half_squares"],
            int(arrays["images"]),
            (second, first),
            float(arrays["floor"]),
            arrays["thumbnails"],
            float(arrays["ssim_mean_image"]),
        )
    except Exception:  # damaged archives reach every corner of zipfile and numpy
        return None
