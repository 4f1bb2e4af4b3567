"""Every preset in configs/ runs, cut down in width, batch and steps.

Evaluation is alike for all of them, and so is the whole run with a resume, but where augmentation adapts, which takes steps:
one of these a day.
"""

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from helpers.daily import TODAY
from helpers.shards import make_shards
from scalegan import settings
from scalegan.data.loader import Batch
from scalegan.debug import try_all
from scalegan.draws import DataFacts
from scalegan.models import build_generator
from scalegan.steps import Game
from scalegan.trial import Trial

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SIZES = {
    "quickstart": (1, 64, 56), "brain": (1, 52, 44), "brain_small": (1, 26, 22), "brain_refined": (1, 26, 22),
    "oasis": (1, 32, 32), "mnist": (1, 28, 28), "fashion_small": (1, 28, 28), "fashion_refined": (1, 28, 28),
}  # fmt: skip
"""(channels, height, width) that stands for the data of a preset, smaller where that is large; colour at 32 x 32 else."""

ADAPTIVE = [path.stem for path in PRESETS if settings.parse(["--config", path.stem]).config.augment.target]
RESUMED = ADAPTIVE[TODAY % len(ADAPTIVE)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards of a shape, made once; more images than the largest batch."""
    made = {}

    def of(channels: int, height: int, width: int) -> Path:
        shape = channels, height, width
        if shape not in made:
            made[shape] = tmp_path_factory.mktemp("presets") / "x".join(map(str, shape))
            make_shards(made[shape], 600, height, width, channels)
        return made[shape]

    return of


@pytest.mark.parametrize("path", [path for path in PRESETS if path.stem.endswith("_refined")], ids=lambda path: path.stem)
def test_a_preset_that_goes_on_from_another_has_its_data_and_its_generator(path):
    second = settings.parse(["--config", path.stem]).config
    first = settings.parse(["--config", Path(second.init_from).name]).config
    assert second.init_from == first.run
    assert second.data.path == first.data.path
    networks = [build_generator(config.model, (1, 104, 88), 4).state_dict() for config in (first, second)]
    shapes = [{name: tensor.shape for name, tensor in network.items()} for network in networks]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["kiwi", "brain", "fruits360"])
def test_processes_of_a_job_hold_whole_groups_of_batch_norm(name):
    script = (PRESETS[0].parents[1] / "slurm" / f"{name}.sh").read_text()
    nodes, gpus = (int(re.search(rf"#SBATCH --{flag}=(\d+)", script)[1]) for flag in ("nodes", "gpus-per-node"))
    config = settings.parse([f"--config={name}"]).config
    assert config.train.batch // (nodes * gpus) % config.model.norm_group == 0


NARROW = [f"--model.{name}={value}" for name, value in {
    "width": 8, "max_width": 16, "critic_width": 8, "critic_max_width": 16,
}.items()]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "more"), [
    ("brain", (1, 208, 176), ["--model.norm_group=2"]),
    ("ffhq256", (3, 256, 256), []),
])  # fmt: skip
def test_a_preset_for_large_images_takes_a_step_at_their_native_size(name, shape, more):
    """Cut in width and batch alone."""
    torch.set_num_threads(1)
    cut = ["--config", name, *NARROW, *more, "--train.batch=2", "--train.precision=fp32"]
    game = Game(settings.parse(cut).config, Accelerator(cpu=True), DataFacts(shape, ()))
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reals = [Batch(images, torch.full((2,), -1))]
    values = game.discriminator_step(reals, 0).means() | game.generator_step(reals, 0).means()
    game.average(2)
    assert {"loss/D", "loss/G", "r1"} <= values.keys()
    assert all(value.isfinite() for value in values.values())
    assert values["skipped/D"] == values["skipped/G"] == 0
    made = game.ema(game.draws.latents("g", 0), reals[0].labels)
    assert made.shape == images.shape


@pytest.mark.parametrize("name", [path.stem for path in PRESETS])
def test_a_preset_runs(name, data, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr("scalegan.plots.plot_run", lambda run_dir: [])
    path = data(*SIZES.get(name, (3, 32, 32)))
    config = settings.parse(
        ["--config", name, "--data.path", str(path), "--train.device", "cpu", "--evaluation.real", "0"]
    ).config
    config = replace(config, train=replace(config.train, precision="fp32"), data=replace(config.data, workers=0))
    config = replace(config, init_from="", init_networks="both")  # the run of another preset, which nobody has made here
    with closing(Trial(config, tmp_path)) as trial:
        left_out = {"evaluation"} if name == RESUMED else {"evaluation", "resume"}
        parts = [part for part in trial.parts() if part.name not in left_out]
        outcomes = try_all(parts, tmp_path / "log.txt", Console())
    assert {outcome.name: outcome.seen for outcome in outcomes if outcome.result != "passed"} == {}
    assert len(outcomes) == 9 - len(left_out)
