"""Networks make images of any size, start as their papers say, and score samples apart where they say so."""

from contextlib import nullcontext
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from scalegan import settings
from scalegan.config import Config, TrainConfig
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.model_config import ModelConfig
from scalegan.models import DISCRIMINATORS, GENERATORS, build_discriminator, build_generator, r3gan
from scalegan.models.batch_norm import BatchNorm, ConditionalBatchNorm
from scalegan.models.conditions import set_strength
from scalegan.models.dcgan import resolutions
from scalegan.models.layers import flat, halvings
from scalegan.models.stages import stages
from scalegan.schedules import class_strength

SHAPES = [(3, 64, 64), (3, 100, 100), (1, 28, 28), (1, 104, 88), (1, 208, 176), (3, 33, 17), (1, 9, 300), (1, 7, 20), (1, 1, 1)]
SMALL = ModelConfig(z_dim=8, width=4, max_width=16, critic_width=4, critic_max_width=16)
R3GAN = ModelConfig(family="r3gan", z_dim=8, width=8, max_width=16, critic_width=8, critic_max_width=16, group_width=4)
RESNET = replace(SMALL, family="resnet")
BIGGAN = replace(SMALL, family="biggan", attention=8)
FASTGAN = replace(SMALL, family="fastgan")
STYLEGAN2 = replace(SMALL, family="stylegan2", map_layers=2)
FAMILIES = {
    "dcgan": SMALL, "r3gan": R3GAN, "resnet": RESNET, "biggan": BIGGAN, "fastgan": FASTGAN, "stylegan2": STYLEGAN2,
}  # fmt: skip
STILL = {
    "dcgan": replace(SMALL, conditional=True, critic_norm="none"),
    "dcgan, norm": replace(SMALL, conditional=True, critic_norm="none", class_via="norm"),
    "r3gan": replace(R3GAN, conditional=True),
    "resnet": replace(RESNET, conditional=True, critic_norm="none"),
    "resnet, concat": replace(RESNET, conditional=True, critic_norm="none", class_via="concat"),
    "biggan": replace(BIGGAN, conditional=True, critic_norm="none"),
    "biggan, concat": replace(BIGGAN, conditional=True, critic_norm="none", class_via="concat"),
    "fastgan": replace(FASTGAN, conditional=True, critic_norm="spectral"),
    "stylegan2": replace(STYLEGAN2, conditional=True, std_group=0),
}
"""Conditional, with critics that look at each image by itself."""


def tell_classes_apart(generator, spread=1.0):
    """As training would: gains and biases of a class start alike."""
    for module in generator.modules():
        if isinstance(module, ConditionalBatchNorm) and isinstance(module.gains, torch.nn.Embedding):
            for table in (module.gains, module.biases):
                torch.nn.init.normal_(table.weight, std=spread)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_height_and_width(family, shape):
    config = FAMILIES[family]
    images = build_generator(config, shape, 0)(torch.randn(2, 8), torch.zeros(2, dtype=torch.int64))
    assert images.shape == (2, *shape)
    assert family not in ("dcgan", "resnet", "biggan", "fastgan") or images.abs().max() <= 1
    logits = build_discriminator(config, shape, 0)(images, torch.zeros(2, dtype=torch.int64)).logits
    assert logits.shape == (2,) if family != "fastgan" else (logits.ndim, len(logits)) == (2, 2)


def test_every_family_that_can_be_asked_for_is_there():
    asked = get_type_hints(ModelConfig)
    assert set(GENERATORS) == set(get_args(asked["family"]))
    assert {"same", *DISCRIMINATORS} == set(get_args(asked["critic_family"]))


def test_sizes_halve_rounding_up_until_one_side_is_under_8():
    assert halvings(64, 64) == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert halvings(100, 100)[0] == (7, 7)
    assert halvings(104, 88) == [(7, 6), (13, 11), (26, 22), (52, 44), (104, 88)]


