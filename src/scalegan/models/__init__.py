"""Network families: each builds a generator and a discriminator from a `ModelConfig`, for images of any shape."""

from __future__ import annotations

import torch
from torch import nn

from scalegan.model_config import ModelConfig
from scalegan.models import biggan, dcgan, fastgan, projected, r3gan, resnet, stylegan2

GENERATORS: dict[str, type[nn.Module]] = {
    "dcgan": dcgan.Generator,
    "r3gan": r3gan.Generator,
    "resnet": resnet.Generator,
    "biggan": biggan.Generator,
    "fastgan": fastgan.Generator,
    "stylegan2": stylegan2.Generator,
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "dcgan": dcgan.Discriminator,
    "r3gan": r3gan.Discriminator,
    "resnet": resnet.Discriminator,
    "biggan": biggan.Discriminator,
    "fastgan": fastgan.Discriminator,
    "projected": projected.Discriminator,
    "stylegan2": stylegan2.Discriminator,
}


def build_generator(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """shape is (channels, height, width) of one image; `classes` is only looked at by a conditional model."""
    return GENERATORS[config.family](config, shape, classes)


def build_discriminator(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    return DISCRIMINATORS[config.critic](config, shape, classes)


def place(network: nn.Module, device: torch.device | str) -> nn.Module:
    """On the device, in the memory layout that convolutions are fastest in."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
