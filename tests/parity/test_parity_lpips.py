"""LPIPS equals that of torchmetrics, on the same made-up networks, heads and images.

torchmetrics' own needs torchvision, which the environment of `make test-parity` has.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.lpips_weights import made_up_lpips, made_up_lpips_weights

HERE = Path(__file__).parent
PYTHON = os.environ.get("SCALEGAN_PARITY_PYTHON", str(HERE.parents[1] / ".venv-parity" / "bin" / "python"))
pytestmark = pytest.mark.parity
SIZES = {"alex": [(31, 31), (64, 48), (100, 104), (224, 224)], "vgg": [(16, 16), (64, 48), (100, 104)]}
CASES = [(kind, number) for kind, sizes in SIZES.items() for number in range(len(sizes))]


def pictures(height: int, width: int) -> np.ndarray:
    """float32 [2, 3, 3, height, width] in [-1, 1]: of three pairs the last is nearly alike."""
    draw = torch.Generator().manual_seed(height * width)
    shapes = torch.nn.functional.interpolate(torch.rand(6, 3, 8, 8, generator=draw), (height, width), mode="bilinear")
    images = (2 * shapes - 1 + 0.1 * torch.randn(shapes.shape, generator=draw)).clamp(-1, 1)
    images[5] = (images[2] + 1e-3 * images[5]).clamp(-1, 1)
    return images.view(2, 3, 3, height, width).numpy()


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("peers")
    state = {f"{kind} {name}": value.numpy() for kind in SIZES for name, value in made_up_lpips_weights(kind).items()}
    np.savez(place / "weights.npz", **state)
    np.savez(place / "images.npz", **{f"{kind} {number}": pictures(*SIZES[kind][number]) for kind, number in CASES})
    command = [PYTHON, str(HERE / "lpips_peer.py"), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_parity_of_lpips_with_torchmetrics(peers, kind, number):
    torch.set_num_threads(1)
    with np.load(peers / "distances.npz") as file:
        expected = file[f"{kind} {number}"]
    found = made_up_lpips(kind)(*torch.from_numpy(pictures(*SIZES[kind][number]))).numpy()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-6)
    assert (expected[:2] > 0.01).all()
    assert 0 < expected[2] < 1e-3
