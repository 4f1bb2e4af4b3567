"""Held-out images before the critic: the same ones each time, and the training goes on as if nobody had looked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from helpers.runs import FULL, configured, metrics, tensors
from helpers.shards import make_shards
from scalegan.config import DataConfig
from scalegan.data.held_out import read_held_out
from scalegan.data.index import read_index
from scalegan.data.loader import batches
from scalegan.draws import DataFacts
from scalegan.errors import UserError
from scalegan.pixels import normalise
from scalegan.probe import MOST, Probe, fixed, in_evaluation, overfit_gap, some_shards, steepness
from scalegan.steps import Game

MEASURED = {"logits/train", "logits/held_out", "logits/generated", "accuracy/train", "accuracy/held_out", "overfit_gap"}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "held_out"
    make_shards(folder, 40, seed=1)
    return folder


def game_of(shards, run, **changes):
    config = configured(shards, run, 64, **changes)
    index = read_index(shards)
    return Game(config, Accelerator(cpu=True), DataFacts((3, 16, 16), index.class_counts)), index


def probe_of(index, game):
    return Probe(index, read_held_out(game.config.data.held_out, index), game)


@pytest.mark.parametrize(("held", "gap"), [(3.0, 0.0), (1.0, 0.5), (-1.0, 1.0), (-2.0, 1.25), (4.0, -0.25)])
def test_the_gap_is_how_far_held_out_images_fall_to_fakes(held, gap):
    assert overfit_gap(3.0, held, -1.0) == gap


def test_a_critic_that_tells_nothing_apart_has_no_gap():
    assert overfit_gap(0.0, -1.0, 0.0) == 0.0


def test_as_many_images_as_there_are_over_and_over(held_out):
    index = read_index(held_out)
    once = fixed(np.arange(40), index, MOST, DataConfig())
    assert sorted(once) == list(range(40))
    assert np.array_equal(fixed(np.arange(80), index, MOST, DataConfig()), np.tile(once, 2))


def test_no_more_shards_are_fetched_than_hold_enough(shards):
    index = read_index(shards)
    many = replace(index, shards=index.shards * 3)  # of 70, 70 and 60 images each
    assert some_shards(many, 1).tolist() == [0]
    assert some_shards(many, MOST).tolist() == [0, 2, 4, 6]  # 70 + 60 + 70 + 70
    assert some_shards(many, 10_000).tolist() == list(range(9))
    far = fixed(np.arange(1000), many, 130, DataConfig(order="blocks"))
    assert set(np.searchsorted(many.starts, far, side="right") - 1) == {0, 4}
    assert len(set(fixed(np.arange(1000), many, 130, DataConfig()))) == 600


def test_the_passes_are_whole_batches(shards, held_out, tmp_path):
    game, index = game_of(shards, tmp_path, data__held_out=held_out, train__batch=16, train__accumulate=2)
    assert probe_of(index, game).places.tolist() == [list(range(first, first + 8)) for first in range(0, 40, 8)]
    game, index = game_of(shards, tmp_path, data__held_out=held_out, train__batch=64)
    assert probe_of(index, game).places.shape == (1, 64)  # of 40 images some come twice
    assert MOST >= 64


def test_a_critic_that_knows_its_images_is_found_out(shards, held_out, tmp_path):
    """One that gives 3 to every training image, by heart, and -1 to all others."""
    game, index = game_of(shards, tmp_path, data__held_out=held_out)
    probe = probe_of(index, game)
    known = torch.stack([image for batch in probe.train for image in batch.images]).float().div(127.5).sub(1)

    class ByHeart(torch.nn.Module):
        def forward(self, images, labels, draws):
            seen = (images[:, None] - known[None]).abs().flatten(2).amax(2).amin(1) < 1e-6
            return type("Scores", (), {"logits": torch.where(seen, 3.0, -1.0)})

    game.bare_critic = ByHeart()
    assert probe.measure() == {
        "logits/train": 3.0,
        "logits/held_out": -1.0,
        "logits/generated": -1.0,
        "accuracy/train": 1.0,
        "accuracy/held_out": 0.0,
        "overfit_gap": 1.0,
    }


def test_looking_moves_nothing(shards, held_out, tmp_path):
    """Neither running statistics nor the vectors of a spectral norm."""
    game, index = game_of(shards, tmp_path, data__held_out=held_out, model__critic_norm="spectral")
    probe = probe_of(index, game)
    networks = game.bare_generator, game.bare_critic
    before = [tensor.clone() for network in networks for tensor in network.state_dict().values()]
    first = probe.measure()
    assert probe.measure() == first
    after = [tensor for network in networks for tensor in network.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert all(network.training for network in networks)


def reals_of(game, index):
    loader = batches(index, game.config, 0, 0, 1, game.accelerator.device)
    return [next(loader) for _ in range(game.rounds)]


@pytest.mark.parametrize("rounds", [1, 2])
def test_how_steep_the_critic_is_is_the_mean_squared_gradient_at_both_kinds_of_images(shards, tmp_path, rounds):
    game, index = game_of(shards, tmp_path, model__critic_norm="spectral", train__accumulate=rounds)
    reals = reals_of(game, index)
    images = normalise(torch.cat([real.images for real in reals]))
    with in_evaluation(game.bare_generator, game.bare_critic):
        places = range(0, 32, 32 // rounds)
        fakes = torch.cat([game.bare_generator(game.draws.latents("steepness", 64 + first), None) for first in places])
        expected = []
        for kind in (images, fakes.detach()):
            kind.requires_grad_()
            logits = game.bare_critic(kind, torch.zeros(32, dtype=torch.int64), None).logits
            (gradient,) = torch.autograd.grad(logits.sum(), kind)
            expected.append((gradient**2).sum((1, 2, 3)).mean().item())
    weights = [tensor.clone() for tensor in game.bare_critic.state_dict().values()]
    found = steepness(game, reals, 64)
    assert found == {"steepness/real": pytest.approx(expected[0]), "steepness/fake": pytest.approx(expected[1])}
    assert steepness(game, reals, 64) == found
    assert all(map(torch.equal, weights, game.bare_critic.state_dict().values()))
    assert all(parameter.grad is None for parameter in game.bare_critic.parameters())
    assert all(module.training for module in game.bare_critic.modules())


def test_how_steep_the_critic_is_does_not_hang_on_bfloat16(shards, tmp_path):
    game, index = game_of(shards, tmp_path, model__critic_norm="none")
    exact = steepness(game, reals_of(game, index), 64)
    AcceleratorState._reset_state(True)
    half = Game(game.config, Accelerator(cpu=True, mixed_precision="bf16"), game.facts)
    found = steepness(half, reals_of(half, index), 64)
    AcceleratorState._reset_state(True)
    assert found == exact


def test_how_steep_the_critic_is_is_measured_in_plain_float32(shards, tmp_path, float32_switches, monkeypatch):
    """Beside a training in bfloat16, which leaves TF32 on."""
    game, index = game_of(shards, tmp_path)
    found, reals = [], reals_of(game, index)
    for network in (game.bare_generator, game.bare_critic.discriminator):

        def look(*given, forward=network.forward):
            found.append([switch.fp32_precision for switch in float32_switches])
            return forward(*given)

        monkeypatch.setattr(network, "forward", look)
    steepness(game, reals, 64)
    assert found == 3 * [["ieee", "ieee"]]
    assert [switch.fp32_precision for switch in float32_switches] == ["tf32", "none"]


@pytest.mark.parametrize("changes", [
    {"model.critic_norm": "batch"},
    {"model.critic_family": "projected", "model.backbone_size": 32, "loss.name": "hinge"},
    {"loss.name": "relativistic", "loss.r1_gamma": 1.0, "model.conditional": "true"},
    {"train.accumulate": 2, "train.compile": "false", "optim.critic_steps": 2},
], ids=["no penalty", "projected", "penalty", "rounds"])  # fmt: skip
def test_every_line_says_how_steep_the_critic_is(training, shards, tmp_path, changes):
    training(configured(shards, tmp_path / "run", 96, **changes))
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2
    assert all(line["steepness/real"] > 0 and line["steepness/fake"] > 0 for line in lines)


def test_without_classes_no_label_is_shown(shards, held_out, tmp_path):
    game, index = game_of(shards, tmp_path, data__held_out=held_out)
    seen = []
    generate = game.bare_generator.forward
    game.bare_generator.forward = lambda latents, labels: seen.append(labels) or generate(latents, labels)
    game.bare_critic.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    reals = reals_of(game, index)
    probe_of(index, game).measure()
    steepness(game, reals, 64)
    assert reals[0].labels.min() >= 0
    assert all((labels == -1).all() for labels in seen)
    assert len(seen) >= 7


def test_every_layer_is_in_its_mode_again_after_a_failure_too():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3).eval())
    with suppress(RuntimeError), in_evaluation(network):
        assert not any(module.training for module in network.modules())
        raise RuntimeError
    assert [module.training for module in network.modules()] == [True, True, False]


@pytest.mark.parametrize("changes", [{"model.critic_norm": "spectral"}, FULL], ids=["spectral norm", "everything"])
def test_a_run_ends_with_the_same_bytes_with_and_without(training, shards, held_out, tmp_path, changes):
    for name, folder in (("with", held_out), ("without", "")):
        training(configured(shards, tmp_path / name, 128, **changes | {"data.held_out": folder}))
    for network in ("generator", "critic", "ema", "opt_g", "opt_d"):
        ours, theirs = (tensors(tmp_path / name, network) for name in ("with", "without"))
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (metrics(tmp_path / name) for name in ("with", "without"))
    assert len(ours) == 2
    for with_, without in zip(ours, theirs, strict=True):
        assert with_.keys() - without.keys() == MEASURED
        assert with_ | without == with_


@pytest.mark.parametrize("loss", ["hinge", "least_squares", "relativistic"])
def test_every_loss_has_an_accuracy(shards, held_out, tmp_path, loss):
    game, index = game_of(shards, tmp_path, data__held_out=held_out, loss__name=loss)
    measured = probe_of(index, game).measure()
    assert measured.keys() == MEASURED
    assert 0 <= measured["accuracy/held_out"] <= 1


@pytest.mark.parametrize("family", ["r3gan", "resnet", "biggan", "fastgan"])
def test_every_family_is_scored_and_left_as_it_was(shards, held_out, tmp_path, family):
    changes = {"model__group_width": 8} if family == "r3gan" else {}
    game, index = game_of(shards, tmp_path, data__held_out=held_out, model__family=family, model__conditional=True, **changes)
    probe = probe_of(index, game)
    before = {name: tensor.clone() for name, tensor in game.bare_critic.state_dict().items()}
    measured = probe.measure()
    assert all(np.isfinite(list(measured.values())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in game.bare_critic.state_dict().items())


def test_a_folder_of_other_images_is_refused(shards, tmp_path):
    index = make_shards(tmp_path / "small", 40, height=12)
    with pytest.raises(UserError, match=r"have height 12 and data.path .* has 16: write both"):
        read_held_out(str(tmp_path / "small"), read_index(shards))
    with pytest.raises(UserError, match="have classes"):
        read_held_out(str(shards), replace(read_index(shards), classes=("a", "b")))
    assert index.height == 12


def test_images_that_are_trained_on_are_refused(shards):
    with pytest.raises(UserError, match="share 3 shards with"):
        read_held_out(str(shards), read_index(shards))


def test_a_held_out_folder_that_is_none_is_told_before_anything_starts(training, shards, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        training(configured(shards, tmp_path / "run", 64, **{"data.held_out": tmp_path / "nowhere"}))
    assert not (tmp_path / "run").exists()
