"""Each augmentation against a formula of its own, the gates that decide which are done, and what they have in common."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import make_shards
from torch import Tensor

from scalegan import augment as module
from scalegan import random, settings
from scalegan.augment import NOTHING, WIDTH, Numbers, augment, gated, gates
from scalegan.augment_config import OFF, PIPES, STRENGTHS, AugmentConfig
from scalegan.config import BurnInConfig, Config
from scalegan.draws import DataFacts
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.steps import Draws
from scalegan.train import check_data

ON = AugmentConfig(
    brightness=0.5, saturation=0.5, contrast=0.5, luma_flip=True, hue=180, shift=0.125, mirror=True, rotate90=True,
    scale=0.2, rotate=180, aniso=0.2, translate=0.125, cutout=0.3,
)  # fmt: skip


def images(n: int = 4, height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def draws(n: int = 4, **fixed: float) -> Tensor:
    """Random numbers, of which some are `fixed`."""
    made = torch.rand(n, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for name, value in fixed.items():
        made[:, Numbers._fields.index(name)] = value
    return made


def quantile(deviations: float) -> float:
    """The uniform number that stands for so many standard deviations."""
    return 0.5 * (1 + math.erf(deviations / math.sqrt(2)))


def numbers(n: int, config: AugmentConfig) -> Tensor:
    """What `gated` takes."""
    u = np.random.default_rng(0).uniform(size=(2, n, WIDTH))
    return torch.from_numpy(np.stack([u[0], gates(u[1], config), np.broadcast_to(NOTHING, u[0].shape)]))


def test_of_the_numbers_that_change_nothing_nothing_is_changed() -> None:
    nothing = torch.from_numpy(NOTHING).expand(4, -1)
    for spread in ("uniform", "normal"):
        config = replace(ON, spread=spread)
        exact = replace(config, saturation=0, contrast=0)  # which go by a mean and back
        for dtype in (torch.float32, torch.float64):
            given = images().to(dtype)
            assert torch.equal(augment(given, nothing.to(dtype), exact), given)
            torch.testing.assert_close(augment(given, nothing.to(dtype), config), given, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirror", [0.1, 0.9])
@pytest.mark.parametrize("steps", [-2, 0, 1])
def test_a_mirrored_turned_and_shifted_image_is_that_of_numpy(quarters: int, mirror: float, steps: int) -> None:
    given = images(2, 10, 10)
    view = draws(2, mirror=mirror, rotate90=quarters / 4 + 0.1, down=(steps + 2.5) / 5, right=0.5)
    made = augment(given, view, AugmentConfig(mirror=True, rotate90=True, shift=0.2)).numpy()
    expected = np.rot90(given.numpy()[..., ::-1] if mirror < 0.5 else given.numpy(), quarters, axes=(2, 3))
    for row in range(10):
        source = row + steps
        assert np.array_equal(made[:, :, row], expected[:, :, source] if 0 <= source < 10 else 0 * made[:, :, 0])


def test_a_number_that_float32_rounds_to_one_shifts_no_further_than_the_limit() -> None:
    config, given = AugmentConfig(shift=0.2), images(2, 10, 10)
    furthest, beyond = (augment(given, draws(2, down=down, right=0.5), config) for down in (0.9, 1.0))
    assert torch.equal(beyond, furthest)


def test_moves_have_the_gradient_of_the_matrices_that_do_the_same() -> None:
    """To the bit, and of a gradient of a gradient too."""
    given, view = images(5, 9, 14).float(), draws(5).float()
    config = AugmentConfig(mirror=True, shift=0.25)
    row, column = torch.arange(9), torch.arange(14)
    of = Numbers(*view.unbind(1))
    from_row = row + torch.floor(of.down * 5).long()[:, None] - 2
    from_column = column + torch.floor(of.right * 9).long()[:, None] - 4
    from_column = torch.where(of.mirror[:, None] < 0.5, 13 - from_column, from_column)
    rows, columns = ((from_[:, :, None] == place).float() for from_, place in ((from_row, row), (from_column, column)))

    def gradients(view: Any) -> list[Tensor]:
        leaves = given.clone().requires_grad_()
        seen = view(leaves)
        (first,) = torch.autograd.grad(seen.pow(3).sum(), leaves, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaves)
        return [seen, first, second]

    ours = gradients(lambda x: augment(x, view, config))
    theirs = gradients(lambda x: torch.einsum("nyh,nchw,nxw->ncyx", rows, x, columns))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_a_warp_is_an_affine_map_pixel_by_pixel(size: tuple[int, int]) -> None:
    """By a matrix, about the image's middle: zoom, turn, stretch, turn, move; bilinear, and reflected at the edges."""
    height, width = size
    given = images(1, height, width)
    config = AugmentConfig(scale=0.5, rotate=90, aniso=0.3, translate=0.1)
    view = draws(
        1, scale=quantile(1), rotate_first=0.7, aniso=quantile(-1), rotate_last=0.35, translate_y=quantile(1), translate_x=0.5
    )

    def turn(degrees: float) -> np.ndarray:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return np.array([[c, s], [-s, c]])  # of (y, x), clockwise as seen on a screen

    stretch = 2**-0.3
    forward = turn(-0.3 * 90) @ np.diag([1 / stretch, stretch]) @ turn(0.4 * 90) * 2**0.5
    inverse = np.linalg.inv(forward)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    endless = np.pad(given[0].numpy(), ((0, 0), (4 * height,) * 2, (4 * width,) * 2), "symmetric")
    expected = np.empty((3, *size))
    for row, column in np.ndindex(size):
        y, x = inverse @ ([row - 0.1 * height, column] - middle) + middle + [4 * height, 4 * width]
        top, left, down, right = int(y), int(x), y % 1, x % 1
        square = endless[:, top : top + 2, left : left + 2]
        expected[:, row, column] = np.array([1 - down, down]) @ square @ np.array([1 - right, right])
    np.testing.assert_allclose(augment(given, view, config)[0], expected, atol=1e-9)


