"""Values are those of prdc, torch-fidelity, pytorch-fid and clean-fid on the same features.

The others run in an environment of their own (`make test-parity`), as torch-fidelity beside torchmetrics breaks the import
of the latter where torchvision does not fit. They are needed here: without them these tests fail.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.inception_score import InceptionScore
from scalegan.evaluation.kid import SubsetKernelDistance
from scalegan.evaluation.prdc import PrecisionRecall

pytestmark = pytest.mark.parity

HERE = Path(__file__).parent
PYTHON = os.environ.get("SCALEGAN_PARITY_PYTHON", str(HERE.parents[1] / ".venv-parity" / "bin" / "python"))


def features(n: int, seed: int, shift: float) -> np.ndarray:
    """float32 [n, 32] with a falling spectrum, never negative, as pooled features are."""
    draw = np.random.default_rng(seed)
    return np.abs(draw.normal(size=(n, 32)) * np.arange(1, 33) ** -0.3 + shift).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    logits = np.random.default_rng(9).normal(size=(80, 10)).astype(np.float32)
    return {"real": features(150, 1, 0.4), "fake": features(120, 2, 0.5), "logits": logits}


@pytest.fixture(scope="module")
def peers(data, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("peers")
    np.savez(folder / "in.npz", **data)
    command = [PYTHON, str(HERE / "metric_peer.py"), str(folder / "in.npz"), str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


def ours(metric, data) -> dict[str, float]:
    metric.update(torch.from_numpy(data["real"]), real=True)
    metric.update(torch.from_numpy(data["fake"]), real=False)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("k", [3, 5])
def test_parity_of_precision_recall_density_and_coverage_with_prdc(data, peers, k):
    assert ours(PrecisionRecall(k), data) == pytest.approx(peers["prdc"][str(k)], abs=1e-15)


def test_parity_of_precision_and_recall_with_torch_fidelity(data, peers):
    found = ours(PrecisionRecall(3), data)
    assert found["precision"] == pytest.approx(peers["torch-fidelity"]["precision"], abs=1e-7)
    assert found["recall"] == pytest.approx(peers["torch-fidelity"]["recall"], abs=1e-7)


def test_parity_of_the_kernel_distance_with_torch_fidelity(data, peers):
    found = ours(SubsetKernelDistance(subset_size=60, subsets=20), data)
    expected = peers["torch-fidelity"]
    assert found["kid_subsets"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6, abs=1e-6)
    assert found["kid_subsets_sd"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-4)


def test_parity_of_the_frechet_distance_with_three(data, peers):
    metric = FrechetDistance(32)
    metric.update(torch.from_numpy(data["real"]), real=True)
    metric.update(torch.from_numpy(data["fake"]), real=False)
    value = float(metric.compute())
    assert value == pytest.approx(peers["pytorch-fid"], rel=1e-9)
    assert value == pytest.approx(peers["clean-fid"], rel=1e-9)
    # its mean is a sum of float32
    assert value == pytest.approx(peers["torch-fidelity"]["frechet_inception_distance"], rel=1e-5)


def test_parity_of_the_inception_score_with_torch_fidelity(data, peers):
    metric = InceptionScore(10, splits=1)
    logits = torch.from_numpy(data["logits"])
    metric.update(logits.double().softmax(1), torch.arange(len(logits)))
    value = float(metric.compute()["inception_score"])
    assert value == pytest.approx(peers["torch-fidelity"]["inception_score_mean"], rel=1e-6)
