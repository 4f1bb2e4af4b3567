"""What the critic makes of real images that it never learns from, beside training and generated ones, and how steep it is.

A critic that tells training images from fakes by what they have in common scores the held-out ones as high. One that knows
the training images by heart takes the held-out ones for fakes: the overfit gap between the two is what no loss shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from scalegan.config import DataConfig
from scalegan.critic import an_image
from scalegan.data.held_out import held_out_of, read_held_out
from scalegan.data.index import Index, is_remote
from scalegan.data.loader import Batch, Reader
from scalegan.data.order import PROBED, draw, permute
from scalegan.float32 import computing_in
from scalegan.pixels import normalise
from scalegan.steps import Game

MOST = 256
"""Images of each kind: their scores cost 2 % of the steps between two lines of metrics, at the default `log.every`."""


class Probe:
    """Fixed images of each kind, scored in passes as large as those of a training step and shared by the processes alike."""

    def __init__(self, index: Index, held_out: Index, game: Game) -> None:
        """Reads the images. Raises `UserError`."""
        data, device = game.config.data, game.accelerator.device
        self.game = game
        together = game.config.train.batch // game.rounds
        first = game.accelerator.process_index * game.draws.count
        most = max(MOST, together)
        passes = max(1, min(MOST, held_out.samples, index.samples) // together)
        self.places = np.arange(passes)[:, None] * together + first + np.arange(game.draws.count)
        """int64 [passes, count]: which of all images are ours."""
        with closing(Reader(index, data, device)) as reader:
            self.train = [game.without_labels(reader.read(fixed(row, index, most, data))) for row in self.places]
        with closing(Reader(held_out, replace(data, path=held_out.root), device)) as reader:
            self.held_out = [game.without_labels(reader.read(fixed(row, held_out, most, data))) for row in self.places]

    def measure(self) -> dict[str, float]:
        """Mean logits, accuracies and the overfit gap, the same on every process. Collective; waits for the device."""
        with torch.no_grad(), in_evaluation(self.game.bare_generator, self.game.bare_critic):
            parts = zip(*map(self._scores, self.train, self.held_out, self.places[:, 0].tolist()), strict=True)
            train, held_out, fake = (torch.cat(part) for part in parts)
            accuracy = self.game.loss.accuracy
            rights = [accuracy(real, fake)[0] for real in (train, held_out)]
            values = torch.stack([train.mean(), held_out.mean(), fake.mean(), *rights])
        logits_train, logits_held_out, logits_fake, right_train, right_held_out = over_processes(values)
        return {
            "logits/train": logits_train,
            "logits/held_out": logits_held_out,
            "logits/generated": logits_fake,
            "accuracy/train": right_train,
            "accuracy/held_out": right_held_out,
            "overfit_gap": overfit_gap(logits_train, logits_held_out, logits_fake),
        }

    def _scores(self, train: Batch, held_out: Batch, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [count] or [count, K] of one pass, in three forwards, as some critics couple the images of a batch."""
        # By `forward`, as the call of a compiled network would be compiled once more for this.
        generate, criticise = self.game.bare_generator.forward, self.game.bare_critic.forward
        fakes = generate(self.game.draws.latents("probe", first), train.labels)
        real, unseen = (criticise(normalise(batch.images), batch.labels, None).logits for batch in (train, held_out))
        return real, unseen, criticise(fakes, train.labels, None).logits


def steepness(game: Game, reals: Sequence[Batch], images_seen: int) -> dict[str, float]:
    """Mean |d logit / d image|^2 at the real images of the step from `images_seen` and at as many generated ones.

    Whatever penalties there are; neither weighted nor augmented, in float32; the same on every process. Collective; waits for
    the device. These images are at hand in every run: fixed ones would have to be read first, and whole shards fetched.
    """
    parts = []
    with in_evaluation(game.bare_generator, game.bare_critic), computing_in("float32", game.accelerator.device):
        for first, real in game.rounds_of(reals, images_seen):
            latents = game.draws.latents("steepness", first)
            with torch.no_grad():
                fakes = game.bare_generator.forward(latents, real.labels)
            slopes = (squared_grad_norms(game.bare_critic, images, real.labels) for images in (normalise(real.images), fakes))
            parts.append(torch.stack([slope.mean() for slope in slopes]))
    at_real, at_fake = over_processes(torch.stack(parts).mean(0))
    return {"steepness/real": at_real, "steepness/fake": at_fake}


def squared_grad_norms(critic: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """[N]. By the discriminator itself, as the critic turns autocast on, and by autograd, which any network goes with."""
    leaves = images.detach().requires_grad_()
    logits = critic.discriminator(leaves, labels).logits  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(an_image(logits).sum(), leaves)
    return gradient.square().flatten(1).sum(1)


def over_processes(values: Tensor) -> list[float]:
    """The mean [n] over all processes."""
    total = values.double()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.tolist()


def make_probe(index: Index, game: Game) -> Probe | None:
    """None where no image was held out. Raises `UserError`."""
    data = game.config.data
    held_out = held_out_of(data.held_out, index)
    return Probe(index, read_held_out(held_out, index, compare=data.fails), game) if held_out else None


def fixed(places: NDArray[np.int64], index: Index, most: int, data: DataConfig) -> NDArray[np.int64]:
    """Which images of `index` stand at `places`: a fixed permutation, over and over, so that sorted shards are mixed.

    Where each shard has to be fetched whole, of some shards alone, evenly spaced, that hold `most` images.
    """
    numbers = np.arange(index.samples)
    if data.order == "blocks" or is_remote(index.root):
        numbers = np.concatenate([np.arange(*index.starts[shard : shard + 2]) for shard in some_shards(index, most)])
    return numbers[permute(places % len(numbers), len(numbers), len(numbers), draw(0, PROBED))]


def some_shards(index: Index, most: int) -> NDArray[np.int64]:
    """Evenly spaced ones that hold `most` images, or all of them."""
    counts = np.diff(index.starts)
    for number in range(1, len(counts)):
        shards = np.arange(number) * len(counts) // number
        if counts[shards].sum() >= most:
            return shards
    return np.arange(len(counts))


def overfit_gap(train: float, held_out: float, fake: float) -> float:
    """r_v = (E[D(train)] - E[D(held out)]) / (E[D(train)] - E[D(fake)]) (Karras et al. 2020, "ADA", eq. 1).

    0 where held-out images are scored like training images, 1 where like fakes; 0 too where the critic tells nothing apart.

    >>> overfit_gap(3.0, 2.5, -1.0)
    0.125
    """
    return (train - held_out) / (train - fake) if train > fake else 0.0


@contextmanager
def in_evaluation(*networks: nn.Module) -> Iterator[None]:
    """No running statistic and no vector of a spectral norm moves; afterwards every layer is in the mode that it was in."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
