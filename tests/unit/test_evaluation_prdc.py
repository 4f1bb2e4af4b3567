"""Precision, recall, density and coverage: the definitions one by one, and what becomes of them where classes are dropped."""

import numpy as np
import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation.prdc import PrecisionRecall


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def points(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)) + shift


def measured(real: np.ndarray, fake: np.ndarray, k: int = 5):
    metric = PrecisionRecall(k)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    return {name: float(value) for name, value in metric.compute().items()}


def brute(real: np.ndarray, fake: np.ndarray, k: int):
    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    radii = [np.sort(distances(side, side), axis=1)[:, k] for side in (real, fake)]  # the 0-th nearest is the image itself
    between = distances(real, fake)
    in_real = between < radii[0][:, None]
    return {
        "precision": in_real.any(0).mean(),
        "recall": (between < radii[1]).any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": (between.min(1) < radii[0]).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(60, 50), (20, 70)])
def test_are_those_of_the_definitions(n, m, k):
    real, fake = points(n, 4, 1), points(m, 4, 2, shift=0.5)
    assert measured(real, fake, k) == pytest.approx(brute(real, fake, k), abs=1e-15)


def test_the_same_images_have_all_and_far_ones_nothing():
    real = points(50, 4, 1)
    same = measured(real, real)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert measured(real, real + 100) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_dropped_classes_cost_recall_and_coverage_and_no_precision():
    centres = 20 * np.eye(4, 8)

    def drawn(classes, n, seed):
        labels = np.random.default_rng(seed).integers(0, classes, n)
        return centres[labels] + points(n, 8, seed)

    real, all_of_them = drawn(4, 400, 1), measured(drawn(4, 400, 1), drawn(4, 400, 2))
    two = measured(real, drawn(2, 400, 3))
    assert two["precision"] > all_of_them["precision"] - 0.05
    assert two["recall"] < 0.6 * all_of_them["recall"]
    assert two["coverage"] < 0.6 * all_of_them["coverage"]


def test_a_tie_is_outside_whatever_rounding_says():
    """Copies of a real image lie at the very edge of the balls that reach to it."""
    rows = points(40, 16, 1) * 1e3
    copies = rows[:10]
    with_noise = measured(rows, copies * (1 + 1e-16), k=3)
    assert with_noise == measured(rows, copies, k=3)
    line = np.arange(12.0)[:, None]  # every distance is a tie
    assert measured(line, line[3:9] + 0.0, k=2)["coverage"] == 6 / 12


def test_an_outlier_among_the_samples_raises_recall_but_not_coverage():
    real, fake = points(100, 4, 1), points(30, 4, 2) * 0.01
    far = np.concatenate([fake, points(6, 4, 3) * 50])
    assert measured(real, far)["recall"] > measured(real, fake)["recall"] + 0.5
    assert measured(real, far)["coverage"] == pytest.approx(measured(real, fake)["coverage"], abs=0.05)


def test_as_many_images_as_neighbours_are_refused_with_the_number_needed():
    with pytest.raises(UserError, match="needs 6 generated images and was given 5"):
        measured(points(9, 4, 1), points(5, 4, 2))
