"""The critic on features of EfficientNet-Lite0: what is held stays held, and gradients reach the images."""

from dataclasses import replace

import pytest
import torch

from scalegan import settings
from scalegan.config import AugmentConfig
from scalegan.critic import Critic
from scalegan.errors import UserError
from scalegan.evaluation.lite0 import Backbone
from scalegan.evaluation.weights import LITE0_SHA256, lite0_path, read_checked
from scalegan.model_config import ModelConfig
from scalegan.models import build_discriminator
from scalegan.models.projected import STAGES

SMALL = ModelConfig(critic_family="projected", critic_width=4, critic_max_width=16, critic_norm="spectral")
LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(config: ModelConfig = SMALL, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 0, seed: int = 0):
    torch.manual_seed(seed)
    return build_discriminator(config, shape, classes).eval()


def views(*shape: int) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 47), (3, 240, 230)])
def test_every_scale_gives_as_many_logits_for_any_size(shape):
    critic = make(shape=shape)
    images = views(*shape)
    logits = critic(images, LABELS).logits
    for i, patch in enumerate(critic.patches):
        handle = patch.register_forward_hook(lambda module, inputs, output: output + 1)
        changed = critic(images, LABELS).logits - logits
        handle.remove()
        assert changed.mean().item() == pytest.approx(1 / 4, abs=1e-5), i
    assert logits.shape == (2, 4 * 16 if max(shape) < 225 else 4 * 5 * 5)


@pytest.mark.parametrize(("size", "side", "logits"), [(96, 96, 4), (128, 128, 4), (160, 160, 16), (32, 48, 4)])
def test_the_backbone_sees_images_of_the_size_asked_for(size, side, logits):
    critic = make(replace(SMALL, backbone_size=size), shape=(3, 48, 40))
    seen = []
    critic.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    scores = critic(views(3, 48, 40), LABELS).logits
    assert seen == [(2, 3, side, max(size, 40))]
    assert scores.shape == (2, logits)


def test_it_sees_what_the_extractor_sees():
    """The backbone gets the pixels of an image, mirrored; and its maps have the channels that the mixing counts on."""
    critic = make(shape=(3, 224, 224))
    seen = []
    critic.backbone.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    critic(pixels / 127.5 - 1, LABELS)
    torch.testing.assert_close(seen[0][0], pixels.flip(2, 3), rtol=0, atol=1e-4)
    assert [seen[0][1][stage].shape[1] for stage in STAGES] == list(STAGES.values())
    assert [seen[0][1][stage].shape[2] for stage in STAGES] == [56, 28, 14, 7]
    reference = Backbone(read_checked(lite0_path(""), LITE0_SHA256))(pixels.flip(2, 3))
    torch.testing.assert_close(seen[0][1][-1], reference[-1], rtol=1e-3, atol=1e-3)


def test_grey_is_equal_red_green_and_blue():
    grey = views(1, 32, 32)
    torch.testing.assert_close(make(shape=(1, 32, 32))(grey, LABELS), make()(grey.expand(-1, 3, -1, -1), LABELS))


def test_what_is_held_is_not_learnt_and_comes_back():
    critic = make()
    held = {name for name, _ in critic.named_buffers() if name.startswith(("backbone", "mixing"))}
    assert len(held) > 90
    assert not [name for name, _ in critic.named_parameters() if name.startswith(("backbone", "mixing"))]
    critic.requires_grad_(False)  # as the generator's step does
    critic.requires_grad_(True)
    assert not any(buffer.requires_grad for buffer in critic.buffers())
    saved = critic.state_dict()
    assert not [name for name in saved if name.startswith("backbone")]  # 13 MB that come with the package
    other, images = make(seed=1), views(3, 32, 32)
    assert not torch.equal(other(images, LABELS).logits, critic(images, LABELS).logits)
    other.load_state_dict(saved)
    assert torch.equal(other(images, LABELS).logits, critic(images, LABELS).logits)


def test_gradients_reach_the_images_from_every_scale():
    critic = make()
    images = views(3, 32, 32).requires_grad_()
    for part in critic(images, LABELS).logits.chunk(4, dim=1):
        (gradient,) = torch.autograd.grad(part.sum(), images, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("head", ["projection", "classifier"])
def test_classes_are_told_apart(head):
    critic = make(replace(SMALL, conditional=True, class_head=head), classes=3)
    images = views(3, 32, 32)
    first, second = (critic(images, torch.full((2,), label)) for label in (0, 2))
    assert torch.equal(first.logits, second.logits) is (head == "classifier")
    assert [loss.shape for loss in first.auxiliary.values()] == [(2,)] * (head == "classifier")


@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_it_says_truly_whether_it_couples_samples(norm):
    critic = make(replace(SMALL, critic_norm=norm))
    images = views(3, 32, 32)
    alone = critic(images[:1], LABELS[:1]).logits
    together = critic(images, LABELS).logits[:1]
    assert torch.allclose(alone, together, atol=1e-3) is not critic.couples_samples
    assert critic.couples_samples is (norm == "batch")


def test_half_precision_is_for_convolutions_alone():
    critic = make()
    with torch.autocast("cpu", torch.bfloat16):
        logits = critic(views(3, 32, 32), LABELS).logits
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())


@pytest.mark.slow  # torch takes the double backward of a depthwise convolution channel by channel
def test_steepness_and_its_gradient_equal_autograds():
    critic = Critic(make(shape=(1, 16, 16)), AugmentConfig()).double()
    images = views(1, 16, 16)[:1].double()
    scores = critic(images, LABELS[:1], None, True)
    scores.squared_grad_norm.sum().backward()
    ours = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.zero_grad()
    leaves = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(leaves, LABELS[:1], None).logits.mean(1).sum(), leaves, create_graph=True)
    gradient.square().sum().backward()
    theirs = [p.grad for p in critic.parameters() if p.grad is not None]
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.family=projected"], "model.family"),
        (["--model.backbone_size=96"], "model.backbone_size is a setting of model.family projected"),
        (["--model.critic_family=projected", "--model.backbone_size=16"], "give a side of at least 32 pixels"),
        (["--model.critic_family=projected", "--model.critic_norm=none"], "a critic projected always normalises its weights"),
    ],
)
def test_what_it_cannot_be_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        settings.parse(["--data.path=data", *options])
