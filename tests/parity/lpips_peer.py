"""What torchmetrics' LPIPS makes of the same weights and images: run by an interpreter that has torchvision too.

    lpips_peer.py PLACE

PLACE holds weights.npz, by `<network> <name>`, and images.npz, float32 [2, n, 3, H, W] each, by `<network> <number>`. The
distances [n] are written to distances.npz, by the names of the images.
"""

import sys
from pathlib import Path

import numpy as np
import torch

# Of torchvision's compiled part, which asks for CUDA in the wheel of PyPI; its Python part only wants them declared.
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchmetrics.functional.image.lpips import _LPIPS, _lpips_update  # noqa: E402

torch.set_num_threads(1)
place = Path(sys.argv[1])


def network(kind: str, state: dict[str, np.ndarray]) -> _LPIPS:
    """torchmetrics' own, with its heads on the weights given."""
    made = _LPIPS(net=kind, pnet_rand=True)
    for name, parameter in made.net.named_parameters():  # as in slice2.3.weight
        parameter.data.copy_(torch.from_numpy(state[f"{kind} features.{name.partition('.')[2]}"]))
    return made


with np.load(place / "weights.npz") as weights, np.load(place / "images.npz") as images, torch.no_grad():
    networks = {kind: network(kind, weights) for kind in ("alex", "vgg")}
    found = {
        name: _lpips_update(*torch.from_numpy(images[name]), networks[name.split()[0]], normalize=False).numpy()
        for name in images.files
    }
np.savez(place / "distances.npz", **found)
