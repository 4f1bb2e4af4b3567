"""Compiled steps (`train.compile`) beside eager ones: how far their values and gradients differ, and how long they take.

    python benchmarks/compiled.py                          kiwi_small, float32 and bfloat16
    python benchmarks/compiled.py --config kiwi_small --precision fp32 -- --model.width=16

Both games start from the same weights and are shown the same made-up images. Three steps are compared, the first with its
penalties: each loss, and all gradients of a network as one vector, relative to the eager ones; the worst counts. Meanwhile
weights stand still (rates of 1e-12), as Adam's first steps go by the sign of a gradient: where that is 0 but for rounding, as
that of a bias before a normalisation, weights would differ by whole steps. Beside them stands bfloat16 against float32, both
eager: what that precision is off by in any case. Then steps are timed in turns, without data and logging, after as many that
are not, and the median ratio is told. bfloat16 is emulated, and slow, on a CPU without it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

import common
from scalegan import settings
from scalegan.data.loader import Batch
from scalegan.draws import DataFacts
from scalegan.steps import Game

COMPARED = 3
STILL = ("--optim.lr_g=1e-12", "--optim.lr_d=1e-12")
LIMIT = 1e-5
"""Of the relative differences in float32."""


@dataclass(frozen=True)
class Found:
    """What the first steps gave."""

    losses: list[Tensor]
    gradients: list[Tensor]

    def off(self, other: Found) -> tuple[float, float]:
        """Largest relative difference of any loss, and of any network's gradients, from those of `other`."""
        pairs = zip([*self.losses, *self.gradients], [*other.losses, *other.gradients], strict=True)
        apart = torch.stack([(a - b).norm() / b.norm() for a, b in pairs])  # of which the largest is NaN if any is
        return float(apart[: len(self.losses)].max()), float(apart[len(self.losses) :].max())


class Player:
    """A game with the images that it is shown."""

    def __init__(self, options: Sequence[str], size: tuple[int, int]) -> None:
        config = settings.parse(["--data.path=none is read", *options]).config
        torch.manual_seed(0)
        self.batch = config.train.batch
        self.game = Game(
            config, Accelerator(cpu=True, mixed_precision=MIXED[config.train.precision]), DataFacts((3, *size), ())
        )
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (self.batch, 3, *size), dtype=torch.uint8, generator=generator)
        self.real = Batch(images, torch.full((self.batch,), -1))

    def step(self, number: int) -> dict[str, Tensor]:
        seen = number * self.batch
        values = self.game.discriminator_step([self.real], seen).means()
        return values | self.game.generator_step([self.real], seen).means()

    def first(self) -> Found:
        found = Found([], [])
        for number in range(COMPARED):
            values = self.step(number)
            found.losses.extend(values[name].float() for name in ("loss/D", "loss/G"))
            for network in (self.game.bare_critic, self.game.bare_generator):
                found.gradients.append(
                    torch.cat([p.grad.flatten().clone() for p in network.parameters() if p.grad is not None])
                )
        return found

    def seconds(self, count: int) -> float:
        """Of so many steps."""
        start = time.perf_counter()
        for number in range(count):
            self.step(number)
        return time.perf_counter() - start


MIXED = {"fp32": "no", "bf16": "bf16"}
"""What Accelerate calls each `train.precision`."""
COLUMNS = "precision", "losses off by", "gradients off by", "seconds to compile", "eager / compiled step"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="kiwi_small", help="preset or file (default: kiwi_small)")
    parser.add_argument("--size", default="64x64", help="height x width of the made-up images (default: 64x64)")
    parser.add_argument("--precision", choices=MIXED, action="append", help="this alone (default: both)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that are timed (default: 5)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn (default: 8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)")
    parser.add_argument("options", nargs="*", metavar="-- --KEY=VALUE", help="other settings of `scalegan train`")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    print(common.headline(threads=args.threads, config=args.config, size=args.size))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    within, kept = True, {}
    for precision in args.precision or MIXED:
        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the first
        options = [f"--config={args.config}", f"--train.precision={precision}", *args.options, *STILL]
        eager = Player(options, (height, width))
        kept[precision] = eager.first()
        start = time.perf_counter()
        compiled = Player([*options, "--train.compile=true"], (height, width))
        losses, gradients = compiled.first().off(kept[precision])
        building = time.perf_counter() - start
        ratios = [eager.seconds(args.steps) / compiled.seconds(args.steps) for _ in range(1 + args.rounds)][1:]
        speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {precision} | {losses:.1e} | {gradients:.1e} | {building:.0f} | {speed} |", flush=True)
        within &= precision != "fp32" or max(losses, gradients) <= LIMIT
    if len(kept) == len(MIXED):
        losses, gradients = kept["bf16"].off(kept["fp32"])
        print(f"| bf16 against fp32, both eager | {losses:.1e} | {gradients:.1e} | | |")
    if "fp32" in kept:
        print(f"float32 within {LIMIT:g}: {'reached' if within else 'MISSED'}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
