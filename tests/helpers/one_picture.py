"""A generator that is told the class and has gone deaf to its latents: one picture a class."""

from torch import Tensor

from scalegan.models import dcgan


class Generator(dcgan.Generator):
    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return super().forward(latents * 0 + 1, labels)
