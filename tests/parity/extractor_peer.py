"""What other programs make of the same weights and images: run by an interpreter that has them, never imported by a test.

    extractor_peer.py PLACE FOLDER ONE OTHER

PLACE holds weights.npz, by their names, and images.npz, uint8 [n, H, W, 3] each. features.npz, with torch-fidelity's logits
too, and, of the images in FOLDER, the files of statistics that pytorch-fid and clean-fid write are left there; and fid.json,
the distance between the images in ONE and in OTHER by torch-fidelity and pytorch-fid.
"""

import json
import os
import shutil
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
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    return lambda images: network(planes(images))


def torchmetrics() -> torch.nn.Module:
    """Its own forward pass over torch-fidelity's layers, whose weights have been patched by then."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    return NoTrainInceptionV3("inception-v3-compat", ["2048"])


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


def write_statistics(place: Path, folder: str, network: torch.nn.Module) -> None:
    """By the programs' own functions; clean-fid keeps its file beside its code."""
    from cleanfid import fid
    from pytorch_fid.fid_score import save_fid_stats

    save_fid_stats([folder, str(place / "pytorch-fid.npz")], 5, "cpu", 2048, num_workers=0)
    fid.build_feature_extractor = lambda *args, **kwargs: lambda images: bare(network, (images - 128) / 128)
    name = f"scalegan_test_{os.getpid()}"
    fid.make_custom_stats(name, folder, mode="clean", num_workers=0, batch_size=5, device="cpu", verbose=False)
    for written in (Path(fid.__file__).parent / "stats").glob(f"{name}*.npz"):
        kept = place / ("clean-fid-features.npz" if written.stem.endswith("_kid") else "clean-fid.npz")
        shutil.move(written, kept)


def distances(folders: list[str]) -> dict[str, float]:
    """By the programs' own functions, from the files on, with the weights that the modules were given."""
    from pytorch_fid.fid_score import calculate_fid_given_paths
    from torch_fidelity import calculate_metrics

    quiet = {"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}  # the third means no workers
    return {
        "torch-fidelity": calculate_metrics(input1=folders[0], input2=folders[1], fid=True, batch_size=5, **quiet)[
            "frechet_inception_distance"
        ],
        "pytorch-fid": calculate_fid_given_paths(folders, 5, "cpu", 2048, num_workers=0),
    }


def main(place: Path, folder: str, one: str, other: str) -> None:
    with np.load(place / "weights.npz") as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    network, fidelity = pytorch_fid(state), torch_fidelity(state)
    antialiased = torchmetrics()
    peers = {
        "torch-fidelity": lambda images: fidelity(images)[0],
        "torch-fidelity logits": lambda images: fidelity(images)[1],
        "torchmetrics": lambda images: antialiased(planes(images)),
        "pytorch-fid": lambda images: network(planes(images).float() / 255)[0].flatten(1),
        "clean-fid": clean_fid(network),
    }
    with np.load(place / "images.npz") as file:
        found = {f"{peer} {name}": make(file[name]).numpy() for peer, make in peers.items() for name in file.files}
    np.savez(place / "features.npz", **found)
    write_statistics(place, folder, network)
    (place / "fid.json").write_text(json.dumps(distances([one, other]), default=float))


if __name__ == "__main__":
    torch.set_num_threads(1)
    declare_operators()
    with torch.no_grad():
        main(Path(sys.argv[1]), *sys.argv[2:])
