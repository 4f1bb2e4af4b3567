"""What 8, 64 and 1,024 GPUs and 1e6 to 1e9 images cost: by formula, and by simulated ranks that run the real code.

    python benchmarks/scale.py

Ranks are simulated one after the other. They plan with the real `Plan`, `Order` and `Index`, of an index that is made up:
10,000 images and 1 GB a shard, whose files are there by size alone. What reads images reads one real shard of tiny ones, which
stands for all. A checkpoint is really written; what it means for a run is a formula. What must not grow with the data set is
measured at every size, and the largest is compared with a smaller one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import common
from common import seconds, table
from scale_checkpoints import checkpoints
from scalegan.config import Config, DataConfig, TrainConfig
from scalegan.data.index import INDEX_NAME, Index, Shard, index_text, locate, make_index, read_index
from scalegan.data.loader import Plan, windows_at_hand
from scalegan.data.order import make_order, samples_at
from scalegan.data.stream import MOST_OPEN, MOST_TABLES, StreamReader
from scalegan.data.writer import Sample, write_shards

Kind = Literal["full", "blocks"]
KINDS: tuple[Kind, ...] = ("full", "blocks")
IMAGES = (10**6, 10**7, 10**8, 10**9)
RANKS = (8, 64, 1024)
SHARD, SHARD_GB = 10_000, 1.0  # images of a shard, at 100 kB each
PER_RANK, STREAMS = 32, 2  # images of a step, and streams of the `blocks` order, on each rank
FAR = 10**6  # epochs, to where no run ever is
BORDER, LAID_OUT = "border, a go", "border, layout"  # planning in which an epoch ends; `blocks` then lays out its shards anew
CONSTANT = 3.0  # times the cost of a data set a thousand times smaller, below which a cost counts as constant
LINEAR = 2.0  # times the cost of a shard among ten times fewer, below which it counts as linear in their number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_mb", type=int, default=200, help="size of the checkpoint that is written (default: 200)")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(start(args.child)))
        return 0
    torch.set_num_threads(1)
    print(common.headline(threads=1))
    indexes = {images: made_up(images) for images in IMAGES}
    with tempfile.TemporaryDirectory() as folder:
        reached = [start_up(indexes, Path(folder)), *planning(indexes), once_an_epoch(indexes[IMAGES[0]])]
        reached += [shards_of_ranks(indexes), reading(Path(folder)), checkpoints(Path(folder), args.checkpoint_mb, RANKS)]
    return 0 if all(reached) else 1


def made_up(images: int) -> Index:
    def shard(number: int) -> Shard:
        names = [f"shard-{number:06d}.{suffix}" for suffix in ("tar", "npy")]
        digests = [sha256(name.encode()).hexdigest() for name in names]
        return Shard(names[0], SHARD, int(SHARD_GB * 1e9), digests[0], names[1], digests[1])

    made = tuple(map(shard, range(images // SHARD)))
    facts: dict[str, Any] = {"classes": (), "class_counts": (), "source": "", "licence": "", "details": {}}
    return make_index("", shards=made, height=256, width=256, channels=3, **facts)


def plan_of(index: Index, kind: Kind, ranks: int) -> Plan:
    """What the first of so many ranks plans by."""
    config = Config(data=DataConfig(order=kind, streams=STREAMS * ranks), train=TrainConfig(batch=PER_RANK * ranks))
    config.check(ranks)
    return Plan(make_order(config.data, index, seed=0), config.train.batch, 1, PER_RANK, 0)


# --- start-up


def start_up(indexes: dict[int, Index], folder: Path) -> bool:
    row = table(
        "start-up of a process, blocks order: index.json read, files compared with it, order and first step; memory",
        "       images|,", " shards|,", "index.json, MB|.2f", "bytes a shard|.0f", "read, s|.3f", "compare, s|.3f",
        "order, s|.3f", "kept, MB|.1f", "at most, MB|.1f",
    )  # fmt: skip
    a_shard = []
    for images, index in indexes.items():
        place = folder / f"{images}"
        place.mkdir()
        text, shards = index_text(index), len(index.shards)
        (place / INDEX_NAME).write_text(text)
        for shard in index.shards:
            with open(place / shard.name, "wb") as file:
                file.truncate(shard.bytes)
        found = common.child("scale.py", [str(place)], threads=1)
        row(images, shards, len(text) / 1e6, len(text) / shards, *found.values())
        a_shard.append((found["read"] + found["compare"] + found["order"]) / shards)
    return common.verdict("seconds a shard, 1e9 over 1e8 images", a_shard[-1] / a_shard[-2], LINEAR, at_least=False)


def start(folder: str) -> dict[str, float]:
    """What a fresh process does before its first step, in seconds, and what it then holds, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, after the imports
    before, began = memory_mb("VmRSS"), time.perf_counter()
    index = read_index(folder)
    both = time.perf_counter() - began
    order = seconds(lambda: next(plan_of(index, "blocks", RANKS[-1]).ahead(0)))
    kept, most = memory_mb("VmRSS") - before, memory_mb("VmHWM") - before
    read = seconds(lambda: read_index(folder, compare=False))
    return {"read": read, "compare": both - read, "order": order, "kept": kept, "most": most}


