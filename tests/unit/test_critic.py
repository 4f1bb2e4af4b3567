"""The critic's views and its exact gradient penalty."""

import pytest
import torch

from scalegan.augment import WIDTH, augment
from scalegan.augment_config import PIPES, AugmentConfig
from scalegan.critic import Critic
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator
from scalegan.models.conditions import Judgement

ALL = AugmentConfig(brightness=0.5, saturation=0.5, contrast=0.5, shift=0.125, mirror=True, cutout=0.3)
PHOTO = AugmentConfig(**PIPES["photo"] | {"rotate90": False, "cutout": 0.3})


def make_critic(augmentation: AugmentConfig, norm: str = "none") -> Critic:
    torch.manual_seed(0)
    config = ModelConfig(critic_norm=norm, init="kaiming", critic_width=8, critic_max_width=32)
    return Critic(build_discriminator(config, (3, 24, 20), 0), augmentation).double()


def inputs(n: int = 4):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 3, 24, 20, generator=generator, dtype=torch.float64) * 2 - 1
    return images, torch.zeros(n, dtype=torch.int64), torch.rand(n, WIDTH, generator=generator)


def test_nothing_on_changes_nothing():
    images, _, draws = inputs()
    assert torch.equal(augment(images, draws, AugmentConfig()), images)


def test_a_shift_moves_whole_pixels_and_brings_in_grey():
    images, _, draws = inputs(1)
    draws[:, 3], draws[:, 4] = 0.999, 0.001  # furthest: rows from below, columns from the left
    moved = augment(images, draws, AugmentConfig(shift=0.25))
    down, right = 6, 5
    torch.testing.assert_close(moved[:, :, :-down, right:], images[:, :, down:, :-right])
    assert moved[:, :, -down:].abs().max() == 0
    assert moved[:, :, :, :right].abs().max() == 0


def test_a_mirror_turns_half_of_the_images():
    images, _, draws = inputs(200)
    turned = (augment(images, draws, AugmentConfig(mirror=True)) == images.flip(3)).flatten(1).all(1)
    kept = (augment(images, draws, AugmentConfig(mirror=True)) == images).flatten(1).all(1)
    assert (turned ^ kept).all()
    assert 60 < turned.sum() < 140


def test_brightness_adds_one_number_an_image():
    images, _, draws = inputs()
    difference = augment(images, draws, AugmentConfig(brightness=0.5)) - images
    assert difference.flatten(1).std(1).max() < 1e-12
    assert difference.abs().max() <= 0.5


def test_cutout_blanks_a_square():
    images, _, draws = inputs()
    draws[:, 6:] = 0.5
    blank = (augment(images, draws, AugmentConfig(cutout=0.5)) == 0).all(1)
    assert blank.sum((1, 2)).tolist() == [12 * 10] * 4


def test_a_view_belongs_to_its_image():
    images, _, draws = inputs(6)
    whole = augment(images, draws, ALL)
    torch.testing.assert_close(augment(images[2:5], draws[2:5], ALL), whole[2:5])


