"""The Inception Score (Salimans et al. 2016): exp of the mean divergence of class probabilities from their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from scalegan.errors import UserError
from scalegan.evaluation.names import INCEPTION_SPLITS
from scalegan.evaluation.pairs import check_once, fingerprint
from scalegan.evaluation.team import Team


class InceptionScore(Metric):
    """On class probabilities that are given; splits are dealt by index, so states are sums and any number of processes agree.

    `update(probabilities, indices)`, then `compute()` -> {"inception_score", "inception_score_sd"}, mean and standard
    deviation over the splits, float64. Raises `UserError` for fewer than two images a split, and for indices that are not
    each there once.
    """

    full_state_update = False
    is_differentiable = False
    entropies: Tensor
    probabilities: Tensor
    counts: Tensor
    seen: Tensor

    def __init__(self, classes: int, splits: int = INCEPTION_SPLITS) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.splits = splits
        self.add_state("entropies", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("probabilities", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, indices: Tensor) -> None:
        """probabilities [n, classes], each row of sum 1; indices int64 [n] of the images."""
        p, split = probabilities.double(), indices.to(probabilities.device) % self.splits
        self.entropies.index_add_(0, split, torch.special.entr(p).sum(1))
        self.probabilities.index_add_(0, split, p)
        self.counts.index_add_(0, split, torch.ones_like(p[:, 0]))
        self.seen += fingerprint(indices).to(p.device)

    def compute(self) -> dict[str, Tensor]:
        team = Team() if self._is_synced else Team.of_world()
        sums = team.add_up(self.entropies, self.probabilities, self.counts, self.seen)
        entropies, probabilities, counts, seen = sums
        check_once("generated", seen, int(counts.sum()))
        if counts.min() < 2:
            raise UserError(
                f"InceptionScore needs {2 * self.splits} generated images and was given {int(counts.sum())}: give it more"
            )
        marginal = torch.special.entr(probabilities / counts[:, None]).sum(1)
        scores = (marginal - entropies / counts).exp()
        return {"inception_score": scores.mean(), "inception_score_sd": scores.std(correction=0)}
