"""Networks lie in memory in the layout that convolutions are fastest in, channels last, and stay in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_steps import BATCH, STYLEGAN2, make_game, real_batch
from torch import Tensor, nn

OTHERS = {"model__init": "dcgan", "model__critic_norm": "auto", "model__max_width": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "dcgan": {},
    "resnet": OTHERS | {"model__family": "resnet"},
    "biggan": OTHERS | {"model__family": "biggan", "model__attention": 8},
    "fastgan": OTHERS | {"model__family": "fastgan"},
    "stylegan2": OTHERS | STYLEGAN2 | {"model__critic_family": "same"},
    "r3gan": OTHERS | {"model__family": "r3gan", "model__group_width": 4},
    "projected": OTHERS | {"model__critic_family": "projected", "model__backbone_size": 32},
}


def channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def kernels(network: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions of more than one channel and pixel: those of others lie in both layouts at once."""
    found = network.named_parameters()
    return {name: weight for name, weight in found if weight.ndim == 4 and weight.shape[1] > 1 and weight[0, 0].numel() > 1}


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_weights_have_their_channels_last(options: dict[str, Any]) -> None:
    """Of both networks and of the averages, before a step and after."""
    game = make_game(**options, ema__power="[0.1]")
    networks = {"generator": game.bare_generator, "critic": game.bare_critic, "ema": game.ema, "power": game.powers[0.1]}
    for step in range(2):
        for name, network in networks.items():
            found = kernels(network)
            assert len(found) >= 2, name
            assert not [part for part, weight in found.items() if not channels_last(weight)], (name, step)
        game.discriminator_step([real_batch()], BATCH * step)
        game.generator_step([real_batch()], BATCH * step)
        game.average(BATCH * (step + 1))
