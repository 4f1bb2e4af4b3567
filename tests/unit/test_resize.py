"""Resizing by matrices against torch's own operators."""

import pytest
import torch
from torch.nn import functional as F

from scalegan.models.resize import Resize, area, linear

SIZES = [((8, 8), (4, 4)), ((7, 6), (4, 4)), ((5, 4), (14, 9)), ((33, 47), (9, 12)), ((28, 28), (28, 224)), ((5, 5), (5, 5))]


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_linear_is_torchs_smoothed_interpolation(size, target):
    images = torch.randn(2, 3, *size)
    expected = F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(Resize(size, target, linear)(images), expected, rtol=0, atol=2e-6)


def test_area_is_average_pooling_where_sizes_divide():
    images = torch.randn(2, 3, 16, 12)
    torch.testing.assert_close(Resize((16, 12), (4, 4), area)(images), F.adaptive_avg_pool2d(images, 4))


@pytest.mark.parametrize(("size", "target"), [(7, 4), (13, 4), (4, 4), (5, 9)])
def test_in_an_area_every_pixel_counts_alike(size, target):
    matrix = area(size, target)
    torch.testing.assert_close(matrix.sum(1), torch.ones(target))
    torch.testing.assert_close(matrix.sum(0), torch.full((size,), target / size))
    assert matrix.min() >= 0
