"""The extractors compute what the networks they are named after compute, on images as they are stored."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.fid_weights import made_up_weights, picture
from scalegan.errors import UserError
from scalegan.evaluation import weights
from scalegan.evaluation.features import Extractor, load_extractor
from scalegan.evaluation.inception import Inception
from scalegan.evaluation.lite0 import Lite0
from scalegan.evaluation.names import WIDTHS, WITH_PROBABILITIES
from scalegan.evaluation.network import quantised
from scalegan.evaluation.resize import RESIZES, tf1, tf1_matrix
from scalegan.evaluation.suite import HEADS
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.float32 import computing_in

CPU = torch.device("cpu")
DATA = Path(os.environ.get("SCALEGAN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return load_extractor(EvaluationConfig(), CPU, Team())


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return weights.read_checked(weights.lite0_path(""), weights.LITE0_SHA256)


@pytest.fixture(scope="module")
def inception() -> Inception:
    return Inception(made_up_weights())


def images(n: int, channels: int = 3, height: int = 20, width: int = 30) -> Tensor:
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_images_become_features(lite0):
    features = lite0(images(3))
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    assert 0 <= features.min() < features.max() <= 6


def reference_lite0(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network layer by layer as TensorFlow defines it: padding to the right and below, batch norm after convolutions."""

    def layer(x: Tensor, convolution: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{convolution}.weight"]
        kernel, groups = weight.shape[-1], len(weight) if weight.shape[1] == 1 else 1
        extra = max(kernel - stride, 0)
        x = F.pad(x, (extra // 2, extra - extra // 2, extra // 2, extra - extra // 2))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)

    x = F.relu6(layer(x, "_conv_stem", "_bn0", 2))
    for number in range(16):
        name, stride = f"_blocks.{number}", 2 if number in (1, 3, 5, 11) else 1
        y = F.relu6(layer(x, f"{name}._expand_conv", f"{name}._bn0")) if number else x
        y = F.relu6(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if number in (2, 4, 6, 7, 9, 10, 12, 13, 14) else y
    return F.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))


def test_lite0_is_the_network_that_tensorflow_trained(state, lite0):
    batch = images(2, height=224, width=224)
    expected = reference_lite0(state, (batch.float() - 127) / 128)
    assert (lite0(batch) - expected).abs().max() < 5e-5


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (64, 48), (100, 100), (256, 256), (512, 300)], ids=str)
def test_lite0_sees_images_of_any_size_by_the_bilinear_filter_of_pillow(state, lite0, size):
    batch = images(1, height=size[0], width=size[1])
    planes = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in batch[0]]
    resized = np.stack([np.asarray(plane.resize((224, 224), Image.Resampling.BILINEAR)) for plane in planes])
    assert (lite0(batch) - reference_lite0(state, (torch.from_numpy(resized)[None] - 127) / 128)).abs().max() < 5e-5


@pytest.mark.skipif(not (DATA / "fruits360").is_dir(), reason="needs the Fruits-360 photos (SCALEGAN_DATA)")
@pytest.mark.parametrize(("fruit", "imagenet"), [("Strawberry", 949), ("Orange", 950)])
def test_lite0_knows_fruit(state, lite0, fruit, imagenet):
    files = sorted((DATA / "fruits360" / "Test" / fruit).glob("*.jpg"))[::20]
    photos = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    guesses = (lite0(photos) @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1)
    assert (guesses == imagenet).float().mean() >= 0.7


def test_grey_is_equal_red_green_and_blue(lite0):
    grey = images(2, channels=1)
    assert torch.equal(lite0(grey), lite0(grey.expand(-1, 3, -1, -1)))


def test_features_do_not_depend_on_the_company(lite0):
    batch = images(11)
    together = lite0(batch)
    assert torch.equal(together[8:], lite0(batch[8:]))
    assert torch.equal(together[:3], lite0(batch[:3]))


def test_the_size_of_a_pass_is_a_matter_of_rounding(lite0):
    batch = images(11)
    expected = lite0(batch)
    for size in (1, 3, 11):
        assert (replace(lite0, batch=size)(batch) - expected).norm() < 1e-6 * expected.norm()


