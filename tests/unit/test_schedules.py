"""Learning rate and averaging are functions of images seen alone."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from scalegan.augment_config import AugmentConfig
from scalegan.config import BurnInConfig, Config, EmaConfig, OptimConfig
from scalegan.ema import make_ema, update_ema
from scalegan.errors import UserError
from scalegan.schedules import ema_decay, half_life, rate_factor, scheduled


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
    assert ema_decay(half_life(ema, 10_000), 64) ** 10 == pytest.approx(0.5)


def test_the_half_life_ramps_up_with_the_images_seen():
    ema = EmaConfig(half_life=5000, ramp=0.05)
    assert [half_life(ema, n) for n in (0, 20_000, 10**6)] == [0.0, 1000.0, 5000.0]
    assert ema_decay(0.0, 64) == 0.0


R3GAN = Config(
    optim=OptimConfig(lr_g=5e-5, lr_d=5e-5, betas_g=(0.0, 0.99), betas_d=(0.0, 0.99)),
    augment=AugmentConfig(shift=0.1, p=0.3),
    ema=EmaConfig(half_life=500_000, ramp=0.0),
    burn_in=BurnInConfig(images=20_000_000, lr=4.0, gamma=10.0, half_life=0.0, augment=0.0, beta2=0.9),
)


def test_one_cosine_moves_five_settings_as_r3gan_has_them():
    start, middle, end = (scheduled(R3GAN, n) for n in (0, 10_000_000, 20_000_000))
    assert (5e-5 * start.rate, start.betas_d, start.penalty) == (2e-4, (0.0, 0.9), 10.0)
    assert (start.augment, start.half_life) == (0.0, 0.0)
    assert (middle.rate, middle.penalty) == pytest.approx((2.5, 5.5))
    assert (middle.betas_g[1], middle.augment, middle.half_life) == pytest.approx((0.945, 0.15, 250_000))
    assert (end.rate, end.betas_g, end.penalty, end.augment, end.half_life) == (1.0, (0.0, 0.99), 1.0, 0.3, 500_000)
    assert scheduled(R3GAN, 10**9) == end


def test_a_burn_in_is_taken_on_top_of_the_schedule():
    config = replace(R3GAN, optim=OptimConfig(warmup=10_000_000))
    assert scheduled(config, 5_000_000).rate == pytest.approx(0.5 * scheduled(R3GAN, 5_000_000).rate)


def test_without_a_burn_in_everything_is_as_it_is_set():
    now = scheduled(Config(augment=AugmentConfig(p=0.4)), 10**6)
    assert (now.rate, now.betas_g, now.penalty, now.augment, now.half_life) == (1.0, (0.5, 0.999), 1.0, 0.4, 10_000.0)


def test_a_burn_in_of_no_length_that_is_to_change_something_is_refused_with_the_way_back():
    with pytest.raises(UserError, match=r"burn_in.images is 0, so its other settings have no effect.*") as told:
        replace(R3GAN.burn_in, images=0)
    back = re.findall(r"--burn_in\.(\w+) (\S+)", str(told.value))
    assert BurnInConfig(**{name: float(value) for name, value in back}) == BurnInConfig()
    assert {name for name, _ in back} == {"lr", "gamma", "half_life", "augment", "beta2"}


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


def test_a_weight_that_two_layers_share_is_averaged_once():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].weight = network[1].weight
    nn.init.zeros_(network[0].weight)
    ema = make_ema(network)
    nn.init.ones_(network[0].weight)
    update_ema(ema, network, decay=0.5)
    assert (ema[0].weight == 0.5).all()
    assert ema[1].weight is ema[0].weight
