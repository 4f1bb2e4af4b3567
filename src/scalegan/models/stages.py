"""The stages of a discriminator from the image on, and how the first of them are held still."""

from __future__ import annotations

from torch import nn

from scalegan.errors import UserError


def stages(discriminator: nn.Module) -> list[list[nn.Module]]:
    """The modules that hold weights, in the order in which they are defined, which is that from the image to the score.

    Containers are opened one level deep. A stage begins with a module that has weights of two or more dimensions, such as
    a convolution or a block; what follows without any, such as a normalisation, belongs to it. Embeddings of the class are
    no stage: they stand beside the way of the image.
    """
    found: list[list[nn.Module]] = []
    for module in _opened(discriminator):
        if isinstance(module, nn.Embedding):
            continue
        if any(parameter.ndim >= 2 for parameter in module.parameters()):
            found.append([module])
        elif found:
            found[-1].append(module)
    return found


def freeze(discriminator: nn.Module, count: int) -> None:
    """Hold the first `count` stages still: their weights get no gradient (FreezeD, Mo et al. 2020, section 3).

    Raises `UserError` where no stage would be left to learn.
    """
    there = stages(discriminator)
    if count and count >= len(there):
        raise UserError(f"optim.freeze_critic {count}: this critic has {len(there)} stages: give at most {len(there) - 1}")
    for stage in there[:count]:
        for module in stage:
            module.requires_grad_(False)


def _opened(network: nn.Module) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for child in network.children():
        container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        modules += child.children() if container else [child]
    return modules
