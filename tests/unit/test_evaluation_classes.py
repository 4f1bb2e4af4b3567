"""What goes by class: the Inception Score on given probabilities, and a Frechet distance for each class."""

import numpy as np
import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.inception_score import InceptionScore
from scalegan.evaluation.per_class import PerClassDistance
from scalegan.evaluation.suite import ClassScore


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


def test_a_class_without_images_is_named():
    metric = PerClassDistance(("cat", "dog"))
    metric.update(torch.randn(9, 3), torch.arange(9) % 2, real=True)
    metric.update(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64), real=False)
    with pytest.raises(UserError, match="class dog needs 2 real and 2 generated images and there are 4 and 0"):
        metric.compute()
