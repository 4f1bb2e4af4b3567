"""Random numbers are functions of (seed, purpose, sample index): the specification of `scalegan.random`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegan import random

DRAWS = {
    "uniform": lambda first, count: random.uniform(3, "here", first, count, 5),
    "normal": lambda first, count: random.normal(3, "here", first, count, 7),
    "choice": lambda first, count: random.choice(3, "here", first, count, np.array([1, 2, 3])),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_sample_gets_the_same_numbers_in_every_slice(draw):
    whole = draw(1000, 64)
    for first, count in ((1000, 16), (1016, 40), (1063, 1)):
        np.testing.assert_array_equal(draw(first, count), whole[first - 1000 : first - 1000 + count])


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 2**45), width=st.integers(1, 20), count=st.integers(1, 30), cut=st.integers(0, 30))
def test_slices_join_anywhere_at_any_width(first, width, count, cut):
    cut = min(cut, count)
    whole = random.bits(0, "p", first, count, width)
    parts = [random.bits(0, "p", first, cut, width), random.bits(0, "p", first + cut, count - cut, width)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_seeds_and_purposes_differ():
    one = random.uniform(0, "a", 0, 8, 4)
    assert not np.isin(one, random.uniform(1, "a", 0, 8, 4)).any()
    assert not np.isin(one, random.uniform(0, "b", 0, 8, 4)).any()


def test_normal_numbers_are_normal():
    z = random.normal(0, "latents", 0, 4000, 33)
    assert z.dtype == np.float32
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.05
    correlations = np.corrcoef(z.T) - np.eye(33)
    assert np.abs(correlations).max() < 0.08


def test_uniform_numbers_never_reach_0_or_1():
    u = random.uniform(0, "u", 0, 10_000, 4)
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01


def test_choices_follow_the_weights():
    weights = np.array([1, 0, 3])
    counts = np.bincount(random.choice(0, "labels", 0, 20_000, weights), minlength=3)
    np.testing.assert_allclose(counts / 20_000, weights / 4, atol=0.01)
    assert counts[1] == 0


def test_numbers_stay_what_they_are():
    """A golden value: a change here changes every run in the world."""
    assert random.bits(0, "latents/d", 0, 1, 1)[0, 0] == random.bits(0, "latents/d", 0, 5, 1)[0, 0]
    np.testing.assert_array_equal(random.bits(7, "golden", 5, 1, 2)[0], GOLDEN)


GOLDEN = np.array([13738127503707634954, 16003321504896396615], dtype=np.uint64)
