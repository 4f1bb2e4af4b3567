"""The metrics of images are what the functions they are built on say of all images at once, and refuse too few."""

import pytest
import torch
from test_evaluation_ssim import images
from torchmetrics import Metric

from scalegan.errors import UserError
from scalegan.evaluation.class_diversity import ClassSums, diversity_in_class
from scalegan.evaluation.ms_ssim import ms_ssim
from scalegan.evaluation.path_length import EPSILON, PathLength, trimmed_mean
from scalegan.evaluation.similarity import BestMatch, Diversity, DiversityInClass, Gallery, PairSimilarity
from scalegan.evaluation.ssim import diversity, thumbnails

SHIFT = lambda a, b: (a - b).flatten(1).mean(1)  # noqa: E731


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_each_is_a_torchmetrics_metric_that_starts_anew():
    for metric in (BestMatch(), PairSimilarity(), Diversity(), DiversityInClass(2), PathLength(SHIFT, 4)):
        assert isinstance(metric, Metric)
    metric = Diversity()
    for seed in (0, 1):
        metric.reset()
        metric.update(images(6, seed=seed))
        assert metric.compute()["diversity"] == pytest.approx(diversity(thumbnails(images(6, seed=seed))), rel=1e-12)


def test_diversity_is_that_of_all_pairs_whatever_the_batches():
    metric = Diversity("diversity_real")
    for part in images(30).split(7):
        metric.update(part)
    assert metric.compute()["diversity_real"] == pytest.approx(diversity(thumbnails(images(30))), rel=1e-12)


def test_copies_have_no_diversity():
    metric = Diversity()
    metric.update(images(1).expand(5, -1, -1, -1))
    assert metric.compute() == {"diversity": 0}


def test_the_best_match_is_the_best_of_all_updates():
    real = images(40)
    metric = BestMatch()
    metric.update(255 - real[:3], Gallery.of(real))
    first = metric.compute()["ssim_max"]
    metric.update(real[7:8], Gallery.of(real))
    metric.update(255 - real[3:5], Gallery.of(real))
    assert first < 0.5
    assert metric.compute()["ssim_max"] == pytest.approx(1, abs=1e-6)


def test_pairs_are_half_of_the_images_apart():
    a = images(3)
    alike, others = PairSimilarity(), PairSimilarity("real")
    alike.update(torch.cat([a, a]))
    others.update(images(7))
    found = others.compute()
    pairs = ms_ssim(images(7)[:3], images(7)[3:6]).double()
    assert alike.compute()["ms_ssim_pairs"] == pytest.approx(1, abs=1e-5)
    assert found["real"] == pytest.approx(float(pairs.mean()))
    assert found["real_se"] == pytest.approx(float(pairs.std() / 3**0.5))


def test_diversity_within_classes_stands_beside_that_of_real_images():
    made, real, labels = images(12), images(12, seed=1), torch.arange(12) % 2
    metric = DiversityInClass(3)
    for rows in (slice(0, 5), slice(5, 12)):
        metric.update(made[rows], labels[rows], real=False)
        metric.update(real[rows], labels[rows], real=True)
    sums = [ClassSums.of(thumbnails(x), labels, 3) for x in (made, real)]
    assert metric.compute() == diversity_in_class(*sums)
    assert DiversityInClass(3).compute() == {}


def test_a_path_length_is_the_trimmed_mean_of_steps_in_any_order():
    starts, ends = torch.rand(2, 50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    metric = PathLength(SHIFT, 50, "ppl_w")
    for first, last in ((20, 50), (0, 20)):
        metric.update(starts[first:last], ends[first:last], first)
    mean, error = trimmed_mean(SHIFT(starts, ends).double().numpy() / EPSILON**2)
    assert metric.compute() == pytest.approx({"ppl_w": mean, "ppl_w_se": error})


@pytest.mark.parametrize("twice", [False, True])
def test_a_step_that_is_missing_or_comes_twice_is_named(twice):
    metric = PathLength(SHIFT, 4)
    step = torch.zeros(2, 1, 8, 8)
    metric.update(step, step, 0)
    metric.update(step, step, 1 if twice else 2)
    if not twice:
        assert metric.compute()["ppl_z"] == 0
        with pytest.raises(UserError, match="made for 4 steps: 2 from step 3 on are too many"):
            metric.update(step, step, 3)
    with pytest.raises(UserError, match="step 1 of 4 2 times" if twice else "step 0 of 6 0 times"):
        (metric if twice else PathLength(SHIFT, 6)).compute()


def test_too_few_images_are_told():
    with pytest.raises(UserError, match="BestMatch needs a sample"):
        BestMatch().compute()
    alone = Diversity()
    alone.update(images(1))
    with pytest.raises(UserError, match="Diversity needs 2 generated images and was given 1"):
        alone.compute()
    pair = PairSimilarity()
    pair.update(images(3))
    with pytest.raises(UserError, match="needs 2 pairs of images and was given 1"):
        pair.compute()
