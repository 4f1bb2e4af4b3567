"""Weights of the shape of torchvision's AlexNet and VGG16 but not of their training: made from a seed, without a download."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scalegan.evaluation import weights
from scalegan.evaluation.lpips import Lpips, PerceptualDistance

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG = {
    0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3), 12: (256, 256, 3), 14: (256, 256, 3),
    17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3), 24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3),
}  # fmt: skip
KERNELS = {"alex": ALEX, "vgg": VGG}
"""Output and input channels and side of every convolution, by its number in the file."""


def made_up_lpips_weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    """A state dict with the names of torchvision's file, at a scale that keeps the activations' size."""
    draw, state = torch.Generator().manual_seed(seed), {"classifier.6.bias": torch.zeros(1000)}
    for number, (outputs, inputs, side) in KERNELS[name].items():
        scale = (2 / (inputs * side**2)) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=draw)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(outputs, generator=draw)
    return state


def published_heads(name: str) -> dict[str, Tensor]:
    """Those that torchmetrics brings."""
    return weights.read_checked(weights.lpips_heads_path(name), weights.LPIPS_HEADS_SHA256[name])


def made_up_lpips(name: str = "alex") -> PerceptualDistance:
    network = Lpips(name, made_up_lpips_weights(name), published_heads(name)).eval()
    return PerceptualDistance(name, network, "made up", weights.LPIPS_HEADS_SHA256[name], torch.device("cpu"))


def made_up_file(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str = "alex") -> Path:
    """A file of made-up weights, which passes for the published one during a test."""
    path = folder / f"made-up-{name}.pth"
    torch.save(made_up_lpips_weights(name), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.LPIPS, name, replace(weights.LPIPS[name], sha256=sha256[:8]))
    return path
