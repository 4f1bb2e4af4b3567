"""Generators, discriminators and losses of the user's own, by dotted name such as `my.module.Generator`.

A name is code that runs. It is taken from a command line, or from the file that `--config` names there, and never from a run or
a checkpoint: whoever opens one of these with an own generator has to say again which class it is. docs/own_networks.md says
what they have to look like.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from scalegan.config import Config
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.losses import LOSSES, Loss
from scalegan.model_config import ModelConfig

STYLED_METHODS = ("styles", "synthesise")
"""What `paths.Maker` asks of a generator whose path lengths it measures."""


def check(config: Config) -> None:
    """Import all that a run names, so that a mistake is told before anything is written. Raises `UserError`."""
    generator = network("--model.generator", config.model.generator)
    lacking = [name for name in STYLED_METHODS if not hasattr(generator, name)] if generator else []
    if config.loss.path_weight and lacking:
        raise UserError(
            f"loss.path_weight {config.loss.path_weight} needs intermediate latents, and {config.model.generator} has no "
            f"{' and no '.join(lacking)}: set it to 0, or derive the class from scalegan.models.stylegan2.Generator"
        )
    network("--model.discriminator", config.model.discriminator)
    loss_of(config.loss)


def network(option: str, name: str) -> type[nn.Module] | None:
    """The class of that name, given by the option; None for an empty name. Raises `UserError`."""
    if not name:
        return None
    found = named(option, name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{option} {name} is no class of torch.nn.Module: give one that is")
    return found


def check_norms(model: ModelConfig, generator: nn.Module, discriminator: nn.Module) -> None:
    """Refuse own networks that several processes would make others of than one does. Raises `UserError`."""
    if model.generator:
        check_statistics(f"--model.generator {model.generator}", generator)
    if model.discriminator:
        check_moments(f"--model.discriminator {model.discriminator}", discriminator)
        check_statistics(f"--model.discriminator {model.discriminator}", discriminator)


def check_moments(option: str, network: nn.Module) -> None:
    """Refuse, for several processes, what normalises by the moments of the images of one alone. Raises `UserError`."""
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm) and layer.training:
            raise UserError(
                f"{option}: its {type(layer).__name__} {name} would normalise by the images of one process: take "
                "scalegan.models.batch_norm.BatchNorm(channels, running=False) in its place, or one process"
            )


def check_statistics(option: str, network: nn.Module) -> None:
    """Refuse, for several processes, what keeps running statistics of the images of one alone. Raises `UserError`."""
    for name, layer in network.named_modules():
        alone = isinstance(layer, _NormBase) and not isinstance(layer, nn.SyncBatchNorm)
        if alone and layer.training and layer.track_running_stats:
            raise UserError(
                f"{option}: the running statistics of its {type(layer).__name__} {name} would be others on each process: take "
                "scalegan.models.batch_norm.BatchNorm in its place, or one process"
            )


def loss_of(config: LossConfig) -> Loss:
    """The loss of a run that was told by its command line. Raises `UserError`."""
    if not config.own:
        return LOSSES[config.name]
    found = named("--loss.own", config.own)
    if not isinstance(found, Loss):
        raise UserError(f"--loss.own {config.own} is no scalegan.losses.Loss: give an object of this class")
    return found


def named(option: str, name: str) -> Any:
    """What a dotted name stands for, in a module that Python finds from here. Raises `UserError`."""
    path, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")) or not path:
        raise UserError(f"{option} {name}: give a module and a name in it, such as my.module.Generator")
    here = str(Path.cwd())
    if here not in sys.path:  # as it is for `python -m`, but last: nothing of ours or of the library is to be hidden
        sys.path.append(here)
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise UserError(
            f"{option} {name}: {path} cannot be imported ({error}): run it from its folder, or install it"
        ) from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        raise UserError(f"{option} {name}: {path} has no {attribute}" + (f"; did you mean {near[0]}?" if near else ""))
    return getattr(module, attribute)
