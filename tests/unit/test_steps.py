"""The two steps against the same method written as a textbook would: explicit gradients of images, one loss at a time."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from scalegan import settings
from scalegan.data.loader import Batch
from scalegan.draws import DataFacts
from scalegan.errors import UserError
from scalegan.models.batch_norm import BatchNorm
from scalegan.models.conditions import set_strength
from scalegan.models.equalised import Linear
from scalegan.models.noise import noise_keys, normal_noise
from scalegan.path_length import DIRECTIONS
from scalegan.pixels import normalise
from scalegan.statistics import Statistics
from scalegan.steps import Game

SHAPE, CLASSES, BATCH = (3, 16, 20), (5, 3, 8), 8
SMALL = {
    "data.path": "none is read",
    "train.batch": BATCH,
    "train.precision": "fp32",
    "model.width": 4,
    "model.critic_width": 4,
    "model.critic_max_width": 8,
    "model.critic_norm": "none",
    "model.init": "kaiming",
    "model.conditional": "true",
    "augment.brightness": 0.5,
    "augment.shift": 0.2,
    "augment.p": 0.7,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_half_game() -> Iterator[Callable[..., Game]]:
    """`make_game` in bfloat16; a process has one precision, but for tests."""

    def make(**changes: Any) -> Game:
        AcceleratorState._reset_state(True)
        return make_game(Accelerator(cpu=True, mixed_precision="bf16"), **changes)

    yield make
    AcceleratorState._reset_state(True)


def make_game(accelerator: Accelerator | None = None, **changes: Any) -> Game:
    options = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    config = settings.parse([f"--{name}={value}" for name, value in options.items()]).config
    return Game(config, accelerator or Accelerator(cpu=True), DataFacts(SHAPE, CLASSES))


def real_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (BATCH, *SHAPE), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(0, 3, (BATCH,), generator=generator))


def critic_objective(name: str, real: Tensor, fake: Tensor) -> Tensor:
    return {
        "non_saturating": -torch.sigmoid(real).log().mean() - torch.sigmoid(-fake).log().mean(),
        "minimax": -torch.sigmoid(real).log().mean() - torch.sigmoid(-fake).log().mean(),
        "hinge": relu(1 - real).mean() + relu(1 + fake).mean(),
        "least_squares": ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
        "wasserstein": (fake - real).mean(),
        "relativistic": softplus(fake - real).mean(),
    }[name]


def generator_objective(name: str, real: Tensor, fake: Tensor) -> Tensor:
    return {
        "non_saturating": -torch.sigmoid(fake).log().mean(),
        "minimax": torch.sigmoid(-fake).log().mean(),
        "hinge": -fake.mean(),
        "least_squares": ((fake - 1) ** 2).mean() / 2,
        "wasserstein": -fake.mean(),
        "relativistic": softplus(real - fake).mean(),
    }[name]


def slopes(game: Game, images: Tensor, labels: Tensor, views: Tensor | None) -> Tensor:
    """|d logit / d image|^2 [N], with a graph for the critic's weights."""
    images = images.detach().requires_grad_()
    logits = game.bare_critic(images, labels, views).logits
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.pow(2).sum(dim=(1, 2, 3))


PENALTIES: dict[str, dict[str, float]] = {
    "none": {},
    "r1": {"r1_gamma": 2.0},
    "r2": {"r2_gamma": 3.0},
    "r1, r2": {"r1_gamma": 2.0, "r2_gamma": 3.0},
    "wgan-gp": {"gp_weight": 10.0},
    "zero-centred, r1": {"gp_weight": 5.0, "gp_centre": 0.0, "r1_gamma": 2.0},
}
LOSSES = ("non_saturating", "minimax", "hinge", "least_squares", "wasserstein", "relativistic")
CASES = [("non_saturating", p) for p in PENALTIES] + [(name, "wgan-gp") for name in LOSSES[1:]] + [("relativistic", "r1, r2")]