def memory_mb(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:", 1)[1].split()[0]) / 1024


# --- planning


def planning(indexes: dict[int, Index]) -> list[bool]:
    row = table(
        f"planning on one rank, {PER_RANK} images a step, in microseconds; `far` is {FAR:,} epochs and a third on",
        "order |", "ranks|", "what           |", *(f"{images:>11.0e}|.1f" for images in indexes), "1e9/1e6|.2f", "far/near|.2f",
    )  # fmt: skip
    growth: dict[str, list[float]] = {}
    further, layouts = [], []
    for kind in KINDS:
        for ranks in RANKS:
            near, far = ([planning_times(plan_of(index, kind, ranks), at) for index in indexes.values()] for at in (0, FAR))
            for what in near[0]:
                cells = [times[what] for times in near]
                growth.setdefault(what, []).append(cells[-1] / cells[0])
                if what == LAID_OUT:
                    layouts.append(cells[-1] / cells[-2] / (IMAGES[-1] / IMAGES[-2]))
                further.append(max(there[what] / here[what] for here, there in zip(near, far, strict=True)))
                row(kind, ranks, what, *(1e6 * cell for cell in cells), growth[what][-1], further[-1])
    return [
        common.verdict("a step, 1e9 over 1e6 images", max(growth["a step"]), CONSTANT, at_least=False),
        common.verdict("steps over an epoch's border, full order", max(growth[BORDER]), CONSTANT, at_least=False),
        common.verdict("the same in blocks order, a shard, 1e9 over 1e8 images", max(layouts), LINEAR, at_least=False),
        common.verdict("shards to fetch, 1e9 over 1e6 images", max(growth["shards to fetch"]), CONSTANT, at_least=False),
        common.verdict("far over near, the most of each row", max(further), LINEAR, at_least=False),
    ]


def planning_times(plan: Plan, epochs: int) -> dict[str, float]:
    """Seconds of what a rank plans after so many epochs; `resume` is all that comes before the first step."""
    order, thirds = plan.order, 3 * epochs + bool(epochs)
    at = thirds * plan.order.epoch // 3 // plan.batch * plan.batch
    steps = plan.ahead(at)
    times = {"resume": seconds(lambda: next(replace(plan, order=replace(order)).ahead(at)), 7)}
    times["a step"] = seconds(lambda: next(steps), 25) / len(next(steps)[0])
    border = order.epoch * (epochs + 1) // plan.batch * plan.batch  # the images of before and after it are planned in one go

    def cross() -> None:
        order.layouts.pop(epochs + 1, None)
        next(plan.ahead(border))

    times[BORDER if order.kind == "full" else LAID_OUT] = seconds(cross, 7)
    if order.kind == "blocks":  # asked for in every step where shards are remote
        times["shards to fetch"] = seconds(lambda: windows_at_hand(plan, at), 7)
    return times


def once_an_epoch(index: Index) -> bool:
    row = table(f"all ranks together, an epoch of {index.samples:,} images", "order |", "ranks|", "most often|", "left out|")
    wrong = 0
    for kind in KINDS:
        for ranks in RANKS:
            plan = plan_of(index, kind, ranks)
            order, steps = plan.order, math.ceil(plan.order.epoch / plan.batch)
            found = np.concatenate([planned(replace(plan, rank=rank), steps) for rank in range(ranks)], axis=1)
            if kind == "blocks":  # each stream comes to the end of its segment by itself
                by_stream = found.reshape(steps, order.streams, -1).transpose(1, 0, 2).reshape(order.streams, -1)
                found = by_stream[:, : order.segment]
            times = np.bincount(found.ravel()[: order.epoch], minlength=index.samples)
            row(kind, ranks, times.max(), left_out := int((times == 0).sum()))
            wrong += times.max() > 1 or left_out >= (order.streams if kind == "blocks" else 1)
    return common.verdict("epochs with an image twice, or more left out than there may be", wrong, 1, at_least=False)


def planned(plan: Plan, steps: int) -> NDArray[np.int64]:
    """The samples of a rank in the first steps: [steps, PER_RANK]."""
    return samples_at(plan.order, np.arange(steps)[:, None] * plan.batch, plan.slots, plan.batch)


# --- reading


def shards_of_ranks(indexes: dict[int, Index]) -> bool:
    row = table(
        "an epoch in blocks order on all ranks, / formula; fetched by a cache that holds no more than is at hand; GB",
        "       images|,", "ranks|", "shards a rank, mean|", "      at most|", "ranks a shard, at most|", "share of a rank|.2f",
        "fetched|.2f", "fetched / share|", "at hand, at most|",
    )  # fmt: skip
    wrong = 0
    for images, index in indexes.items():
        for ranks in RANKS:
            plan, shards = plan_of(index, "blocks", ranks), len(index.shards)
            order, share = plan.order, plan.order.segment * STREAMS
            edges = [(begin, begin + order.segment) for begin in range(0, order.epoch, order.segment)]
            streams = [order.layout(0).shards_between(*edge) for edge in edges]
            own = [np.unique(np.concatenate(streams[rank * STREAMS : (rank + 1) * STREAMS])) for rank in range(ranks)]
            opened, shared = [len(held) for held in own], np.bincount(np.concatenate(own)).max()
            at_hand = max(len(windows_at_hand(plan, order.epoch * third // 3 // plan.batch * plan.batch)) for third in range(4))
            most, most_shared, most_at_hand = pieces(share), pieces(SHARD, share), STREAMS * 2 * pieces(order.stride)
            share_gb, fetched = share / SHARD * SHARD_GB, sum(map(len, streams)) / ranks * SHARD_GB
            row(
                images, ranks, f"{np.mean(opened):.2f} / {shards / ranks + 1:.2f}", f"{max(opened)} / {most}",
                f"{shared} / {most_shared}", share_gb, fetched, f"{fetched / share_gb:.2f} / {1 + order.streams / shards:.2f}",
                f"{at_hand * SHARD_GB:.0f} / {most_at_hand * SHARD_GB:.0f}",
            )  # fmt: skip
            wrong += max(opened) > most or shared > most_shared or at_hand > most_at_hand
            for rank in {0, ranks // 2, ranks - 1}:
                samples = planned(replace(plan, rank=rank), min(order.epoch // plan.batch, 10**6 // PER_RANK))
                read, _ = locate(index, samples.ravel())
                wrong += not np.isin(read, own[rank]).all()
    return common.verdict("rows above their formula, ranks that read others' shards", wrong, 1, at_least=False)


def pieces(images: int, length: int = SHARD) -> int:
    """The most pieces of `length` that so many consecutive images can touch."""
    return math.ceil((images - 1) / length) + 1


def reading(folder: Path) -> bool:
    row = table(
        f"one loader process of {RANKS[1]} ranks reads tiny images; all shards are known to the machine; / formula",
        "order |", "       images|,", "shards opened, an image|", "tables read, an image|", "ms, an image|.3f",
    )  # fmt: skip
    pixels = io.BytesIO()
    Image.new("L", (8, 8)).save(pixels, "PNG")
    tiny = (Sample(pixels.getvalue(), "png") for _ in range(SHARD))
    one = write_shards(tiny, folder / "tiny", height=8, width=8, channels=1, shard_samples=SHARD)
    growth = []
    for kind in KINDS:
        times = []
        for images in IMAGES:
            shards = images // SHARD
            index = replace(one, shards=one.shards * shards)
            reader = StreamReader(index, DataConfig(one.root, cache=str(folder / f"cache-{images}")))
            storage = reader.storage
            storage.record.parent.mkdir(parents=True, exist_ok=True)
            storage.record.write_text("".join(f"{number:064x}\n" for number in range(shards)))  # a line a checked shard
            calls = Mock(open=Mock(wraps=storage.open), offsets=Mock(wraps=storage.offsets))
            storage.open, storage.offsets = calls.open, calls.offsets  # type: ignore[method-assign]
            loads = (reader.load(samples) for _, rows in plan_of(index, kind, RANKS[1]).ahead(0) for samples in rows)
            while len(reader.tables) < (0.98 * min(shards, MOST_TABLES) if kind == "full" else 1):
                next(loads)
            calls.reset_mock()
            times.append(seconds(loads.__next__, 20) / PER_RANK)
            found = [mock.call_count / 20 / PER_RANK for mock in (calls.open, calls.offsets)]
            missed = [max(0.0, 1 - most / shards) if kind == "full" else 1 / SHARD for most in (MOST_OPEN, MOST_TABLES)]
            row(kind, images, *(f"{a:.3f} / {b:.3f}" for a, b in zip(found, missed, strict=True)), 1e3 * times[-1])
            reader.close()
        growth.append(times[-1] / times[-2])
    return common.verdict("reading an image, 1e9 over 1e8 images", max(growth), LINEAR, at_least=False)


if __name__ == "__main__":
    sys.exit(main())
