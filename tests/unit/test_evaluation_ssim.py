"""SSIM is torchmetrics' SSIM; each sample is held against the real images it is nearest to; diversity is plain spread."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from scalegan.evaluation.ms_ssim import WEIGHTS, ms_ssim, scales
from scalegan.evaluation.ssim import NEIGHBOURS, best_matches, diversity, measurable, nearest, ssim, thumbnails


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def images(n: int, channels: int = 3, height: int = 40, width: int = 30, seed: int = 0) -> torch.Tensor:
    """Smooth images with some noise: uint8 [n, channels, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 10 * torch.rand(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def test_an_image_is_wholly_similar_to_itself():
    assert ssim(images(3), images(3)) == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 30), (11, 64), (28, 28)], ids=str)
def test_equals_torchmetrics(channels, size):
    a, b = images(4, channels, *size), images(4, channels, *size, seed=1)
    b[1] = a[1] + 1  # one pair of near copies
    expected = structural_similarity_index_measure(a.double(), b.double(), data_range=255.0, reduction="none")
    assert ssim(a, b) == pytest.approx(expected.numpy(), abs=2e-5)


def test_memory_format_does_not_matter():
    a, b = images(2), images(2, seed=1)
    last = ssim(a.contiguous(memory_format=torch.channels_last), b.contiguous(memory_format=torch.channels_last))
    assert torch.equal(ssim(a, b), last)


def test_images_smaller_than_half_the_window_have_none():
    assert measurable(6, 300)
    assert torch.isfinite(ssim(images(1, 1, 6, 300), images(1, 1, 6, 300, seed=1))).all()
    assert not measurable(300, 5)


def test_thumbnails_are_areas_of_grey():
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 0, :2, :2] = 200  # red alone, in the four pixels of one area
    image[:, :, 2:4, :2] = torch.tensor([0, 100], dtype=torch.uint8)
    small = thumbnails(image)
    assert small.shape == (1, 32, 32)
    assert small[0, :3, 0].tolist() == [60, 50, 0]
    assert thumbnails(images(2, 1, 28, 20)).shape == (2, 32, 32)


def test_the_nearest_images_are_found_among_many():
    thumbs = thumbnails(images(6000, 1, 32, 32))
    wanted = [5999, 17]
    found = nearest(thumbs[wanted], thumbs)
    assert found.shape == (2, NEIGHBOURS)
    assert found[:, 0].tolist() == wanted
    brute = (thumbs[17].double() - thumbs.double()).square().sum((1, 2)).argsort()[:NEIGHBOURS]
    assert set(found[1].tolist()) == set(brute.tolist())


def test_the_best_match_of_a_copy_is_its_original():
    real = images(40)
    asked = []

    def read(places):
        asked.append(places)
        return real[torch.from_numpy(places)]

    best = best_matches(torch.stack([real[7], 255 - real[7]]), thumbnails(real), read)
    assert best[0] == pytest.approx(1, abs=1e-6)
    assert best[1] < 0.5
    assert [len(places) for places in asked] == [NEIGHBOURS, NEIGHBOURS]
    assert asked[0].dtype == np.int64


def test_fewer_real_images_than_neighbours_are_all_looked_at():
    real = images(3)
    assert best_matches(real[:1], thumbnails(real), lambda places: real[torch.from_numpy(places)])[0] == pytest.approx(1)


def test_diversity_is_the_mean_difference_in_grey_levels():
    black, grey, white = (torch.full((1, 32, 32), level, dtype=torch.uint8) for level in (0, 100, 250))
    assert diversity(torch.cat([grey, grey])) == 0
    assert diversity(torch.cat([black, grey, white])) == pytest.approx((100 + 250 + 150) / 3)


@pytest.mark.parametrize("size", [(48, 64), (100, 104)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_similarity_at_several_scales_is_that_of_torchmetrics(channels, size):
    a, b = images(3, channels, *size), images(3, channels, *size, seed=1)
    b[1] = a[1] + 1
    weights = np.array(WEIGHTS[: scales(*size)])
    betas = tuple(weights * sum(WEIGHTS) / weights.sum())
    expected = multiscale_structural_similarity_index_measure(
        a.double(), b.double(), data_range=255.0, betas=betas, normalize="relu", reduction="none"
    )
    assert ms_ssim(a, b) == pytest.approx(expected.numpy(), abs=5e-5)


def test_small_images_have_fewer_scales():
    assert [scales(side, 400) for side in (10, 11, 22, 28, 64, 100, 176, 500)] == [0, 1, 2, 2, 3, 4, 5, 5]
    assert ms_ssim(images(2, 1, 28, 28), images(2, 1, 28, 28)) == pytest.approx([1, 1], abs=1e-5)
