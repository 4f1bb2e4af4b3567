"""The interval of a Frechet distance covers what other samples give, and the extrapolation finds what endlessly many would."""

import numpy as np
import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation.frechet import FrechetDistance, Gaussian
from scalegan.evaluation.frechet_spread import FrechetSpread, extrapolated

WIDTH = 4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def points(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, WIDTH)) + shift)


def measured(real: torch.Tensor, fake: torch.Tensor, **options):
    metric = FrechetSpread(real.shape[1], **options)
    metric.update(real, real=True)
    for first in range(0, len(fake), 16):
        metric.update(fake[first : first + 16], real=False)
    return {name: float(value) for name, value in metric.compute().items()}


def distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def test_the_error_is_that_of_leaving_out_one_group_of_20():
    real, fake = points(300, 1), points(65, 2, shift=0.3)
    group = torch.arange(65) % 20
    without = np.array([distance(real, fake[group != number]) for number in range(20)])
    error = (19 * without.var()) ** 0.5
    found = measured(real, fake, infinity=False)
    whole = distance(real, fake)
    expected = {"fid_se": error, "fid_low": whole - 2.093 * error, "fid_high": whole + 2.093 * error}
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_the_mean_over_other_samples():
    real = points(4000, 1)
    samples = [points(200, 100 + seed, shift=0.2) for seed in range(400)]
    values = [distance(real, fake) for fake in samples]
    found = [measured(real, fake, infinity=False) for fake in samples]
    assert 0.92 <= np.mean([f["fid_low"] < np.mean(values) < f["fid_high"] for f in found]) <= 0.98
    assert np.mean([f["fid_se"] for f in found]) == pytest.approx(np.std(values), rel=0.2)


def test_without_a_true_distance_the_error_is_too_large_rather_than_too_small():
    real = points(4000, 1)
    samples = [points(200, 100 + seed) for seed in range(120)]
    found = [measured(real, fake, infinity=False) for fake in samples]
    values = [(f["fid_low"] + f["fid_high"]) / 2 for f in found]
    assert 1 < np.mean([f["fid_se"] for f in found]) / np.std(values) < 1.6
    assert np.mean([f["fid_low"] < np.mean(values) < f["fid_high"] for f in found]) >= 0.93


def test_the_extrapolation_finds_the_distance_of_the_gaussians_themselves():
    truth = 4 * 0.3**2
    found = [measured(points(50_000, 1), points(400, 10 + seed, shift=0.3), interval=False) for seed in range(12)]
    biased = np.mean([distance(points(50_000, 1), points(400, 10 + seed, shift=0.3)) for seed in range(12)])
    values = np.array([f["fid_infinity"] for f in found])
    error = values.std() / 12**0.5
    assert abs(values.mean() - truth) < 3 * error + 0.002
    assert biased - truth > 4 * abs(values.mean() - truth) - 4 * error
    assert np.mean([f["fid_infinity_slope"] for f in found]) > 0


def test_points_on_a_line_are_extrapolated_exactly():
    counts = torch.tensor([100.0, 200.0, 400.0], dtype=torch.float64)
    found = extrapolated(counts, 5 + 30 / counts)
    assert {name: float(v) for name, v in found.items()} == pytest.approx(
        {"fid_infinity": 5, "fid_infinity_slope": 30, "fid_infinity_r2": 1}
    )


def test_known_sums_stand_for_the_real_images():
    real, fake = points(300, 1), points(60, 2)
    known = FrechetSpread(WIDTH)
    known.update_sums(torch.tensor(300), real.sum(0), real.T @ real)
    known.update(fake, real=False)
    assert {n: float(v) for n, v in known.compute().items()} == pytest.approx(measured(real, fake), rel=1e-12)


def test_too_few_images_are_refused_with_the_number_needed():
    with pytest.raises(UserError, match="needs 40 generated images and was given 39"):
        measured(points(50, 1), points(39, 2), infinity=False)
    wide = torch.randn(120, 32, dtype=torch.float64)
    with pytest.raises(UserError, match="needs 128 generated images and was given 120"):
        measured(wide, wide)


def test_a_gaussian_of_sums_is_that_of_the_points():
    rows = points(50, 1)
    fitted = Gaussian.of_sums(rows.sum(0), rows.T @ rows, 50)
    assert torch.allclose(fitted.factor @ fitted.factor.T, rows.T.cov(), atol=1e-12)
    assert fitted.distance(fitted).abs() < 1e-12


@pytest.mark.parametrize("noise", [0.0, 1e-13])
def test_equal_distances_lie_on_a_level_line(noise):
    counts, distances = torch.arange(4.0, 20, dtype=torch.float64), torch.full((16,), 0.3, dtype=torch.float64)
    found = extrapolated(counts, distances + noise * torch.arange(16) % 3)
    assert found["fid_infinity_r2"] == 1
    assert found["fid_infinity"] == pytest.approx(0.3)
    assert extrapolated(counts, 0 * distances)["fid_infinity_r2"] == 1
