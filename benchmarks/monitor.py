"""What the monitor mode (`evaluation.precision bfloat16`) is off by: features of real images, and distances between them.

    python benchmarks/monitor.py

Training images against test images of the same kind, half as many of each, through EfficientNet-Lite0 and through the FID
Inception with weights made from a seed; fewer through the latter. A CPU without bfloat16 emulates it, which is slow, and other
hardware sums in another order. There is no target: this is what the docs say of the mode.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import common
from random_inception import RandomInception, write
from scalegan.config import DataConfig
from scalegan.data.index import read_index
from scalegan.evaluation.features import Extractor, load_extractor, on_device
from scalegan.evaluation.folder import open_images
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")
SETS = {"kiwi64": "kiwi64-test", "brain": "brain-test"}


def images(name: str, count: int) -> Tensor:
    """uint8 [count, C, H, W], spread evenly over the shards."""
    index = read_index(str(common.shards(name)))
    chosen = np.linspace(0, index.samples - 1, count).astype(np.int64)
    with closing(open_images(index, DataConfig(path=index.root), CPU)) as reader:
        return reader.read(chosen).images


def extractors(count: int, few: int, place: Path) -> Iterator[tuple[Extractor, Extractor, int]]:
    """In float32 and in bfloat16, and how many images go through them."""
    if count:
        yield *(load_extractor(EvaluationConfig(precision=p), CPU, Team()) for p in PRECISIONS), count
    if few:
        network = RandomInception(str(write(place)))
        yield *(on_device("random", network, "", CPU, network.cpu_batch, p) for p in PRECISIONS), few


def distance(real: Tensor, other: Tensor) -> float:
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(other, real=False)
    return float(metric.compute())


def row(*cells: object) -> str:
    return "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, (8, 9, 7, 17, 9, 10, 13, 9, 9), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="of each kind through lite0 (default: 400; 0: none)")
    parser.add_argument("--inception-images", type=int, default=40, help="likewise through Inception (default: 40)")
    options = parser.parse_args()
    print(common.headline(threads=torch.get_num_threads()))
    titles = ("images", "network", "count", "features off by", "at most", "distance", "in bfloat16", "off by", "seconds")
    print(row(*titles), flush=True)
    with tempfile.TemporaryDirectory() as place:
        for exact, near, count in extractors(options.images, options.inception_images, Path(place) / "torch"):
            for trained, test in SETS.items():
                began = time.perf_counter()
                sides = [images(name, count // 2) for name in (trained, test)]
                wanted, found = ([extractor(side) for side in sides] for extractor in (exact, near))
                error = (torch.cat(found) - torch.cat(wanted)).norm(dim=1) / torch.cat(wanted).norm(dim=1)
                value, other = distance(*wanted), distance(*found)
                shares = (
                    f"{error.median():.2%}",
                    f"{error.max():.2%}",
                    f"{value:.4g}",
                    f"{other:.4g}",
                    f"{other / value - 1:+.2%}",
                )
                print(row(trained, exact.name, count, *shares, f"{time.perf_counter() - began:.0f}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
