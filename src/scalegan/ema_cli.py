"""`scalegan ema`: the generator averaged over any share of a run, made of the snapshots that `ema.power` left.

The snapshots are averages of two or more widths at several times; the one that is sought is the sum of them whose profile over
the training steps is nearest to its own (see `power`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalegan import power
from scalegan.errors import UserError, sought

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scalegan.checkpoint import Checkpoint

AVERAGES = "ema"
"""Folder of a run that they are written to."""
ITERATIONS = 20
"""Power iterations by which the spectral norms of the sum settle, from those of the averages on."""
FARTHEST = 0.2
"""Largest distance of the profile from that of the width that it is named by."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, of a run with ema.power")
    parser.add_argument("--std", type=float, required=True, help="width of the average, as a share of the run, such as 0.08")
    parser.add_argument("--at", type=int, metavar="IMAGES", help="snapshot that it ends with (the newest)")
    parser.add_argument("--generator", default="", metavar="NAME", help="class of the run's generator, if it is your own")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the checkpoint that is made (RUN/ema/IMAGES-STD)")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.std <= power.WIDEST:
        raise UserError(f"--std is {args.std:g}: give a share of the run from above 0 to {power.WIDEST}")
    from scalegan import checkpoint, own

    snapshots = read_snapshots(args.run, args.at)
    last = snapshots[-1]
    out: Path = args.out or args.run / AVERAGES / f"{last.images_seen:09d}-{args.std:g}"
    if out.exists():
        raise UserError(f"{out} exists already: give another --out")
    tensors, distance = combined(snapshots, args.std)
    tensors = settled(tensors, last, own.network("--generator", args.generator))
    checkpoint.write(out, last.images_seen, {"ema": tensors}, last.state | {"ema_std": args.std})
    print(
        f"average of width {args.std:g} at {last.images_seen} images in {out}; of {len(snapshots)} snapshots, "
        f"its profile within {distance:.2g} of the exact one"
    )
    return 0


def read_snapshots(run_dir: Path, at: int | None) -> list[Checkpoint]:
    """The whole snapshots up to `at` (None: the newest), oldest first. Raises `UserError`."""
    from scalegan import checkpoint

    if not run_dir.is_dir():
        raise UserError(f"{sought(run_dir)} does not exist: give the folder that --run named in training")
    snapshots = []
    for path in reversed(checkpoint.folders(run_dir, checkpoint.SNAPSHOTS)):
        found = checkpoint.read(path)
        problem = found.problem()
        if problem:
            print(f"scalegan: {problem}; left out")
        else:
            snapshots.append(found)
    if not snapshots:
        raise UserError(f"{run_dir} has no snapshots: they are left by a run with --ema.power '[0.05, 0.1]'")
    times = [found.images_seen for found in snapshots]
    if at is not None and at not in times:
        raise UserError(f"--at {at}: no such snapshot in {run_dir}; there are {', '.join(map(str, times))}")
    return [found for found in snapshots if at is None or found.images_seen <= at]


def combined(snapshots: Sequence[Checkpoint], std: float) -> tuple[dict[str, Tensor], float]:
    """The average of width `std` at the last snapshot, and the distance of its profile. Summed in float64."""
    import torch

    widths = snapshots[-1].state["config"]["ema"]["power"]
    sources = [(found, width) for found in snapshots for width in widths]
    end = snapshots[-1].images_seen
    factors, distance = power.mixture([(width, found.images_seen / end) for found, width in sources], (std, 1.0))
    if distance > FARTHEST:
        raise UserError(
            f"--std {std:g} cannot be made of the averages of {' and '.join(f'{width:g}' for width in widths)} in "
            f"{len(snapshots)} snapshots (its profile would be off by {distance:.0%}): give one nearer to them"
        )
    last = snapshots[-1].tensors(power.part(widths[0]))
    total = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in last.items() if t.is_floating_point()}
    for (found, width), factor in zip(sources, factors.tolist(), strict=True):
        tensors = found.tensors(power.part(width))
        for name, sum_ in total.items():
            sum_.add_(tensors[name].double(), alpha=factor)
    return {name: total[name].to(tensor.dtype) if name in total else tensor for name, tensor in last.items()}, distance


def settled(tensors: dict[str, Tensor], last: Checkpoint, own: type[nn.Module] | None) -> dict[str, Tensor]:
    """The same generator, in which what is no weight but follows from weights and clock is set anew."""
    from scalegan import schedules, settings
    from scalegan.models import build_generator
    from scalegan.models.conditions import set_strength
    from scalegan.models.layers import follow_weights
    from scalegan.sampling import fill

    model, data = settings.config_of(last).model, last.state["data"]
    generator = build_generator(model, tuple(data["shape"]), len(data["classes"]), own)
    fill(generator, tensors, last.path)
    set_strength(generator, schedules.class_strength(model, last.images_seen))
    for _ in range(ITERATIONS):
        follow_weights(generator)
    return generator.state_dict()
