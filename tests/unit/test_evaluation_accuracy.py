"""Classes are recognised by ridge regression on one-hot labels; each figure is that of its formula."""

import numpy as np
import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation import pairs
from scalegan.evaluation.accuracy import RIDGE, ClassAccuracy, Classifier

CLASSES = ("cat", "dog", "eel")
WIDTH = 7


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def images(n: int, seed: int, apart: float = 1.0, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, width] around a mean of each class, `apart` standard deviations from the origin, and labels [n]."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    centres = np.eye(len(CLASSES), width) * apart + 2.0
    return (centres[labels] + draw.normal(size=(n, width))).astype(np.float32), labels


def measured(real, fake, held_out=None) -> ClassAccuracy:
    metric = ClassAccuracy(CLASSES)
    for side, given in (("real", real), ("fake", fake), ("held_out", held_out)):
        if given is not None:
            features, labels = map(torch.from_numpy, given)
            metric.update(features[:11], labels[:11], side)
            metric.update(features[11:], labels[11:], side)
    return metric


def ridge(x: np.ndarray) -> float:
    x = x.astype(np.float64)
    return RIDGE * np.square(x - x.mean(0)).sum() / x.shape[1]


def outputs(x: np.ndarray, labels: np.ndarray, queries: np.ndarray, penalty: float) -> np.ndarray:
    """Of queries [m, width]: least squares on [1, x] with a penalty on all weights but that of 1."""
    x, queries = (np.hstack([np.ones((len(a), 1)), a.astype(np.float64)]) for a in (x, queries))
    penalties = np.diag([0.0] + [penalty] * (x.shape[1] - 1))
    return queries @ np.linalg.solve(x.T @ x + penalties, x.T @ np.eye(len(CLASSES))[labels])


def shares(values: np.ndarray, labels: np.ndarray) -> list[float]:
    right = values.argmax(1) == labels
    return [right.mean(), *(right[labels == number].mean() for number in range(len(CLASSES)))]


def figures(found: dict, name: str) -> list[float]:
    return [float(found[name]), *(found[f"{name}_per_class"][c] for c in CLASSES)]


@pytest.mark.parametrize("n", [90, 12], ids=["many images", "about as many as features"])
def test_it_is_ridge_regression_of_one_hot_labels(n):
    real, fake, held_out = images(n, 1), images(60, 2), images(30, 3)
    found = measured(real, fake, held_out).compute()
    for name, (x, labels) in (("accuracy", fake), ("accuracy_held_out", held_out)):
        expected = shares(outputs(*real, x, ridge(real[0])), labels)
        assert 0.4 < expected[0] < 0.95
        assert figures(found, name) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("width", [WIDTH, 50], ids=["many images", "fewer images than features"])
def test_real_images_are_recognised_by_a_classifier_without_them(width):
    (x, labels), fake = images(40, 1, width=width), images(9, 2, width=width)
    without = np.array([outputs(np.delete(x, i, 0), np.delete(labels, i), x[i : i + 1], ridge(x))[0] for i in range(len(x))])
    metric = measured((x, labels), fake)
    assert figures(metric.compute(), "accuracy_real") == pytest.approx(shares(without, labels), abs=1e-12)
    fitted = Classifier.fitted(metric.side("real"), torch.from_numpy(labels), len(CLASSES))
    hot = torch.eye(len(CLASSES), dtype=torch.float64)[torch.from_numpy(labels)]
    assert fitted.without(torch.from_numpy(x).double(), hot).numpy() == pytest.approx(without, abs=1e-9)


@pytest.mark.parametrize("swapped", [0, 15, 45])
def test_images_of_another_class_than_was_asked_for_cost_their_share(swapped):
    fake, asked = images(150, 2, apart=40)
    asked = asked.copy()
    asked[:swapped] = (asked[:swapped] + 1) % len(CLASSES)
    found = measured(images(90, 1, apart=40), (fake, asked)).compute()
    assert float(found["accuracy"]) == 1 - swapped / 150
    assert float(found["accuracy_real"]) == 1
    assert "accuracy_held_out" not in found


def test_neither_scale_nor_copies_nor_blocks_matter(monkeypatch):
    (x, labels), fake = images(30, 1), images(60, 2)
    plain = measured((x, labels), fake).compute()
    larger = measured((x * 512, labels), (fake[0] * 512, fake[1])).compute()
    assert figures(larger, "accuracy") == figures(plain, "accuracy")
    assert figures(larger, "accuracy_real") == figures(plain, "accuracy_real")
    twice = measured((np.concatenate([x, x]), np.concatenate([labels, labels])), fake).compute()
    assert figures(twice, "accuracy") == figures(plain, "accuracy")
    monkeypatch.setattr(pairs, "OWN", 7)
    assert figures(measured((x, labels), fake).compute(), "accuracy") == figures(plain, "accuracy")


def test_a_held_out_class_without_images_has_no_share():
    x, labels = images(30, 3)
    found = measured(images(30, 1), images(30, 2), (x[labels < 2], labels[labels < 2])).compute()
    assert found["accuracy_held_out_per_class"].keys() == {"cat", "dog"}


def test_what_cannot_be_measured_is_one_line():
    (x, labels), fake = images(30, 1), images(30, 2)
    for real, made, said in (
        ((x, labels), (fake[0], fake[1] * 0), "class dog needs 2 real and 2 generated images and there are 10 and 0"),
        ((x[:4], labels[:4]), fake, "class dog needs 2 real and 2 generated images and there are 1 and 10"),
        ((x, labels - 1), fake, "10 labels of real images are no class, which are 0 to 2"),
        ((x, labels), (fake[0], fake[1] + 2), "20 labels of fake images are no class"),
        ((x * 0 + 3, labels), fake, "needs real images whose features differ"),
    ):
        with pytest.raises(UserError, match=said) as met:
            measured(real, made).compute()
        assert "\n" not in str(met.value)
    with pytest.raises(UserError, match="needs 2 classes and there are 1"):
        ClassAccuracy(("cat",))
