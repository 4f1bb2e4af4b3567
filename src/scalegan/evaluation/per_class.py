"""The Frechet distance of each class by itself, for generators that are told the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scalegan.errors import UserError
from scalegan.evaluation.frechet import Gaussian
from scalegan.evaluation.frechet_spread import packed_sums
from scalegan.evaluation.pairs import LabelledMetric


class PerClassDistance(LabelledMetric):
    """`update(features, labels, real=...)`, then `compute()` -> {"fid_per_class": {class: distance}, "fid_per_class_mean"}.

    The distances are shared out among the processes. Raises `UserError` for a class with fewer than two images of a side.
    """

    def update(  # type: ignore[override]
        self, features: Tensor, labels: Tensor, real: bool, indices: Tensor | None = None
    ) -> None:
        """features [n, width] and labels int64 [n] of real or of generated images; indices int64 [n]."""
        self.keep_labelled("real" if real else "fake", features, labels, indices)

    def feed(self, side: str, features: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        assert labels is not None  # `per_class` is refused without any
        self.update(features, labels, real=side == "real", indices=indices)

    def compute(self) -> dict[str, Any]:
        real, fake = self.side("real"), self.side("fake")
        sides = [(real, self.labels("real", real)), (fake, self.labels("fake", fake))]
        values = torch.zeros(len(self.classes), dtype=torch.float64, device=real.features.device)
        for number, name in enumerate(self.classes):
            sums = [packed_sums(side, labels == number) for side, labels in sides]
            counts = [int(count) for count, _, _ in sums]
            if min(counts) < 2:
                raise UserError(
                    f"the distance of class {name} needs 2 real and 2 generated images and there are {counts[0]} and "
                    f"{counts[1]}: raise evaluation.samples, or take per_class out of evaluation.metrics"
                )
            if number % real.team.processes == real.team.rank:
                of_real, of_fake = (Gaussian.of_sums(total, squares, int(count)) for count, total, squares in sums)
                values[number] = of_real.distance(of_fake)
        values = real.team.add_up(values)[0]
        return {
            "fid_per_class": dict(zip(self.classes, values.tolist(), strict=True)),
            "fid_per_class_mean": values.mean(),
        }
