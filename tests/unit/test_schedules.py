"""Learning rate and averaging are functions of images seen alone."""

import pytest
import torch
from torch import nn

from scalegan.config import EmaConfig, OptimConfig
from scalegan.ema import make_ema, update_ema
from scalegan.schedules import ema_decay, half_life, rate_factor


def test_a_constant_rate_stays():
    assert {rate_factor(OptimConfig(), n, 100) for n in (0, 50, 100, 1000)} == {1.0}


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_falling_rates_end_at_their_share_and_stay_there(schedule, middle):
    optim = OptimConfig(schedule=schedule, final_lr=0.1)
    assert rate_factor(optim, 0, 100) == 1.0
    assert rate_factor(optim, 50, 100) == pytest.approx(middle)
    assert rate_factor(optim, 100, 100) == rate_factor(optim, 300, 100) == pytest.approx(0.1)


def test_warm_up_rises_from_nothing():
    optim = OptimConfig(warmup=50)
    assert [rate_factor(optim, n, 1000) for n in (0, 25, 50, 500)] == [0.0, 0.5, 1.0, 1.0]


def test_after_one_half_life_the_old_average_counts_half():
    ema = EmaConfig(half_life=640, ramp=0.0)
    assert ema_decay(ema, 10_000, 64) ** 10 == pytest.approx(0.5)


def test_the_half_life_ramps_up_with_the_images_seen():
    ema = EmaConfig(half_life=5000, ramp=0.05)
    assert [half_life(ema, n) for n in (0, 20_000, 10**6)] == [0.0, 1000.0, 5000.0]
    assert ema_decay(ema, 0, 64) == 0.0


def test_the_average_follows_parameters_and_statistics():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = make_ema(network)
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    network[1].running_mean.add_(4.0)
    network[1].num_batches_tracked.add_(3)
    update_ema(ema, network, decay=0.75)
    after = ema.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] + 0.25)
    torch.testing.assert_close(after["1.running_mean"], before["1.running_mean"] + 1.0)
    assert after["1.num_batches_tracked"] == 3
    assert not any(p.requires_grad for p in ema.parameters())
