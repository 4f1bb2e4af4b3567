"""Whether generated images are recognised as the class that they were asked for, by a linear classifier of real ones.

Ridge regression of one-hot labels y on features x, with means m and s, and an intercept that is not penalised (Hoerl & Kennard
1970):

    output(x) = s + W^T (x - m),    W = (S + r I)^-1 sum (x - m) (y - s)^T
    S = sum (x - m) (x - m)^T,      r = RIDGE tr(S) / width

The largest output is the class. As r is a share of the mean eigenvalue of S, it is the same classifier for features of any
scale and for any number of the same images, and it has a solution where images are fewer than features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scalegan.errors import UserError
from scalegan.evaluation.names import check_class_count
from scalegan.evaluation.pairs import LabelledMetric, Side

RIDGE = 1.0
"""Times the mean eigenvalue of S; docs/evaluation.md says what it was chosen by."""
ALIKE = 1e-12
"""Share of the squared features that is rounding: real images that differ by less are all the same."""


class ClassAccuracy(LabelledMetric):
    """Share of images whose class is recognised by a classifier fitted to the real (training) images.

    `update(features, labels, side, indices)` with side "real", "fake" and, where there are any, "held_out"; `compute()` ->
    {"accuracy", "accuracy_real"} and "accuracy_held_out": float64 scalars; each also by class, as "accuracy_per_class" and so
    on. Real images are each recognised by a classifier that was fitted to all but them. Raises `UserError` for a class with
    fewer than two images of a side, for labels that are no class, and for real images that are all alike.
    """

    sides = ("real", "held_out", "fake")

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__(classes)
        check_class_count(["accuracy"], len(classes))

    def update(  # type: ignore[override]
        self, features: Tensor, labels: Tensor, side: str, indices: Tensor | None = None
    ) -> None:
        """features [n, width] and labels int64 [n] of one side; indices int64 [n]."""
        self.keep_labelled(side, features, labels, indices)

    def feed(self, side: str, features: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        if labels is not None:  # held-out images of other classes, or of none, are no control
            self.update(features, labels, side, indices)

    def compute(self) -> dict[str, Any]:
        real, held_out, fake = (self.side(name) for name in self.sides)
        counts = [self.count(side, name) for name, side in zip(self.sides, (real, held_out, fake), strict=True)]
        for name, of_real, of_fake in zip(self.classes, counts[0].tolist(), counts[2].tolist(), strict=True):
            if min(of_real, of_fake) < 2:
                raise UserError(
                    f"the accuracy of class {name} needs 2 real and 2 generated images and there are {of_real:.0f} and "
                    f"{of_fake:.0f}: raise evaluation.samples, or take accuracy out of evaluation.metrics"
                )
        classifier = Classifier.fitted(real, self.labels("real", real), len(self.classes))
        figures = self.shares("accuracy", fake, "fake", counts[2], classifier.outputs)
        figures |= self.shares("accuracy_real", real, "real", counts[0], classifier.without)
        if held_out.total:
            figures |= self.shares("accuracy_held_out", held_out, "held_out", counts[1], classifier.outputs)
        return figures

    def shares(
        self, figure: str, side: Side, name: str, counts: Tensor, outputs: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Any]:
        """Collective: of all images and of each class that has any, the share whose largest output is their class."""
        labels = self.labels(name, side)
        right = torch.zeros_like(counts)
        for rows, features in side.parts():
            hot = one_hot(labels[rows], len(self.classes)).double()
            right += hot[outputs(features, hot).argmax(1) == labels[rows]].sum(0)
        right = side.team.add_up(right)[0]
        by_class = zip(self.classes, right.tolist(), counts.tolist(), strict=True)
        return {
            figure: right.sum() / side.total,
            f"{figure}_per_class": {own: hits / count for own, hits, count in by_class if count},
        }


@dataclass(frozen=True)
class Classifier:
    """The formula above, all in float64."""

    count: Tensor
    """Images that it is fitted to."""
    mean: Tensor
    """[width]: m."""
    prior: Tensor
    """[classes]: s, the share of each class."""
    root: Tensor
    """[width, width]: lower triangle, root @ root.T = S + r I."""
    weights: Tensor
    """[width, classes]: W."""

    @classmethod
    def fitted(cls, side: Side, labels: Tensor, classes: int) -> Classifier:
        """Collective: of labels int64 [n] of this process' images; every sum it needs is in one reduction."""
        width = side.features.shape[1]
        sums = torch.zeros(width + classes, width + classes, dtype=torch.float64, device=side.features.device)
        for rows, features in side.parts():
            both = torch.cat([features, one_hot(labels[rows], classes).double()], 1)
            sums += both.T @ both
        sums = side.team.add_up(sums)[0]
        squares, products, per_class = sums[:width, :width], sums[:width, width:], sums[width:, width:].diagonal()
        count = per_class.sum()
        mean = products.sum(1) / count  # every image is of one class
        scatter = squares - count * torch.outer(mean, mean)
        if scatter.trace() <= ALIKE * squares.trace():
            raise UserError("metric accuracy needs real images whose features differ: take it out of evaluation.metrics")
        ridge = RIDGE * scatter.trace() / width
        root = torch.linalg.cholesky(scatter + ridge * torch.eye(width, dtype=torch.float64, device=scatter.device))
        weights = torch.cholesky_solve(products - torch.outer(mean, per_class), root)
        return cls(count, mean, per_class / count, root, weights)

    def outputs(self, features: Tensor, hot: Tensor) -> Tensor:
        """float64 [n, width] -> [n, classes]; one-hot labels `hot` [n, classes] are those of images it is not fitted to."""
        return self.prior + (features - self.mean) @ self.weights

    def without(self, features: Tensor, hot: Tensor) -> Tensor:
        """The outputs [n, classes] for images that it is fitted to, each of them of the classifier of all others at the same r.

        The residual of one left out is its residual over 1 - h, with h its entry of the hat matrix' diagonal (Allen 1974).
        """
        apart: Tensor = torch.linalg.solve_triangular(self.root, (features - self.mean).T, upper=False)
        hat = 1 / self.count + apart.square().sum(0)
        return hot - (hot - self.outputs(features, hot)) / (1 - hat)[:, None]
