"""Path lengths are those of generators whose steps can be worked out by hand; noise and labels do not move with a step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegan import random
from scalegan.errors import UserError
from scalegan.evaluation.path_length import LatentPaths, path_length, provenance, shrunk, trimmed_mean
from scalegan.evaluation.team import Team
from scalegan.model_config import ModelConfig
from scalegan.models import build_generator

Z_DIM, SEED, STEPS = 8, 5, 200


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """A distance whose path length is the mean square of the speed."""
    return (a.double() - b.double()).square().flatten(1).sum(1)


class Linear(nn.Module):
    """Images [N, 1, 4, 4] are a linear function of z."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(16, Z_DIM, generator=draw), requires_grad=False)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return (latents @ self.matrix.T).view(-1, 1, 4, 4)


class Styled(Linear):
    """w is a function of z that bends, and images are a linear one of w; the noise is as large as they are."""

    def styles(self, latents: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        return latents.square()[:, None].expand(-1, 2, -1)

    def synthesise(self, ws: Tensor, keys: Tensor) -> Tensor:
        return super().forward(ws.mean(1), keys) + (keys % 97)[:, None, None, None]

    def forward(self, latents: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        return self.synthesise(self.styles(latents, labels, keys), keys)


def ends() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends of the paths, and where on them a step begins."""
    z = random.normal(SEED, "paths", 0, STEPS, 2 * Z_DIM).astype(np.float64)
    return z[:, :Z_DIM], z[:, Z_DIM:], random.uniform(SEED, "paths/t", 0, STEPS, 1)


def measured(network: nn.Module, counts: tuple[int, ...] = (), steps: int = STEPS, distance=squared) -> dict[str, float]:
    return path_length(LatentPaths(network, Z_DIM, counts, SEED), distance, steps, Team())


def test_the_length_in_z_is_that_of_a_linear_generator():
    """By the derivative of the path: along the sphere by its angle, outwards by the difference of the lengths."""
    a, b, t = ends()
    long, longer = (np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    start, end = a / long, b / longer
    angle = np.arccos((start * end).sum(1, keepdims=True))
    place = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
    turn = angle * (np.cos(t * angle) * end - np.cos((1 - t) * angle) * start) / np.sin(angle)
    speed = turn * ((1 - t) * long + t * longer) + place * (longer - long)
    network = Linear()
    expected = ((speed @ network.matrix.double().numpy().T) ** 2).sum(1)
    mean, error = trimmed_mean(expected)
    found = measured(network)
    assert found == pytest.approx({"ppl_z": mean, "ppl_z_se": error}, rel=2e-3)


def test_the_length_in_w_is_that_of_a_straight_line():
    a, b, _ = ends()
    network = Styled()
    expected = (((b**2 - a**2) @ network.matrix.double().numpy().T) ** 2).sum(1)
    mean, error = trimmed_mean(expected)
    found = measured(network)
    assert (found["ppl_w"], found["ppl_w_se"]) == pytest.approx((mean, error), rel=2e-3)
    assert found["ppl_z"] != pytest.approx(found["ppl_w"], rel=0.1)


@pytest.mark.parametrize("family", ["stylegan2", "fastgan"])
def test_noise_does_not_move_with_a_step(family):
    torch.manual_seed(0)
    config = ModelConfig(family=family, z_dim=Z_DIM, width=4, max_width=8, critic_width=4, critic_max_width=8)
    network = build_generator(config, (3, 24, 20), 0).eval().requires_grad_(False)
    noises = [p for name, p in network.named_parameters() if name.endswith(("noise_strength", "noise.strength"))]
    assert noises
    plain = measured(network, steps=20)
    for strength in noises:
        strength.fill_(0.3)
    noisy = measured(network, steps=20)
    for name in ("ppl_z", "ppl_w") if family == "stylegan2" else ("ppl_z",):
        assert 0.1 < noisy[name] / plain[name] < 10

    class Forgetful(nn.Module):
        """The same generator with a noise of each end's own."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
            return self.network(latents, labels)

    assert measured(Forgetful(), steps=20)["ppl_z"] > 1e4 * noisy["ppl_z"]


def test_both_ends_have_one_label_drawn_by_the_data():
    class Told(Linear):
        def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
            return super().forward(latents, labels) + 1000 * labels[:, None, None, None]

    told, untold = measured(Told(), counts=(10, 0, 30)), measured(Linear())
    assert told["ppl_z"] == pytest.approx(untold["ppl_z"], rel=0.05)  # of float32 numbers as large as the labels make them
    images, _ = LatentPaths(Told(), Z_DIM, (10, 0, 30), SEED).ends("z", 0, STEPS)
    classes, counts = np.unique((images.mean((1, 2, 3)) / 1000).round().numpy(), return_counts=True)
    assert classes.tolist() == [0, 2]
    assert counts[1] / STEPS == pytest.approx(0.75, abs=0.1)


def test_a_step_is_the_same_in_any_company():
    paths = LatentPaths(Linear(), Z_DIM, (), SEED)
    whole = paths.ends("z", 0, 40)
    for images, part in zip(whole, paths.ends("z", 13, 9), strict=True):
        torch.testing.assert_close(part, images[13:22])
    assert not torch.equal(*whole)


def test_the_lowest_and_highest_hundredth_are_left_out():
    lengths = np.arange(1000.0)
    lengths[999] = 1e9
    mean, error = trimmed_mean(lengths[np.random.default_rng(0).permutation(1000)])
    assert mean == pytest.approx(np.arange(9, 991).mean())  # as numpy's percentiles "lower" and "higher" cut
    drawn_in = np.clip(np.arange(1000.0), 9, 990)
    assert error == pytest.approx(drawn_in.std(ddof=1) / 1000**0.5 / 0.982)
    assert trimmed_mean(np.array([1.0, 3.0])) == (2.0, pytest.approx(1.0))


def test_large_images_are_shrunk_by_areas_and_the_record_says_so():
    large = torch.rand(1, 3, 512, 1024)
    torch.testing.assert_close(shrunk(large), F.avg_pool2d(large, 2))
    assert shrunk(torch.rand(1, 1, 300, 400)).shape == (1, 1, 256, 341)
    small = torch.rand(1, 1, 256, 400)
    assert torch.equal(shrunk(small), small)
    assert provenance(300, 400, 7) == {"ppl_steps": 7, "ppl_resize": "area from 300x400 to 256x341"}
    assert provenance(28, 28, 7)["ppl_resize"] == "none"


def test_a_diverged_generator_is_told():
    network = Linear()
    network.matrix.data[3, 2] = torch.nan
    with pytest.raises(UserError, match="images have NaN in them"):
        measured(network, steps=4)
