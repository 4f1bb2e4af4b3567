"""A classifier of real images, to ask whether generated ones are recognised as their class.

    python benchmarks/classifier.py fruits12            train it, and say how it does on held-out real images
    python benchmarks/classifier.py fruits12 --run RUN  ... and on the images of a run's averaged generator

A small convolutional network on the training split, with shifts against learning it by heart; kept in
benchmarks/out/classifiers. It has never seen a generated image.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import common
from scalegan.config import DataConfig
from scalegan.data.index import Index, read_index
from scalegan.data.loader import Reader
from scalegan.sampling import load_generator

NAMES = ("fruits12", "fashion", "fruits100")
"""Shards that there is a classifier for, by their names in `common.DATA`."""
IMAGES_SEEN = 60_000
BATCH = 64
SHIFT = 4


class Classifier(nn.Module):
    """uint8 images [N, C, H, W] -> logits [N, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * 128, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images.float() / 127.5 - 1)
        return logits


def read_all(index: Index) -> tuple[Tensor, Tensor]:
    """All images, uint8 [N, C, H, W], and their labels [N]."""
    with closing(Reader(index, DataConfig(path=index.root, reader="stream"), torch.device("cpu"))) as reader:
        parts = [reader.read(np.arange(i, min(i + 1024, index.samples))) for i in range(0, index.samples, 1024)]
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


def train(index: Index) -> Classifier:
    images, labels = read_all(index)
    torch.manual_seed(0)
    network = Classifier(index.channels, len(index.classes)).to(memory_format=torch.channels_last)
    steps = IMAGES_SEEN // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        down, right = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
        views = torch.roll(images[chosen], (down, right), (2, 3))
        optimizer.zero_grad()
        F.cross_entropy(network(views), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    right = [(network(x).argmax(1) == y).float().sum() for x, y in zip(images.split(256), labels.split(256), strict=True)]
    return float(sum(right)) / len(images)


def classifier(name: str) -> tuple[Classifier, float]:
    """That of a data set, trained now or before, and its accuracy on held-out real images."""
    index, held_out = (read_index(str(common.shards(part))) for part in (name, f"{name}-test"))
    path = common.OUT / "classifiers" / f"{name}-{index.sha256[:12]}.safetensors"
    if path.is_file():
        network = Classifier(index.channels, len(index.classes)).eval()
        network.load_state_dict(load_file(path))
    else:
        network = train(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    assert held_out.classes == index.classes
    return network, accuracy(network, *read_all(held_out))


def recognised(name: str, run: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Share of a conditional generator's images, drawn by the data's histogram, that the classifier takes for their class."""
    network, held_out = classifier(name)
    generator = load_generator(run)
    images, labels = generator.sample(count, seed), torch.from_numpy(generator.labels_of(0, count, seed))
    return {"recognised": accuracy(network, images, labels), "recognised_real": held_out}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--run", type=Path, help="run folder of a conditional generator")
    parser.add_argument("--count", type=int, default=2000, help="generated images (default: 2000)")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(recognised(args.name, args.run, args.count)))
    else:
        print(json.dumps({"recognised_real": classifier(args.name)[1]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