@pytest.mark.parametrize("augmentation", [AugmentConfig(), ALL, PHOTO], ids=["plain", "augmented", "photo"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_steepness_and_its_gradient_equal_autograds(augmentation, norm):
    """R1 of every parameter, against the textbook form with create_graph."""
    critic = make_critic(augmentation, norm)
    images, labels, draws = inputs()
    scores = critic(images, labels, draws, True)
    scores.squared_grad_norm.mean().backward()
    ours = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.zero_grad()

    leaves = images.clone().requires_grad_()
    logits = critic(leaves, labels, draws).logits
    (gradient,) = torch.autograd.grad(logits.sum(), leaves, create_graph=True)
    squared_grad_norm = gradient.square().flatten(1).sum(1)
    squared_grad_norm.mean().backward()
    theirs = [p.grad for p in critic.parameters() if p.grad is not None]

    torch.testing.assert_close(scores.logits, logits)
    torch.testing.assert_close(scores.squared_grad_norm, squared_grad_norm)
    for a, b in zip(ours, theirs, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


def test_the_penalty_is_taken_before_augmentation():
    """A mirrored view has the mirrored gradient: its norm would be the same, but a shift out of the image loses some."""
    critic = make_critic(AugmentConfig(shift=0.5))
    images, labels, draws = inputs()
    draws[:, 3], draws[:, 4] = 0.999, 0.999
    seen = torch.func.grad(lambda x: critic(x, labels, draws).logits.sum())(images)
    assert seen[:, :, :12].abs().max() == 0  # rows that were shifted out cannot change the score
    torch.testing.assert_close(critic(images, labels, draws, True).squared_grad_norm, seen.square().flatten(1).sum(1))


def test_of_several_logits_an_image_the_slope_is_that_of_their_mean():
    class Patches(torch.nn.Module):
        def forward(self, images, labels):
            return Judgement(images.square().mean((1, 2))[:, :4], {"own": images.sum((1, 2, 3))})  # [N, 4]

    images, labels, _ = inputs()
    scores = Critic(Patches(), AugmentConfig())(images, labels, None, True)
    expected = (images[..., :4] * 2 / (3 * 24) / 4).square().sum((1, 2, 3))
    torch.testing.assert_close(scores.squared_grad_norm, expected)
    first, second = scores.halves()
    assert first.logits.shape == (2, 4)
    torch.testing.assert_close(second.squared_grad_norm, expected[2:])
    torch.testing.assert_close(second.auxiliary["own"], images[2:].sum((1, 2, 3)))


def test_the_slope_by_a_difference_is_that_along_the_offsets_and_in_expectation_the_gradients():
    """On a linear critic the difference is exact, and its square over random signs has the mean |gradient|^2."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 5, dtype=torch.float64)

    class Linear(torch.nn.Module):
        def forward(self, images, labels):
            return Judgement((images * weight).sum((1, 2, 3)) + 7, {})

    critic = Critic(Linear(), AugmentConfig())
    images, labels = torch.rand(4000, 3, 4, 5, dtype=torch.float64), torch.zeros(4000, dtype=torch.int64)
    signs = torch.randint(0, 2, images.shape) * 2.0 - 1
    slopes = critic(images, labels, None, True, 0.01 * signs).squared_grad_norm
    torch.testing.assert_close(slopes, (signs * weight).sum((1, 2, 3)).square())
    exact = critic(images, labels, None, True).squared_grad_norm
    torch.testing.assert_close(exact, weight.square().sum().expand(4000))
    assert slopes.mean().item() == pytest.approx(exact[0].item(), rel=0.1)


def test_the_slope_by_a_difference_is_a_penalty_of_the_weights_too():
    """Of a smooth critic; one with kinks has terms of their own in its differences."""

    class Smooth(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 1)

        def forward(self, images, labels):
            return Judgement(self.last(torch.nn.functional.softplus(self.first(images)).mean((2, 3)))[:, 0], {})

    torch.manual_seed(0)
    critic = Critic(Smooth(), ALL).double()
    images, labels, draws = inputs()
    offsets = 1e-3 * (torch.rand(images.shape, dtype=torch.float64) - 0.5).sign()
    critic(images, labels, draws, True, offsets).squared_grad_norm.mean().backward()
    ours = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.zero_grad()
    leaves = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(leaves, labels, draws).logits.sum(), leaves, create_graph=True)
    (gradient * offsets / 1e-3).flatten(1).sum(1).square().mean().backward()
    theirs = [p.grad for p in critic.parameters() if p.grad is not None]
    for a, b in zip(ours, theirs, strict=False):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * b.abs().max().item())


def test_the_slope_by_a_difference_is_taken_in_float32_under_autocast():
    critic = make_critic(AugmentConfig()).float()
    images, labels = inputs()[0].float(), torch.zeros(4, dtype=torch.int64)
    offsets = torch.full_like(images, 0.01)
    plain = critic(images, labels, None, True, offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = critic(images, labels, None, True, offsets)
    assert torch.equal(plain.squared_grad_norm, half.squared_grad_norm)
