"""Loader throughput of scalegan against torchvision's ImageFolder and against a plain webdataset pipeline.

    python benchmarks/loader.py

The same JPEG files of Kiwi (100x100, RGB) and brain (208x176, grey), once as folders and once as shards that all shard
readers share, with the same number of worker processes, batch and prefetch. All deliver uint8 [batch, C, H, W], which spares
the peers the float conversion of their usual examples; all shuffle without end, so that no epoch's seam is timed. They stay
open side by side and are timed in turn, a fixed time each, after emptying what they hold ready; a ratio is taken within each
round, where the machine was the same, and the median of the ratios counts. The stream reader is the one compared; `resident`,
which `auto` takes for data of this size, is shown beside it.

torchvision is no requirement of scalegan. The build that belongs to a CPU-only torch comes from the same index as that torch
(docs/install.md). That from the default package index cannot be imported beside it, as its compiled part wants
CUDA; this program, which needs none of that part, then declares the missing operators. Where there is no torchvision,
webdataset alone is compared.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image

import common
from scalegan.config import Config, DataConfig, TrainConfig
from scalegan.data.index import Index, read_index
from scalegan.data.loader import batches

SETS = {
    "kiwi": ("fruits360", ("--classes", "Kiwi", "--split", "Training"), "fruits360/Training", ("Kiwi",)),
    "brain": ("brain", ("--split", "train", "--channels", "1"), "brain/train", ()),
}
"""Source and options of `scalegan shards`, and the folder of classes, with those wanted, that ImageFolder reads."""
SHARD_SAMPLES = 64  # few, so that webdataset, which gives whole shards to workers, can share them out
PREFETCH = 4
TARGETS = {"imagefolder": 1.5, "webdataset": 1.2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="times that each is measured (default: 7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each; 0 reads in this one (default: 2)")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch (default: 64)")
    parser.add_argument("--sets", default=",".join(SETS), help=f"which of {','.join(SETS)} (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vision = import_torchvision()
    versions = {name: importlib.metadata.version(name) for name in ("webdataset", "pillow")}
    if vision:
        versions["torchvision"] = vision.__version__
    print(common.headline(workers=args.workers, threads=1, batch=args.batch, dtype="uint8", **versions))
    reached = [measure_set(name, args, vision) for name in args.sets.split(",")]
    return 0 if all(reached) else 1


def measure_set(name: str, args: argparse.Namespace, vision: ModuleType | None) -> bool:
    source, options, folder, classes = SETS[name]
    root = common.OUT / "shards" / f"loader-{name}"
    if not (root / "index.json").is_file():
        size = ("--shard-samples", str(SHARD_SAMPLES))
        common.run([*common.scalegan("shards"), str(common.real_data() / source), str(root), *options, *size])
    index = read_index(str(root))
    with ExitStack() as stack:
        loaders: dict[str, Iterator[Any]] = {}
        if vision:
            view = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            originals = common.real_data() / folder
            for path in originals.iterdir():
                if not classes or path.name in classes:
                    (view / path.name).symlink_to(path.resolve())
            loaders["imagefolder"] = image_folder(vision, view, index, args)
        loaders["webdataset"] = web_dataset(index, args)
        for reader in ("stream", "resident"):
            ours = batches(index, settings(index, reader, args), 0, 0, 1, torch.device("cpu"))
            stack.callback(ours.close)
            loaders[reader] = ours
        rates = measure(loaders, index, args)
        loaders.clear()
    size = f"{index.height}x{index.width}x{index.channels}"
    print(f"{name}, {index.samples} images of {size}: images/s, median of {args.rounds} rounds (lowest to highest)")
    for loader, values in rates.items():
        print(f"  {loader:<12}{statistics.median(values):10,.0f}  ({min(values):,.0f} to {max(values):,.0f})")
    reached = []
    for peer, target in TARGETS.items():
        if peer in rates:
            ratios = [a / b for a, b in zip(rates["stream"], rates[peer], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            reached.append(common.verdict(f"  stream / {peer} ({spread})", statistics.median(ratios), target))
            memory = statistics.median(a / b for a, b in zip(rates["resident"], rates[peer], strict=True))
            print(f"  resident / {peer}: {memory:.1f}")
    return all(reached)


def measure(loaders: dict[str, Iterator[Any]], index: Index, args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of each loader in each round; each round begins with another one."""
    shape = (args.batch, index.channels, index.height, index.width)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(args.rounds):
        names = list(loaders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            loader = loaders[name]
            for _ in range(2 * max(1, args.workers) * PREFETCH):  # those held ready, and as many again
                batch = next(loader)
            images = batch.images if hasattr(batch, "images") else batch[0]
            assert images.shape == shape, (name, images.shape)
            assert images.dtype == torch.uint8, (name, images.dtype)
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < args.seconds:
                next(loader)
                count += args.batch
            rates[name].append(count / (time.perf_counter() - start))
    return rates


def settings(index: Index, reader: str, args: argparse.Namespace) -> Config:
    data = DataConfig(path=index.root, reader=reader, workers=args.workers)  # type: ignore[arg-type]
    return Config(data=data, train=TrainConfig(batch=args.batch))


def image_folder(vision: ModuleType, root: Path, index: Index, args: argparse.Namespace) -> Iterator[Any]:
    """One file an image, opened, decoded and converted by torchvision, collated by DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    options = {"loader": open_grey} if index.channels == 1 else {}
    data = ImageFolder(str(root), transform=PILToTensor(), **options)
    assert len(data) == index.samples, (len(data), index.samples)
    order = torch.utils.data.RandomSampler(data, replacement=True, num_samples=1 << 40)
    ahead = PREFETCH if args.workers else None
    loader = torch.utils.data.DataLoader(
        data, batch_size=args.batch, sampler=order, num_workers=args.workers, prefetch_factor=ahead
    )
    return iter(loader)


def open_grey(path: str) -> Image.Image:
    """What ImageFolder does by itself for colour."""
    with open(path, "rb") as file:
        return Image.open(file).convert("L")


def web_dataset(index: Index, args: argparse.Namespace) -> Iterator[Any]:
    """The pipeline of webdataset's own examples: shuffled shards, a shuffle buffer, its decoder, its batches."""
    import webdataset

    urls = [f"{index.root}/{shard.name}" for shard in index.shards]
    kind = "torchrgb8" if index.channels == 3 else "torchl8"
    data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode(kind)
    if index.channels == 1:  # it leaves out the axis of the channel
        data = data.map_dict(jpg=add_channel)
    data = data.to_tuple("jpg", "cls").batched(args.batch, partial=False).repeat()
    ahead = PREFETCH if args.workers else None
    return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=args.workers, prefetch_factor=ahead))


def add_channel(image: torch.Tensor) -> torch.Tensor:
    return image if image.ndim == 3 else image[None]


def import_torchvision() -> ModuleType | None:
    """torchvision, if need be without its compiled part; None, and one line, where it is not installed."""
    if not importlib.util.find_spec("torchvision"):
        print("torchvision is not installed: ImageFolder is not compared (how to install it: --help)")
        return None
    declare = torch.library.Library("torchvision", "FRAGMENT")
    kept.append(declare)
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in list(sys.modules):
            if name.split(".")[0] == "torchvision":
                del sys.modules[name]
        operators = (
            "roi_align",
            "_roi_align_backward",
            "ps_roi_align",
            "_ps_roi_align_backward",
            "roi_pool",
            "_roi_pool_backward",
        )
        operators += (
            "ps_roi_pool",
            "_ps_roi_pool_backward",
            "nms",
            "qnms",
            "qroi_align",
            "deform_conv2d",
            "_deform_conv2d_backward",
        )
        for operator in operators:
            declare.define(f"{operator}(Tensor x) -> Tensor")
        import torchvision
    return torchvision


kept: list[torch.library.Library] = []
"""What was declared lasts as long as this does."""


if __name__ == "__main__":
    sys.exit(main())
