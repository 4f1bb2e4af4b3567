"""One evaluation: generated images against real ones, on any number of processes with the same result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan.config import DataConfig
from scalegan.data.index import Index, locate, read_offsets
from scalegan.data.order import PAIRED, draw, permute
from scalegan.errors import UserError
from scalegan.evaluation import by_lpips
from scalegan.evaluation.features import Extractor, load_extractor
from scalegan.evaluation.folder import open_images
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.held_out import add_held_out, held_out_images
from scalegan.evaluation.lpips import load_lpips
from scalegan.evaluation.ms_ssim import ms_ssim, scales
from scalegan.evaluation.names import METRICS, check_counts
from scalegan.evaluation.path_length import LatentPaths
from scalegan.evaluation.real import Keep, Progress, RealImages, real_statistics
from scalegan.evaluation.real_cache import RealStatistics
from scalegan.evaluation.report import name_of
from scalegan.evaluation.similarity import BestMatch, Diversity, DiversityInClass, Gallery, PairSimilarity
from scalegan.evaluation.suite import Suite
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.figures import save_png
from scalegan.files import if_possible
from scalegan.sampling import at_once

# A process without images computes with the others all the same; on each machine but the first it would be told so.
warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before the ``update`` method")

SampleFn = Callable[[int, int], Tensor]
"""(first, count) -> uint8 [count, C, H, W]: the generated images of those global indices."""
LabelFn = Callable[[int, int], NDArray[np.int64]]
"""(first, count) -> int64 [count]: the classes of the generated images of those global indices."""

SSIM_IMAGES = 8
DIVERSITY_IMAGES = 64
Varied = Diversity | PairSimilarity


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
    held_out: Index | None = None,
    extractor: Extractor | None = None,
    labels: LabelFn | None = None,
    paths: LatentPaths | None = None,
    facts: dict[str, Any] | None = None,
    pictures: Path | None = None,
    progress: Progress = lambda what, done, count: None,
) -> dict[str, Any]:
    """The record of one evaluation: what was measured and what was compared; the same on every process.

    Collective: every process calls it with the same arguments but `rank`. `generator` is called for disjoint parts of 0 to
    `config.samples`, `labels` for the classes of the same images; `paths` are steps in the latents of what makes them, and
    None says that they were made before and lie in some order. No random number generator is touched. `data` says how the
    images of `index` are read, by default from `index.root` and an unreadable one is an error, and which images are held
    out; `held_out` stands in for these, as `extractor` for the one that `config` names. `facts` of the two sides go into the
    record too. `pictures` is a folder for the pairs of samples and training images that are nearest to each other, or the .png
    file itself. Raises `UserError`, on all processes.
    """
    began = time.perf_counter()
    team, data = Team(rank, processes), data or DataConfig(path=index.root)
    extractor = extractor or load_extractor(config, device, team)
    with closing(open_images(index, data, device)) as reader:
        images = RealImages(index, config.real, reader, config.samples)
        with team.as_one():
            held_out = held_out_images(config, index, data, held_out)
            classes = check(config, index, images, extractor.width, held_out, labels, paths)
        perceptual = load_lpips(config, device, team) if config.wants_lpips else None
        suite = Suite(config, extractor, index.classes)
        keep = real_keeper(suite, classes) if "real" in suite.sides else None
        real = real_statistics(images, extractor, config.batch, team, cache, progress, keep)
        if held_out is not None:
            add_held_out(suite, held_out, data, extractor, config.batch, team, progress)
        told = labels is not None and index.labelled and len(index.classes) > 1
        in_class = DiversityInClass(len(index.classes)) if told and "ssim" in config.wanted else None
        distance, at_half = compare(generator, real, images, config, extractor, team, progress, suite, labels, in_class)
        figures = suite.record(distance, team)
        alike = similarity(generator, real, images, config, team, in_class)
        if perceptual is not None:
            figures |= by_lpips.figures(generator, images, config, perceptual, paths, team, progress)
        record: dict[str, Any] = {}
        with team.as_one():
            if real is not None:
                value, closest = float(distance.distance()), figures.pop("closest", None)
                beside = {"fid_floor": real.floor, "fid_half": float(at_half.distance())}
                figures = {"fid": value} | beside | with_mifid(figures, value)
                record = {extractor.key(name): figure for name, figure in figures.items()}
                record |= alike | ({"ssim_mean_image": real.ssim_mean_image} if "ssim_max" in alike else {})
                record |= {"images_seen": images_seen, "seed": seed, "ema": ema}
                record |= provenance(index, held_out, config, extractor, real, processes) | (facts or {})
                record["seconds"] = round(time.perf_counter() - began, 2)
                if closest is not None:
                    show_closest(record, closest, generator, images, pictures)
    shared: dict[str, Any] = team.from_first(record)
    return shared


def check(
    config: EvaluationConfig,
    index: Index,
    images: RealImages,
    width: int,
    held_out: Index | None,
    labels: LabelFn | None,
    paths: LatentPaths | None,
) -> NDArray[np.int64] | None:
    """The labels of the real images where they are needed. Raises `UserError` for what a metric lacks, before any work."""
    check_counts(config.wanted, config.samples, images.count, width)
    if "memorisation" in config.wanted and held_out is None:
        raise UserError(
            "metric memorisation needs images that were never trained on, and there are none: name them by --held-out "
            "(in training their shards by --data.held_out)"
        )
    if "ppl" in config.wanted and paths is None:
        raise UserError(
            "metric ppl needs a generator and its latents, which images that lie in a folder or in shards do not have: give a "
            "run, or take ppl out of evaluation.metrics (`scalegan evaluate`: --metrics)"
        )
    by_class = [name for name in config.wanted if METRICS[name].classes]
    return check_classes(by_class[0], config, index, images, labels) if by_class else None


def check_classes(
    metric: str, config: EvaluationConfig, index: Index, images: RealImages, labels: LabelFn | None
) -> NDArray[np.int64]:
    """The labels of the real images. Raises `UserError` for what a metric that goes by class lacks."""
    if not index.labelled:
        raise UserError(
            f"metric {metric} needs real images with labels and {index.root} has none: write their shards with classes, or "
            f"take {metric} out of evaluation.metrics"
        )
    if labels is None:
        raise UserError(
            f"metric {metric} needs generated images with labels: a generator that is told the class (model.conditional), or "
            f"shards with the classes of {index.root}; or take {metric} out of evaluation.metrics"
        )
    real, made = labels_of(index, images.samples), labels(0, config.samples)
    for number, name in enumerate(index.classes):
        counts = int((real == number).sum()), int((made == number).sum())
        if min(counts) < 2:
            way_out = "raise evaluation.samples" if counts[1] < 2 else "raise evaluation.real"
            if index.class_counts[number] < 2:
                way_out = "compare with shards that have more of it"
            raise UserError(
                f"metric {metric} needs 2 real and 2 generated images of each class; of {name} there are {counts[0]} and "
                f"{counts[1]}: {way_out}, or take {metric} out of evaluation.metrics"
            )
    return real


def labels_of(index: Index, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels [n] of sample numbers [n]."""
    shards, rows = locate(index, samples)
    labels = np.empty(len(samples), np.int64)
    for shard in np.unique(shards):
        here = shards == shard
        labels[here] = read_offsets(index, int(shard))[rows[here], 2]
    return labels


