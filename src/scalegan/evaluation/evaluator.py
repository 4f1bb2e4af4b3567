"""One evaluation: generated images against real ones, on any number of processes with the same result."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalegan.config import DataConfig, EvaluationConfig
from scalegan.data.index import Index
from scalegan.evaluation.features import Extractor, load_extractor, metric_name
from scalegan.evaluation.folder import open_images
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.real import Progress, RealImages, real_statistics
from scalegan.evaluation.real_cache import RealStatistics
from scalegan.evaluation.ssim import best_matches, diversity, thumbnails
from scalegan.evaluation.team import Team

SampleFn = Callable[[int, int], Tensor]
"""(first, count) -> uint8 [count, C, H, W]: the generated images of those global indices."""

SSIM_IMAGES = 8
DIVERSITY_IMAGES = 64


def evaluate(
    generator: SampleFn,
    index: Index,
    config: EvaluationConfig,
    *,
    seed: int,
    images_seen: int,
    ema: bool,
    rank: int,
    processes: int,
    device: torch.device,
    cache: Path,
    data: DataConfig | None = None,
    extractor: Extractor | None = None,
    progress: Progress = lambda what, done, count: None,
) -> dict[str, Any]:
    """The record of one evaluation: what was measured and what was compared; the same on every process.

    Collective: every process calls it with the same arguments but `rank`. `generator` is called for disjoint parts of 0 to
    `config.samples`. No random number generator is touched. `data` says how the images of `index` are read; by default
    from `index.root`, and an unreadable one is an error. `extractor` stands in for the one that `config` names. Raises
    `UserError`, on all processes.
    """
    began = time.perf_counter()
    team = Team(rank, processes)
    extractor = extractor or load_extractor(config, device, team)
    with closing(open_images(index, data or DataConfig(path=index.root), device)) as reader:
        images = RealImages(index, config.real, reader)
        real = real_statistics(images, extractor, config.batch, team, cache, progress)
        distance = compare(generator, real, images.count, config, extractor, team, progress)
        record: dict[str, Any] = {}
        if real is not None:
            metric = metric_name(extractor.name)
            record = {metric: float(distance.compute()), f"{metric}_floor": real.floor}
            if config.ssim:
                record |= similarity(generator(0, min(DIVERSITY_IMAGES, config.samples)), real, images)
            record |= {"images_seen": images_seen, "seed": seed, "ema": ema}
            record |= provenance(index, config, extractor, real, processes)
            record["seconds"] = round(time.perf_counter() - began, 2)
    shared: dict[str, Any] = team.from_first(record)
    return shared


def compare(
    generator: SampleFn,
    real: RealStatistics | None,
    real_count: int,
    config: EvaluationConfig,
    extractor: Extractor,
    team: Team,
    progress: Progress,
) -> FrechetDistance:
    """Generated images against the real statistics, which process 0 brings: the metric with the states of all processes."""
    distance = FrechetDistance(extractor.width).to(extractor.device)
    if real is not None:
        distance.real_features_sum += torch.from_numpy(real.features_sum).to(extractor.device)
        distance.real_features_cov_sum += torch.from_numpy(real.features_squares).to(extractor.device)
        distance.real_features_num_samples += real.images
    for first, count in team.blocks(config.samples, config.batch):
        progress("generated images", first, config.samples)
        distance.update(extractor(generator(first, count)), real=False)
    distance.sync(dist_sync_fn=distance.dist_sync_fn)
    counts = int(distance.fake_features_num_samples), int(distance.real_features_num_samples)
    assert counts == (config.samples, real_count), f"{counts} images were counted, not {config.samples} and {real_count}"
    return distance


def similarity(samples: Tensor, real: RealStatistics, images: RealImages) -> dict[str, Any]:
    """Largest SSIM of a few samples, uint8 [n, C, H, W], and what it has to be seen beside."""
    thumbs = torch.from_numpy(real.thumbnails)
    spread = np.linspace(0, len(thumbs) - 1, min(DIVERSITY_IMAGES, len(thumbs))).astype(np.int64)
    values: dict[str, Any] = {}
    if images.has_ssim:
        best = best_matches(samples[:SSIM_IMAGES], thumbs, images.read_shown)
        values = {"ssim_max": float(best.max()), "ssim_mean_image": real.ssim_mean_image}
    return values | {"diversity": diversity(thumbnails(samples)), "diversity_real": diversity(thumbs[spread])}


def provenance(
    index: Index, config: EvaluationConfig, extractor: Extractor, real: RealStatistics, processes: int
) -> dict[str, Any]:
    return {
        "generated": config.samples,
        "real": real.images,
        "floor_counts": list(real.halves),
        "index_sha256": index.sha256,
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "resize": extractor.network.resize,
        "dtype": "float32 features, float64 statistics",
        "device": extractor.device.type,
        "torch": torch.__version__,
        "processes": processes,
    }
