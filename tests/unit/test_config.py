"""What does not go together is refused with values that would do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_config, make_shards

from scalegan.config import Config, DataConfig, TrainConfig
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.model_config import ModelConfig
from scalegan.train import check_data


def refusal(config: Config, processes: int) -> str:
    with pytest.raises(UserError) as told:
        config.check(processes)
    return str(told.value)


@pytest.mark.parametrize(("batch", "processes", "rounds"), [(33, 2, 1), (10, 4, 1), (64, 3, 2), (1, 2, 4), (100, 8, 3)])
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(batch, processes, rounds):
    told = refusal(Config(train=TrainConfig(batch=batch, accumulate=rounds)), processes)
    assert f"train.batch {batch} is not divisible by {processes} processes x train.accumulate {rounds}" in told
    (tried,) = re.findall(r"try --train.batch (\d+)$", told)
    assert int(tried) != batch
    Config(train=TrainConfig(batch=int(tried), accumulate=rounds)).check(processes)


GROUPED = pytest.mark.parametrize(
    "grouped",
    [
        {"model": {"norm_group": 8}},
        {"model": {"norm_group": 4}, "loss": {"diversity_weight": 1.0}},
        {"model": {"family": "stylegan2", "std_group": 4, "critic_norm": "auto"}},
        {"data": {"order": "blocks", "streams": 8}},
    ],
    ids=str,
)


def grouping(run: Path, grouped: dict[str, dict[str, Any]], **train: int) -> Config:
    """Images that belong together, in one of the ways there are."""
    config = make_config(run / "shards", run / "run", train=train)
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in grouped.items()})


def followed(config: Config, told: str) -> Config:
    """With the options that were told to try."""
    for section, name, value in re.findall(r"--(\w+)\.(\w+) (\d+)", told.partition(": try ")[2]):
        config = replace(config, **{section: replace(getattr(config, section), **{name: int(value)})})
    return config


@GROUPED
@pytest.mark.parametrize(("batch", "processes", "rounds"), [(8, 3, 1), (16, 3, 1), (16, 1, 5), (32, 6, 2)])
def test_a_batch_is_told_with_all_that_has_to_change_with_it(tmp_path, grouped, batch, processes, rounds):
    config = grouping(tmp_path, grouped, batch=batch, accumulate=rounds)
    followed(config, refusal(config, processes)).check(processes)


@GROUPED
@pytest.mark.parametrize("rounds", [1, 2])
def test_so_is_one_for_fewer_images(tmp_path, grouped, rounds):
    index = make_shards(tmp_path / "shards", 13)
    config = grouping(tmp_path, grouped, batch=16, accumulate=rounds)
    config.check(1)
    with pytest.raises(UserError, match="13 images, fewer than one batch") as told:
        check_data(config, index)
    fewer = followed(config, str(told.value))
    fewer.check(1)
    check_data(fewer, index)


def test_a_metric_by_class_of_data_without_labels_does_not_lead_in_a_circle(tmp_path):
    index = make_shards(tmp_path / "shards")
    config = make_config(tmp_path / "shards", tmp_path / "run", evaluation={"metrics": "per_class"})
    with pytest.raises(UserError, match=r"metric per_class needs images with labels and \S+ has none: write shards with"):
        check_data(config, index)


@pytest.mark.parametrize(("batch", "streams", "processes"), [(64, 48, 1), (64, 3, 2), (24, 8, 3), (96, 64, 4), (6, 4, 6)])
def test_streams_that_do_not_divide_are_refused_with_those_that_do(batch, streams, processes):
    def config(streams: int) -> Config:
        return Config(train=TrainConfig(batch=batch), data=DataConfig(order="blocks", streams=streams))

    told = refusal(config(streams), processes)
    assert f"data.streams {streams} must divide train.batch {batch} and be a multiple of {processes} processes: " in told
    tried = [int(value) for value in told.partition("try one of ")[2].split(", ")]
    assert tried
    for value in tried:
        config(value).check(processes)


@pytest.mark.parametrize(
    ("group", "batch", "processes", "rounds"), [(24, 64, 1, 1), (32, 64, 2, 2), (3, 4, 4, 1), (2, 4, 1, 4), (12, 24, 3, 1)]
)
@pytest.mark.parametrize("rewarded", [0.0, 1.0])
def test_groups_of_batch_norm_that_do_not_fit_are_refused_with_those_that_do(group, batch, processes, rounds, rewarded):
    """Of one image a process none does but the whole batch: a group of one would be its own mean."""

    def config(group: int) -> Config:
        train = TrainConfig(batch=batch, accumulate=rounds)
        return Config(model=ModelConfig(norm_group=group), train=train, loss=LossConfig(diversity_weight=rewarded))

    told = refusal(config(group), processes)
    for value in re.findall(r"(?:norm_group|or) (\d+)", told.partition(": try ")[2]):
        config(int(value)).check(processes)


def test_data_without_labels_for_a_conditional_model_is_told_in_one_line(tmp_path):
    index = make_shards(tmp_path / "shards")
    config = make_config(tmp_path / "shards", tmp_path / "run", model={"conditional": True})
    with pytest.raises(
        UserError, match=r"^model\.conditional is true but \S+ has no labels: write shards with classes, or .*$"
    ):
        check_data(config, index)
    check_data(replace(config, model=replace(config.model, conditional=False, class_dim=ModelConfig().class_dim)), index)
