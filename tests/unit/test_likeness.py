"""How alike samples are: to each other, and to training images, beside what training images are."""

import json

import numpy as np
import pytest
import torch

from helpers.runs import configured
from scalegan.data.loader import Batch
from scalegan.evaluation.class_diversity import ClassSums
from scalegan.evaluation.ssim import distances, thumbnails
from scalegan.likeness import Likeness, to_nearest_other


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def likeness_of(images: torch.Tensor, first: int = 0, labels: torch.Tensor | None = None) -> Likeness:
    """Training images are numbered from `first`."""
    classes = torch.full((len(images),), -1) if labels is None else labels

    def read(numbers: np.ndarray) -> Batch:
        rows = torch.from_numpy(numbers - first)
        return Batch(images[rows], classes[rows])

    return Likeness(np.arange(first, first + len(images)), read, 0 if labels is None else int(labels.max()) + 1)


def test_the_distance_is_in_grey_levels():
    dark, bright = torch.full((2, 32, 32), 10, dtype=torch.uint8), torch.full((3, 32, 32), 50, dtype=torch.uint8)
    assert distances(dark, bright).tolist() == [[40.0] * 3] * 2


def test_copies_are_found_with_their_numbers():
    real = noise(300)
    record = likeness_of(real, first=1000).record(real[[7, 299]])
    assert record["nearest_images"] == [1007, 1299]
    assert record["nearest_train"] == pytest.approx(0, abs=1e-3)
    assert record["compared"] == 300


def test_samples_as_good_as_training_images_stand_beside_them():
    record = likeness_of(noise(300)).record(noise(64, seed=1))
    for name in ("diversity", "nearest_sample", "nearest_train"):
        assert record[name] == pytest.approx(record[f"{name}_real"], rel=0.03)


def test_one_picture_over_and_over_has_no_diversity():
    record = likeness_of(noise(100)).record(noise(1, seed=1).expand(16, -1, -1, -1))
    assert record["diversity"] == pytest.approx(0, abs=1e-3)
    assert record["diversity_real"] > 100


def test_two_pictures_in_turn_are_diverse_and_yet_twins():
    record = likeness_of(noise(100)).record(noise(2, seed=1).repeat(8, 1, 1, 1))
    assert record["diversity"] > record["diversity_real"] / 2
    assert record["nearest_sample"] == pytest.approx(0, abs=1e-3)


def classes_of_a_kind(count: int, classes: int, seed: int) -> torch.Tensor:
    """Grey noise around a level of its own for each class, in turn."""
    levels = torch.linspace(0, 200, classes).repeat(count // classes).view(-1, 1, 1, 1)
    return (levels + noise(count, seed) % 50).to(torch.uint8)


def test_one_picture_a_class_is_seen_within_the_classes_alone():
    labels = torch.arange(120) % 3
    likeness = likeness_of(classes_of_a_kind(120, 3, seed=0), labels=labels)
    good = likeness.record(classes_of_a_kind(24, 3, seed=1), labels[:24])
    assert good["diversity_in_class"] == pytest.approx(good["diversity_in_class_real"], rel=0.03)
    one_each = likeness.record(classes_of_a_kind(3, 3, seed=1).repeat(8, 1, 1, 1), labels[:24])
    assert one_each["diversity"] > 0.9 * one_each["diversity_real"]
    assert one_each["diversity_in_class"] == 0


def test_without_two_of_a_class_nothing_is_said_of_classes():
    likeness = likeness_of(noise(8), labels=torch.arange(8))
    assert "diversity_in_class" not in likeness.record(noise(8, 1), torch.arange(8))
    assert "diversity_in_class" not in likeness_of(noise(8)).record(noise(8, 1))


def test_a_class_without_training_images_is_left_out():
    labels = torch.tensor([0, 0, 2, 2])
    images = noise(4)
    record = likeness_of(images, labels=labels).record(noise(6, 1), torch.arange(6) % 3)
    pairs = ClassSums.of(thumbnails(images), labels, 3).diversity()
    assert record["diversity_in_class_real"] == pytest.approx(float(pairs[[0, 2]].mean()))


def test_an_image_is_not_its_own_neighbour():
    thumbs = thumbnails(noise(5))
    assert to_nearest_other(thumbs, 2) > 50


def test_every_sample_grid_leaves_a_line(training, shards, tmp_path):
    training(configured(shards, tmp_path, 96, **{"log.samples": 64}))
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == [64, 96]
    assert {(line["samples"], line["compared"]) for line in lines} == {(16, 200)}
    assert all(len(line["nearest_images"]) == len(line["nearest_distances"]) == 16 for line in lines)