def real_keeper(suite: Suite, labels: NDArray[np.int64] | None) -> Keep:
    def keep(features: Tensor, first: int) -> None:
        suite.add("real", features, first, None if labels is None else labels[first : first + len(features)])

    return keep


def compare(
    generator: SampleFn,
    real: RealStatistics | None,
    images: RealImages,
    config: EvaluationConfig,
    extractor: Extractor,
    team: Team,
    progress: Progress,
    suite: Suite,
    labels: LabelFn | None,
    in_class: DiversityInClass | None,
) -> tuple[FrechetDistance, FrechetDistance]:
    """Generated images against the real statistics, which process 0 brings: the metric with the states of all processes, and
    another at the counts of the floor, as that is to be held against it: of as many generated images as a half of the real
    ones, or of all where they are fewer, against the first half. `suite` gets the features too, and `in_class` the images."""
    distance, at_half = (FrechetDistance(extractor.width).to(extractor.device) for _ in range(2))
    if real is not None:
        distance.set_real(real.features_sum, real.features_squares, real.images)
        at_half.set_real(real.half_sum, real.half_squares, images.half)
    with team.as_one():
        for first, count in team.blocks(config.samples, at_once(generator, config.batch)):
            progress("generated images", first, config.samples)
            made, classes = generator(first, count), None if labels is None else labels(first, count)
            features = extractor(made)
            distance.update(features, real=False)
            if first < images.half:
                at_half.update(features[: images.half - first], real=False)
            suite.add("fake", features, first, classes)
            if in_class is not None and classes is not None:
                in_class.update(made, torch.from_numpy(classes), real=False)
    distance.sync()
    at_half.sync()
    counts = int(distance.fake_features_num_samples), int(distance.real_features_num_samples)
    assert counts == (config.samples, images.count), f"{counts} images were counted, not {config.samples} and {images.count}"
    return distance, at_half


