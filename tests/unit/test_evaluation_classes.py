"""What goes by class: the Inception Score on given probabilities, and a Frechet distance for each class."""

from contextlib import closing
from itertools import combinations

import numpy as np
import pytest
import torch
from tiny import make_shards

from scalegan.config import DataConfig
from scalegan.data.loader import Reader
from scalegan.errors import UserError
from scalegan.evaluation.evaluator import check_classes
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.inception_score import InceptionScore
from scalegan.evaluation.per_class import PerClassDistance
from scalegan.evaluation.real import RealImages
from scalegan.evaluation.suite import ClassScore
from scalegan.evaluation_config import EvaluationConfig


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def score(probabilities: np.ndarray, splits: int = 4) -> dict[str, float]:
    metric = InceptionScore(probabilities.shape[1], splits)
    for first in range(0, len(probabilities), 7):
        part = torch.from_numpy(probabilities[first : first + 7])
        metric.update(part, torch.arange(first, first + len(part)))
    return {name: float(value) for name, value in metric.compute().items()}


def test_the_score_is_that_of_the_paper_in_each_split():
    p = np.random.default_rng(0).dirichlet(np.ones(6), 50)
    scores = []
    for split in range(4):
        own = p[split::4]
        scores.append(np.exp((own * np.log(own / own.mean(0))).sum(1).mean()))
    assert score(p) == pytest.approx({"inception_score": np.mean(scores), "inception_score_sd": np.std(scores)}, rel=1e-12)


def test_sure_and_even_predictions_have_as_high_a_score_as_there_are_classes():
    assert score(np.eye(5)[np.arange(200) // 4 % 5])["inception_score"] == pytest.approx(5)
    assert score(np.full((40, 5), 0.2))["inception_score"] == pytest.approx(1)
    assert score(np.eye(5)[np.zeros(40, int)])["inception_score"] == pytest.approx(1)


def test_the_score_of_features_goes_through_the_last_layer():
    weight, bias = torch.randn(5, 8), torch.randn(5)
    features = torch.randn(30, 8)
    made = ClassScore(weight, bias)
    made.feed("fake", features, torch.arange(30), None)
    plain = InceptionScore(5)
    plain.update((features @ weight.T + bias).double().softmax(1), torch.arange(30))
    for name, value in made.compute().items():
        assert value == pytest.approx(float(plain.compute()[name]), rel=1e-5)


def test_fewer_than_two_images_a_split_are_refused():
    with pytest.raises(UserError, match="needs 8 generated images and was given 7"):
        score(np.full((7, 5), 0.2))


def test_each_class_has_its_own_distance():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (90, 60))
    labels, made = torch.arange(90) % 2, (torch.arange(60) % 3 == 0).long()
    fake[made == 1] += 3
    metric = PerClassDistance(("cat", "dog"))
    metric.update(real, labels, real=True)
    metric.update(fake[:25], made[:25], real=False)
    metric.update(fake[25:], made[25:], real=False)
    found = metric.compute()
    for number, name in enumerate(("cat", "dog")):
        alone = FrechetDistance(5)
        alone.update(real[labels == number], real=True)
        alone.update(fake[made == number], real=False)
        assert found["fid_per_class"][name] == pytest.approx(float(alone.compute()), rel=1e-9)
    assert found["fid_per_class_mean"] == pytest.approx(sum(found["fid_per_class"].values()) / 2)
    assert found["fid_per_class"]["dog"] > 20 > 5 > found["fid_per_class"]["cat"]


def distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def test_the_floor_of_a_class_is_between_two_halves_of_its_real_images_and_what_is_beside_it_of_as_many():
    generator = torch.Generator().manual_seed(1)
    real, fake = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, 9))
    cats = torch.tensor([0, 2, 3, 6])
    labels, made = torch.ones(7, dtype=torch.int64), torch.arange(9) % 2
    labels[cats] = 0
    metric = PerClassDistance(("cat", "dog"))
    metric.update(real, labels, real=True)
    metric.update(fake, made, real=False)
    found = metric.compute()
    splits = [(cats[list(a)], cats[[i for i in range(4) if i not in a]]) for a in combinations(range(4), 2)]
    [(first, _)] = [
        (a, b) for a, b in splits
        if found["fid_per_class_floor"] == pytest.approx({"cat": distance(real[a], real[b])}, rel=1e-9)
        and any(found["fid_per_class_half"]["cat"] == pytest.approx(distance(real[a], fake[list(two)]), rel=1e-9)
                for two in combinations(range(0, 9, 2), 2))
    ]  # fmt: skip
    assert len(first) == 2
    assert found["fid_per_class_half"].keys() == {"cat"}, "a dog has three real images, whose half has no covariance"
    assert found["fid_per_class_floor_mean"] == pytest.approx(found["fid_per_class_floor"]["cat"])


