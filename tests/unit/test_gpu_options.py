"""The tests in `tests/gpu`, as far as a CPU can try them: their options fit together, and their comparison sees mistakes."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from helpers.on_gpu import GRAPHS, ON_TWO, RECORDED, REPEATABLE, SMALL, STREAMED, assert_alike
from scalegan import settings
from scalegan.config import Config
from scalegan.data.index import Index, read_index
from scalegan.data.loader import Batch, batches
from scalegan.draws import DataFacts
from scalegan.steps import Game
from scalegan.train import check_data

OPTIONS = [["--train.precision", "fp16"], [*REPEATABLE, *STREAMED.split()], [*GRAPHS, *ON_TWO.split()]]
OPTIONS += [[*GRAPHS, *more.split()] for more in RECORDED]


def configured(shards: Path, options: list[str]) -> tuple[Config, Index]:
    config = settings.parse(["--data.path", str(shards), "--run", "none", "--train.images", "512", *SMALL, *options]).config
    config.check(1)
    index = read_index(config.data.path)
    check_data(config, index)
    return config, index


def make_game(config: Config, index: Index) -> Game:
    facts = DataFacts((index.channels, index.height, index.width), index.class_counts)
    return Game(config, Accelerator(cpu=True), facts)


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options_of_the_tests_on_a_gpu_fit_together(shards: Path, options: list[str]) -> None:
    assert make_game(*configured(shards, options)).rounds in (1, 2)


def lines(shards: Path, seen: Callable[[Tensor], Tensor]) -> list[dict[str, float]]:
    """Of four steps in which the real images are what `seen` makes of them."""
    torch.manual_seed(0)
    config, index = configured(shards, ["--train.device", "cpu", "--train.precision", "fp32"])
    game, found = make_game(config, index), []
    with closing(batches(index, config, 0, 0, 1, torch.device("cpu"))) as loader:
        for step in range(4):
            batch = next(loader)
            reals = [Batch(seen(batch.images), batch.labels)]
            means = [take(reals, 32 * step).means() for take in (game.discriminator_step, game.generator_step)]
            found.append({name: float(value) for part in means for name, value in part.items()})
    return found


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "noise": lambda images: torch.randint_like(images, 256),
    "another image in place of one": lambda images: torch.cat([images[:1], images[:1], images[2:]]),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_steps_that_see_other_images_are_not_alike(shards: Path, wrong: Callable[[Tensor], Tensor]) -> None:
    right = lines(shards, lambda images: images)
    assert_alike(right, lines(shards, torch.clone), steps=4, close=1e-6)
    for close in (1e-3, 2e-3):  # what the tests on a GPU allow
        with pytest.raises(AssertionError, match="step 0"):
            assert_alike(right, lines(shards, wrong), steps=4, close=close)
