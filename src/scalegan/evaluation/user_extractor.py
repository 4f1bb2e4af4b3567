"""A feature extractor of the user's own, by dotted name: `--extractor my.module:Class`.

That runs the user's code, so the name is taken from the command line and from nowhere else: a run, a checkpoint or a
configuration that came from someone else names one of our own extractors or is refused (`features.find_weights`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from scalegan.errors import UserError
from scalegan.evaluation.features import Extractor, on_device
from scalegan.evaluation.network import FeatureNetwork


def is_dotted(name: str) -> bool:
    return "." in name or ":" in name


class UserNetwork(FeatureNetwork):
    """A user's module with what it may leave out: `cpu_batch`, and `resize`, which says in records how images are resized."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.num_features = int(module.num_features)  # type: ignore[arg-type]
        self.cpu_batch = int(getattr(module, "cpu_batch", 8))
        self.resize = str(getattr(module, "resize", "its own"))

    def forward(self, images: Tensor) -> Tensor:
        features = self.module(images)
        wanted = (len(images), self.num_features)
        if not isinstance(features, Tensor) or features.shape != wanted:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"extractor {self.name} gave {found} where {wanted}, a row of features an image, was expected")
        return features.float()


def load_user_extractor(name: str, weights: str, device: torch.device, batch: int, precision: str = "float32") -> Extractor:
    """`name` is `my.module:Class` or `my.module.Class`, found from the current folder or where Python looks.

    The class is called with the path of the weights where one is given, else with nothing, and gives an `nn.Module` with an
    int `num_features` that takes uint8 [N, 3, H, W] and returns [N, num_features]. Raises `UserError`.
    """
    where, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    if not where or not attribute:
        raise UserError(f"--extractor {name}: give module:Class, such as my_package.features:Radiology")
    if weights and not Path(weights).is_file():
        raise UserError(f"weights {weights} of extractor {name} do not exist: name another file by --weights")
    module = load_module(where, name)
    if not hasattr(module, attribute):
        raise UserError(f"--extractor {name}: {where} ({module.__file__}) has no {attribute}")
    try:
        network = getattr(module, attribute)(*[weights] if weights else [])
    except Exception as error:  # theirs: whatever it is, it is told in one line
        raise UserError(f"--extractor {name} could not be made: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "num_features", None), int):
        raise UserError(f"--extractor {name} is no torch.nn.Module with an int `num_features`: give it one")
    known = f"{where}:{attribute}"
    sha256 = fingerprint(network, module)
    return on_device(known, UserNetwork(network, known).requires_grad_(False), sha256, device, batch, precision)


def load_module(where: str, name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing that lies here stands in for a package
    try:
        return importlib.import_module(where)
    except ImportError as error:
        raise UserError(
            f"--extractor {name}: module {where} cannot be imported ({error}): check its name and PYTHONPATH"
        ) from error


def fingerprint(network: nn.Module, module: ModuleType) -> str:
    """sha256 of the weights and of the sources of the module and of those that define its layers, but for torch's: what is
    measured by one must not pass for another. Whatever else the code depends on is not in it, so nothing is kept by it."""
    digest = hashlib.sha256()
    names = {kind.__module__ for layer in network.modules() for kind in type(layer).__mro__} & sys.modules.keys()
    foreign = sorted(name for name in names if name.partition(".")[0] not in {"torch", *sys.stdlib_module_names})
    for source in (module, *(sys.modules[name] for name in foreign)):
        if file := getattr(source, "__file__", None):
            digest.update(Path(file).read_bytes())
    for key, value in sorted(network.state_dict().items()):
        if not isinstance(value, Tensor):  # what a layer adds by `get_extra_state`
            digest.update(f"{key} {value!r}".encode())
            continue
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
