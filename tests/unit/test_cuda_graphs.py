"""What CUDA graphs ask of the steps, as far as a CPU shows it: a round keeps nothing that the next one overwrites."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_steps import BATCH, make_game, real_batch
from torch import Tensor, nn
from torch._inductor.cudagraph_trees import MarkStepBox
from torch.utils._pytree import tree_leaves

from scalegan import settings
from scalegan.data.loader import Batch
from scalegan.errors import UserError
from scalegan.steps import Game

GRAPHS = {"train__compile": "true", "train__cuda_graphs": "true"}
OTHER_FAMILY = {"model__critic_norm": "auto", "model__init": "dcgan"}
CASES = {
    "adaptive, classifier, diversity": {
        "loss__r1_gamma": 1.0, "model__class_head": "classifier", "augment__target": 0.6, "augment__every": 1,
        "loss__diversity_weight": 1.0,
    },
    "pairs, r1, r2": {"loss__name": "relativistic", "loss__r1_gamma": 1.0, "loss__r2_gamma": 1.0},
    "gradient penalty, clip": {"loss__name": "wasserstein", "loss__gp_weight": 10.0, "optim__clip": 1.0},
    "batch norm": {"model__critic_norm": "batch", "loss__r1_gamma": 1.0, "loss__penalty_every": 2},
    "path length": {
        **OTHER_FAMILY, "model__family": "stylegan2", "model__map_layers": 2, "loss__path_weight": 2.0, "loss__path_every": 2,
    },
    "two losses, spectral norm": {**OTHER_FAMILY, "model__family": "fastgan", "loss__name": "hinge", "ema__power": "[0.1]"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Nothing is compiled, though it was asked for."""
    with torch.compiler.set_stance("force_eager"):
        yield


def rounds_of(game: Game) -> list[Batch]:
    whole = real_batch()
    return list(map(Batch, whole.images.chunk(game.rounds), whole.labels.chunk(game.rounds)))


def take_steps(game: Game, before_reading: Callable[[], object] = lambda: None) -> list[Tensor]:
    """Values of four steps, read when all are done, and the weights, buffers and averages after them."""
    values = []
    for step in range(4):
        values += [take(rounds_of(game), BATCH * step) for take in (game.discriminator_step, game.generator_step)]
        game.average(BATCH * (step + 1))
    before_reading()
    networks = (game.bare_generator, game.bare_critic, game.ema, *game.powers.values())
    states = [tensor for network in networks for tensor in network.state_dict().values()]
    return [value for part in values for value in part.means().values()] + states + [game.adaptive.p]


def overwriting(game: Game, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Do as CUDA graphs do: what networks and backward passes give lies in memory that is used again once a round begins.

    Returns what does so at the beginning of a round.
    """
    given: list[Tensor] = []
    backward = game.accelerator.backward

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        given.extend(output for output in tree_leaves(outputs) if isinstance(output, Tensor))

    def keep_gradients(loss: Tensor) -> None:
        parameters = [*game.bare_generator.parameters(), *game.bare_critic.parameters()]
        new = [parameter for parameter in parameters if parameter.grad is None]
        backward(loss)
        given.extend(parameter.grad for parameter in new if parameter.grad is not None)

    def begin() -> None:
        for tensor in given:
            tensor.data.fill_(torch.nan)
        given.clear()

    game.bare_generator.register_forward_hook(keep)
    game.bare_critic.register_forward_hook(keep)
    monkeypatch.setattr(game.accelerator, "backward", keep_gradients)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin)
    return begin


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_round_is_held_when_the_next_begins(case: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = CASES[case] | {"train__accumulate": rounds}
    expected = take_steps(make_game(**options))
    game = make_game(**options, **GRAPHS)
    for one, other in zip(expected, take_steps(game, overwriting(game, monkeypatch)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rounds", [1, 2])
def test_each_round_of_either_network_begins_anew(rounds: int) -> None:
    game = make_game(**GRAPHS, train__accumulate=rounds)
    for take in (game.discriminator_step, game.generator_step):
        before = MarkStepBox.mark_step_counter
        take(rounds_of(game), 0)
        assert before - MarkStepBox.mark_step_counter == rounds


def test_without_graphs_no_round_is_marked() -> None:
    game, before = make_game(train__compile="true"), MarkStepBox.mark_step_counter
    game.discriminator_step([real_batch()], 0)
    assert MarkStepBox.mark_step_counter == before


@pytest.mark.parametrize("graphs", [False, True])
def test_both_networks_are_compiled_with_graphs_where_asked_for(graphs: bool) -> None:
    game = make_game(train__compile="true", train__cuda_graphs=str(graphs).lower())
    for network in (game.bare_generator, game.bare_critic):
        assert network._compiled_call_impl.get_compiler_config()["triton.cudagraphs"] == graphs  # type: ignore[union-attr]
    assert game.ema._compiled_call_impl is None  # sampled with batches of any size


def test_graphs_of_what_is_not_compiled_are_refused_with_both_ways_out() -> None:
    asked = ["--data.path=data", "--train.cuda_graphs=true"]
    with pytest.raises(
        UserError, match=r"^train.cuda_graphs needs .*: set --train.compile true, or --train.cuda_graphs false$"
    ):
        settings.parse(asked)
    assert settings.parse([*asked, "--train.compile=true"]).config.train.cuda_graphs
    assert not settings.parse([*asked, "--train.cuda_graphs=false"]).config.train.cuda_graphs


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({}, True),
        ({"model__norm_group": 2 * BATCH}, True),
        ({"model__norm_group": BATCH}, False),
        ({"model__norm_group": BATCH // 2}, False),
        ({**OTHER_FAMILY, "model__family": "r3gan", "model__group_width": 4}, False),
        ({**OTHER_FAMILY, "model__family": "r3gan", "model__group_width": 4, "model__critic_family": "fastgan"}, True),
    ],
)
def test_they_are_refused_where_a_batch_norm_waits_for_other_processes(
    options: dict[str, Any], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    if not waits:
        make_game(**GRAPHS, **options)
        return
    with pytest.raises(UserError, match=r"^train.cuda_graphs records each network by itself, and a batch norm over") as told:
        make_game(**GRAPHS, **options)
    assert str(told.value).endswith(f"set --model.norm_group {BATCH}, or --train.cuda_graphs false")
    make_game(**options, train__compile="true")
