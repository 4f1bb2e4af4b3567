"""The FID Inception with weights made from a seed: an extractor of the benchmarks' own, for a machine without the real ones.

    python benchmarks/random_inception.py FOLDER

writes those weights where torch.hub, with FOLDER as its TORCH_HOME, has the downloads of pytorch-fid and torch-fidelity, so
that these programs run as they are; its last line is JSON. `scalegan evaluate --extractor
benchmarks.random_inception:RandomInception --weights FILE` reads the same file. Values mean nothing; the work is the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from scalegan.evaluation.inception import Inception
from scalegan.evaluation.weights import INCEPTION, read_any

CLASSES = 1008


class RandomInception(Inception):
    """scalegan's own network, whose file of weights need not be the known one."""

    def __init__(self, weights: str) -> None:
        super().__init__(read_any(Path(weights))[0])


def write(home: Path) -> Path:
    """The file that pytorch-fid downloads; torch-fidelity's beside it is the same under another name."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from helpers.fid_weights import made_up_weights

    classifier = {"fc.weight": torch.zeros(CLASSES, Inception.num_features), "fc.bias": torch.zeros(CLASSES)}
    path = home / "hub" / "checkpoints" / INCEPTION.file
    path.parent.mkdir(parents=True)
    torch.save(made_up_weights() | classifier, path)
    path.with_name(INCEPTION.file.replace("pt_", "weights-", 1)).hardlink_to(path)
    return path


if __name__ == "__main__":
    from common import dtype

    print(json.dumps({"weights": str(write(Path(sys.argv[1]))), "dtype": dtype()}))
