"""Feature extractors by name: which network, which weights, and how images reach it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor

import scalegan
from scalegan.errors import UserError
from scalegan.evaluation import dinov2, weights
from scalegan.evaluation.inception import Inception
from scalegan.evaluation.lite0 import Lite0
from scalegan.evaluation.names import key
from scalegan.evaluation.network import FeatureNetwork, quantised
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.float32 import computing_in


@dataclass(frozen=True)
class Extractor:
    """Images [n, 1 or 3, H, W], uint8 or float from -1 to 1 -> float32 features [n, width], each of its image alone.

    Raises `UserError` for features that are no numbers: inside the loops that `Team.as_one` watches, so that no process goes on
    to a decomposition that fails while the others wait for it.
    """

    name: str
    network: FeatureNetwork
    weights_sha256: str
    device: torch.device
    batch: int
    """Images of one pass, always as many: float32 features move by 3e-7 with the number."""
    precision: str = "float32"
    """Of convolutions and matrix products: `float32`, or `bfloat16` in the monitor mode."""

    @property
    def width(self) -> int:
        return self.network.num_features

    @property
    def dtype(self) -> str:
        """In records and files of statistics."""
        return f"{self.precision} features, float64 statistics"

    def key(self, name: str) -> str:
        """The name of a figure of these features in a record."""
        return key(name, self.name, self.precision)

    def provenance(self, processes: int) -> dict[str, Any]:
        """What a record says of how features were made and compared."""
        facts = {
            "extractor": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": self.network.resize,
            "dtype": self.dtype,
            "device": self.device.type,
            "scalegan": scalegan.__version__,
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "processes": processes,
        }
        return facts if self.precision == "float32" else facts | {"monitor": True}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        images = quantised(images)
        features = []
        with computing_in(self.precision, self.device):
            for first in range(0, len(images), self.batch):
                part = images[first : first + self.batch]
                full = part.new_zeros(self.batch, *part.shape[1:])
                full[: len(part)] = part
                colour = full.to(self.device).expand(-1, 3, -1, -1)  # grey is the same in red, green and blue
                features.append(self.network(colour)[: len(part)].float())
        found = torch.cat(features)
        if not found.isfinite().all():
            raise UserError(
                f"features of extractor {self.name} hold NaN or infinity: it cannot take such images, or its weights are "
                "damaged"
            )
        return found


@dataclass(frozen=True)
class Kind:
    find: Callable[[str], Path]
    """From `evaluation.weights` to the file."""
    build: Callable[[Path, EvaluationConfig], tuple[FeatureNetwork, str]]
    """The network and the sha256 of its weights."""


def build_lite0(path: Path, config: EvaluationConfig) -> tuple[FeatureNetwork, str]:
    return Lite0(weights.read_checked(path, weights.LITE0_SHA256)), weights.LITE0_SHA256


def build_inception(path: Path, config: EvaluationConfig) -> tuple[FeatureNetwork, str]:
    state, sha256 = weights.read_known(path, weights.INCEPTION.sha256)
    return Inception(state, config.resize), sha256


def build_dinov2(path: Path, config: EvaluationConfig) -> tuple[FeatureNetwork, str]:
    state, sha256 = weights.read_any(path)
    return dinov2.from_state(state, path), sha256


KINDS = {
    "lite0": Kind(weights.lite0_path, build_lite0),
    "inception": Kind(weights.inception_path, build_inception),
    "dinov2": Kind(weights.dinov2_path, build_dinov2),
}


def find_weights(config: EvaluationConfig) -> Path:
    """The weight file of the extractor, downloaded where need be. Raises `UserError`, in less than 5 s when offline."""
    name = config.extractor
    if name not in KINDS:
        if "." in name or ":" in name:
            raise UserError(
                f"evaluation.extractor {name!r} names code, which no configuration may have run: "
                "give it on the command line of `scalegan evaluate`, by --extractor"
            )
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(KINDS)}"
        raise UserError(f"evaluation.extractor {name!r} is unknown: {hint}")
    return weights.existing(KINDS[name].find(config.weights), f"extractor {name}", "weights")


def to_download(config: EvaluationConfig) -> str:
    """The file of weights that the start of a training will fetch; empty where it is here."""
    wanted = weights.INCEPTION
    return wanted.file if config.extractor == "inception" and weights.found(wanted, config.weights) is None else ""


def load_extractor(config: EvaluationConfig, device: torch.device, team: Team) -> Extractor:
    """The extractor on every process. Raises `UserError` on all."""
    path = team.look(lambda: find_weights(config))
    with team.as_one():  # each machine may have a file of its own
        network, sha256 = KINDS[config.extractor].build(path, config)
    return on_device(config.extractor, network, sha256, device, config.batch, config.precision)


def on_device(
    name: str, network: FeatureNetwork, sha256: str, device: torch.device, batch: int, precision: str = "float32"
) -> Extractor:
    size = network.cpu_batch if device.type == "cpu" else batch
    return Extractor(name, network.to(device).eval(), sha256, device, size, precision)
