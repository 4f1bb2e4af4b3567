"""What other programs make of the same weights and images: run by an interpreter that has them, never imported by a test.

    extractor_peer.py PLACE FOLDER

PLACE holds weights.npz, by their names, and images.npz, uint8 [n, H, W, 3] each. features.npz and, of the images in FOLDER,
pytorch-fid's statistics.npz are written there.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

OPERATORS = ("nms", "qnms")
"""Of torchvision's compiled part, which asks for CUDA in the wheel of PyPI. Its Python part only wants them declared."""


def declare_operators() -> None:
    for name in OPERATORS:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def planes(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def torch_fidelity(state: dict[str, Tensor]):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    module.load_state_dict_from_url = lambda *args, **kwargs: state
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    return lambda images: network(planes(images))[0]


def pytorch_fid(state: dict[str, Tensor]) -> torch.nn.Module:
    from pytorch_fid import inception as module

    module.load_state_dict_from_url = lambda *args, **kwargs: state
    return module.InceptionV3([3]).eval()


def bare(network: torch.nn.Module, images: Tensor) -> Tensor:
    """Without pytorch-fid's own resize and range."""
    before = network.resize_input, network.normalize_input
    network.resize_input = network.normalize_input = False
    features = network(images)[0].flatten(1)
    network.resize_input, network.normalize_input = before
    return features


def clean_fid(network: torch.nn.Module):
    """clean-fid's resize in front of the same network, which it has as a TorchScript file that is not to be had offline."""
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")

    def features(images: np.ndarray) -> Tensor:
        small = torch.stack([torch.from_numpy(resize(image)).permute(2, 0, 1) for image in images])
        return bare(network, (small - 128) / 128)

    return features


def statistics(folder: str, network: torch.nn.Module) -> dict[str, np.ndarray]:
    from pytorch_fid.fid_score import compute_statistics_of_path

    mu, sigma = compute_statistics_of_path(folder, network, 5, 2048, "cpu", num_workers=0)
    return {"mu": mu, "sigma": sigma}


def main(place: Path, folder: str) -> None:
    with np.load(place / "weights.npz") as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    network = pytorch_fid(state)
    peers = {
        "torch-fidelity": torch_fidelity(state),
        "pytorch-fid": lambda images: network(planes(images).float() / 255)[0].flatten(1),
        "clean-fid": clean_fid(network),
    }
    with np.load(place / "images.npz") as file:
        found = {f"{peer} {name}": make(file[name]).numpy() for peer, make in peers.items() for name in file.files}
    np.savez(place / "features.npz", **found)
    np.savez(place / "statistics.npz", **statistics(folder, network))


if __name__ == "__main__":
    torch.set_num_threads(1)
    declare_operators()
    with torch.no_grad():
        main(Path(sys.argv[1]), sys.argv[2])
