"""Network families: each builds a generator and a discriminator from a `ModelConfig`, for images of any shape."""

from __future__ import annotations

import torch
from torch import nn

from scalegan.errors import own_code, require
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

MADE_WITH = "a network of your own is made with (config, shape, classes), see docs/own_networks.md"


def build_generator(
    config: ModelConfig, shape: tuple[int, int, int], classes: int, own: type[nn.Module] | None = None
) -> nn.Module:
    """shape is (channels, height, width) of one image; `classes` is only looked at by a conditional model.

    `own` is a user's class. Raises `UserError` where the configuration names one that is not given: see `own`.
    """
    require(
        own is not None or not config.generator,
        f"the generator is the class {config.generator}, which is not imported on the word of a run: give it again, on the "
        f"command line by --generator {config.generator}, in Python by load_generator(..., generator=CLASS)",
    )
    require(
        own is None or bool(config.generator),
        f"the generator is one of model.family {config.family}, and no class of your own: leave that out",
    )
    if own is None:
        return GENERATORS[config.family](config, shape, classes)
    with own_code(f"the generator {config.generator}", MADE_WITH):
        return own(config, shape, classes)


def build_discriminator(
    config: ModelConfig, shape: tuple[int, int, int], classes: int, own: type[nn.Module] | None = None
) -> nn.Module:
    if own is None:
        return DISCRIMINATORS[config.critic](config, shape, classes)
    with own_code(f"the discriminator {config.discriminator}", MADE_WITH):
        discriminator = own(config, shape, classes)
    require(
        hasattr(discriminator, "couples_samples"),
        f"model.discriminator {config.discriminator} does not say whether its logits of an image depend on the others of the "
        "batch: set couples_samples to True or False in the class",
    )
    return discriminator


def place(network: nn.Module, device: torch.device | str) -> nn.Module:
    """On the device, in the memory layout that convolutions are fastest in."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
