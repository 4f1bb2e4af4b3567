"""The generator and how far its images move with its intermediate latents, in one module, so that DDP sees a single forward."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scalegan.models.layers import at_least_float32, out_of_float16
from scalegan.models.noise import noise_keys, normal_noise

DIRECTIONS = -3
"""Stream of `normal_noise` that the directions y come from."""


class Fakes(NamedTuple):
    images: Tensor
    """[N, C, H, W]."""
    squared_grad_norm: Tensor | None
    """[N] squared length of J_w^T y, in float32; None where it was not asked for."""


class Maker(nn.Module):
    """Make images and, on request, measure how much they change with the intermediate latents w.

    J_w is the Jacobian of an image over w, and J_w^T y, for a random image y ~ N(0, I / (H W)), the gradient of <image, y>,
    by `torch.func.grad` inside `forward` as in `critic.Critic` (Karras et al. 2020, section 3.2). w counts for each layer by
    itself; the squared length is the mean over layers. y is hashed from the latents' bits, as all noise is.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    @property
    def typical(self) -> Tensor:
        """Running mean [] of the lengths, a in eq. 4. It is the generator's, and saved with it."""
        return self.generator.path_length.mean  # type: ignore[return-value]

    def remember(self, length: Tensor, weight: float) -> None:
        """Move the running mean towards the mean `length` [] of this step."""
        self.generator.path_length.update(length[None], weight)  # type: ignore[union-attr, operator]

    def forward(self, latents: Tensor, labels: Tensor, squared_grad_norm: bool = False) -> Fakes:
        """latents [N, z_dim] and labels [N]; `squared_grad_norm` of a generator with `own.STYLED_METHODS` alone."""
        if not squared_grad_norm:
            return Fakes(self.generator(latents, labels), None)
        keys = noise_keys(latents)
        with out_of_float16(latents.device):
            ws = self.generator.styles(latents, labels, keys)  # type: ignore[operator]

            def along(ws: Tensor) -> tuple[Tensor, Tensor]:
                images = self.generator.synthesise(ws, keys)  # type: ignore[operator]
                channels, height, width = images.shape[1:]
                y = normal_noise(keys, DIRECTIONS, channels * height, width).view_as(images) / math.sqrt(height * width)
                return (images * y).sum(), images

            gradient, images = torch.func.grad(along, has_aux=True)(ws)
        return Fakes(images, at_least_float32(gradient).square().sum(2).mean(1))