def textbook_critic_gradients(game: Game, real: Batch, name: str, penalty: dict[str, float], every: int) -> list[Tensor]:
    draws, labels = game.draws, real.labels if name == "relativistic" else game.draws.labels("d", 0)
    images = normalise(real.images)
    with torch.no_grad():
        fakes = game.bare_generator(draws.latents("d", 0), labels)
    real_views, fake_views = draws.views("real", 0, 0.7), draws.views("fake", 0, 0.7)
    loss = critic_objective(
        name, game.bare_critic(images, real.labels, real_views).logits, game.bare_critic(fakes, labels, fake_views).logits
    )
    loss = loss + every * penalty.get("r1_gamma", 0) / 2 * slopes(game, images, real.labels, real_views).mean()
    loss = loss + every * penalty.get("r2_gamma", 0) / 2 * slopes(game, fakes, labels, fake_views).mean()
    if "gp_weight" in penalty:
        share = draws.mixture(0)
        assert share.shape == (BATCH, 1, 1, 1)
        mixed = share * images + (1 - share) * fakes
        distance = slopes(game, mixed, real.labels, real_views).sqrt() - penalty.get("gp_centre", 1.0)
        loss = loss + every * penalty["gp_weight"] * (distance**2).mean()
    return list(torch.autograd.grad(loss, list(game.bare_critic.parameters())))


def textbook_generator_gradients(game: Game, real: Batch, name: str) -> list[Tensor]:
    draws, labels = game.draws, real.labels if name == "relativistic" else game.draws.labels("g", 0)
    fake = game.bare_critic(game.bare_generator(draws.latents("g", 0), labels), labels, draws.views("g", 0, 0.7)).logits
    beside = game.bare_critic(normalise(real.images), real.labels, draws.views("g/real", 0, 0.7)).logits
    return list(torch.autograd.grad(generator_objective(name, beside.detach(), fake), list(game.bare_generator.parameters())))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    largest = max(gradient.abs().max().item() for gradient in expected)
    assert largest > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6 * largest)


@pytest.mark.parametrize(("name", "penalty"), CASES)
def test_gradients_are_those_of_the_textbook(name: str, penalty: str) -> None:
    weights = {f"loss__{field}": value for field, value in PENALTIES[penalty].items()}
    game, real = make_game(loss__name=name, loss__penalty_every=4, **weights), real_batch()
    game.bare_generator.train()
    expected = textbook_critic_gradients(game, real, name, PENALTIES[penalty], every=4)
    values = game.discriminator_step([real], 0).means()
    assert_same([p.grad for p in game.bare_critic.parameters()], expected)  # type: ignore[misc]
    assert {n for n in ("r1", "r2", "gp") if n in values} == {field.split("_")[0] for field in PENALTIES[penalty]} - {"centre"}

    expected = textbook_generator_gradients(game, real, name)
    game.generator_step([real], 0)
    assert_same([p.grad for p in game.bare_generator.parameters()], expected)  # type: ignore[misc]


