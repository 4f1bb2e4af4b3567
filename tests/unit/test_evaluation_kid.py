"""The Kernel distance is the estimate of the paper, its error covers what it should, and its older form draws known subsets."""

import numpy as np
import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation import pairs, team
from scalegan.evaluation.kid import KernelDistance, SubsetKernelDistance


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def points(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)) + shift


def measured(real: np.ndarray, fake: np.ndarray, metric=None):
    metric = metric or KernelDistance()
    for side, rows in ((True, real), (False, fake)):
        for first in range(0, len(rows), 32):
            metric.update(torch.from_numpy(rows[first : first + 32]), real=side)
    return {name: float(value) for name, value in metric.compute().items()}


def brute(real: np.ndarray, fake: np.ndarray) -> float:
    """The mean of k over all pairs of different images, one by one."""

    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(rows):
        return np.mean([k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])

    return within(real) + within(fake) - 2 * np.mean([k(x, y) for x in real for y in fake])


def test_is_the_mean_over_all_pairs():
    real, fake = points(23, 6, 1), points(17, 6, 2, shift=0.3)
    assert measured(real, fake)["kid"] == pytest.approx(brute(real, fake), rel=1e-12)


def test_the_error_is_that_of_leaving_out_one_image_at_a_time():
    real, fake = points(9, 4, 1), points(7, 4, 2, shift=0.5)
    variance = 0.0
    for side, n in ((0, len(real)), (1, len(fake))):
        without = []
        for i in range(n):
            parts = [real, fake]
            parts[side] = np.delete(parts[side], i, axis=0)
            without.append(brute(*parts))
        variance += (n - 1) * np.var(without)
    assert measured(real, fake)["kid_se"] == pytest.approx(variance**0.5, rel=1e-10)


def test_blocks_do_not_matter(monkeypatch):
    real, fake = points(23, 6, 1), points(17, 6, 2, shift=0.3)
    whole = measured(real, fake)
    monkeypatch.setattr(team, "VISITING", 5)
    monkeypatch.setattr(pairs, "OWN", 4)
    assert measured(real, fake) == pytest.approx(whole, rel=1e-12)


def test_no_bias_at_few_images_and_the_interval_covers_the_truth():
    """Of N(0, I) and N(s, I) it is known: E k is a polynomial of the moments of both sides."""
    width, shift = 16, 0.5
    s, eye = np.full(width, shift), np.eye(width)
    third = np.einsum("i,j,k->ijk", s, s, s)
    for letters in ("ij,k", "ik,j", "jk,i"):
        third += np.einsum(f"{letters}->ijk", eye, s)
    truth = 3 * (s @ s) / width + 3 * (np.outer(s, s) ** 2).sum() / width**2 + (third**2).sum() / width**3
    results = [measured(points(80, width, seed), points(100, width, 5000 + seed, shift)) for seed in range(150)]
    values, errors = (np.array([r[name] for r in results]) for name in ("kid", "kid_se"))
    assert abs(values.mean() - truth) < 3 * values.std() / 150**0.5
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    assert 0.91 <= np.mean(np.abs(values - truth) < 1.96 * errors) <= 0.99


def test_two_halves_of_one_thing_are_at_zero_within_the_error():
    results = [measured(points(40, 3, seed), points(40, 3, 500 + seed)) for seed in range(100)]
    covered = np.mean([abs(r["kid"]) < 1.96 * r["kid_se"] for r in results])
    assert covered >= 0.9
    assert min(r["kid"] for r in results) < 0 < max(r["kid"] for r in results)


def test_subsets_are_those_of_torch_fidelity():
    real, fake = points(30, 5, 1), points(26, 5, 2, shift=0.3)
    draws, values = np.random.RandomState(2020), []
    for _ in range(4):
        of_fake, of_real = draws.choice(26, 12, replace=False), draws.choice(30, 12, replace=False)
        values.append(brute(real[of_real], fake[of_fake]))
    found = measured(real, fake, SubsetKernelDistance(subset_size=12, subsets=4))
    assert found == pytest.approx({"kid_subsets": np.mean(values), "kid_subsets_sd": np.std(values)}, rel=1e-10)


def test_images_are_put_in_the_order_of_their_indices():
    real, fake = points(20, 5, 1), points(20, 5, 2)
    order = np.random.default_rng(0).permutation(20)
    mixed = SubsetKernelDistance(subset_size=8, subsets=3)
    mixed.update(torch.from_numpy(real[order]), True, torch.from_numpy(order))
    mixed.update(torch.from_numpy(fake), False)
    straight = measured(real, fake, SubsetKernelDistance(subset_size=8, subsets=3))
    assert {name: float(value) for name, value in mixed.compute().items()} == pytest.approx(straight, rel=1e-12)


def test_too_few_and_repeated_images_are_refused():
    with pytest.raises(UserError, match="KernelDistance needs 3 generated images and was given 2"):
        measured(points(5, 3, 0), points(2, 3, 1))
    with pytest.raises(UserError, match="needs 1000 real images and was given 5"):
        measured(points(5, 3, 0), points(5, 3, 1), SubsetKernelDistance())
    # The second has the sum and the squares of 0 to 7.
    for indices in ([0, 1, 2, 2], [0, 1, 1, 4, 5, 5, 6, 6]):
        metric = KernelDistance()
        metric.update(torch.from_numpy(points(len(indices), 3, 0)), True, torch.tensor(indices))
        metric.update(torch.from_numpy(points(4, 3, 0)), False)
        with pytest.raises(UserError, match=f"the {len(indices)} real images are not each there once"):
            metric.compute()
