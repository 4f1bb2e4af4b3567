"""LPIPS is the formula of its paper, on the published heads; pairs are of images that have nothing to do with each other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.lpips_weights import made_up_file, made_up_lpips, made_up_lpips_weights, published_heads
from scalegan.errors import UserError
from scalegan.evaluation import lpips, weights
from scalegan.evaluation.by_lpips import PAIRS, drawn_pairs, first_pairs, take
from scalegan.evaluation.lpips import BACKBONES, Lpips, PairDistance, load_lpips
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TORCH_HOME", "SCALEGAN_LPIPS_ALEX_WEIGHTS", "SCALEGAN_LPIPS_VGG_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def alex() -> lpips.PerceptualDistance:
    return made_up_lpips("alex")


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: smooth shapes and noise."""
    draw = torch.Generator().manual_seed(seed)
    shapes = F.interpolate(torch.rand(count, 3, 6, 6, generator=draw) * 255, (height, width), mode="bilinear")
    return (shapes + 12 * torch.randn(shapes.shape, generator=draw)).clamp(0, 255).round().to(torch.uint8)


def maps(name: str, state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """The five maps [C, h, w] of one image float64 [3, H, W], by the tables of the two papers."""

    def conv(x: Tensor, number: int, stride: int = 1, padding: int = 1) -> Tensor:
        weight, bias = (state[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
        return F.conv2d(x[None], weight, bias, stride, padding)[0].clamp(min=0)

    def halved(x: Tensor, side: int) -> Tensor:
        return x.unfold(1, side, 2).unfold(2, side, 2).amax((3, 4))

    mean, std = torch.tensor([-0.030, -0.088, -0.188]).double(), torch.tensor([0.458, 0.448, 0.450]).double()
    x = (image - mean[:, None, None]) / std[:, None, None]
    if name == "alex":
        first = conv(x, 0, 4, 2)
        second = conv(halved(first, 3), 3, 1, 2)
        third = conv(halved(second, 3), 6)
        fourth = conv(third, 8)
        return [first, second, third, fourth, conv(fourth, 10)]
    found = []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = halved(x, 2) if found else x
        for number in block:
            x = conv(x, number)
        found.append(x)
    return found


def textbook(name: str, state: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> float:
    """Equation 1, place by place."""
    total = 0.0
    for number, (x, y) in enumerate(zip(maps(name, state, a), maps(name, state, b), strict=True)):
        weight = heads[f"lin{number}.model.1.weight"].double().flatten()
        _, height, width = x.shape
        for row in range(height):
            for column in range(width):
                u, v = x[:, row, column], y[:, row, column]
                difference = u / u.norm() - v / v.norm()
                total += float((weight * difference**2).sum()) / (height * width)
    return total


@pytest.mark.parametrize(("name", "height", "width"), [("alex", 31, 45), ("alex", 67, 52), ("vgg", 17, 20)])
def test_a_distance_is_the_papers_formula(name, height, width):
    state, heads = made_up_lpips_weights(name), published_heads(name)
    a, b = (pictures(2, height, width, seed).double() / 127.5 - 1 for seed in (1, 2))
    found = Lpips(name, state, heads).double()(a, b)
    expected = [textbook(name, state, heads, x, y) for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) > 0.01


def test_an_image_is_at_no_distance_from_itself_and_the_order_of_two_is_none(alex):
    a, b = pictures(3, 40, 33, 1), pictures(3, 40, 33, 2)
    assert alex(a, a).abs().max() < 1e-9
    torch.testing.assert_close(alex(a, b), alex(b, a), rtol=1e-5, atol=0)
    assert alex(a, b).dtype == torch.float64


def test_bytes_are_their_floats_and_grey_is_colour_without_any(alex):
    a, b = pictures(2, 40, 33, 1), pictures(2, 40, 33, 2)
    assert torch.equal(alex(a, b), alex(a / 127.5 - 1, b / 127.5 - 1))
    grey, other = a[:, :1], b[:, :1]
    assert torch.equal(alex(grey, other), alex(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))


def test_passes_of_few_pairs_give_the_same(alex, monkeypatch):
    a, b = pictures(5, 40, 33, 1), pictures(5, 40, 33, 2)
    whole = alex(a, b)
    monkeypatch.setattr(lpips, "PIXELS", 2 * 40 * 33)
    torch.testing.assert_close(alex(a, b), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_smaller_images_are_enlarged_and_the_record_says_so(name):
    distance = made_up_lpips(name)
    network, side = distance.network, distance.network.smallest

    def last_map(x: Tensor) -> Tensor:
        for stage in network.stages:
            x = stage(x)
        return x

    assert last_map(torch.zeros(1, 3, side, side)).shape[2:] == (1, 1)
    with pytest.raises(RuntimeError):
        last_map(torch.zeros(1, 3, side - 1, side))
    assert distance.provenance(side, 100)["lpips_resize"] == "none"
    half = side // 2
    times = side / half
    assert distance.provenance(half, 40)["lpips_resize"] == f"bilinear from {half}x40 to {side}x{round(40 * times)}"
    a, b = pictures(2, half, 40, 1), pictures(2, half, 40, 2)
    size = (side, round(40 * times))
    larger = (F.interpolate(x / 127.5 - 1, size, mode="bilinear", align_corners=False) for x in (a, b))
    torch.testing.assert_close(distance(a, b), distance(*larger), rtol=1e-5, atol=0)


# --- weights


def test_the_heads_are_the_published_ones():
    for name, channels in (("alex", [64, 192, 384, 256, 256]), ("vgg", [64, 128, 256, 512, 512])):
        heads = published_heads(name)
        assert [heads[f"lin{i}.model.1.weight"].numel() for i in range(5)] == channels
        assert all(bool((head >= 0).all()) for head in heads.values())


def test_weights_are_found_and_stand_in_the_record(monkeypatch, tmp_path):
    path = made_up_file(monkeypatch, tmp_path)
    given = load_lpips(EvaluationConfig(lpips_weights=str(path)), CPU, Team())
    said = given.provenance(40, 40)
    assert said["lpips"] == "alex"
    assert said["lpips_weights_sha256"].startswith(weights.LPIPS["alex"].sha256)
    assert len(said["lpips_weights_sha256"]) == len(said["lpips_heads_sha256"]) == 64
    monkeypatch.setenv("SCALEGAN_LPIPS_ALEX_WEIGHTS", str(path))
    a, b = pictures(1, 40, 33, 1), pictures(1, 40, 33, 2)
    assert torch.equal(load_lpips(EvaluationConfig(), CPU, Team())(a, b), given(a, b))
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    for known in weights.LPIPS.values():
        (hub / known.file).touch()
    monkeypatch.delenv("SCALEGAN_LPIPS_ALEX_WEIGHTS")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert weights.lpips_path("alex", "") == hub / "alexnet-owt-7be5be79.pth"
    assert weights.lpips_path("vgg", "") == hub / "vgg16-397923af.pth"


def test_the_published_digits_are_those_of_the_files_names():
    assert {name: known.sha256 for name, known in weights.LPIPS.items()} == {"alex": "7be5be79", "vgg": "397923af"}


def test_other_weights_are_refused_by_the_name_of_the_right_ones(tmp_path):
    torch.save(made_up_lpips_weights("alex"), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth are not the expected file .*: fetch alexnet-owt-7be5be79.pth again"):
        load_lpips(EvaluationConfig(lpips_weights=str(tmp_path / "other.pth")), CPU, Team())
    with pytest.raises(UserError, match=r"other.pth are not the expected file .*: fetch torchmetrics' vgg.pth again"):
        weights.read_checked(tmp_path / "other.pth", weights.LPIPS_HEADS_SHA256["vgg"])
    with pytest.raises(UserError, match=r"no.pth of LPIPS vgg do not exist: .* \(`scalegan evaluate`: --lpips-weights\)"):
        load_lpips(EvaluationConfig(lpips="vgg", lpips_weights=str(tmp_path / "no.pth")), CPU, Team())


# --- pairs


def test_the_mean_over_pairs_has_its_standard_error():
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)

    a, b = torch.rand(2, 13, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    metric = PairDistance(distance, "d")
    for part in (slice(0, 5), slice(5, 13)):
        metric.update(a[part], b[part])
    found, values = metric.compute(), distance(a, b).double().numpy()
    assert float(found["d"]) == pytest.approx(values.mean(), rel=1e-12)
    assert float(found["d_se"]) == pytest.approx(values.std(ddof=1) / 13**0.5, rel=1e-9)
    metric.reset()
    metric.update(a[:1], b[:1])
    with pytest.raises(UserError, match="needs 2 pairs of images and was given 1"):
        metric.compute()


@pytest.mark.parametrize("images", [4, 7, 100, 5000])
def test_drawn_pairs_are_of_different_images_from_anywhere(images):
    pairs = drawn_pairs(images)
    assert pairs.shape == (min(PAIRS, images // 2), 2)
    assert len(np.unique(pairs)) == pairs.size
    assert pairs.min() >= 0
    assert pairs.max() < images
    assert np.array_equal(pairs, drawn_pairs(images))
    if images >= 100:
        assert np.abs(pairs[:, 0] - pairs[:, 1]).mean() == pytest.approx(images / 3, rel=0.2)
        assert pairs.max() > 0.9 * images


def test_generated_images_are_taken_in_runs():
    asked = []

    def generator(first: int, count: int) -> Tensor:
        asked.append((first, count))
        return torch.arange(first, first + count)

    assert take(generator, first_pairs(9).ravel()).tolist() == list(range(8))
    assert take(generator, np.array([7, 3, 4, 0])).tolist() == [7, 3, 4, 0]
    assert asked == [(0, 8), (7, 1), (3, 2), (0, 1)]
