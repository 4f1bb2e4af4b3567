"""Averages by power functions have the profile of their formula, and one of any width is made of others."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import make_config, make_shards
from torch import nn

from scalegan import checkpoint, cli, power, settings, start
from scalegan.config import Config, EmaConfig
from scalegan.data.index import Index
from scalegan.ema import make_ema, update_ema
from scalegan.errors import UserError
from scalegan.evaluation import command
from scalegan.evaluation.report import record_path
from scalegan.evaluation.sides import kind_of, made_by
from scalegan.sampling import load_generator
from scalegan.steps import Game

STDS = (0.05, 0.1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# --- the formula


@pytest.mark.parametrize("std", [0.001, 0.05, 0.1, 0.2, 0.25])
def test_the_exponent_is_that_of_the_width(std):
    assert power.relative_width(power.exponent(std)) == pytest.approx(std, rel=1e-12)


def test_exponents_are_those_of_the_paper():
    """gamma 16.97 and 6.94 for widths of 0.05 and 0.10 (Karras et al. 2024, section 3.1)."""
    assert [round(power.exponent(std), 2) for std in STDS] == [16.97, 6.94]


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_tracked_weights_count_as_the_closed_form_says(std):
    """Step i has weights e_i, so that the average after T steps is its own profile."""
    steps = 400
    network = nn.Linear(steps, 1, bias=False).double()
    average = make_ema(network)
    for step in range(1, steps + 1):
        network.weight.data = torch.eye(steps, dtype=torch.float64)[step - 1 : step]
        update_ema(average, network, power.decay(std, step))
    profile = average.weight[0].numpy()
    edges = (np.arange(steps + 1) / steps) ** (power.exponent(std) + 1)
    np.testing.assert_allclose(profile, np.diff(edges), rtol=1e-9, atol=1e-300)
    times = (np.arange(steps) + 0.5) / steps
    width = math.sqrt(profile @ times**2 - (profile @ times) ** 2)
    assert width == pytest.approx(std, rel=1e-3)


def test_an_overlap_is_the_integral_of_the_product():
    (one, end), (other, other_end) = (0.05, 0.7), (0.12, 1.0)
    t = (np.arange(200_000) + 0.5) / 200_000
    density, other_density = (
        np.where(t <= e, (g + 1) * t**g / e ** (g + 1), 0)
        for g, e in ((power.exponent(one), end), (power.exponent(other), other_end))
    )
    assert power.overlap((one, end), (other, other_end)) == pytest.approx((density * other_density).mean(), rel=1e-4)


def test_a_tracked_width_is_its_own_mixture():
    have = [(std, end) for end in (0.25, 0.5, 1.0) for std in STDS]
    factors, distance = power.mixture(have, (0.1, 1.0))
    np.testing.assert_allclose(factors, [0, 0, 0, 0, 0, 1], atol=1e-9)
    assert distance < 1e-6


def test_more_snapshots_come_nearer():
    distances = []
    for count in (1, 4, 16, 64):
        have = [(std, (k + 1) / count) for k in range(count) for std in STDS]
        factors, distance = power.mixture(have, (0.08, 1.0))
        assert factors.sum() == pytest.approx(1)
        assert np.abs(factors).max() < 2
        distances.append(distance)
    assert distances == sorted(distances, reverse=True)
    assert distances[0] < 0.05
    assert distances[-1] < 2e-4


@pytest.mark.parametrize("power_", ["[0.05, 0.05]", "[0.3]", "[0.0]"])
def test_bad_widths_are_told(power_):
    with pytest.raises(UserError, match=r"ema.power is .*: give widths from above 0 to 0.25"):
        settings.parse(["--data.path", "x", "--ema.power", power_])


def test_widths_are_read_from_the_command_line_and_back(tmp_path):
    from scalegan import run

    config = settings.parse(["--data.path", "x", "--ema.power", "[0.05, 0.1]"]).config
    assert config.ema.power == STDS
    run.claim(tmp_path, config, "sha")
    assert settings.read_config(tmp_path / "config.yaml") == config


def test_widths_are_fixed_for_the_life_of_a_run(tmp_path):
    from scalegan import run

    config = Config(run=str(tmp_path), ema=EmaConfig(power=STDS), override_resume=True)
    run.claim(tmp_path, config, "sha")
    with pytest.raises(UserError, match=r"ema.power: \[0.05, 0.1\] -> \[0.05\]\): undo that, or give --run"):
        run.check(tmp_path, replace(config, ema=EmaConfig(power=(0.05,))), "sha")


# --- a run and its snapshots


TRACKED = (*STDS, 0.08)
STEPS, EVERY = 120, 12


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return make_shards(tmp_path_factory.mktemp("power") / "data", classes=("a", "b"))


@pytest.fixture(scope="module")
def trained(index, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that left snapshots of two widths, and the average of a third one that was tracked beside them.

    The generator wanders at random, which is harder to average than a training that settles.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = make_config(Path(index.root), folder, ema={"power": TRACKED}, model={"conditional": True, "class_ramp": 100})
    game = Game(config, Accelerator(cpu=True), start.facts_of(index))
    told = replace(config, ema=replace(config.ema, power=STDS))
    data = {"shape": [index.channels, index.height, index.width], "classes": index.classes, "class_counts": index.class_counts}
    state = {"config": told.to_dict(), "data": data | {"path": index.root, "sha256": index.sha256}, "best": {}}
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in game.bare_generator.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        game._set_classes(step / STEPS)
        game.average(step * config.train.batch)
        if step % EVERY == 0:
            parts = {power.part(std): game.powers[std].state_dict() for std in STDS}
            checkpoint.save(folder, step * config.train.batch, parts, state, checkpoint.SNAPSHOTS)
    return folder, game.powers[0.08].state_dict()


def ema(*arguments: object) -> int:
    return cli.main(["ema", *map(str, arguments)])


def test_a_held_out_width_is_made_again_from_two_others(trained, tmp_path, capsys):
    folder, tracked = trained
    assert ema(folder, "--std", 0.08, "--out", tmp_path / "made") == 0
    assert "of 10 snapshots, its profile within 0.00" in capsys.readouterr().out
    made = checkpoint.read(tmp_path / "made").tensors("ema")
    nearest = checkpoint.read(folder / "snapshots" / f"{STEPS * 8:09d}").tensors("power_0.1")
    assert made.keys() == tracked.keys()
    for name, expected in tracked.items():
        assert made[name].dtype == expected.dtype
        error, step = ((other[name] - expected).norm().item() for other in (made, nearest))
        assert error <= 0.15 * step, name


def test_classes_are_as_far_in_as_in_the_last_snapshot(trained, tmp_path):
    assert ema(trained[0], "--std", 0.08, "--out", tmp_path / "made") == 0
    assert checkpoint.read(tmp_path / "made").tensors("ema")["embed.strength"] == 1


def test_it_is_a_generator_like_any_other(trained, capsys):
    folder, _ = trained
    assert ema(folder, "--std", "0.06", "--at", EVERY * 8 * 5) == 0
    made = folder / "ema" / f"{EVERY * 8 * 5:09d}-0.06"
    assert str(made) in capsys.readouterr().out
    loaded = load_generator(made)
    assert loaded.images_seen == EVERY * 8 * 5
    assert loaded.sample(2).shape == (2, 1, 16, 12)
    assert cli.main(["sample", str(made), "--n", "2", "--format", "npz", "--out", str(folder / "samples")]) == 0
    assert ema(folder, "--std", "0.06", "--at", EVERY * 8 * 5) == 2
    assert "exists already: give another --out" in capsys.readouterr().err


def test_its_evaluations_go_into_its_run_under_names_of_their_own(trained):
    folder, _ = trained
    assert ema(folder, "--std", 0.07) == 0
    average = folder / "ema" / f"{STEPS * 8:09d}-0.07"
    assert command.run_folder(str(average)) == folder
    assert kind_of(str(average)) == "run"
    (found,) = command.choose(average, folder, "latest")
    made = made_by(load_generator(found.path), 0, found).facts
    assert made["ema_std"] == 0.07
    record = {
        "extractor": "lite0",
        "resize": "x",
        "generated": 8,
        "real": 8,
        "index_sha256": "0" * 64,
        **made,
        "images_seen": 960,
    }
    assert record_path(record, folder).name.startswith("000000960-fd_lite0-8-8-seed0-std0.07-")
    del record["ema_std"]
    assert record_path(record, folder).name.startswith("000000960-fd_lite0-8-8-seed0-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--std", "0.3"], "--std is 0.3: give a share of the run from above 0 to 0.25"),
        (["--std", "0.08", "--at", "5"], "--at 5: no such snapshot"),
        (["--std", "0.004"], "cannot be made of the averages of 0.05 and 0.1 in 10 snapshots"),
        (
            ["--std", "0.08", "--generator", "scalegan.models.r3gan.Generator"],
            "the generator is one of model.family dcgan, and no class of your own: leave that out",
        ),
    ],
)
def test_what_cannot_be_made_is_told(trained, tmp_path, capsys, arguments, message):
    assert ema(trained[0], *arguments, "--out", tmp_path / "made") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_a_run_without_snapshots_is_told_how_to_get_them(tmp_path, capsys):
    assert ema(tmp_path, "--std", "0.08") == 2
    assert "left by a run with --ema.power" in capsys.readouterr().err
    assert ema(tmp_path / "nope", "--std", "0.08") == 2
    told = f"scalegan: error: {tmp_path / 'nope'} does not exist: give the folder that --run named in training\n"
    assert capsys.readouterr().err == told


def test_a_damaged_snapshot_is_named_and_left_out(trained, tmp_path, capsys):
    import shutil

    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    file = folder / "snapshots" / f"{EVERY * 8 * 3:09d}" / "power_0.05.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert ema(folder, "--std", "0.09") == 0
    printed = capsys.readouterr().out
    assert "power_0.05.safetensors is damaged" in printed
    assert "of 9 snapshots" in printed