def with_mifid(figures: dict[str, Any], distance: float) -> dict[str, Any]:
    factor = figures.pop("mifid_factor", None)
    return figures if factor is None else figures | {"mifid": distance * factor}


def similarity(
    generator: SampleFn,
    real: RealStatistics | None,
    images: RealImages,
    config: EvaluationConfig,
    team: Team,
    in_class: DiversityInClass | None,
) -> dict[str, Any]:
    """Collective: the largest SSIM of a few samples, how varied they are, and what that has to be seen beside.

    Process 0 has what is kept of the real images and looks at all; `in_class` has the generated images of all processes.
    """
    best, ours, theirs = similarity_metrics(images, config.wanted)
    with team.as_one():
        if real is not None and (best or ours):
            thumbs = torch.from_numpy(real.thumbnails)
            samples = generator(0, min(DIVERSITY_IMAGES, config.samples)).cpu()
            spread = np.linspace(0, len(thumbs) - 1, min(DIVERSITY_IMAGES, len(thumbs))).astype(np.int64)
            # The halves of images that are sorted by class would make no pair within a class.
            mixed = permute(np.arange(len(spread)), len(spread), len(spread), draw(0, PAIRED))
            shown = images.read_shown(spread[mixed])
            for match in best:
                match.update(samples[:SSIM_IMAGES], Gallery(thumbs, images.read_shown))
            for metric, looked_at in [(metric, samples) for metric in ours] + [(metric, shown) for metric in theirs]:
                metric.update(looked_at)
        if real is not None and in_class is not None:
            labels = labels_of(images.index, images.samples[images.shown])
            in_class.update(torch.from_numpy(real.thumbnails)[:, None], torch.from_numpy(labels), real=True)
    values: dict[str, Any] = {}
    for measured in (*best, *ours, *theirs, *([in_class] if in_class else [])):
        values |= {name: float(value) for name, value in measured.compute().items()}
    return values


def similarity_metrics(images: RealImages, wanted: Sequence[str]) -> tuple[list[BestMatch], list[Varied], list[Varied]]:
    """Of what `wanted` names and the size of the images allows: of samples and real images, of samples, of real images."""
    best: list[BestMatch] = []
    ours: list[Varied] = []
    theirs: list[Varied] = []
    if "ssim" in wanted:
        best += [BestMatch()] if images.has_ssim else []
        ours.append(Diversity())
        theirs.append(Diversity("diversity_real"))
    if "ms_ssim" in wanted and scales(images.index.height, images.index.width):
        best.append(BestMatch("ms_ssim_max", ms_ssim))
        ours.append(PairSimilarity())
        theirs.append(PairSimilarity("ms_ssim_pairs_real"))
    return best, ours, theirs


def show_closest(
    record: dict[str, Any],
    pairs: list[tuple[int, int, float]],
    generator: SampleFn,
    images: RealImages,
    pictures: Path | None,
) -> None:
    """Puts the pairs (generated, place of the real image, distance) into the record, which is complete but for them, and into a
    picture, `pictures` or in that folder beside the record's own file: samples above the training images that they are nearest
    to."""
    record["closest"] = [
        {"generated": made, "real": int(images.samples[place]), "distance": distance} for made, place, distance in pairs
    ]
    if pictures is not None:
        name = name_of(record | {"closest_picture": ""})
        path = pictures if pictures.suffix == ".png" else pictures / f"{name}-closest.png"
        samples = torch.cat([generator(made, 1).cpu() for made, _, _ in pairs])
        real = torch.cat([images.read(place, 1).cpu() for _, place, _ in pairs])
        with if_possible(f"{path}, the picture of the closest pairs,"):
            save_png(path, torch.cat([samples, real]).numpy(), len(pairs))
            record["closest_picture"] = path.name


def provenance(
    index: Index,
    held_out: Index | None,
    config: EvaluationConfig,
    extractor: Extractor,
    real: RealStatistics,
    processes: int,
) -> dict[str, Any]:
    kept_out = {} if held_out is None else {"held_out": held_out.samples, "held_out_sha256": held_out.sha256}
    notes: dict[str, Any] = {"real_unreadable": real.unreadable} if real.unreadable else {}
    if note := index.details.get("held_out_note"):
        notes["note"] = note
    return (
        kept_out
        | notes
        | {
            "generated": config.samples,
            "real": real.images,
            "floor_counts": list(real.floor_counts),
            "half_counts": [min(config.samples, real.floor_counts[1]), real.floor_counts[1]],
            "index_sha256": index.sha256,
            **extractor.provenance(processes),
        }
    )
