"""Means of what the steps report, kept on the device and read only when a line of metrics is due."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Values:
    """What one step reports: named scalars on the device, several where it went in rounds."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        for name, scalar in scalars.items():
            self.parts.setdefault(name, []).append(scalar.detach())

    def means(self) -> dict[str, Tensor]:
        return {name: torch.stack(parts).mean() if len(parts) > 1 else parts[0] for name, parts in self.parts.items()}


class Statistics:
    """Sums over the steps since the last reading; `state` and `restore` carry them over a restart.

    `limit`: skipped steps in a row that are too many.
    """

    SKIPPED = ("skipped/D", "skipped/G")
    NAMES = (
        "loss/D", "loss/G", "logits/real", "logits/fake", "accuracy/real", "accuracy/fake", "sign/real",
        "r1", "r2", "gp", "path", "path_length", "diversity/G", "class/D", "class/G", "reconstruction/D",
        "grad_norm/D", "grad_norm/G", *SKIPPED,
    )  # fmt: skip

    def __init__(self, device: torch.device, *, every_step: bool, limit: int) -> None:
        self.limit = limit
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.counts = torch.zeros(len(self.NAMES), dtype=torch.float64)
        self.row = torch.zeros(2, dtype=torch.float64, device=device)  # steps skipped in a row: by critic, by generator
        self.longest = torch.zeros_like(self.row)  # since the last reading
        self.reached = self.row.new_zeros(2, 2)  # where a row got to the limit: images seen, number of the gradient
        self.absent, self.missing = torch.zeros((), device=device), torch.full((), torch.nan, device=device)
        self.every_step = every_step
        self.steps: list[tuple[int, Tensor]] = []

    def add(self, discriminator: Values, generator: Values, images_seen: int, nonfinite: Tensor) -> None:
        """What a step reports that ended at `images_seen`; `nonfinite` [2] as `Game` has it."""
        means = discriminator.means() | generator.means()
        values = torch.stack([means.get(name, self.absent) for name in self.NAMES]).double()
        self.sums += values
        self.counts += torch.tensor([name in means for name in self.NAMES])
        for place, name in enumerate(self.SKIPPED):
            if name in means:  # the generator may have had no step
                self.row[place] = (self.row[place] + means[name]) * means[name]
                here = torch.stack([self.row.new_full((), images_seen), nonfinite[place].double()])
                self.reached[place] = torch.where(self.row[place] == self.limit, here, self.reached[place])
        self.longest = torch.maximum(self.longest, self.row)
        if self.every_step:
            self.steps.append(
                (images_seen, torch.stack([means.get(name, self.missing) for name in ("loss/D", "loss/G")]).double())
            )

    def longest_row(self) -> int:
        """Of skipped steps, since the last reading. The same on every process; waits for the device."""
        return int(self.longest.max().item())

    def read(self) -> tuple[dict[str, float], int]:
        """Means since the last reading over all processes, and the longest row of skipped steps. Waits for the device.

        The means of `skipped/D` and `skipped/G` are shares of each network's steps; `skipped_steps` counts both.
        """
        counts = self.counts.tolist()
        sums = self.sums.clone()
        if dist.is_initialized():
            dist.all_reduce(sums)
            sums /= dist.get_world_size()
        totals = sums.tolist()
        self.sums.zero_()
        self.counts.zero_()
        means = {name: total / n for name, total, n in zip(self.NAMES, totals, counts, strict=True) if n}
        means["skipped_steps"] = sum(totals[self.NAMES.index(name)] for name in self.SKIPPED)
        longest = self.longest_row()
        self.longest.zero_()
        return means, longest

    def too_many(self) -> tuple[int, int, int]:
        """Where a row of skipped steps got to the limit: images seen; 0 for the critic, 1 for the generator; number of its
        first gradient that was not finite then. Waits for the device."""
        rows = enumerate(self.reached.tolist())
        return min((int(images_seen), place, int(number)) for place, (images_seen, number) in rows if images_seen)

    def read_steps(self) -> list[tuple[int, float, float]]:
        """(images seen, loss of D, loss of G) of every step since the last reading, over all processes."""
        if not self.steps:
            return []
        losses = torch.stack([values for _, values in self.steps])
        if dist.is_initialized():
            dist.all_reduce(losses)
            losses /= dist.get_world_size()
        rows = [(seen, d, g) for (seen, _), (d, g) in zip(self.steps, losses.tolist(), strict=True)]
        self.steps = []
        return rows

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: the sums of every process [processes, names]. To be called on every process."""
        sums = [self.sums]
        if dist.is_initialized():
            sums = [torch.empty_like(self.sums) for _ in range(dist.get_world_size())]
            dist.all_gather(sums, self.sums)
        return {
            "sums": torch.stack(sums),
            "counts": self.counts.clone(),
            "row": self.row.clone(),
            "longest": self.longest.clone(),
            "reached": self.reached.clone(),
        }

    def restore(self, state: dict[str, Tensor], rank: int, processes: int) -> None:
        """Each process takes its own sums; where their number has changed, each the mean, which has the same total."""
        sums = state["sums"]
        self.sums.copy_(sums[rank] if len(sums) == processes else sums.mean(0))
        for name in ("counts", "row", "longest", "reached"):
            getattr(self, name).copy_(state[name])
        # Where the limit was higher, the next skipped step gets to it.
        for rows in (self.row, self.longest):
            rows.copy_(torch.where(self.reached[:, 0] > 0, rows, rows.clamp(max=self.limit - 1)))
