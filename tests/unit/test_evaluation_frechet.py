"""The Frechet distance of two sets of features is the one its formula gives, to the last digits, however they were summed."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from scalegan.errors import UserError
from scalegan.evaluation.frechet import FrechetDistance, frechet_distance, pivoted_cholesky, root


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def features(n: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """float32 [n, width] with a falling spectrum, as features of networks have it."""
    generator = np.random.default_rng(seed)
    scales = np.arange(1, width + 1) ** -0.6
    mixing = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    return torch.from_numpy(((generator.normal(size=(n, width)) * scales) @ mixing + 0.4 + shift).astype(np.float32))


def measured(real: torch.Tensor, fake: torch.Tensor, part: int = 16) -> FrechetDistance:
    metric = FrechetDistance(real.shape[1])
    for first in range(0, len(real), part):
        metric.update(real[first : first + part], real=True)
    for first in range(0, len(fake), part):
        metric.update(fake[first : first + part], real=False)
    return metric


def exact(a: torch.Tensor, b: torch.Tensor) -> float:
    """From the points themselves: no covariance, so no eigenvalue that is only rounding."""
    a, b = a.double(), b.double()
    x, y = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * overlap)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_refused(value):
    broken = features(10, 4, seed=1)
    broken[3, 2] = value
    with pytest.raises(UserError, match="features of fake images hold NaN or infinity"):
        measured(features(10, 4, seed=2), broken).compute()


def test_a_set_is_at_no_distance_from_itself():
    same = features(50, 24, seed=1)
    assert abs(measured(same, same).compute()) < 1e-12


def test_gaussians_with_diagonal_covariances_have_the_distance_of_the_textbook():
    variances_a, variances_b = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    means = torch.arange(6, dtype=torch.float64)
    distance = frechet_distance(means, variances_a.diag(), 1000, means + 1, variances_b.diag(), 1000)
    expected = 6 + (variances_a.sqrt() - variances_b.sqrt()).square().sum()
    assert distance.item() == pytest.approx(expected.item(), rel=1e-12)


def test_gaussians_with_commuting_covariances_have_the_distance_of_the_textbook():
    generator = torch.Generator().manual_seed(0)
    variances = torch.rand(2, 6, dtype=torch.float64, generator=generator) + 0.1
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    a, b = (turn @ v.diag() @ turn.T for v in variances)
    distance = frechet_distance(torch.zeros(6).double(), a, 1000, torch.ones(6).double(), b, 1000)
    expected = 6 + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    assert distance.item() == pytest.approx(expected.item(), rel=1e-10)


def test_covariances_over_n_as_stylegan_takes_them_make_their_part_smaller_by_n_minus_1_over_n():
    real, fake = features(40, 24, seed=1), features(40, 24, seed=2, shift=0.02)
    metric = measured(real, fake)
    (mean_a, cov_a, n), (mean_b, cov_b, _) = metric.moments(real=True), metric.moments(real=False)
    of_means = (mean_a - mean_b).square().sum()
    theirs = frechet_distance(mean_a, real.double().T.cov(correction=0), n, mean_b, fake.double().T.cov(correction=0), n)
    assert theirs.item() == pytest.approx(float(of_means + 39 / 40 * (metric.compute() - of_means)), rel=1e-10)
    assert torch.allclose(cov_a, real.double().T.cov())
    assert torch.allclose(cov_b, fake.double().T.cov())


@pytest.mark.parametrize(("n", "m", "said"), [(1, 9, "2 real images and was given 1"), (9, 0, "2 fake images and was given 0")])
def test_one_image_has_no_covariance(n, m, said):
    with pytest.raises(UserError, match=said):
        measured(features(n, 24, seed=1), features(m, 24, seed=2)).compute()


@pytest.mark.parametrize(("n", "m"), [(20, 30), (40, 30), (20, 300), (40, 300), (300, 400), (2, 2)], ids=str)
def test_fewer_images_than_features_are_as_exact_as_many(n, m):
    real, fake = features(n, 64, seed=1), features(m, 64, seed=2, shift=0.02)
    assert measured(real, fake).compute().item() == pytest.approx(exact(real, fake), rel=1e-9)


def test_copies_of_a_few_images_are_exact_too():
    real, fake = features(200, 64, seed=1), features(5, 64, seed=2).repeat(50, 1)
    assert measured(real, fake).compute().item() == pytest.approx(exact(real, fake), rel=1e-9)


def test_torchmetrics_gives_the_same_from_the_same_sums_but_for_its_rounding():
    metric = measured(features(300, 32, seed=1), features(200, 32, seed=2, shift=0.1))
    assert metric.compute().item() == pytest.approx(FrechetInceptionDistance.compute(metric).item(), rel=1e-5)
    assert isinstance(metric, FrechetInceptionDistance)


def test_the_order_of_the_batches_does_not_matter():
    real, fake = features(80, 64, seed=1), features(90, 64, seed=2)
    forwards = measured(real, fake, part=8).compute().item()
    backwards = measured(real.flip(0), fake.flip(0), part=13).compute().item()
    assert forwards == pytest.approx(backwards, rel=1e-12)


def test_a_root_has_no_more_columns_than_the_points_have_directions():
    covariance = features(10, 64, seed=1).double().T.cov()
    factor = root(covariance, 10)
    assert factor.shape == (64, 9)
    assert torch.allclose(factor @ factor.T, covariance, atol=1e-14)
    assert root(torch.zeros(4, 4, dtype=torch.float64), 9).abs().max() == 0


@pytest.mark.parametrize(("distinct", "repeats"), [(12, 1), (4, 3)])
def test_a_pivoted_factor_ends_where_the_points_have_no_more_directions(distinct, repeats):
    covariance = features(distinct, 64, seed=1).double().repeat(repeats, 1).T.cov()
    factor = pivoted_cholesky(covariance, distinct * repeats - 1)
    assert factor.shape == (64, distinct - 1)
    assert torch.allclose(factor @ factor.T, covariance, rtol=0, atol=1e-14)
    assert pivoted_cholesky(torch.zeros(64, 64, dtype=torch.float64), 9).abs().max() == 0


def test_with_indices_an_image_that_comes_twice_is_refused():
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    values = []
    for indices in (None, torch.tensor([5, 0, 3, 1, 4, 2]), torch.tensor([0, 1, 2, 3, 4, 0])):
        metric = FrechetDistance(3)
        metric.update(rows, real=True)
        for part in (slice(0, 4), slice(4, 6)):
            metric.update(rows[part] + 1, real=False, indices=None if indices is None else indices[part])
        if indices is None or len(set(indices.tolist())) == 6:
            values.append(float(metric.compute()))
    assert values[0] == values[1] > 2
    with pytest.raises(UserError, match="the 6 fake images are not each there once: give update"):
        metric.compute()
