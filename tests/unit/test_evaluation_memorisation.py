"""Planted copies of training images are found, a generator of new images is not accused, and each figure is its paper's."""

import numpy as np
import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation.cells import rank_test
from scalegan.evaluation.memorisation import Memorisation, MemorisationInformedDistance

WIDTH = 8


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


TRAINING, HELD_OUT, NEW = points(400, 1), points(300, 2), points(300, 3)


def with_copies(share: float, noise: float = 0.0) -> np.ndarray:
    """Samples of which that share are training images, in an order of their own."""
    copies = round(share * len(NEW))
    made = NEW.copy()
    made[:copies] = TRAINING[10 : 10 + copies] + noise * points(copies, 4)
    return made[np.random.default_rng(0).permutation(len(made))]


def measured(fake: np.ndarray, training: np.ndarray = TRAINING, held_out: np.ndarray = HELD_OUT):
    metric = Memorisation()
    for side, rows in (("real", training), ("held_out", held_out), ("fake", fake)):
        metric.update(torch.from_numpy(rows), side)
    return metric.compute()


def test_new_images_are_like_held_out_ones():
    found = measured(NEW)
    assert found["authenticity"] == pytest.approx(float(found["authenticity_held_out"]), abs=0.12)
    assert abs(found["c_t"]) < 3
    assert found["near_copies"] < 0.12
    assert found["near_copies_held_out"] <= 0.05
    assert found["nearest_training"] == pytest.approx(float(found["nearest_training_held_out"]), rel=0.1)
    assert found["nearer_to_training"] == pytest.approx(found["nearer_to_training_expected"], abs=0.1)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("noise", [0.0, 1e-3], ids=["exact", "nearly"])
def test_copies_of_a_few_training_images_are_found(share, noise):
    clean, found = measured(NEW), measured(with_copies(share, noise))
    shown = [distance for _, _, distance in found["closest"]]
    assert sum(distance < 0.05 for distance in shown) == min(8, round(share * len(NEW)))
    assert found["near_copies"] >= share * 0.99
    assert found["near_copies"] == pytest.approx(share + (1 - share) * float(clean["near_copies"]), abs=0.02)
    assert clean["authenticity"] - found["authenticity"] > 0.3 * share
    assert found["c_t"] < clean["c_t"]
    assert found["c_t"] < -2 or share < 0.2


def test_the_closest_pairs_name_both_images():
    found = measured(with_copies(0.01))
    order = np.random.default_rng(0).permutation(len(NEW))
    expected = {(int(np.flatnonzero(order == i)[0]), 10 + i, 0.0) for i in range(3)}
    assert set(found["closest"][:3]) == expected
    assert found["closest"][3][2] > 0.1


def test_authenticity_is_the_papers():
    real, fake = TRAINING[:50].astype(np.float64), NEW[:40].astype(np.float64)
    own = np.linalg.norm(real[:, None] - real[None], axis=2) + 1e9 * np.eye(50)
    between = np.linalg.norm(fake[:, None] - real[None], axis=2)
    expected = np.mean(between.min(1) > own.min(1)[between.argmin(1)])
    assert measured(fake, real)["authenticity"] == pytest.approx(expected, abs=1e-15)


def test_distances_are_medians_to_the_nearest_image():
    found = measured(NEW)
    for name, side in (("nearest_training", TRAINING), ("nearest_held_out", HELD_OUT)):
        expected = np.median(np.linalg.norm(NEW[:, None].astype(np.float64) - side[None], axis=2).min(1))
        assert found[name] == pytest.approx(expected, rel=1e-9)


def test_the_rank_test_counts_pairs():
    a, b = np.array([1.0, 4.0, 4.0, 9.0]), np.array([0.0, 4.0, 7.0])
    u = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
    expected = (u - 6) / (4 * 3 * 8 / 12) ** 0.5
    assert rank_test(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-12)


def test_the_statistic_is_a_standard_normal_where_nothing_is_copied():
    values = [float(measured(points(150, 100 + s), held_out=points(150, 300 + s))["c_t"]) for s in range(25)]
    assert abs(np.mean(values)) < 1.2  # one set of training images for all of them, which shifts them together
    assert max(map(abs, values)) < 4


def test_copying_in_one_cell_alone_is_seen():
    """Two far clusters: in one the samples are copies, in the other they are far from training images."""
    shift = np.zeros(WIDTH, np.float32)
    shift[0] = 60
    training = np.concatenate([points(200, 1), points(200, 2) + shift])
    held_out = np.concatenate([points(200, 3), points(40, 4) + shift])
    fake = np.concatenate([training[:100], 3 * points(100, 5) + shift])
    found = measured(fake, training, held_out)
    assert found["c_t"] < -3
    assert found["c_t_cells"] >= 2


def test_mifid_goes_from_samples_to_training_images():
    """torchmetrics' other direction gives a generator that copies 20 of 400 images a large distance."""
    metric = MemorisationInformedDistance()
    metric.update(torch.from_numpy(TRAINING), real=True)
    metric.update(torch.from_numpy(TRAINING[:20]), real=False)
    found = metric.compute()
    assert found["memorisation_distance"] == 0
    assert found["mifid_factor"] > 1e13
    new = MemorisationInformedDistance()
    new.update(torch.from_numpy(TRAINING), real=True)
    new.update(torch.from_numpy(-NEW), real=False)
    cosines = (NEW @ TRAINING.T) / np.linalg.norm(NEW, axis=1)[:, None] / np.linalg.norm(TRAINING, axis=1)
    expected = np.mean(1 - np.abs(cosines).max(1))
    assert new.compute()["memorisation_distance"] == pytest.approx(expected, rel=1e-5)
    assert new.compute()["mifid_factor"] == pytest.approx(1 / expected if expected < 0.1 else 1.0, rel=1e-5)


def test_too_few_images_are_refused_with_the_number_needed():
    with pytest.raises(UserError, match="needs 20 held-out images and was given 19"):
        measured(NEW, held_out=HELD_OUT[:19])
    with pytest.raises(UserError, match="needs 20 generated images and was given 3"):
        measured(NEW[:3])


@pytest.mark.parametrize("share", [0.05, 0.1, 1.0])
def test_copies_are_counted_where_held_out_images_are_copies_too(share):
    held_out = HELD_OUT.copy()
    held_out[: round(share * len(held_out)) + 1] = TRAINING[: round(share * len(held_out)) + 1][: len(held_out)]
    copies = measured(TRAINING[50:350], held_out=held_out)
    assert copies["near_copies"] == 1
    assert copies["near_copies_held_out"] == pytest.approx(share, abs=0.01)
    assert copies["near_copies_distance"] == 0
    assert measured(NEW, held_out=held_out)["near_copies"] == 0