def test_whole_moves_come_before_a_warp_in_one_resampling() -> None:
    """A shift and a move by as many pixels the other way lose nothing at the edge."""
    given = images(2, 10, 10)
    config = AugmentConfig(shift=0.2, translate=0.1, mirror=True, rotate90=True)
    view = draws(2, down=0.9, right=0.5, translate_y=quantile(2), translate_x=0.5, mirror=0.1, rotate90=0.3)
    expected = np.rot90(given.numpy()[..., ::-1], 1, axes=(2, 3))
    np.testing.assert_allclose(augment(given, view, config), expected, atol=1e-9)


def test_a_rotation_by_a_right_angle_is_that_of_numpy() -> None:
    given = images(2, 11, 11)
    turned = augment(given, draws(2, rotate_first=1.0, rotate_last=0.5), AugmentConfig(rotate=90))
    np.testing.assert_allclose(turned, np.rot90(given.numpy(), -1, axes=(2, 3)), atol=1e-12)


def test_a_point_of_light_moves_by_the_deviations_that_were_drawn() -> None:
    given = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    given[:, :, 5:7, 5:7] = 1.0
    view = draws(1, translate_x=quantile(2), translate_y=quantile(-0.7))
    seen = augment(given, view, AugmentConfig(translate=0.125))[0, 0]
    at = torch.arange(12, dtype=torch.float64)
    found = ((seen.sum(1) @ at / seen.sum()).item(), (seen.sum(0) @ at / seen.sum()).item())
    assert found == pytest.approx((5.5 - 0.7 * 1.5, 5.5 + 2 * 1.5), abs=1e-5)


def test_a_zoom_by_one_deviation_of_1_is_twice_the_size() -> None:
    given = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    given[:, :, 6:10, 6:10] = 1.0
    seen = augment(given, draws(1, scale=quantile(1)), AugmentConfig(scale=1.0))
    assert seen.sum().item() == pytest.approx(4 * given.sum().item())


def test_a_hue_that_is_turned_by_a_third_changes_the_channels_over() -> None:
    given = images()
    turned = augment(given, draws(hue=0.5 + 1 / 3), AugmentConfig(hue=180))
    torch.testing.assert_close(turned, given.roll(1, 1))


def test_a_hue_keeps_brightness_and_saturation() -> None:
    given = images()
    turned = augment(given, draws(), AugmentConfig(hue=180))
    torch.testing.assert_close(turned.mean(1), given.mean(1))
    torch.testing.assert_close(turned.norm(dim=1), given.norm(dim=1))
    assert (turned - given).abs().max() > 0.5


def test_a_luma_flip_is_a_reflection_along_the_grey_axis() -> None:
    given, axis = images(), torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    mirror = torch.eye(3, dtype=torch.float64) - 2 * torch.outer(axis, axis)
    config = AugmentConfig(luma_flip=True)
    torch.testing.assert_close(augment(given, draws(luma_flip=0.2), config), torch.einsum("dc,nchw->ndhw", mirror, given))
    assert torch.equal(augment(given, draws(luma_flip=0.8), config), given)
    grey = images(channels=1)
    torch.testing.assert_close(augment(grey, draws(luma_flip=0.2), config), -grey)


