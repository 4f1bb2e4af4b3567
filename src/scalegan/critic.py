"""The critic: augmentation, discriminator and input gradient in one module, so that DDP sees a single forward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scalegan.augment import augment
from scalegan.augment_config import AugmentConfig
from scalegan.models.conditions import Judgement
from scalegan.models.layers import at_least_float32, out_of_float16


class Scores(NamedTuple):
    logits: Tensor
    """[N] or [N, K] in float32, large where the image looks real."""
    auxiliary: dict[str, Tensor]
    """Further losses [N] of the discriminator, by name."""
    squared_grad_norm: Tensor | None
    """[N] squared norm of d(mean logit)/d(image), in float32; None where it was not asked for."""

    def halves(self) -> tuple[Scores, Scores]:
        """Of the first half of the images, and of the second."""
        squared_grad_norm = (None, None) if self.squared_grad_norm is None else self.squared_grad_norm.chunk(2)
        logits, auxiliary = self.logits.chunk(2), {name: loss.chunk(2) for name, loss in self.auxiliary.items()}
        first, second = (
            Scores(logits[i], {name: parts[i] for name, parts in auxiliary.items()}, squared_grad_norm[i]) for i in range(2)
        )
        return first, second


class Critic(nn.Module):
    """Augment, score, and, on request, measure how steep the score is at each image.

    The gradient is taken with `torch.func.grad` inside `forward`: autograd's `create_graph` around a compiled or
    DDP-wrapped module either raises or skips the reduction. It is taken at the images as given, before augmentation.
    """

    def __init__(self, discriminator: nn.Module, config: AugmentConfig) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.config = config

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        draws: Tensor | None,
        squared_grad_norm: bool = False,
        offsets: Tensor | None = None,
    ) -> Scores:
        """images [N, C, H, W] in [-1, 1], labels [N], draws [N, augment.WIDTH] or None for no augmentation.

        With `offsets` [N, C, H, W] the slope is that of the logits at images + offsets.
        """
        if squared_grad_norm and offsets is not None:
            return self._by_difference(images, labels, draws, offsets)
        if not squared_grad_norm:
            judgement = self._judge(images, labels, draws)
            return Scores(judgement.logits, judgement.auxiliary, None)

        def total(images: Tensor) -> tuple[Tensor, Judgement]:
            judgement = self._judge(images, labels, draws)
            return an_image(judgement.logits).sum(), judgement

        with out_of_float16(images.device):
            gradient, judgement = torch.func.grad(total, has_aux=True)(images)
        return Scores(judgement.logits, judgement.auxiliary, at_least_float32(gradient).square().flatten(1).sum(1))

    def _judge(self, images: Tensor, labels: Tensor, draws: Tensor | None) -> Judgement:
        views = augment(images, draws, self.config) if draws is not None else images
        return self.discriminator(views, labels)  # type: ignore[no-any-return]

    def _by_difference(self, images: Tensor, labels: Tensor, draws: Tensor | None, offsets: Tensor) -> Scores:
        """((D(x + step u) - D(x)) / step)^2 for u of +-1: its expectation is |grad D|^2, as E[u u^T] is the identity.

        In float32 throughout: half precision rounds such differences away. Not by `self.forward`, which Accelerate
        replaces by one that turns autocast on again.
        """
        both = torch.cat([images, images + offsets])
        both_draws = None if draws is None else torch.cat([draws, draws])
        with torch.autocast(images.device.type, enabled=False):
            judgement = self._judge(both, torch.cat([labels, labels]), both_draws)
        here, there = Scores(judgement.logits, judgement.auxiliary, None).halves()
        step = offsets[:, 0, 0, 0].abs()
        squared_grad_norm = ((an_image(there.logits) - an_image(here.logits)) / step).square()
        return Scores(here.logits, here.auxiliary, squared_grad_norm)  # `_replace` is not compiled by torch 2.11


def an_image(logits: Tensor) -> Tensor:
    """[N] or [N, K] -> [N]: the mean logit of each image."""
    return logits.reshape(len(logits), -1).mean(1)
