"""A compiled step is the eager one: the same losses, and the same gradients to rounding."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_steps import BATCH, make_game, real_batch

from helpers.daily import one_a_day, slow
from helpers.runs import only_traced
from scalegan.errors import UserError

OTHER_FAMILY = {"model__critic_norm": "auto", "model__init": "dcgan", "optim__lr_g": 1e-6, "optim__lr_d": 1e-6}
"""Adam's first steps go by the signs of gradients, which rounding decides where they are next to nothing: small steps, then."""
CASES = {
    "r1, classifier": {"loss__r1_gamma": 1.0, "model__class_head": "classifier"},
    "r1 and r2, r3gan": {
        "model__family": "r3gan", "model__critic_norm": "auto", "model__init": "dcgan", "model__group_width": 4,
        "model__critic_width": 8, "loss__name": "relativistic", "loss__r1_gamma": 1.0, "loss__r2_gamma": 1.0,
    },
    "wgan-gp, spectral": {"model__critic_norm": "spectral", "loss__name": "wasserstein", "loss__gp_weight": 10.0},
    "r1, batch norm": {"model__critic_norm": "batch", "loss__r1_gamma": 1.0, "model__norm_group": 4},
    "r1, path length, stylegan2": {
        **OTHER_FAMILY, "model__family": "stylegan2", "model__map_layers": 2, "loss__r1_gamma": 1.0, "loss__path_weight": 2.0,
        "loss__path_every": 1,
    },
    "r1, biggan": {**OTHER_FAMILY, "model__family": "biggan", "model__attention": 8, "loss__r1_gamma": 1.0},
    "r1, resnet": {**OTHER_FAMILY, "model__family": "resnet", "loss__name": "hinge", "loss__r1_gamma": 1.0},
    "r1, fastgan": {**OTHER_FAMILY, "model__family": "fastgan", "loss__name": "hinge", "loss__r1_gamma": 1.0},
    "r1, projected": {
        **OTHER_FAMILY, "model__critic_family": "projected", "model__backbone_size": 32, "model__critic_norm": "spectral",
        "loss__name": "hinge", "loss__r1_gamma": 1.0,
    },
    "projected, batch norm": {
        **OTHER_FAMILY, "model__critic_family": "projected", "model__backbone_size": 32, "loss__name": "hinge",
    },
    "r1, photo": {"loss__r1_gamma": 1.0, "augment__pipe": "photo"},
    "r1 and r2, photo with cutout": {
        "loss__name": "relativistic", "loss__r1_gamma": 1.0, "loss__r2_gamma": 1.0, "augment__pipe": "photo",
        "augment__cutout": 0.5, "augment__colour": 0.5, "augment__rotate90": "false",
    },
    "difference": {"loss__r1_gamma": 1.0, "loss__penalty_form": "difference"},
}  # fmt: skip
QUICK = ("r1, classifier", "difference")
DEAR = "r1, projected"
"""Its depthwise convolutions are differentiated twice channel by channel, each of them a call to be generated: traced alone."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", torch.nn.Module.compile)  # put back at the end
    only_traced()


def steps(case: str, **options: Any) -> list[torch.Tensor]:
    """Values and gradients of three steps."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    game, real = make_game(loss__penalty_every=2, **CASES[case], **options), real_batch()
    found = []
    for step in range(3):
        for take, network in ((game.discriminator_step, game.bare_critic), (game.generator_step, game.bare_generator)):
            values = take([real], BATCH * step).means()
            gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            found += [torch.stack(list(values.values())), torch.cat(gradients)]
    return found


def assert_alike(case: str, eager: list[torch.Tensor], compiled: list[torch.Tensor]) -> None:
    rounding = 3e-5 if case == "difference" else 1e-5  # a difference of two logits is divided by a step of 0.01
    for one, other in zip(eager, compiled, strict=True):
        assert (one - other).norm() <= rounding * one.norm()


@pytest.mark.parametrize("case", [*one_a_day(QUICK), *(slow(case) for case in CASES if case not in QUICK)])
@pytest.mark.usefixtures("traced")
def test_a_traced_step_is_the_eager_one(case: str) -> None:
    eager = steps(case)
    assert_alike(case, eager, steps(case, train__compile="true"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != DEAR])
def test_a_compiled_step_is_the_eager_one(case: str) -> None:
    assert_alike(case, steps(case), steps(case, train__compile="true"))


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"loss__r1_gamma": 1.0}, True),
        ({"loss__r1_gamma": 1.0, "model__norm_group": BATCH}, False),
        ({"loss__r1_gamma": 1.0, "model__critic_norm": "none"}, False),
        ({}, False),
    ],
)
def test_a_penalty_through_a_batch_norm_over_processes_is_refused(
    options: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo differentiates the sum over processes, an `autograd.Function`, once; a second time it counts as a constant."""
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    asked = {"model__critic_norm": "batch", "train__compile": "true"} | options
    if not refused:
        make_game(**asked)
        return
    with pytest.raises(UserError, match=r"^train.compile would .* over 1 processes: set --model.norm_group 8, or"):
        make_game(**asked)
    make_game(**asked | {"train__compile": "false"})
