"""The metrics that a configuration asks for, all of them fed with the features of one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from scalegan.evaluation.accuracy import ClassAccuracy
from scalegan.evaluation.features import Extractor, find_weights
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.frechet_spread import FrechetSpread
from scalegan.evaluation.inception_score import InceptionScore
from scalegan.evaluation.kid import KernelDistance, SubsetKernelDistance
from scalegan.evaluation.memorisation import Memorisation, MemorisationInformedDistance
from scalegan.evaluation.names import check_probabilities
from scalegan.evaluation.per_class import PerClassDistance
from scalegan.evaluation.prdc import PrecisionRecall
from scalegan.evaluation.team import Team
from scalegan.evaluation.weights import read_checked
from scalegan.evaluation_config import EvaluationConfig

HEADS = {"inception": ("fc.weight", None), "lite0": ("_fc.weight", "_fc.bias")}
"""The last layer of each classifier in its weights; Inception's scores are by custom taken without its bias."""


class ClassScore(InceptionScore):
    """The Inception Score on features, by the last layer of their network."""

    sides: tuple[str, ...] = ("fake",)

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(classes=len(weight))
        self.weight = weight.double()
        self.bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()

    def feed(self, side: str, features: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        logits = features.double() @ self.weight.T.to(features.device) + self.bias.to(features.device)
        self.update(logits.softmax(1), indices)


def class_score(config: EvaluationConfig, extractor: Extractor) -> ClassScore:
    check_probabilities(config.wanted, extractor.name)
    weight, bias = HEADS[extractor.name]
    state = read_checked(find_weights(config), extractor.weights_sha256)
    return ClassScore(state[weight], None if bias is None else state[bias])


class Suite:
    """Features of the sides "real" (training images), "held_out" and "fake" go in once; the figures of all metrics come out."""

    def __init__(self, config: EvaluationConfig, extractor: Extractor, classes: tuple[str, ...]) -> None:
        self.classes = classes
        makers: dict[str, Callable[[], list[Metric]]] = {
            "kid": lambda: [KernelDistance()],
            "kid_subsets": lambda: [SubsetKernelDistance()],
            "prdc": lambda: [PrecisionRecall()],
            "per_class": lambda: [PerClassDistance(classes, "interval" in config.wanted)],
            "accuracy": lambda: [ClassAccuracy(classes)],
            "inception_score": lambda: [class_score(config, extractor)],
            "memorisation": lambda: [Memorisation(), MemorisationInformedDistance()],
        }
        made = [metric for name in config.wanted if name in makers for metric in makers[name]()]
        self.spread: FrechetSpread | None = None
        if {"interval", "infinity"} & set(config.wanted):
            self.spread = FrechetSpread(extractor.width, "interval" in config.wanted, "infinity" in config.wanted)
            made.append(self.spread)
        self.metrics: list[Any] = [metric.to(extractor.device) for metric in made]

    @property
    def sides(self) -> set[str]:
        """Whose features are asked for."""
        return {side for metric in self.metrics for side in metric.sides}

    def add(self, side: str, features: Tensor, first: int, labels: NDArray[np.int64] | None = None) -> None:
        """Features [n, width] of images first to first + n of a side, and their labels [n]."""
        indices = torch.arange(first, first + len(features))
        numbers = None if labels is None else torch.from_numpy(labels)
        for metric in self.metrics:
            if side in metric.sides:
                metric.feed(side, features, indices, numbers)

    def record(self, distance: FrechetDistance, team: Team) -> dict[str, Any]:
        """Collective: the figures of all metrics. `distance` has the states of all processes."""
        if self.spread is not None and team.first:
            self.spread.update_sums(
                distance.real_features_num_samples, distance.real_features_sum, distance.real_features_cov_sum
            )
        found: dict[str, Any] = {}
        for metric in self.metrics:
            found |= metric.compute()
        return {name: float(value) if isinstance(value, Tensor) else value for name, value in found.items()}