def test_normal_changes_have_the_deviation_that_is_set() -> None:
    n = 4000
    given = images(1).expand(n, -1, -1, -1)
    config = AugmentConfig(spread="normal", brightness=0.2)
    change = (augment(given, draws(n), config) - given)[:, 0, 0, 0]
    assert (change.mean().item(), change.std().item()) == pytest.approx((0, 0.2), abs=0.01)
    for name in ("contrast", "saturation"):
        seen = augment(given, draws(n), AugmentConfig(spread="normal", **{name: 0.5}))
        spread = [(x - x.mean((1, 2, 3) if name == "contrast" else 1, True)).flatten(1).norm(dim=1) for x in (seen, given)]
        logarithm = (spread[0] / spread[1]).log2()
        assert (logarithm.mean().item(), logarithm.std().item()) == pytest.approx((0, 0.5), abs=0.03)


def test_numbers_that_were_rounded_to_0_or_1_are_no_infinite_change() -> None:
    for end in (0.0, 1.0):
        view = torch.full((2, WIDTH), end)
        assert augment(images(2).float(), view, replace(ON, spread="normal")).isfinite().all()


@pytest.mark.parametrize("config", [ON, replace(ON, spread="normal")], ids=["uniform", "normal"])
def test_views_can_be_differentiated_twice(config: AugmentConfig) -> None:
    given, view = images(1, 4, 4).requires_grad_(), draws(1)
    # A cube, as a view is linear in its image but for nothing.
    assert torch.autograd.gradgradcheck(lambda x: augment(x, view, config).pow(3).sum((1, 2, 3)), given)


def test_views_under_func_grad_have_autograds_gradient() -> None:
    given, view = images(2), draws(2)
    ours = torch.func.grad(lambda x: augment(x, view, ON).pow(3).sum())(given)
    leaves = given.clone().requires_grad_()
    augment(leaves, view, ON).pow(3).sum().backward()
    torch.testing.assert_close(ours, leaves.grad)


@pytest.mark.parametrize("config", [ON, replace(ON, spread="normal")], ids=["uniform", "normal"])
def test_a_view_is_the_same_in_any_batch(config: AugmentConfig) -> None:
    given, view = images(6), draws(6)
    torch.testing.assert_close(augment(given[2:5], view[2:5], config), augment(given, view, config)[2:5], rtol=0, atol=1e-14)


# --- gates


CHANGES = {
    "brightness": {"brightness": 0.5}, "contrast": {"contrast": 0.5}, "hue": {"hue": 180}, "shift": {"shift": 0.5},
    "scale": {"scale": 0.5}, "rotate": {"rotate": 180}, "aniso": {"aniso": 0.5}, "translate": {"translate": 0.5},
    "cutout": {"cutout": 0.5},
}  # fmt: skip


def test_with_probability_p_each_augmentation_is_done_by_itself() -> None:
    n, done = 2000, {}
    given = images(1, 8, 8).expand(n, -1, -1, -1)
    config = AugmentConfig(brightness=0.1, colour=0.5)
    view = gated(numbers(n, config), 0.3)
    for name, strength in CHANGES.items():
        difference = augment(given, view, AugmentConfig(**strength)) - given  # type: ignore[arg-type]
        done[name] = (difference.abs().flatten(1).amax(1) > 1e-6).double()
        share = 0.15 if name in ("brightness", "contrast", "hue") else 0.3
        assert done[name].mean().item() == pytest.approx(share, abs=0.04), name
    for one, other in (("cutout", "shift"), ("scale", "rotate"), ("aniso", "translate")):
        assert (done[one] * done[other]).mean().item() == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize(("p", "same"), [(0.0, True), (1.0, False)])
def test_at_probability_0_nothing_is_done_and_at_1_everything(p: float, same: bool) -> None:
    table = numbers(50, ON)
    made = gated(table, p)
    assert torch.equal(made, (table[2] if same else table[0]).float())
    assert torch.allclose(augment(images(50).float(), made, ON), images(50).float(), atol=1e-6) is same


def test_a_probability_on_the_device_gates_as_one_on_the_host() -> None:
    table = numbers(200, ON)
    assert torch.equal(gated(table, torch.tensor(0.3, dtype=torch.float64)), gated(table, 0.3))


def make_draws(count: int = 6, offset: int = 0, **options: Any) -> Draws:
    given = {"data.path": "none", "augment.shift": 0.1} | {name.replace("__", "."): value for name, value in options.items()}
    config = settings.parse([f"--{name}={value}" for name, value in given.items()]).config
    return Draws(config, DataFacts((3, 8, 8), ()), Accelerator(cpu=True).device, count, offset)


