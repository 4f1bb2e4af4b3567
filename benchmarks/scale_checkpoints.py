"""What a checkpoint costs, and what kills cost a run at those rates: a part of scale.py."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import common
from common import seconds, table
from scalegan import checkpoint
from scalegan.background import Saver

PARAMETERS = (40e6, 200e6, 1e9)  # of generator and critic together, half each
MTBF_HOURS = 50_000  # of a GPU with its share of a node: 419 unexpected ends in 54 days on 16,384 (Llama 3, 2024) make 50,700
RESTART = 300.0  # seconds from a kill to the first step of the next start


def checkpoints(folder: Path, megabytes: int, ranks: Sequence[int]) -> bool:
    """Write one of so many MB a few times, and work out what kills cost at those rates, on so many GPUs each."""
    parts, parameters = networks(megabytes * 1e6)
    saver = Saver(folder, keep=1)
    times = []
    for turn in range(4):  # the first touches all memory for the first time
        began = time.perf_counter()
        saver.start(turn, parts, {}, [])
        stall = time.perf_counter() - began
        if problem := saver.wait():
            sys.exit(problem)
        whole = time.perf_counter() - began
        times.append((stall, seconds(lambda turn=turn: checkpoint.save(folder / "alone", turn, parts, {})), whole))
    size = sum(file.stat().st_size for file in checkpoint.folders(folder)[0].iterdir()) / 1e6
    rates = [size / statistics.median(values[1:]) for values in zip(*times, strict=True)]
    row = table(
        "a checkpoint, MB/s", "parameters|,", "   MB|.1f", "14 bytes each, MB|.1f", "copy, for which training waits|.0f",
        "write, hash, flush|.0f", "all, the check included|.0f",
    )  # fmt: skip
    row(parameters, size, 14 * parameters / 1e6, *rates)
    lost_work(rates[0], rates[2], ranks)
    off = max(abs(size / 14e-6 / parameters - 1), *(abs(killed(*pair) - 1) for pair in ((600, 20), (60, 50))))
    return common.verdict("size of a checkpoint, lost work of simulated kills: per cent off", 100 * off, 1, at_least=False)


def networks(size: float) -> tuple[dict[str, dict[str, torch.Tensor]], int]:
    """Parts of a checkpoint of about so many bytes, as `state.tensors` names them, and the parameters of the two networks."""
    layers = max(1, round(size / 14 / 2 / 1024**2))
    pair = [nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(layers))) for _ in range(2)]
    parts = {name: network.state_dict() for name, network in zip(("generator", "critic", "ema"), [*pair, pair[0]], strict=True)}
    for name, network in zip(("opt_g", "opt_d"), pair, strict=True):
        network(torch.zeros(1, 1024)).sum().backward()
        adam = torch.optim.Adam(network.parameters())
        adam.step()
        parts[name] = checkpoint.optimizer_tensors(adam)
    return parts, 2 * layers * 1024**2


def lost_work(copy_rate: float, rate: float, ranks: Sequence[int]) -> None:
    """The interval is that of Young and Daly for the time that training waits, or the time to write where that is longer."""
    row = table(
        f"at these rates; a GPU fails once in {MTBF_HOURS:,} h, and {RESTART:.0f} s pass from there to the next first step",
        "parameters|.0e", " GPUs|,", "   GB|.2f", "waits, s|.2f", "on disk after, s|.1f", "a failure each, h|,.0f",
        "interval, min|.1f", "lost by a kill, min|.1f", "time lost in all|.2%",
    )  # fmt: skip
    for parameters in PARAMETERS:
        stall, whole = (14 * parameters / 1e6 / speed for speed in (copy_rate, rate))
        for gpus in ranks:
            mtbf = MTBF_HOURS * 3600 / gpus
            interval = max(math.sqrt(2 * stall * mtbf), whole)
            lost = interval / 2 + whole
            figures = 14 * parameters / 1e9, stall, whole, mtbf / 3600, interval / 60, lost / 60
            row(parameters, gpus, *figures, stall / interval + (lost + RESTART) / mtbf)


def killed(interval: float, write: float) -> float:
    """What kills at random times lose, as they go back to the newest checkpoint that was whole, over the formula."""
    times = np.random.default_rng(0).uniform(10 * interval, 20 * interval, 10**6)
    return float(np.mean(times - (times - write) // interval * interval)) / (interval / 2 + write)
