"""What the networks make of classes, and what a discriminator says of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.errors import require
from scalegan.model_config import ModelConfig
from scalegan.models.batch_norm import BatchNorm, ConditionalBatchNorm
from scalegan.models.layers import at_least_float32, in_float32

Scale = Callable[[Tensor], Tensor]
"""Vectors [N, width] -> the same at another length."""


class Judgement(NamedTuple):
    """What a discriminator returns."""

    logits: Tensor
    """[N], or [N, K] where each image is judged K times, such as in patches, and every time counts alike; in float32."""
    auxiliary: dict[str, Tensor]
    """Further losses [N] that the discriminator takes at its images, by their names in `losses.AUXILIARY`."""


def check_class_norms(config: ModelConfig, sizes: list[tuple[int, int]]) -> None:
    """Raises `UserError` where none of these resolutions has a batch norm that is told the class."""
    height, width = sizes[-1]
    require(
        not config.class_norms or len(sizes) > 1,
        f"images of {height}x{width} have one resolution in {config.family}, whose batch norms cannot tell the class: set "
        "--model.class_via concat",
    )


class ClassEmbedding(nn.Embedding):
    """Labels [N] -> vectors [N, width], `scaled` where a network wants them of one length."""

    def __init__(self, classes: int, width: int, scaled: Scale) -> None:
        super().__init__(classes, width)
        self.scaled = scaled

    def forward(self, labels: Tensor) -> Tensor:
        return self.scaled(super().forward(labels))


class RampedEmbedding(ClassEmbedding):
    """Classes that come in: the mean of all at strength 0, each its own at 1 (Shahbazi et al. 2022).

    Told apart from the first step on, few images a class are soon known by heart, and the generator collapses. Both ends
    are scaled before they are blended: the mean of many is short, and scaling the blend would bring each class back.
    """

    strength: Tensor

    def __init__(self, classes: int, width: int, scaled: Scale) -> None:
        super().__init__(classes, width, scaled)
        self.register_buffer("strength", torch.ones(()))

    def forward(self, labels: Tensor) -> Tensor:
        table = self.weight  # once: a spectral norm moves on each time it is asked
        mean, own = table.mean(0, keepdim=True), F.embedding(labels, table)
        return torch.lerp(self.scaled(mean), self.scaled(own), self.strength)


def unscaled(vectors: Tensor) -> Tensor:
    return vectors


def class_embedding(config: ModelConfig, classes: int, width: int, scaled: Scale = unscaled) -> nn.Embedding:
    """Labels [N] -> vectors [N, width]."""
    return (RampedEmbedding if config.ramped else ClassEmbedding)(classes, width, scaled)


def class_input(config: ModelConfig, classes: int) -> nn.Embedding:
    """What stands beside the latents: labels [N] -> vectors [N, class_dim], at first about 1 long, as one latent number is.

    Every step pulls at all numbers of a class in the same direction, but at each image's latents in another. With
    numbers as large as theirs, the class is soon all that is left after a normalisation, and each class has one picture.
    """
    embedding = class_embedding(config, classes, config.class_dim)
    nn.init.normal_(embedding.weight, std=config.class_dim**-0.5)
    return embedding


def batch_norm(config: ModelConfig, channels: int, classes: int) -> BatchNorm:
    """One of a generator's, which is told the labels [N]: with a gain and a bias of each class (Miyato and Koyama 2018),
    or, where classes do not go into norms, for all images alike."""
    if not config.class_norms:
        return BatchNorm(channels, group=config.norm_group)
    gains, biases = (class_embedding(config, classes, channels) for _ in range(2))
    for table in (gains, biases):
        nn.init.zeros_(table.weight)
    return ConditionalBatchNorm(channels, gains, biases, group=config.norm_group)


def set_strength(network: nn.Module, strength: float) -> None:
    """How far the classes have come in, from 0 to 1, wherever `network` embeds them."""
    for module in network.modules():
        if isinstance(module, RampedEmbedding):
            module.strength.fill_(strength)


class ClassHead(nn.Module):
    """The class in the critic: a projection of its features on the class, or a classifier beside the logit.

    Projection adds <embed(y), h> to the logit (Miyato and Koyama 2018, eq. 3). The classifier leaves it alone, and gives the
    cross entropy -log P(y | h) as the loss `class` (Odena et al. 2017, eq. 3).
    """

    def __init__(self, config: ModelConfig, features: int, classes: int) -> None:
        super().__init__()
        self.projects = config.class_head == "projection"
        self.classes = class_embedding(config, classes, features) if self.projects else nn.Linear(features, classes)

    def forward(self, features: Tensor, labels: Tensor, logits: Tensor) -> Judgement:
        """features [N, width], labels [N], and the logits [N] or [N, K] without a class."""
        if self.projects:
            projection = at_least_float32(self.classes(labels) * features).sum(1)
            return Judgement(logits + projection.view(-1, *[1] * (logits.ndim - 1)), {})
        return Judgement(logits, {"class": F.cross_entropy(in_float32(self.classes, features), labels, reduction="none")})