@pytest.mark.parametrize("norm_group", [0, BATCH, BATCH // 2])
def test_both_sides_are_scored_in_one_pass_where_groups_keep_them_apart(norm_group: int) -> None:
    game, whole = (make_game(model__critic_norm="batch", model__norm_group=group) for group in (norm_group, 0))
    seen: list[int] = []
    game.bare_critic.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    values, expected = (g.discriminator_step([real_batch()], 0).means() for g in (game, whole))
    assert seen == ([2 * BATCH] if norm_group else [BATCH, BATCH])
    for name in ("loss/D", "logits/real", "logits/fake", "grad_norm/D"):
        close = torch.isclose(values[name], expected[name], rtol=1e-5, atol=1e-6)
        assert bool(close) is (norm_group != BATCH // 2), name  # half of the batch has other means


def test_no_step_looks_for_a_package_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's optimizers do, twice a step."""
    game, looked_for = make_game(), []
    monkeypatch.setattr(importlib.util, "find_spec", looked_for.append)
    game.discriminator_step([real_batch()], 0)
    game.generator_step([real_batch()], 0)
    assert not looked_for


def test_penalties_come_every_so_many_steps() -> None:
    game, real = make_game(loss__r1_gamma=1.0, loss__gp_weight=1.0, loss__penalty_every=3), real_batch()
    found = [{"r1", "gp"} & game.discriminator_step([real], BATCH * step).means().keys() for step in range(7)]
    assert found == [{"r1", "gp"}, set(), set(), {"r1", "gp"}, set(), set(), {"r1", "gp"}]


def test_a_generator_that_learns_every_third_step_stands_still_in_the_others() -> None:
    game, real = make_game(optim__critic_steps=3), real_batch()
    moved = []
    for step in range(6):
        before = [p.clone() for p in game.bare_generator.parameters()]
        values = game.generator_step([real], BATCH * step).means()
        changed = any(not torch.equal(a, b) for a, b in zip(before, game.bare_generator.parameters(), strict=True))
        assert changed == bool(values)
        moved.append(changed)
    assert moved == [False, False, True, False, False, True]


def test_a_gradient_that_is_not_finite_is_named_alone_where_gradients_are_cut() -> None:
    game, real = make_game(optim__clip=1.0), real_batch()
    name, parameter = list(game.bare_critic.named_parameters())[1]
    parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
    assert game.discriminator_step([real], 0).means()["skipped/D"] == 1
    assert game.gradient_name(0, int(game.nonfinite[0])) == f"critic.{name}"


def test_the_first_gradient_that_is_not_finite_is_known_of_the_last_step_of_each_network() -> None:
    game, real = make_game(), real_batch()
    hurt: list[tuple[str, float]] = []
    for network in (game.bare_critic, game.bare_generator):
        for name, parameter in network.named_parameters():
            parameter.register_hook(lambda g, name=name: torch.full_like(g, dict(hurt)[name]) if name in dict(hurt) else g)
    critic, generator = ([name for name, _ in net.named_parameters()] for net in (game.bare_critic, game.bare_generator))
    hurt += [(critic[2], torch.inf), (critic[4], torch.nan), (generator[3], torch.nan)]
    game.discriminator_step([real], 0)
    game.generator_step([real], 0)
    assert game.nonfinite.tolist() == [2, 3]
    names = [game.gradient_name(place, number) for place, number in enumerate(game.nonfinite.tolist())]
    assert names == [f"critic.{critic[2]}", f"generator.{generator[3]}"]
    hurt.clear()
    game.discriminator_step([real], BATCH)
    assert game.nonfinite.tolist() == [0, 3]


@pytest.mark.parametrize(("options", "layer"), [
    ({}, BatchNorm),
    ({"model__norm_group": BATCH // 2}, BatchNorm),
    ({"model__conditional": "true", "model__class_via": "norm"}, BatchNorm),
    ({"model__family": "fastgan", "model__critic_norm": "spectral", "model__init": "dcgan"}, BatchNorm),
    ({"model__family": "stylegan2", "model__init": "dcgan", "model__critic_norm": "auto", "loss__path_weight": 1.0}, Linear),
], ids=["batch norm", "groups", "class norms", "fastgan", "stylegan2"])  # fmt: skip
def test_an_activation_that_is_not_finite_leaves_every_running_statistic_finite(options: dict[str, Any], layer: type) -> None:
    """One pixel of one image in one pass of the generator, for the critic's step and for its own."""
    game, real = make_game(**options), real_batch()
    networks = game.bare_generator, game.bare_critic, game.ema
    first = next(module for module in game.bare_generator.modules() if isinstance(module, layer))

    def spoil(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        spoilt = inputs[0].clone()
        spoilt[(0,) * spoilt.ndim] = torch.inf
        return spoilt, *inputs[1:]

    before = [parameter.clone() for network in networks[:2] for parameter in network.parameters()]
    for take, name in ((game.discriminator_step, "skipped/D"), (game.generator_step, "skipped/G")):
        spoiling = first.register_forward_pre_hook(spoil)
        assert take([real], 0).means()[name] == 1
        spoiling.remove()
    game.average(BATCH)
    for network in networks:
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    after = [parameter for network in networks[:2] for parameter in network.parameters()]
    assert all(map(torch.equal, before, after))
    values = game.discriminator_step([real], BATCH).means() | game.generator_step([real], BATCH).means()
    assert all(value.isfinite() for value in values.values())
    assert values["skipped/D"] == values["skipped/G"] == 0


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_without_classes_no_network_sees_a_label(loss: str) -> None:
    """Not even of the real images of labelled data, which a critic of one's own would know them by."""
    game, real = make_game(model__conditional="false", loss__name=loss, loss__r1_gamma=1.0, loss__gp_weight=1.0), real_batch()
    seen: list[Tensor] = []
    for network in (game.bare_generator, game.bare_critic.discriminator):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))  # type: ignore[union-attr]
    game.discriminator_step([real], 0)
    game.generator_step([real], 0)
    assert real.labels.min() >= 0
    assert len(seen) >= 5
    assert all((labels == -1).all() for labels in seen)


@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
def test_every_second_real_image_is_mirrored_for_both_networks(loss: str) -> None:
    game, plain = (make_game(loss__name=loss, data__mirror=mirror) for mirror in ("true", "false"))
    real = real_batch()
    ((_, seen),) = game.rounds_of([real], 5 * BATCH)
    mirrored = [not torch.equal(one, other) for one, other in zip(seen.images, real.images, strict=True)]
    assert 0 < sum(mirrored) < BATCH
    for one, other, swapped in zip(seen.images, real.images, mirrored, strict=True):
        assert torch.equal(one, other.flip(2) if swapped else other)
    assert torch.equal(seen.labels, real.labels)
    for name in ("discriminator_step", "generator_step"):
        expected = getattr(plain, name)([seen], 5 * BATCH).means()
        for what, value in getattr(game, name)([real], 5 * BATCH).means().items():
            assert torch.equal(value, expected[what]), what


def test_an_image_is_mirrored_by_its_place_alone() -> None:
    whole, rounds, real = make_game(data__mirror="true"), make_game(data__mirror="true", train__accumulate=2), real_batch()
    halves = list(map(Batch, real.images.chunk(2), real.labels.chunk(2)))
    swapped = []
    for step in range(100):
        ((_, once),) = whole.rounds_of([real], BATCH * step)
        assert torch.equal(once.images, torch.cat([part.images for _, part in rounds.rounds_of(halves, BATCH * step)]))
        swapped.append((once.images != real.images).flatten(1).any(1))
    assert torch.cat(swapped).float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_a_long_gradient_is_cut_to_length_and_its_own_length_reported(clip: float) -> None:
    plain, clipped, real = make_game(), make_game(optim__clip=clip), real_batch()
    norms = []
    for game in (plain, clipped):
        reported = game.discriminator_step([real], 0).means()["grad_norm/D"].item()
        used = torch.stack([p.grad.norm() for p in game.bare_critic.parameters() if p.grad is not None]).norm().item()
        norms.append((reported, used))
    (whole, same), (reported, used) = norms
    assert reported == pytest.approx(whole)
    assert same == pytest.approx(whole)
    assert used == pytest.approx(min(whole, clip), rel=1e-4)


def test_the_classifier_teaches_critic_at_real_images_and_generator_at_its_own() -> None:
    game, real = make_game(model__class_head="classifier", loss__class_weight=0.5, model__class_ramp=4 * BATCH), real_batch()
    seen, draws = 2 * BATCH, game.draws  # half of the ramp
    for network in (game.bare_generator, game.bare_critic):
        set_strength(network, 0.5)
    game.bare_generator.train()
    labels, first = draws.labels("d", seen), draws.first(seen, 0)
    with torch.no_grad():
        fakes = game.bare_generator(draws.latents("d", first), labels)
    ours = game.bare_critic(normalise(real.images), real.labels, draws.views("real", first, 0.7))
    theirs = game.bare_critic(fakes, labels, draws.views("fake", first, 0.7))
    loss = softplus(-ours.logits).mean() + softplus(theirs.logits).mean() + 0.25 * ours.auxiliary["class"].mean()
    expected = list(torch.autograd.grad(loss, list(game.bare_critic.parameters())))
    values = game.discriminator_step([real], seen).means()
    assert_same([p.grad for p in game.bare_critic.parameters()], expected)  # type: ignore[misc]
    assert values["class/D"].item() == pytest.approx(0.25 * ours.auxiliary["class"].mean().item())

    labels = draws.labels("g", first)
    scores = game.bare_critic(game.bare_generator(draws.latents("g", first), labels), labels, draws.views("g", first, 0.7))
    loss = softplus(-scores.logits).mean() + 0.25 * scores.auxiliary["class"].mean()
    expected = list(torch.autograd.grad(loss, list(game.bare_generator.parameters())))
    game.generator_step([real], seen)
    assert_same([p.grad for p in game.bare_generator.parameters()], expected)  # type: ignore[misc]


def test_offsets_are_one_step_in_every_pixel_and_belong_to_the_image() -> None:
    draws = make_game(loss__r1_gamma=1.0, loss__penalty_form="difference", loss__penalty_step=0.25).draws
    offsets = draws.offsets("real", 40)
    assert offsets is not None
    assert offsets.shape == (BATCH, *SHAPE)
    assert set(offsets.unique().tolist()) == {-0.25, 0.25}
    assert abs(offsets.mean().item()) < 0.02
    later = draws.offsets("real", 43)
    assert later is not None
    assert torch.equal(later[:5], offsets[3:])
    assert not torch.equal(later[0], offsets[0])


@pytest.mark.parametrize(("options", "told"), [
    ({"model__critic_norm": "batch", "loss__r1_gamma": 1.0}, "this critic compares them"),
    ({"loss__gp_weight": 1.0}, "set --loss.gp_centre 0"),
])  # fmt: skip
def test_a_slope_by_a_difference_is_refused_where_it_means_nothing(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make_game(loss__penalty_form="difference", **options)


def test_a_slope_by_a_difference_is_one_of_real_float32(float32_switches: tuple[Any, ...]) -> None:
    """Of two logits that 0.01 in each pixel makes, TF32's 10 bits would leave little."""
    make_game(loss__r1_gamma=1.0)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    make_game(loss__r1_gamma=1.0, loss__penalty_form="difference")
    assert {switch.fp32_precision for switch in float32_switches} == {"ieee"}


def test_penalties_by_differences_enter_the_loss() -> None:
    form = {"loss__penalty_form": "difference", "loss__penalty_step": 0.02}
    game, real = (
        make_game(loss__r1_gamma=3.0, loss__r2_gamma=2.0, loss__gp_weight=5.0, loss__gp_centre=0.0, **form),
        real_batch(),
    )
    draws, images = game.draws, normalise(real.images)
    labels = draws.labels("d", 0)
    with torch.no_grad():
        fakes = game.bare_generator(draws.latents("d", 0), labels)

    def slope(side: str, images: Tensor, labels: Tensor, views: Tensor | None) -> Tensor:
        here, there = (game.bare_critic(x, labels, views).logits for x in (images, images + draws.offsets(side, 0)))
        return ((there - here) / 0.02) ** 2

    views = draws.views("real", 0, 0.7)
    mixed = torch.lerp(fakes, images, draws.mixture(0))
    expected = {
        "r1": 1.5 * slope("real", images, real.labels, views).mean(),
        "r2": slope("fake", fakes, labels, draws.views("fake", 0, 0.7)).mean(),
        "gp": 5.0 * slope("mixed", mixed, real.labels, views).mean(),
    }
    found = game.discriminator_step([real], 0).means()
    assert {name: found[name].item() for name in expected} == {
        name: pytest.approx(value.item(), rel=1e-3, abs=1e-6) for name, value in expected.items()
    }


def test_a_penalty_by_differences_is_that_of_float32_in_a_game_in_bfloat16(make_half_game: Callable[..., Game]) -> None:
    """At real images, which are the same in both."""
    options, real = {"loss__penalty_form": "difference", "loss__r1_gamma": 0.1}, real_batch()
    exact = make_game(**options).discriminator_step([real], 0).means()
    half = make_half_game(**options).discriminator_step([real], 0).means()
    assert half["loss/D"] != exact["loss/D"]
    assert half["r1"].item() == pytest.approx(exact["r1"].item(), rel=1e-5)


def test_a_game_in_bfloat16_reckons_in_it_and_keeps_weights_and_losses_in_float32(make_half_game: Callable[..., Game]) -> None:
    """Losses of the first step within 1 % of those of float32, penalties within 5 %, gradients' norms within 10 %."""
    options = {"loss__r1_gamma": 1.0, "loss__r2_gamma": 1.0, "loss__gp_weight": 1.0}
    real, found, seen = real_batch(), [], set()
    for make in (make_game, make_half_game):
        game = make(**options)
        for network in (game.bare_generator, game.bare_critic):
            layer = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d))
            layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        for step in range(3):
            values = game.discriminator_step([real], BATCH * step).means() | game.generator_step([real], BATCH * step).means()
            if step == 0:
                found.append(values)
            game.average(BATCH * (step + 1))
            assert {value.dtype for value in values.values()} == {torch.float32}
            assert all(value.isfinite() for value in values.values())
            assert values["skipped/D"] == values["skipped/G"] == 0
    assert seen == {torch.float32, torch.bfloat16}
    for network in (game.bare_generator, game.bare_critic, game.ema):
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    scores = game.bare_critic(normalise(real.images), real.labels, None, True)
    assert scores.logits.dtype == scores.squared_grad_norm.dtype == torch.float32
    exact, half = found
    for names, bound in ((("loss/D", "loss/G"), 0.01), (("r1", "r2", "gp"), 0.05), (("grad_norm/D", "grad_norm/G"), 0.1)):
        for name in names:
            assert half[name] != exact[name], name
            assert half[name].item() == pytest.approx(exact[name].item(), rel=bound), name


STYLEGAN2 = {
    "model__family": "stylegan2",
    "model__critic_family": "dcgan",  # whose settings the others have
    "model__max_width": 8,
    "model__z_dim": 8,
    "model__map_layers": 2,
    "loss__path_weight": 2.0,
}


def textbook_path_lengths(game: Game, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images, and |J_w^T y| of each by autograd's create_graph."""
    generator: Any = game.bare_generator
    latents = game.draws.latents("g", 0)
    keys = noise_keys(latents)
    ws = generator.styles(latents, labels, keys)
    images = generator.synthesise(ws, keys)
    y = normal_noise(keys, DIRECTIONS, SHAPE[0] * SHAPE[1], SHAPE[2]).view_as(images) / (SHAPE[1] * SHAPE[2]) ** 0.5
    (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return images, gradient.pow(2).sum(2).mean(1).sqrt()


def test_the_path_length_penalty_is_that_of_the_textbook() -> None:
    game, real = make_game(**STYLEGAN2, loss__path_every=3, loss__path_decay=0.25), real_batch()
    game.bare_generator.train()
    game.maker.typical.fill_(0.1)
    labels = game.draws.labels("g", 0)
    images, lengths = textbook_path_lengths(game, labels)
    logits = game.bare_critic(images, labels, game.draws.views("g", 0, 0.7)).logits
    loss = softplus(-logits).mean() + 3 * 2.0 * (lengths - 0.1).pow(2).mean()
    expected = list(torch.autograd.grad(loss, list(game.bare_generator.parameters())))
    values = game.generator_step([real], 0).means()
    assert_same([p.grad for p in game.bare_generator.parameters()], expected)  # type: ignore[misc]
    assert values["path_length"].item() == pytest.approx(lengths.mean().item(), rel=1e-4)
    assert game.maker.typical.item() == pytest.approx(0.1 + 0.25 * (lengths.mean().item() - 0.1), rel=1e-4)


@pytest.mark.parametrize(("critic_steps", "expected"), [(1, [0, 3, 6]), (2, [1, 7])])
def test_path_lengths_are_taken_every_so_many_steps_of_the_generator(critic_steps: int, expected: list[int]) -> None:
    game, real = make_game(**STYLEGAN2, loss__path_every=3, optim__critic_steps=critic_steps), real_batch()
    steps = [step for step in range(8) if "path" in game.generator_step([real], BATCH * step).means()]
    assert steps == expected


def test_rounds_make_no_difference_to_path_lengths() -> None:
    found = []
    for rounds in (1, 2):
        game, real = make_game(**STYLEGAN2, train__accumulate=rounds), real_batch()
        game.maker.typical.fill_(0.1)
        size = BATCH // rounds
        parts = [Batch(real.images[i : i + size], real.labels[i : i + size]) for i in range(0, BATCH, size)]
        game.generator_step(parts, 0)
        found.append((game.maker.typical.clone(), [p.grad for p in game.bare_generator.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert_same(found[1][1], found[0][1])  # type: ignore[arg-type]


def test_the_reward_for_diversity_is_that_of_the_textbook() -> None:
    """Samples and second ones of their classes are made in one batch, which batch norm looks at."""
    game, real = make_game(loss__diversity_weight=3.0, loss__diversity_limit=0.038), real_batch()
    game.bare_generator.train()
    labels, latents, others = game.draws.labels("g", 0), game.draws.latents("g", 0), game.draws.latents("other", 0)
    both = torch.cat([torch.stack(pair) for pair in zip(latents, others, strict=True)])
    made = game.bare_generator(both, torch.stack([labels, labels], 1).flatten())
    images, twins = made[0::2], made[1::2]
    apart = (images - twins).abs().mean((1, 2, 3)) / (latents - others).abs().mean(1)
    assert 0 < (apart > 0.038).sum() < BATCH
    logits = game.bare_critic(images, labels, game.draws.views("g", 0, 0.7)).logits
    loss = softplus(-logits).mean() - 3 * torch.minimum(apart, torch.tensor(0.038)).mean()
    expected = list(torch.autograd.grad(loss, list(game.bare_generator.parameters())))
    values = game.generator_step([real], 0).means()
    assert_same([p.grad for p in game.bare_generator.parameters()], expected)  # type: ignore[misc]
    assert values["diversity/G"].item() == pytest.approx(apart.mean().item(), rel=1e-4)
    assert values["loss/G"].item() == pytest.approx(softplus(-logits).mean().item(), rel=1e-4)


@pytest.mark.parametrize("options", [
    {"model__class_head": "classifier", "loss__r1_gamma": 1.0, "loss__r2_gamma": 1.0, "loss__gp_weight": 1.0},
    {"model__critic_family": "fastgan", "model__critic_norm": "spectral", "model__init": "dcgan", "loss__name": "relativistic"},
    STYLEGAN2,
    {"loss__diversity_weight": 1.0},
], ids=["classifier, penalties", "reconstruction", "path lengths", "diversity"])  # fmt: skip
def test_what_the_steps_report_stands_in_the_metrics(options: dict[str, Any]) -> None:
    game, real = make_game(**options), real_batch()
    reported = {name for step in (game.discriminator_step, game.generator_step) for name in step([real], 0).means()}
    assert len(reported) > 8
    assert reported <= set(Statistics.NAMES)