def test_features_are_plain_float32_inside_a_mixed_precision_training(lite0):
    batch = images(8)
    plain = lite0(batch)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(lite0(batch), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_precision_comes_back_after_an_error():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError), computing_in("float32", CPU):
            raise ValueError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_extraction_touches_no_random_number_and_keeps_no_gradient(lite0):
    before = torch.get_rng_state()
    features = lite0(images(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not features.requires_grad
    assert not any(p.requires_grad for p in lite0.network.parameters())


# Of torch-fidelity 0.4.0 (inception-v3-compat) on the same weights and images, features 0, 1, 500, 1000, 1500, 2047.
GOLDEN = {
    (64, 64): [2.6342685, 0.74571073, 0.1529035, 0.31341675, 0.0023416402, 1.3006281],
    (100, 80): [2.7445488, 0.74899769, 0.13928664, 0.35416472, 0.0053112502, 1.5433812],
    (299, 299): [3.7653103, 1.0741793, 0.23914655, 0.38634399, 0.0032049168, 2.322125],
}


@pytest.mark.parametrize("size", GOLDEN, ids=str)
def test_inception_equals_torch_fidelity(inception, size):
    with torch.inference_mode():
        features = inception(picture(*size))
    assert features.shape == (1, 2048)
    assert features[0, [0, 1, 500, 1000, 1500, 2047]].tolist() == pytest.approx(GOLDEN[size], rel=1e-5)


def test_tensorflow_1_resizes_without_half_a_pixel():
    assert tf1_matrix(2, 4).tolist() == [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    assert tf1_matrix(4, 2).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    batch = images(1, height=7, width=7).float()
    assert torch.equal(tf1(batch, 7), batch)


@pytest.mark.parametrize("size", [(32, 32), (100, 80), (299, 299), (512, 300), (5, 7)], ids=str)
def test_clean_is_the_bicubic_filter_of_pillow_on_each_channel(size):
    batch = picture(*size)
    resized = RESIZES["clean"].apply(batch.float(), 299)
    for own, channel in zip(resized[0], batch[0], strict=True):
        theirs = np.asarray(Image.fromarray(channel.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
        assert float(np.abs(own.numpy() - theirs.clip(0, 255)).max()) < 1e-4


@pytest.mark.parametrize("name", ["halfpixel", "torch-aa"])
def test_bilinear_reads_half_a_pixel_off_and_averages_only_with_antialias(name):
    row = torch.tensor([0.0, 100, 200, 40]).repeat(4, 1)[None, None]
    larger = RESIZES[name].apply(row, 8)[0, 0, 0]
    assert larger.tolist() == pytest.approx([0, 25, 75, 125, 175, 160, 80, 40])
    smaller = RESIZES[name].apply(row, 2)[0, 0, 0].tolist()
    wide = [(3 * 0 + 3 * 100 + 200) / 7, (100 + 3 * 200 + 3 * 40) / 7]  # a triangle of twice the width, cut at the edge
    assert smaller == pytest.approx([50, 120] if name == "halfpixel" else wide)


def test_black_and_white_are_where_each_program_has_them():
    black, white = torch.zeros(1, 1, 9, 9, dtype=torch.uint8), torch.full((1, 1, 9, 9), 255, dtype=torch.uint8)
    for name, resize in RESIZES.items():
        ends = (-1, 1) if name == "halfpixel" else (-1, 127 / 128)
        assert [float(resize(ends_of, 9).mean()) for ends_of in (black, white)] == pytest.approx(ends), name


def test_every_resize_is_another_and_the_record_says_which():
    assert len({Inception({}, name).resize for name in RESIZES}) == 4
    resized = [resize(picture(400, 520), 299) for resize in RESIZES.values()]
    for number, one in enumerate(resized):
        assert all((one - other).norm() > 0.01 * one.norm() for other in resized[:number])


def test_floats_are_rounded_and_clamped_as_a_file_would_hold_them():
    levels = torch.arange(256, dtype=torch.float32)
    assert torch.equal(quantised(levels / 127.5 - 1), levels.to(torch.uint8))
    assert torch.equal(quantised((levels / 127.5 - 1).bfloat16().float()), quantised((levels / 127.5 - 1).bfloat16()))
    assert quantised(torch.tensor([-1.5, 1.004, 7.0, float("inf")])).tolist() == [0, 255, 255, 255]
    assert quantised(torch.tensor([3, 255], dtype=torch.uint8)).tolist() == [3, 255]


def test_nan_is_refused(lite0):
    with pytest.raises(UserError, match="NaN"):
        lite0(torch.full((1, 3, 8, 8), float("nan")))


def test_a_resize_is_one_of_inception():
    with pytest.raises(UserError, match=r"evaluation\.resize clean is one of extractor inception"):
        EvaluationConfig(resize="clean")


def test_an_unknown_extractor_is_told_the_nearest_name():
    with pytest.raises(UserError, match="did you mean lite0"):
        load_extractor(EvaluationConfig(extractor="lite"), CPU, Team())


def test_networks_know_their_features():
    assert (Lite0.num_features, Inception.num_features) == (1280, 2048)
    assert {"lite0": Lite0.num_features, "inception": Inception.num_features} == WIDTHS
    assert set(HEADS) == set(WITH_PROBABILITIES)
