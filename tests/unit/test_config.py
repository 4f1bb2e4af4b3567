"""What does not go together is refused with values that would do."""

import re
from dataclasses import replace

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
