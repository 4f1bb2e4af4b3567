"""Features, statistics and FID equal those of torch-fidelity, torchmetrics, pytorch-fid and clean-fid, on the same made-up
weights and images.

The others run in an environment of their own, .venv-parity or the interpreter that SCALEGAN_PARITY_PYTHON names: they bring
torchvision, beside which torchmetrics is slow to import or fails.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.fid_weights import made_up_weights
from scalegan.evaluation import statistics_file
from scalegan.evaluation.evaluator import evaluate
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.folder import FolderReader, read_folder
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.inception import Inception
from scalegan.evaluation.inception_score import InceptionScore
from scalegan.evaluation.suite import ClassScore
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")
HERE = Path(__file__).parent
PYTHON = os.environ.get("SCALEGAN_PARITY_PYTHON", str(HERE.parents[1] / ".venv-parity" / "bin" / "python"))
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason=f"{PYTHON}, which has the other programs, is not there"),
]
PEER = HERE / "extractor_peer.py"
SIZES = [(32, 32), (64, 64), (100, 100), (128, 128), (256, 256), (299, 299), (512, 512), (64, 48), (320, 400)]
MODES = {"torch-fidelity": "tf1", "torchmetrics": "torch-aa", "pytorch-fid": "halfpixel", "clean-fid": "clean"}
IN_FOLDER = 10
COMPARED = 40
"""Images a side of a whole FID."""


def pictures(count: int, height: int, width: int) -> Tensor:
    """uint8 [count, 3, height, width]: smooth shapes and noise."""
    draw = torch.Generator().manual_seed(height * width)
    shapes = F.interpolate(torch.rand(count, 3, 8, 8, generator=draw) * 255, (height, width), mode="bicubic")
    return (shapes + 12 * torch.randn(shapes.shape, generator=draw)).clamp(0, 255).round().to(torch.uint8)


def save(folder: Path, images: Tensor) -> Path:
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02d}.png")
    return folder


def head() -> Tensor:
    """[1008, 2048]: the last layer, whose bias the Inception Score leaves out."""
    return torch.randn(1008, 2048, generator=torch.Generator().manual_seed(1)) / 2048**0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("images"), pictures(IN_FOLDER, 40, 36))


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory) -> tuple[Path, Path]:
    """Shapes, and others under noise. Were they alike, the others' rounding in the square root of a singular matrix, of fewer
    images than features, would be as large as the tolerance."""
    shapes, others = pictures(2 * COMPARED, 64, 48).split(COMPARED)
    noise = 30 * torch.randn(others.shape, generator=torch.Generator().manual_seed(2))
    noisy = (others + noise).clamp(0, 255).round().to(torch.uint8)
    return save(tmp_path_factory.mktemp("shapes"), shapes), save(tmp_path_factory.mktemp("noisy"), noisy)


@pytest.fixture(scope="module")
def peers(tmp_path_factory, folder, two_folders) -> Path:
    """A folder with what the peers made: features.npz, by `<peer> <number of the size>`, their files of statistics, and
    fid.json with the distance of two folders by peer."""
    place = tmp_path_factory.mktemp("peers")
    state = made_up_weights() | {"fc.weight": head(), "fc.bias": torch.ones(1008)}
    np.savez(place / "weights.npz", **{name: value.numpy() for name, value in state.items()})
    images = {str(number): pictures(1, *size).permute(0, 2, 3, 1).numpy() for number, size in enumerate(SIZES)}
    np.savez(place / "images.npz", **images)
    subprocess.run([PYTHON, PEER, place, folder, *two_folders], check=True, timeout=600, env=os.environ | {"PYTHONPATH": ""})
    return place


@pytest.fixture(scope="module")
def networks() -> dict[str, Inception]:
    state = made_up_weights()
    return {peer: Inception(state, mode) for peer, mode in MODES.items()}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("peer", MODES)
@pytest.mark.parametrize("number", range(len(SIZES)), ids=lambda number: "{}x{}".format(*SIZES[number]))
def test_features_have_parity(peers, networks, peer, number):
    with np.load(peers / "features.npz") as file:
        expected = torch.from_numpy(file[f"{peer} {number}"])
    with torch.inference_mode():
        found = networks[peer](pictures(1, *SIZES[number]))
    assert found.shape == expected.shape == (1, 2048)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_class_probabilities_have_parity(peers, networks):
    """Of the Inception Score: torch-fidelity's `logits_unbiased`."""
    with np.load(peers / "features.npz") as file:
        expected = torch.cat([torch.from_numpy(file[f"torch-fidelity logits {number}"]) for number in range(len(SIZES))])
    with torch.inference_mode():
        features = torch.cat([networks["torch-fidelity"](pictures(1, *size)) for size in SIZES])
    indices = torch.arange(len(SIZES))
    score, direct = ClassScore(head(), None), InceptionScore(1008)
    score.feed("fake", features, indices, None)
    direct.update(expected.double().softmax(1), indices)
    assert (features.double() @ head().double().T - expected).norm() < 1e-6 * expected.norm()
    torch.testing.assert_close(score.probabilities, direct.probabilities, rtol=1e-5, atol=0)


@pytest.mark.parametrize("peer", ["pytorch-fid", "clean-fid"])
def test_statistics_that_others_wrote_have_parity(peers, networks, folder, peer):
    theirs = statistics_file.read(peers / f"{peer}.npz")
    with np.load(peers / f"{peer}.npz") as file:
        assert np.abs(theirs.mean - file["mu"]).max() <= 1e-9
        assert np.abs(theirs.covariance - file["sigma"]).max() <= 1e-9
    reader = FolderReader(read_folder(folder, ""), CPU)
    images = reader.read(np.arange(IN_FOLDER)).images
    reader.close()
    extractor = Extractor("inception", networks[peer], "made up", CPU, 5)
    distance = FrechetDistance(2048)
    distance.update(extractor(images), real=False)
    mean, covariance, count = distance.moments(real=False)
    assert np.abs(mean.numpy() - theirs.mean).max() < 1e-5
    assert np.abs(covariance.numpy() - theirs.covariance).max() < 1e-6 * np.trace(theirs.covariance)
    assert count == IN_FOLDER


@pytest.mark.parametrize("peer", ["torch-fidelity", "pytorch-fid"])
def test_fid_of_two_folders_has_parity(peers, networks, two_folders, tmp_path, peer):
    made, real = (read_folder(folder, "") for folder in two_folders)
    reader = FolderReader(made, CPU)
    record = evaluate(
        lambda first, count: reader.read(np.arange(first, first + count)).images,
        real,
        EvaluationConfig(extractor="inception", samples=COMPARED, metrics=""),
        seed=0,
        images_seen=0,
        ema=True,
        rank=0,
        processes=1,
        device=CPU,
        cache=tmp_path,
        extractor=Extractor("inception", networks[peer], "made up", CPU, 5),
    )
    reader.close()
    assert record["fid"] == pytest.approx(json.loads((peers / "fid.json").read_text())[peer], rel=1e-5)