@pytest.mark.parametrize("p", [0.4, 1.0])
def test_the_numbers_of_the_first_augmentations_are_what_they_always_were(p: float) -> None:
    """As runs of earlier presets drew them, and as numpy compares them in float64."""
    views = make_draws().views("real", 64, p)
    assert views is not None
    drawn = random.uniform(0, "augment/real", 64, 6, 8)
    gate = random.uniform(0, "augmented/real", 64, 6, 8)
    gate[:, 4], gate[:, 7] = gate[:, 3], gate[:, 6]
    expected = np.where(gate < p, drawn, [0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 2.0, 2.0]).astype(np.float32)
    assert np.array_equal(views[:, :8].numpy(), expected)


def test_slices_of_processes_are_those_of_the_whole_batch() -> None:
    whole = make_draws().views("fake", 0, 0.5)
    parts = [make_draws(3, offset).views("fake", offset, 0.5) for offset in (0, 3)]
    assert whole is not None
    assert torch.equal(torch.cat([part for part in parts if part is not None]), whole)
    assert len(set(whole[:, 8:].flatten().tolist()) - set(NOTHING.tolist())) > 20
    assert sum(width for *_, width in module.STREAMS) == whole.shape[1] == WIDTH


# --- settings


def parsed(*arguments: str) -> AugmentConfig:
    return settings.parse(["--data.path=none", *arguments]).config.augment


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_stands_for_its_fields(name: str) -> None:
    assert set(PIPES[name]) == {*STRENGTHS, "spread", "colour", "p"}
    assert parsed("--augment.pipe", name) == AugmentConfig(pipe=name, **PIPES[name])  # type: ignore[arg-type]


def test_pipes_for_brains_and_digits_keep_sides_and_uprightness() -> None:
    for name in ("medical", "digits"):
        pipe = AugmentConfig(**PIPES[name])
        assert not any((pipe.mirror, pipe.rotate90, pipe.hue, pipe.luma_flip))
        assert pipe.rotate < 10
    assert not AugmentConfig(**OFF).active


def test_what_is_given_beside_a_pipe_overrides_it_and_the_pipe_a_presets_fields(tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: x}\naugment: {pipe: digits, shift: 0.3, mirror: true}\n")
    of_file = parsed("--config", str(path))
    assert of_file == AugmentConfig(pipe="digits", **PIPES["digits"] | {"shift": 0.3, "mirror": True})
    assert parsed("--config", str(path), "--augment.rotate", "3") == replace(of_file, rotate=3.0)
    medical = PIPES["medical"] | {"shift": 0.01}
    for given in (["--augment.pipe=medical", "--augment.shift=0.01"], ["--augment.shift=0.01", "--augment.pipe", "medical"]):
        assert parsed(f"--config={path}", *given) == AugmentConfig(pipe="medical", **medical)


def test_an_empty_pipe_takes_back_that_of_a_preset(tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: x}\naugment: {pipe: photo, cutout: 0.5, p: 0.3}\n")
    for given in (["--augment.pipe="], ["--augment.pipe", ""]):
        assert parsed(f"--config={path}", *given) == AugmentConfig()
        assert parsed("--augment.shift=0.1", f"--config={path}", *given) == AugmentConfig(shift=0.1)
    path.write_text("data: {path: x}\naugment: {pipe: '', shift: 0.1, p: 0.3}\n")  # as --print_config writes it
    assert parsed(f"--config={path}") == AugmentConfig(shift=0.1, p=0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotate": 200}, "augment.rotate is 200: give degrees"),
        ({"target": 0.6}, "no augmentation is on"),
        ({"pipe": "photo"}, "AugmentConfig"),
        ({"brightness": 0.1, "target": 1.5}, "augment.target is 1.5"),
        ({"every": 0}, "augment.every is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AugmentConfig(**fields)


@pytest.mark.parametrize("name", ["wasserstein", "relativistic"])
def test_an_adaptive_probability_needs_a_loss_whose_logits_have_a_sign(name: Any) -> None:
    adaptive = AugmentConfig(brightness=0.1, target=0.6)
    with pytest.raises(UserError, match=r"augment\.target uses the sign"):
        Config(augment=adaptive, loss=LossConfig(name=name, gp_weight=1)).check(1)
    with pytest.raises(UserError, match=r"burn_in\.augment and augment\.target"):
        Config(augment=adaptive, burn_in=BurnInConfig(images=10, augment=0)).check(1)
    Config(augment=adaptive).check(1)


def test_quarter_turns_need_square_images(tmp_path: Any) -> None:
    index = make_shards(tmp_path, samples=8, height=16, width=12)
    config = settings.parse([f"--data.path={tmp_path}", "--train.batch=8", "--augment.pipe=photo"]).config
    with pytest.raises(UserError, match=r"16x12 images of .* are not square: set --augment.rotate90 false"):
        check_data(config, index)
    check_data(replace(config, augment=replace(config.augment, rotate90=False)), index)
