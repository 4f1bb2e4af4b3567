"""Feature extractors by name: which network, which weights, and how images reach it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scalegan.config import EvaluationConfig
from scalegan.errors import UserError
from scalegan.evaluation import weights
from scalegan.evaluation.inception import Inception
from scalegan.evaluation.lite0 import Lite0
from scalegan.evaluation.team import Team

NAMES = ("lite0", "inception")


def metric_name(extractor: str) -> str:
    """Only Inception's Frechet distance is called FID."""
    return "fid" if extractor == "inception" else f"fd_{extractor}"


@dataclass(frozen=True)
class Extractor:
    """uint8 images [n, 1 or 3, H, W] -> float32 features [n, width], each a function of the image alone."""

    name: str
    network: Lite0 | Inception
    weights_sha256: str
    device: torch.device
    batch: int
    """Images of one pass, always as many: float32 features move by 3e-7 with the number."""

    @property
    def width(self) -> int:
        return self.network.num_features

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        features = []
        with plain_float32(self.device):
            for first in range(0, len(images), self.batch):
                part = images[first : first + self.batch]
                full = part.new_zeros(self.batch, *part.shape[1:])
                full[: len(part)] = part
                colour = full.to(self.device).expand(-1, 3, -1, -1)  # grey is the same in red, green and blue
                features.append(self.network(colour)[: len(part)])
        return torch.cat(features)


def find_weights(config: EvaluationConfig) -> Path:
    """The weight file of the extractor, downloaded where need be. Raises `UserError`, in less than 5 s when offline."""
    if config.extractor not in NAMES:
        near = difflib.get_close_matches(config.extractor, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(NAMES)}"
        raise UserError(f"evaluation.extractor {config.extractor!r} is unknown: {hint}")
    path = weights.lite0_path(config.weights) if config.extractor == "lite0" else weights.inception_path(config.weights)
    if not path.is_file():
        raise UserError(
            f"weights {path} of extractor {config.extractor} do not exist: "
            "name another file by evaluation.weights (`scalegan evaluate`: --weights)"
        )
    return path


def load_extractor(config: EvaluationConfig, device: torch.device, team: Team) -> Extractor:
    """The extractor on every process. Process 0 looks first, so that a download happens once. Raises `UserError` on all."""
    error = None
    try:
        if team.first:
            find_weights(config)
    except UserError as met:
        error = met
    team.agree(error)
    path = find_weights(config)
    network: Lite0 | Inception
    if config.extractor == "lite0":
        sha256 = weights.LITE0_SHA256
        network = Lite0(weights.read_checked(path, sha256))
    else:
        sha256 = weights.INCEPTION_SHA256
        network = Inception(weights.read_checked(path, sha256))
    batch = network.cpu_batch if device.type == "cpu" else config.batch
    return Extractor(config.extractor, network.to(device).eval(), sha256, device, batch)


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32, no bfloat16 inside float32 products, whatever the training around it has chosen."""
    cpu, cuda = torch.backends.mkldnn, torch.backends.cudnn
    switches = (cuda.conv, torch.backends.cuda.matmul, cpu.conv, cpu.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
