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

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from scalegan.config import Config
from scalegan.errors import UserError, own_code, require
from scalegan.loss_config import LossConfig
from scalegan.losses import AUXILIARY, LOSSES, Loss
from scalegan.models.batch_norm import RunningMean
from scalegan.models.conditions import Judgement

STYLED_METHODS = ("styles", "synthesise")
"""What `path_length.Maker` asks of a generator whose path lengths it measures."""

DOCUMENT = "see docs/own_networks.md"


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


def check_networks(
    config: Config, shape: tuple[int, int, int], generator: nn.Module, discriminator: nn.Module, processes: int
) -> None:
    """Refuse own networks that cannot be trained, or that `processes` would make others of than one. Raises `UserError`."""
    model = config.model
    labels = torch.full((2,), 0 if model.conditional else -1)
    if model.generator:
        option = f"--model.generator {model.generator}"
        require(
            not config.loss.path_weight or isinstance(getattr(generator, "path_length", None), RunningMean),
            f"{option}: loss.path_weight {config.loss.path_weight} keeps the mean of path lengths in the generator: set "
            "self.path_length = RunningMean() in the class, of scalegan.models.batch_norm, or loss.path_weight to 0",
        )
        if processes > 1:
            check_statistics(option, generator)
        with own_code(option, f"its forward pass was given latents [2, {model.z_dim}] and labels [2], {DOCUMENT}"):
            images = passed(generator, torch.zeros(2, model.z_dim), labels)
        check_output(f"{option}: its images", images, [(2, *shape)])
    if model.discriminator:
        option = f"--model.discriminator {model.discriminator}"
        if processes > 1:
            check_moments(option, discriminator)
            check_statistics(option, discriminator)
        check_batch_norm(option, discriminator, exact=config.loss.penalised and config.loss.penalty_form == "exact")
        with own_code(option, f"its forward pass was given images {[2, *shape]} and labels [2], {DOCUMENT}"):
            judgement = passed(discriminator, torch.zeros(2, *shape), labels)
        check_judgement(option, judgement)


@torch.no_grad()
def passed(network: nn.Module, *inputs: Tensor) -> Any:
    """What it returns when it only looks, which leaves no trace. Not by a copy: weights that are computed have none."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    found = network(*inputs)
    for module, training in modes.items():
        module.training = training
    return found


def check_output(what: str, found: Any, shapes: list[tuple[int, ...]]) -> None:
    """Raises `UserError` unless it is a tensor of one of the shapes, in float32."""
    is_tensor = isinstance(found, Tensor)
    require(
        is_tensor and found.shape in shapes and found.dtype == torch.get_default_dtype(),
        f"{what} of 2 inputs are {f'{list(found.shape)} in {found.dtype}' if is_tensor else type(found).__name__}: return "
        f"a tensor {' or '.join(str(list(shape)) for shape in shapes)} in float32",
    )


def check_judgement(option: str, found: Any) -> None:
    require(
        isinstance(found, Judgement),
        f"{option} returns {type(found).__name__}: return scalegan.models.conditions.Judgement(logits, {{}})",
    )
    patches = found.logits.shape[1] if found.logits.ndim == 2 else 1
    check_output(f"{option}: its logits", found.logits, [(2,), (2, patches)])
    for name, loss in found.auxiliary.items():
        require(name in AUXILIARY, f"{option} returns a loss {name}: name it one of {', '.join(AUXILIARY)}")
        check_output(f"{option}: its losses {name}", loss, [(2,)])


def check_batch_norm(option: str, network: nn.Module, *, exact: bool) -> None:
    """Refuse torch's own where images meet that do not say so, and in the way of `exact` penalties. Raises `UserError`."""
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            require(
                bool(network.couples_samples),
                f"{option}: its {type(layer).__name__} {name} compares the images of a batch: set couples_samples to True in "
                "the class",
            )
            require(
                not (exact and layer.track_running_stats),
                f"{option}: no exact penalty goes through the running statistics of its {type(layer).__name__} {name}: take "
                "scalegan.models.batch_norm.BatchNorm(channels, running=False) in its place",
            )


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
    logits = torch.zeros(2)
    with own_code(f"--loss.own {config.own}", f"it was given logits [2], {DOCUMENT}"):
        means = {"critic": found.critic(logits, logits), "generator": found.generator(*[logits] * (1 + found.paired))}
    for name, mean in means.items():
        is_tensor = isinstance(mean, Tensor)
        require(
            is_tensor and mean.ndim == 0,
            f"--loss.own {config.own}: its {name} returns {list(mean.shape) if is_tensor else type(mean).__name__}: return the "
            "mean, one number in a tensor",
        )
    return found


def named(option: str, name: str) -> Any:
    """What a dotted name stands for, in a module that Python finds from here. Raises `UserError`."""
    path, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")) or not path or attribute == "py":
        raise UserError(f"{option} {name}: give a module and a name in it, such as my.module.Generator")
    here = str(Path.cwd())
    if here not in sys.path:  # as it is for `python -m`, but last: nothing of ours or of the library is to be hidden
        sys.path.append(here)
    with own_code(f"{option} {name}: {path}", "it cannot be imported until that is mended"):
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
