"""Filters of single channels in steps of two: in bfloat16 a CPU has no kernels for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scalegan.channelwise import strided
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator, build_generator

FAMILIES = {
    "projected": ModelConfig(critic_family="projected", critic_width=4, critic_max_width=16, backbone_size=64),
    "stylegan2": ModelConfig(family="stylegan2", z_dim=8, width=8, max_width=16, critic_width=8, critic_max_width=16),
    "r3gan": ModelConfig(family="r3gan", z_dim=8, width=16, max_width=16, critic_width=16, critic_max_width=16, blocks=1),
}


class Convolutions(TorchDispatchMode):
    """Notes the data type of each convolution of single channels with a stride, and of each gradient of one."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket._qualified_op_name
        if name in ("aten::convolution", "aten::convolution_backward"):
            first = 0 if name == "aten::convolution" else 1
            x, stride, groups = args[first], args[3 if first == 0 else 4], args[8 if first == 0 else 9]
            if stride == [2, 2] and groups > 1:
                self.dtypes.append(x.dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_none_runs_in_bfloat16_on_a_cpu(family: str) -> None:
    config, labels = FAMILIES[family], torch.zeros(4, dtype=torch.int64)
    generator, critic = build_generator(config, (3, 32, 32), 0), build_discriminator(config, (3, 32, 32), 0)
    with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16):
        logits = critic(generator(torch.randn(4, config.z_dim), labels), labels).logits
        logits.mean().backward()
    assert len(seen.dtypes) >= 4
    assert set(seen.dtypes) == {torch.float32}


@pytest.mark.parametrize("convolve", [F.conv2d, F.conv_transpose2d])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_values_and_the_data_type_are_those_of_the_convolution(convolve: Any, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 9, 8).to(dtype)
    kernels, bias = (torch.randn(shape).to(torch.promote_types(dtype, torch.float32)) for shape in ((5, 1, 3, 3), (5,)))
    found = strided(convolve, x, kernels, bias, padding=1)
    expected = convolve(x.double(), kernels.double(), bias.double(), stride=2, padding=1, groups=5)
    assert found.dtype == dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
