"""Convolutions by kernels that are never learnt: their values, their gradients to any order, and what these cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scalegan.augment_config import AugmentConfig
from scalegan.channelwise import filtered
from scalegan.critic import Critic
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator, build_generator
from scalegan.models.resampling import LowPass

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


@pytest.mark.parametrize(("convolve", "size"), [(F.conv2d, None), (F.conv_transpose2d, (17, 15))])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_values_and_the_data_type_are_those_of_the_convolution(convolve: Any, size: Any, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 9, 8).to(dtype)
    kernels, bias = (torch.randn(shape).to(torch.promote_types(dtype, torch.float32)) for shape in ((5, 1, 3, 3), (5,)))
    found = filtered(x, kernels, bias, stride=2, padding=1, groups=5, size=size)
    expected = convolve(x.double(), kernels.double(), bias.double(), stride=2, padding=1, groups=5)
    assert found.dtype == dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("enabled", [True, False])
def test_others_follow_autocast_as_convolutions_do(enabled: bool) -> None:
    x, kernels = torch.randn(2, 4, 6, 5), torch.randn(4, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        found, expected = filtered(x, kernels, padding=1, groups=2), F.conv2d(x, kernels, padding=1, groups=2)
    assert found.dtype == expected.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert torch.equal(found, expected)


# --- gradients

FILTERS: dict[str, dict[str, Any]] = {
    "smoothed": {"padding": 1},
    "halved": {"padding": 1, "stride": 2},
    "halved, a row left over": {"padding": 2, "stride": 2},
    "doubled": {"padding": 1, "stride": 2, "size": (8, 6)},
    "doubled, a row over": {"padding": 1, "stride": 2, "size": (9, 6)},
}


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_gradients_and_gradients_of_gradients_are_those_of_differences(options: dict[str, Any], groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(4, 4 // groups, 4, 4, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return filtered(x, kernels, groups=groups, **options)

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def penalised(low_pass: LowPass, scale: Tensor, x: Tensor) -> Tensor:
    """Values and slope of a small network of the filters, as a critic takes them."""

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        y = low_pass.doubled(torch.tanh(low_pass.halved(torch.tanh(x * scale))), (9, 8))
        y = low_pass.smoothed(torch.tanh(y), padding=1).square()
        return y.float().sum(), y

    slope, y = torch.func.grad(total, has_aux=True)(x)
    return slope.float().square().sum() + y.float().mean()


@pytest.mark.parametrize("half", [False, True])
def test_a_compiled_slope_has_the_gradient_of_the_eager_one(half: bool) -> None:
    """Dynamo alone would take an `autograd.Function` inside of `torch.func.grad` for a constant."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    low_pass, scale, x = LowPass(), torch.tensor(0.7, requires_grad=True), torch.randn(2, 3, 9, 8)
    found = []
    for run in (penalised, torch.compile(penalised, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = run(low_pass, scale, x)
        found.append((loss.detach(), *torch.autograd.grad(loss, scale)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += function.overloadpacket._qualified_op_name.startswith("aten::convolution")
        return function(*args, **(kwargs or {}))


def convolutions(config: ModelConfig) -> int:
    """Of a critic's step with the slope of each image."""
    critic = Critic(build_discriminator(config, (3, 32, 32), 0), AugmentConfig())
    with Count() as counted:
        scores = critic(torch.randn(2, 3, 32, 32), torch.full((2,), -1), None, True)
        (scores.logits.mean() + scores.squared_grad_norm.mean()).backward()
    return counted.calls


@pytest.mark.parametrize(("family", "further"), [("stylegan2", 0), ("r3gan", 16)])
def test_a_slope_takes_as_many_convolutions_by_filters_of_many_channels_as_of_few(family: str, further: int) -> None:
    """PyTorch's own gradient of a gradient takes one more for each. r3gan's last layer is of single channels, and learnt."""

    def wide(width: int) -> ModelConfig:
        groups = {"group_width": width // 2} if family == "r3gan" else {}
        return replace(FAMILIES[family], critic_width=width, critic_max_width=width, **groups)

    assert convolutions(wide(32)) - convolutions(wide(16)) == further


def test_a_slope_through_a_frozen_backbone_takes_some_convolutions_for_each_of_its_layers() -> None:
    """They were 9,250, of which all but 258 were for gradients of the backbone's 48 kernels."""
    assert convolutions(FAMILIES["projected"]) < 300