@pytest.mark.parametrize(
    ("coarsest", "sides"), [(1, [1, 2, 4, 7, 14, 28]), (4, [4, 7, 14, 28]), (7, [7, 14, 28]), (28, [14, 28])]
)
def test_a_dcgan_starts_at_the_sides_that_are_asked_for(coarsest, sides):
    config = replace(SMALL, coarsest=coarsest, critic_norm="none")
    assert [side for side, _ in resolutions(28, 24, coarsest)] == sides
    generator, discriminator = build_generator(config, (1, 28, 24), 0), build_discriminator(config, (1, 28, 24), 0)
    images = generator(torch.randn(2, 8), torch.zeros(2, dtype=torch.int64))
    assert (generator.base[1], len(generator.ups), images.shape) == (sides[0], len(sides) - 2, (2, 1, 28, 24))
    assert discriminator.layers(images).shape[2] == sides[0]


@pytest.mark.parametrize(("norm", "biased"), [("none", True), ("batch", False)])
def test_a_critic_may_look_at_the_image_before_it_halves_it(norm, biased):
    config, shape = replace(SMALL, critic_stem=6, critic_norm=norm), (3, 25, 32)
    torch.manual_seed(0)
    plain, stemmed = build_discriminator(replace(config, critic_stem=0), shape, 0), build_discriminator(config, shape, 0)
    assert len(stages(stemmed)) == len(stages(plain)) + 1
    stem = stemmed.layers[0]
    assert (stem.weight.shape, stem.bias is not None) == ((6, 3, 3, 3), biased)
    extra = sum(p.numel() for p in stemmed.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == stem.weight.numel() + 6 * biased + (6 - 3) * 16 * config.critic_width
    images = torch.randn(4, *shape)
    assert stemmed.layers[0](images).shape == (4, 6, 25, 32)
    stemmed(images, torch.zeros(4, dtype=torch.int64)).logits.sum().backward()
    assert stem.weight.grad.abs().min() > 0


def test_at_64_the_networks_are_the_papers():
    """3.6 and 2.8 million parameters: the counts of Radford et al.'s layers, written out."""
    config = ModelConfig(z_dim=100, width=64, critic_width=64)
    generator, discriminator = build_generator(config, (3, 64, 64), 0), build_discriminator(config, (3, 64, 64), 0)
    layers = [(100, 512), (512, 256), (256, 128), (128, 64), (64, 3)]
    norms = 2 * (512 + 256 + 128 + 64)
    assert sum(p.numel() for p in generator.parameters()) == 16 * sum(a * b for a, b in layers) + norms
    layers = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert sum(p.numel() for p in discriminator.parameters()) == 16 * sum(a * b for a, b in layers) + 2 * (128 + 256 + 512)


def test_dcgan_starts_at_its_spread():
    generator = build_generator(ModelConfig(), (3, 64, 64), 0)
    assert generator.project.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.norms[0].weight.mean().item() == pytest.approx(1.0, abs=0.01)


def test_a_kaiming_critic_keeps_its_scale_at_the_start():
    torch.manual_seed(0)
    config = ModelConfig(critic_norm="none", init="kaiming", critic_width=32, critic_max_width=256)
    logits = build_discriminator(config, (3, 64, 64), 0)(torch.randn(64, 3, 64, 64), torch.zeros(64, dtype=torch.int64)).logits
    assert 0.2 < logits.square().mean().sqrt() < 5


@pytest.mark.parametrize("norm", ["spectral", "batch"])
@pytest.mark.parametrize("family", ["dcgan", "resnet", "biggan", "fastgan"])
def test_a_critic_says_truly_whether_it_couples_samples(family, norm):
    torch.manual_seed(0)
    config = ModelConfig(critic_family=family, critic_norm=norm, critic_width=8, critic_max_width=32)
    critic = build_discriminator(config, (3, 32, 32), 0).eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    alone = critic(images[:2], labels[:2]).logits
    together = critic(images, labels).logits[:2]
    assert critic.couples_samples is (norm == "batch")
    assert torch.allclose(alone, together, rtol=1e-5, atol=1e-6) is not critic.couples_samples


def test_what_lies_channels_last_gets_its_gradient_so_and_that_of_its_gradient():
    x = torch.randn(3, 8, 5, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(flat(x), x.flatten(1))
    (gradient,) = torch.autograd.grad(flat(x).square().sum(), x)
    assert torch.equal(gradient, 2 * x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    small = torch.randn(2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(flat, small)
    weight = torch.randn(3, 8 * 5 * 4)
    assert torch.equal(torch.func.grad(lambda y: (flat(y) * weight).sum())(x), weight.view(x.shape))


def test_a_critic_of_one_convolution_has_no_batch_norm_and_couples_nothing():
    critic = build_discriminator(ModelConfig(critic_norm="batch", critic_width=8), (1, 12, 12), 0)
    images, labels = torch.randn(4, 1, 12, 12), torch.zeros(4, dtype=torch.int64)
    assert not critic.couples_samples
    assert torch.allclose(critic(images[:2], labels[:2]).logits, critic(images, labels).logits[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", STILL.values(), ids=STILL)
def test_a_conditional_model_looks_at_the_label(config):
    torch.manual_seed(0)
    generator, critic = build_generator(config, (1, 16, 16), 3), build_discriminator(config, (1, 16, 16), 3).eval()
    tell_classes_apart(generator)
    z = torch.randn(1, 8)
    first, second = (generator.eval()(z, torch.tensor([label])) for label in (0, 2))
    assert (first - second).abs().max() > 0.1 * first.abs().max()
    assert not torch.equal(critic(first, torch.tensor([0])).logits, critic(first, torch.tensor([2])).logits)


@pytest.mark.parametrize("family", ["dcgan", "resnet", "fastgan"])
def test_a_class_beside_the_latents_is_as_long_as_one_latent_number(family):
    """As long as the latents, it leaves each class one picture (tests/unit/test_diagnosed_runs.py, "told the class")."""
    torch.manual_seed(0)
    config = ModelConfig(family=family, conditional=True, class_via="auto" if family == "fastgan" else "concat")
    lengths = build_generator(config, (1, 16, 16), 500).embed.weight.norm(dim=1)
    assert 0.95 < lengths.mean() < 1.05


@pytest.mark.parametrize("config", STILL.values(), ids=STILL)
def test_a_classifier_is_judged_by_its_cross_entropy_and_leaves_the_logit_alone(config):
    torch.manual_seed(0)
    critic = build_discriminator(replace(config, class_head="classifier"), (1, 16, 16), 3).eval()
    images = torch.randn(6, 1, 16, 16)
    first, second = (critic(images, torch.full((6,), label)) for label in (0, 2))
    assert torch.equal(first.logits, second.logits)
    assert first.auxiliary["class"].shape == (6,)
    every = torch.stack([critic(images, torch.full((6,), label)).auxiliary["class"] for label in range(3)])
    torch.testing.assert_close((-every).exp().sum(0), torch.ones(6))  # probabilities


@pytest.mark.parametrize("head", ["projection", "classifier"])
@pytest.mark.parametrize("config", STILL.values(), ids=STILL)
def test_classes_come_in_from_their_mean(config, head):
    torch.manual_seed(0)
    config = replace(config, class_head=head, class_ramp=1000)
    networks = build_generator(config, (1, 16, 16), 3).eval(), build_discriminator(config, (1, 16, 16), 3).eval()
    tell_classes_apart(networks[0])
    latents, images = torch.randn(1, 8), torch.randn(1, 1, 16, 16)
    apart = []
    for strength in (0.0, 0.5, 1.0):
        for network in networks:
            set_strength(network, strength)
        made = [networks[0](latents, torch.tensor([label])) for label in (0, 2)]
        judged = [networks[1](images, torch.tensor([label])).logits for label in (0, 2)]
        apart.append(((made[0] - made[1]).abs().max().item(), (judged[0] - judged[1]).abs().max().item()))
    assert apart[0] == (0.0, 0.0)
    assert 0 < apart[1][0] < apart[2][0]
    assert head == "classifier" or 0 < apart[1][1] < apart[2][1]


@pytest.mark.parametrize("config", STILL.values(), ids=STILL)
def test_a_tenth_of_the_way_classes_are_a_tenth_apart(config):
    """Of a hundred the mean is short: were it scaled to unit length with the class in it, most of the class would be back."""
    torch.manual_seed(0)
    config = replace(config, class_ramp=1000)
    generator, critic = build_generator(config, (1, 16, 16), 100).eval(), build_discriminator(config, (1, 16, 16), 100).eval()
    tell_classes_apart(generator, 0.1)  # so little that images follow them in proportion
    labels, latents, images = torch.arange(100), torch.randn(1, 8).expand(100, -1), torch.randn(1, 1, 16, 16)
    images = images.expand(100, -1, -1, -1)
    spreads = []
    for strength in (0.1, 1.0):
        for network in (generator, critic):
            set_strength(network, strength)
        with torch.no_grad():
            outputs = generator(latents, labels), critic(images, labels).logits
        spreads.append(torch.stack([output.std(0).mean() for output in outputs]))
    assert (spreads[0] < 0.2 * spreads[1]).all(), spreads


@pytest.mark.parametrize(("start", "ramp", "expected"), [(0, 0, [1, 1, 1]), (100, 0, [0, 1, 1]), (100, 200, [0, 0, 0.5])])
def test_the_strength_of_classes_follows_the_clock(start, ramp, expected):
    model = ModelConfig(conditional=True, class_start=start, class_ramp=ramp)
    assert [class_strength(model, seen) for seen in (99, 100, 200)] == expected


@pytest.mark.parametrize(
    ("generator", "critic"),
    [
        ("dcgan", "r3gan"), ("r3gan", "dcgan"), ("r3gan", "resnet"), ("biggan", "r3gan"), ("fastgan", "r3gan"),
        ("stylegan2", "r3gan"), ("r3gan", "stylegan2"),
    ],
)  # fmt: skip
def test_a_generator_of_one_family_takes_a_critic_of_another(generator, critic):
    config = replace(FAMILIES[generator], critic_family=critic, group_width=4)
    images = build_generator(config, (3, 20, 12), 0)(torch.randn(2, 8), torch.zeros(2, dtype=torch.int64))
    discriminator = build_discriminator(config, (3, 20, 12), 0)
    assert discriminator.__module__.endswith(critic)
    assert discriminator(images, torch.zeros(2, dtype=torch.int64)).logits.shape == (2,)


# --- R3GAN


PUBLISHED = {
    "cifar10, conditional": ((3, 32, 32), {"width": 768, "max_width": 768}, 10, 20_781_952, 21_280_512),
    "cifar10": ((3, 32, 32), {"width": 768, "max_width": 768}, 0, 20_732_160, 20_683_776),
    "ffhq64": ((3, 64, 64), {"width": 384, "max_width": 768}, 0, 22_429_824, 22_381_440),
    "ffhq256": ((3, 256, 256), {"width": 96, "max_width": 768}, 0, 23_057_952, 23_009_568),
    "imagenet32": ((3, 32, 32), {"width": 1536, "max_width": 1536, "group_width": 32}, 1000, 82_914_304, 86_548_992),
    "imagenet64": ((3, 64, 64), {"width": 1536, "max_width": 1536, "group_width": 32}, 1000, 103_570_432, 107_205_120),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_r3gan_has_the_published_numbers_of_parameters(preset):
    shape, widths, classes, generator, discriminator = PUBLISHED[preset]
    widths |= {f"critic_{name}": widths[name] for name in ("width", "max_width")}
    config = ModelConfig(family="r3gan", z_dim=64, class_dim=64, conditional=classes > 0, **widths)
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in build(config, shape, classes).parameters())
            for build in (build_generator, build_discriminator)
        ]
    assert counts == [generator, discriminator]


def test_a_block_of_r3gan_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    block, x = r3gan.Block(16, group_width=8, blocks=10), torch.randn(2, 16, 6, 5)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.contract.weight.grad.abs().max() > 0


def test_r3gan_starts_at_its_spread():
    torch.manual_seed(0)
    block = r3gan.Block(64, group_width=16, blocks=10)
    gain = (2 / 1.04) ** 0.5 * 10**-0.25
    assert block.expand.weight.std().item() == pytest.approx(gain / 64**0.5, rel=0.05)
    assert block.mix.weight.std().item() == pytest.approx(gain / (16 * 9) ** 0.5, rel=0.05)
    generator = build_generator(replace(R3GAN, z_dim=64, width=64, max_width=64, group_width=16), (3, 32, 32), 0)
    images = generator(torch.randn(64, 64), torch.zeros(64, dtype=torch.int64))
    assert 0.3 < images.square().mean().sqrt() < 2


@pytest.mark.parametrize("up", [True, False])
def test_resampling_keeps_a_constant_image_and_moves_nothing(up):
    resample = r3gan.Resample(3, 3, (16, 16), up=up)
    inner = slice(2, -2)
    assert torch.allclose(resample(torch.ones(1, 3, 8, 8))[..., inner, inner], torch.ones(()), atol=1e-6)
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    made = resample(ramp)[0, 0, 2 if up else 1]
    expected = (torch.arange(16) - 0.5) / 2 if up else 2 * torch.arange(4) + 0.5
    torch.testing.assert_close(made[inner] if up else made[1:-1], expected[inner] if up else expected[1:-1])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"family": "r3gan", "critic_norm": "spectral"}, "model.critic_norm is a setting of model.family dcgan and resnet"),
        (
            {"family": "fastgan", "critic_norm": "none"},
            "a critic fastgan always normalises its weights, give spectral or batch",
        ),
        ({"family": "r3gan", "critic_family": "dcgan", "width": 12}, "model.width 12: with r3gan, twice this"),
        ({"class_ramp": 100}, "model.class_ramp has no effect without classes"),
        ({"class_via": "norm"}, "model.class_via has no effect without classes"),
        ({"family": "r3gan", "class_via": "norm"}, "model.class_via is a setting of model.family dcgan and resnet and biggan"),
        ({"critic_family": "r3gan", "critic_norm": "none"}, "model.critic_norm is a setting of model.family dcgan"),
        (
            {"family": "r3gan", "critic_family": "resnet", "conditional": True, "class_via": "norm"},
            "model.class_via is a setting of .* biggan, but this is r3gan with a critic resnet",
        ),
        ({"family": "resnet", "attention": 16}, "model.attention is a setting of model.family biggan"),
        ({"family": "resnet", "coarsest": 4}, "model.coarsest is a setting of model.family dcgan"),
        ({"critic_family": "resnet", "critic_stem": 16}, "model.critic_stem is a setting of model.family dcgan"),
        ({"critic_stem": -1}, "model.critic_stem is -1: give 0 or more channels"),
        ({"critic_tail": 2}, "model.critic_tail is a setting of model.family resnet and biggan"),
        ({"blocks": 3}, "model.blocks is a setting of model.family r3gan"),
        ({"family": "r3gan", "width": 12}, "model.width 12: with r3gan, twice this must be a multiple of model.group_width 16"),
    ],
)
def test_settings_of_another_family_are_refused(fields, told):
    with pytest.raises(UserError, match=told):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    "given",
    [
        ["kiwi_small", "--model.family", "stylegan2"],
        ["kiwi_projected", "--model.critic_family", "same"],
        ["mnist", "--model.class_start", "9", "--model.class_ramp", "9"],
    ],
)
def test_settings_that_a_preset_has_of_another_family_go_back_by_the_options_told(given):
    with pytest.raises(UserError, match="or go back by --model") as told:
        settings.parse(["--config", *given])
    back = str(told.value).partition("go back by ")[2].split()
    settings.parse(["--config", *given, *back])