def test_with_fewer_generated_images_of_a_class_its_floor_is_of_as_few():
    generator = torch.Generator().manual_seed(3)
    real, fake = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (10, 5))
    metric = PerClassDistance(("cat", "dog"))
    metric.update(real, (torch.arange(10) >= 8).long(), real=True)
    metric.update(fake, (torch.arange(5) >= 3).long(), real=False)
    found = metric.compute()
    against = {half: distance(real[list(half)], fake[:3]) for half in combinations(range(8), 4)}
    [half] = [half for half, value in against.items() if abs(value - found["fid_per_class_half"]["cat"]) < 1e-9]
    others = combinations([i for i in range(8) if i not in half], 3)
    floors = [distance(real[list(half)], real[list(three)]) for three in others]
    assert min(abs(value - found["fid_per_class_floor"]["cat"]) for value in floors) < 1e-9


@pytest.mark.parametrize("wrong", [-1, 2])
def test_labels_that_are_no_class_are_refused(wrong):
    metric = PerClassDistance(("cat", "dog"))
    labels = torch.arange(9) % 2
    labels[4] = wrong
    metric.update(torch.randn(9, 3), torch.arange(9) % 2, real=True)
    metric.update(torch.randn(9, 3), labels, real=False)
    with pytest.raises(UserError, match="1 labels of fake images are no class, which are 0 to 1"):
        metric.compute()


def test_an_image_that_comes_twice_has_no_score():
    metric = InceptionScore(5, splits=2)
    metric.update(torch.full((6, 5), 0.2), torch.tensor([0, 1, 2, 3, 4, 0]))
    with pytest.raises(UserError, match="the 6 generated images are not each there once"):
        metric.compute()


def test_the_interval_of_a_class_covers_the_mean_over_other_samples():
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(100):
        metric = PerClassDistance(("cat", "dog"), interval=True)
        metric.update(real.repeat(2, 1), torch.arange(120) // 60, real=True)
        fake = torch.randn(119, 3, generator=generator, dtype=torch.float64) * 1.5 + 1
        metric.update(fake, torch.tensor([0, 0, 1] * 39 + [0, 0]), real=False)
        found.append(metric.compute())
    assert all(one["fid_per_class_low"].keys() == {"cat"} for one in found), "39 dogs are too few"
    mean = np.mean([one["fid_per_class"]["cat"] for one in found])
    covers = [one["fid_per_class_low"]["cat"] < mean < one["fid_per_class_high"]["cat"] for one in found]
    assert 88 <= sum(covers) <= 100, sum(covers)


def test_a_class_without_images_is_named():
    metric = PerClassDistance(("cat", "dog"))
    metric.update(torch.randn(9, 3), torch.arange(9) % 2, real=True)
    metric.update(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64), real=False)
    with pytest.raises(UserError, match="class dog needs 2 real and 2 generated images and there are 4 and 0"):
        metric.compute()


@pytest.mark.parametrize(
    ("stored", "real", "generated", "remedy"),
    [
        (10, 10, 3, "raise evaluation.samples"),
        (10, 4, 30, "raise evaluation.real"),
        (5, 5, 30, "compare with shards that have more of it"),
    ],
)
def test_what_a_class_lacks_is_asked_for_on_the_side_that_lacks_it(tmp_path, stored, real, generated, remedy):
    index = make_shards(tmp_path / "data", samples=stored, classes=("a", "b", "c"))
    config = EvaluationConfig(samples=generated, real=real)
    with closing(Reader(index, DataConfig(workers=0), torch.device("cpu"))) as reader:
        images = RealImages(index, real, reader)
        with pytest.raises(UserError, match=rf"of each class; of . there are \d+ and \d+: {remedy}, or take"):
            check_classes("per_class", config, index, images, lambda first, count: np.arange(first, first + count) % 3)
