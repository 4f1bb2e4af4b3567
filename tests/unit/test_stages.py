"""A critic's stages are counted from the image on, and the first of them can be held still."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from scalegan.errors import UserError
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator
from scalegan.models.stages import freeze, stages

DCGAN = ModelConfig(critic_width=4, critic_max_width=16)
PROJECTED = replace(DCGAN, critic_family="projected", backbone_size=32)
R3GAN = ModelConfig(family="r3gan", width=8, max_width=16, critic_width=8, critic_max_width=16, group_width=4)
FAMILIES = {
    "dcgan": DCGAN,
    "dcgan, spectral, conditional": replace(DCGAN, critic_norm="spectral", conditional=True),
    "resnet": replace(DCGAN, family="resnet", conditional=True),
    "biggan": replace(DCGAN, family="biggan"),
    "fastgan": replace(DCGAN, family="fastgan"),
    "stylegan2": replace(DCGAN, family="stylegan2", std_group=2),
    "projected": PROJECTED,
    "projected, conditional": replace(PROJECTED, conditional=True),
    "r3gan": R3GAN,
    "r3gan, conditional": replace(R3GAN, conditional=True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_is_reached_before_the_next_on_the_way_of_an_image(name):
    critic = build_discriminator(FAMILIES[name], (3, 36, 33), 3)
    order: list[nn.Module] = []
    for stage in stages(critic):
        stage[0].register_forward_hook(lambda module, *_: order.append(module))
    critic(torch.randn(2, 3, 36, 33), torch.zeros(2, dtype=torch.int64))
    assert order == [stage[0] for stage in stages(critic)]


@pytest.mark.parametrize("name", FAMILIES)
def test_all_weights_belong_to_one_stage_but_for_an_embedding_of_the_class(name):
    critic = build_discriminator(FAMILIES[name], (1, 28, 28), 3)
    counted = [p for stage in stages(critic) for module in stage for p in module.parameters()]
    assert len({id(p) for p in counted}) == len(counted)
    left = [name for name, p in critic.named_parameters() if not any(p is other for other in counted)]
    assert left == (["embed.weight"] if name == "r3gan, conditional" else [])


def test_dcgan_has_a_stage_for_each_convolution_and_the_score():
    critic = build_discriminator(DCGAN, (3, 64, 64), 0)
    assert [[type(m).__name__ for m in stage] for stage in stages(critic)] == [
        ["Conv2d", "LeakyReLU"],
        *[["Conv2d", "BatchNorm", "LeakyReLU"]] * 3,
        ["Linear"],
    ]


def test_r3gan_has_a_stage_for_each_block_and_each_change_of_width():
    critic = build_discriminator(R3GAN, (3, 32, 32), 0)
    names = [type(stage[0]).__name__ for stage in stages(critic)]
    assert names == ["Conv2d", "Block", "Block", "Resample", *["Block"] * 6, "Conv2d", "Linear"]


def test_frozen_stages_have_no_gradient_and_the_others_have():
    critic = build_discriminator(DCGAN, (3, 16, 16), 0)
    freeze(critic, 1)
    critic(torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)).logits.sum().backward()
    assert [name for name, p in critic.named_parameters() if p.grad is None] == ["layers.0.weight"]


def test_none_is_frozen_unless_asked_for():
    critic = build_discriminator(R3GAN, (1, 28, 28), 0)
    freeze(critic, 0)
    assert all(p.requires_grad for p in critic.parameters())


def test_a_stage_has_to_be_left_to_learn():
    critic = build_discriminator(DCGAN, (3, 16, 16), 0)
    with pytest.raises(UserError, match=r"optim.freeze_critic 3: this critic has 3 stages: give at most 2"):
        freeze(critic, 3)


def test_a_class_head_comes_last():
    critic = build_discriminator(replace(DCGAN, conditional=True, class_head="classifier"), (3, 16, 16), 3)
    assert [type(stage[0]).__name__ for stage in stages(critic)] == ["Conv2d", "Conv2d", "Linear", "ClassHead"]
