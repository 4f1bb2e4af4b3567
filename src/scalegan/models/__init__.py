"""Network families: each builds a generator and a discriminator from a `ModelConfig`, for images of any shape."""

from __future__ import annotations

from torch import nn

from scalegan.config import ModelConfig
from scalegan.models import dcgan

FAMILIES = {"dcgan": (dcgan.Generator, dcgan.Discriminator)}


def build_generator(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """shape is (channels, height, width) of one image; `classes` is only looked at by a conditional model."""
    return FAMILIES[config.family][0](config, shape, classes)


def build_discriminator(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    return FAMILIES[config.family][1](config, shape, classes)