# --- batch norm


def test_batch_norm_equals_torchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(6, 5, 4, 3) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("running", [True, False])
def test_batch_norm_in_groups_is_that_of_each_group(running):
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5, group=4, running=running), torch.nn.BatchNorm2d(5, momentum=1.0)
    x = torch.randn(12, 5, 4, 3) * 2 + 1
    expected, variances = [], []
    for part in x.split(4):
        expected.append(theirs(part))
        variances.append(theirs.running_var.clone())
    torch.testing.assert_close(ours(x), torch.cat(expected))
    if running:
        torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))


class NormBackwards(TorchDispatchMode):
    """Notes what the kernel behind the backward pass of a batch norm is given as saved mean and deviation."""

    def __init__(self):
        super().__init__()
        self.saved = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.native_batch_norm_backward.default:
            self.saved.append(args[5:7])
        return function(*args, **(kwargs or {}))


def test_over_processes_the_backward_kernel_is_given_all_that_cuda_asks_for(monkeypatch):
    """A CPU needs the running statistics alone; CUDA's kernel for channels-last memory stops without the others."""
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0, "all_reduce": None}.items():
        monkeypatch.setattr(dist, name, lambda *_, value=value: value)
    x = torch.randn(4, 5, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    with NormBackwards() as seen:
        BatchNorm(5)(x).square().sum().backward()
    assert len(seen.saved) == 1
    for given in seen.saved[0]:
        assert isinstance(given, torch.Tensor)
        assert given.shape == (5,)


@pytest.mark.parametrize(("group", "processes", "accumulate", "fits"), [
    (32, 2, 1, True), (32, 4, 1, True), (32, 2, 2, False), (16, 2, 2, True), (24, 1, 1, False), (0, 4, 4, True),
])  # fmt: skip
def test_groups_of_batch_norm_have_to_fit_the_processes(group, processes, accumulate, fits):
    config = Config(model=ModelConfig(norm_group=group), train=TrainConfig(batch=64, accumulate=accumulate))
    with nullcontext() if fits else pytest.raises(UserError, match=f"model.norm_group {group} does not fit the"):
        config.check(processes)


@pytest.mark.parametrize(("group", "fits"), [(24, False), (12, False), (8, True), (4, True)])
def test_groups_have_to_fit_twice_the_images_where_second_ones_are_made(group, fits):
    """Of 3 x 8 images one group of 24 is whole, but 24 of 3 x 16 lie across two processes in part."""
    rewarded = Config(model=ModelConfig(norm_group=group), train=TrainConfig(batch=24), loss=LossConfig(diversity_weight=1.0))
    with nullcontext() if fits else pytest.raises(UserError, match=f"model.norm_group {group} does not fit the"):
        rewarded.check(3)
    if group == 24:
        replace(rewarded, loss=LossConfig()).check(3)


CRITICS = STILL | {
    "dcgan, classifier": replace(SMALL, conditional=True, critic_norm="none", class_head="classifier"),
    "projected": replace(SMALL, critic_family="projected", backbone_size=64),
}


@pytest.mark.parametrize("name", CRITICS)
def test_logits_have_the_digits_of_float32_under_autocast(name):
    torch.manual_seed(0)
    critic = build_discriminator(CRITICS[name], (3, 32, 32), 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits, auxiliary = critic(torch.randn(8, 3, 32, 32), torch.arange(8) % 4)
    for found in (logits, *(auxiliary[kind] for kind in auxiliary if kind == "class")):
        assert found.dtype == torch.float32
        assert not torch.equal(found, found.bfloat16().float())
