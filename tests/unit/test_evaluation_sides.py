"""Images that lie in a folder or in shards are compared in an order of their own, not in that of their names."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_evaluation_evaluator import Areas

from helpers.shards import png
from scalegan.config import DataConfig
from scalegan.data.writer import Sample, write_shards
from scalegan.evaluation import sides
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.folder import read_folder
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")
OF_A_CLASS = 80
PERIOD = 20
"""Groups of an interval, into which images are dealt by number."""


def pictures(seed: int) -> NDArray[np.uint8]:
    """uint8 [2 * OF_A_CLASS, 16, 16, 3]: dark noise, then bright stripes."""
    rng = np.random.default_rng(seed)
    dark = rng.integers(0, 60, (OF_A_CLASS, 16, 16, 3))
    bright = np.zeros_like(dark)
    for image in bright:
        image[:: int(rng.integers(2, 8))] = rng.integers(150, 255, 3)
    return np.concatenate([dark, bright]).astype(np.uint8)


def save(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


def orders(count: int) -> dict[str, NDArray[np.int64]]:
    """By name, and where neighbours or every twentieth image are alike."""
    by_class = np.arange(count)
    return {
        "mixed": np.random.default_rng(0).permutation(count),
        "by class": by_class,
        "in turn": by_class.reshape(PERIOD, -1).T.ravel(),
    }


def measured(images: sides.Index, real: sides.Index, cache: Path, metrics: str, **changes: int) -> dict[str, float]:
    config = EvaluationConfig(samples=images.samples, metrics=metrics, **changes)
    extractor = Extractor("areas", Areas(), "no weights", CPU, 8)
    with ExitStack() as stack:
        made = sides.found_in(images, config.samples, stack)
        comparison = sides.Comparison(real, config, extractor, Team(), CPU, cache, DataConfig(), None, None)
        return comparison.measure(made, lambda *_: None)


@pytest.mark.parametrize("order", ["by class", "in turn"])
def test_figures_do_not_depend_on_the_names_of_files(tmp_path, order):
    torch.set_num_threads(1)
    made = pictures(1)
    real = read_folder(save(tmp_path / "real", pictures(2)), "")
    found = {}
    for name in ("mixed", order):
        folder = read_folder(save(tmp_path / name, made[orders(len(made))[name]]), "")
        found[name] = measured(folder, real, tmp_path / "cache", "ssim,ms_ssim,interval")
    mixed, ordered = found["mixed"], found[order]
    assert ordered["fd_areas"] == pytest.approx(mixed["fd_areas"], rel=1e-9)
    for name in ("fd_areas_half", "fd_areas_se", "diversity", "ssim_max", "ms_ssim_max", "ms_ssim_pairs"):
        assert ordered[name] == pytest.approx(mixed[name], rel=0.5), name


def test_pairs_of_real_images_do_not_depend_on_the_names_of_files(tmp_path):
    torch.set_num_threads(1)
    made, real = read_folder(save(tmp_path / "made", pictures(1)), ""), pictures(2)
    found = []
    for name, order in orders(len(real)).items():
        folder = read_folder(save(tmp_path / name, real[order]), "")
        found.append(measured(made, folder, tmp_path / "cache", "ms_ssim")["ms_ssim_pairs_real"])
    assert max(found) < 4 * min(found)  # 25 times, were the pairs made in the order of the names


def test_shards_in_the_order_of_their_classes_are_compared_in_another(tmp_path):
    made = pictures(1)
    samples = [Sample(png(image), "png", int(number >= OF_A_CLASS)) for number, image in enumerate(made)]
    index = write_shards(samples, tmp_path / "shards", height=16, width=16, channels=3, classes=("dark", "bright"))
    with ExitStack() as stack:
        side = sides.found_in(index, index.samples, stack)
        read, labels = side.sample(0, 40), side.labels(0, 40)
    assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), made[side.numbers[:40]])
    assert np.array_equal(labels, side.numbers[:40] >= OF_A_CLASS)
    assert 10 < labels.sum() < 30


def test_a_part_is_of_the_same_images_however_they_are_ordered(tmp_path):
    index = read_folder(save(tmp_path / "made", pictures(1)), "")
    with ExitStack() as stack:
        few, more, whole = (sides.found_in(index, wanted, stack).numbers.tolist() for wanted in (30, 50, 160))
    assert set(few) < set(more) < set(whole) == set(range(160))


def test_the_closest_images_are_named_by_their_place_in_the_folder(tmp_path):
    torch.set_num_threads(1)
    made, theirs = pictures(1), pictures(2)
    made[137] = theirs[11]
    index, real = (read_folder(save(tmp_path / name, images), "") for name, images in (("made", made), ("real", theirs)))
    config = EvaluationConfig(samples=index.samples, metrics="memorisation")
    extractor = Extractor("areas", Areas(), "no weights", CPU, 8)
    held_out = read_folder(save(tmp_path / "held_out", pictures(3)), "")
    with ExitStack() as stack:
        side = sides.found_in(index, config.samples, stack)
        comparison = sides.Comparison(real, config, extractor, Team(), CPU, tmp_path / "cache", DataConfig(), held_out, None)
        record = comparison.measure(side, lambda *_: None)
    assert (record["closest"][0]["generated"], record["closest"][0]["real"]) == (137, 11)
