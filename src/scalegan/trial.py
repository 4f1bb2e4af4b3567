"""What `--debug` tries: the parts of a run that is cut down, each with the checks that it has to pass."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scalegan import checkpoint, own, start, state
from scalegan.config import Config
from scalegan.cut_down import IMAGES, STEPS, cut_config, cut_index
from scalegan.data.index import Index, read_index
from scalegan.data.loader import Batch, Reader, batches, is_resident
from scalegan.data.order import make_order, samples_at
from scalegan.data.resident import Resident
from scalegan.distributed import make_accelerator
from scalegan.sampling import load_generator
from scalegan.statistics import Values
from scalegan.train import check_data
from scalegan.trainer import Trainer
from scalegan.watchdog import Watchdog

CPU = torch.device("cpu")


class Fault(Exception):
    """A check of this module that did not hold."""


@dataclass(frozen=True)
class Part:
    name: str
    needs: tuple[str, ...]
    attempt: Callable[[], str]
    """Raises where something is wrong; returns what was seen."""


class Trial:
    """The parts of one configuration, in the order of a run. Later ones go on with what earlier ones made."""

    config: Config
    index: Index
    trainer: Trainer

    def __init__(self, full: Config, folder: Path) -> None:
        self.full, self.folder = full, folder
        self.made: list[Trainer] = []

    def close(self) -> None:
        for trainer in self.made:
            trainer.outputs.close()

    def parts(self) -> list[Part]:
        return [
            Part("shards", (), self.shards),
            Part("networks", ("shards",), self.networks),
            Part("critic step", ("networks",), self.critic_step),
            Part("generator step", ("networks",), self.generator_step),
            Part("average", ("networks",), self.average),
            Part("sample grid", ("networks",), self.sample_grid),
            Part("evaluation", ("networks",), self.evaluation),
            Part("checkpoint", ("networks",), self.checkpoint),
            Part("resume", ("critic step", "generator step", "checkpoint"), self.resume),
        ]

    def shards(self) -> str:
        """The index, the configuration against it, and one batch by both readers."""
        self.full.check(1)
        index = read_index(self.full.data.path, compare=self.full.data.fails)
        check_data(self.full, index)
        start.find(self.full, index)  # raises where it does not fit; networks that are cut down start from nothing
        is_resident(index, self.full.data)  # raises where they are to be and do not fit
        self.index = cut_index(index, IMAGES)
        self.config = cut_config(self.full, self.index, self.folder / "parts")
        batch = self.config.train.batch
        chosen = samples_at(make_order(self.config.data, self.index, 0), 0, np.arange(batch), batch)
        with closing(Reader(self.index, self.config.data, CPU)) as reader:
            images = reader.read(chosen).images
        resident = Resident(self.index, self.config.data, CPU)
        kept, _ = resident.take(torch.from_numpy(chosen))
        readable = torch.from_numpy(
            ~np.isin(chosen, list(resident.unreadable))
        )  # others are replaced, each reader's in its way
        if not torch.equal(images[readable], kept[readable]):
            raise Fault("the readers `resident` and `stream` give different images")
        if batch > 1 and bool((images == images[:1]).all()):
            raise Fault(f"the {batch} images of a batch are all alike: look at the contact sheet of {self.full.data.path}")
        colours = "grey" if index.channels == 1 else "RGB"
        shards = f"{len(index.shards)} shard{'s' * (len(index.shards) > 1)}"
        return f"{index.samples} images {index.height}x{index.width} {colours} in {shards}; {batch} decoded"

    def networks(self) -> str:
        self.trainer = self.make_trainer("parts")
        self.trainer.notice.close()  # no loop asks it: Ctrl-C is to end this try
        self.check_networks()
        count = sum(p.numel() for net in self.both() for p in net.parameters())
        return f"{count} parameters (cut down), on {self.trainer.accelerator.device}, {self.config.train.precision}"

    def critic_step(self) -> str:
        game = self.trainer.game
        values: list[Values] = []

        def steps() -> None:
            values.extend(game.discriminator_step(reals, seen) for seen, reals in self.reals())

        self.check_learns(steps, game.bare_critic, game.bare_generator)
        return self.reported(values, "D")

    def generator_step(self) -> str:
        game = self.trainer.game
        values: list[Values] = []

        def steps() -> None:
            values.extend(game.generator_step(reals, seen) for seen, reals in self.reals())

        self.check_learns(steps, game.bare_generator, game.bare_critic)
        return self.reported(values, "G")

    def reals(self) -> Iterator[tuple[int, list[Batch]]]:
        """Images seen before each of two steps, the first and the last of a run, and its real images."""
        with closing(batches(self.index, self.config, 0, 0, 1, self.trainer.accelerator.device)) as self.trainer.loader:
            for number in range(2):
                yield number * (self.config.train.images - self.config.train.batch), self.trainer.fetch()

    def average(self) -> str:
        game = self.trainer.game
        with torch.no_grad():
            for parameter in game.bare_generator.parameters():
                parameter.add_(0.01)
        before = [p.clone() for p in game.ema.parameters()]
        game.average(self.config.train.batch)
        self.check_networks()
        for old, new, target in zip(before, game.ema.parameters(), game.bare_generator.parameters(), strict=True):
            if not bool(((new - target).abs() <= (old - target).abs() + 1e-6).all()):
                raise Fault("the averaged generator moves away from the one it averages")
        return "moves towards the generator"

    def sample_grid(self) -> str:
        self.trainer.outputs.samples(self.trainer.game.ema, 0)
        path = self.folder / "parts" / "samples" / f"{0:09d}.png"
        with Image.open(path) as picture:
            picture.load()
            return f"{self.config.log.grid} images on {picture.width}x{picture.height} pixels"

    def evaluation(self) -> str:
        record = self.trainer.outputs.evaluate(self.trainer.game.ema, 0)
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise Fault(f"{name} is {value}")
        metric = self.config.evaluation.judged_by
        return f"{metric} {record[metric]:.4g} of {record['generated']} images against {record['real']}"

    def checkpoint(self) -> str:
        trainer = self.trainer
        trainer.once("checkpoint", trainer.save)
        if not trainer.saved():
            raise Fault("it was not saved")
        found, complaints = checkpoint.latest(trainer.run_dir)
        if found is None:
            raise Fault("; ".join(complaints))
        for part, saved in state.tensors(trainer.game).items():
            again = found.tensors(part)
            if saved.keys() != again.keys() or not all(same(saved[name], again[name]) for name in saved):
                raise Fault(f"{part} comes back changed")
        own_class = own.network("--model.generator", self.config.model.generator)
        loaded = load_generator(found.path, trainer.accelerator.device, own_class).sample(4, seed=self.config.train.seed)
        if not torch.equal(loaded, trainer.outputs.draw(trainer.game.ema, 0, 4)):
            raise Fault("the generator that is loaded from it draws other images than the one that was saved")
        size = sum(path.stat().st_size for path in found.path.iterdir())
        return f"{len(found.files)} tensor files, {size / 1e6:.1f} MB, read back"

    def resume(self) -> str:
        half = STEPS // 2
        run_to_end(self.make_trainer("unbroken"))
        broken = self.make_trainer("broken")
        broken.stop_at = half * self.config.train.batch
        if broken.train():
            raise Fault("a signal to stop was not heard")
        resumed = self.make_trainer("broken")
        goes_on_at = resumed.clock.images_seen
        run_to_end(resumed)
        if goes_on_at != broken.stop_at:
            raise Fault(f"it goes on at {goes_on_at} images after a stop at {broken.stop_at}")
        self.trainer = resumed
        self.check_networks()
        one, other = (checkpoint.latest(self.folder / name)[0] for name in ("unbroken", "broken"))
        if one is None or other is None:
            raise Fault("a run left no valid checkpoint")
        different = [name for name in one.files if one.files[name] != other.files.get(name)]
        unlike = [text for text in ("metrics.jsonl", "losses.csv") if contents(one, text) != contents(other, text)]
        if different or unlike:
            raise Fault(f"stopped and continued, it ends otherwise than unbroken: {', '.join(different + unlike)}")
        return f"{half} + {STEPS - half} steps end with the same bytes as {STEPS}"

    # --- what they share

    def make_trainer(self, name: str) -> Watched:
        """As a process of its own would make it: with a fresh accelerator, for its loss scale."""
        config = replace(self.config, run=str(self.folder / name))
        watchdog = Watchdog(60 * config.train.hang_minutes, Path(config.run), 0)
        trainer = Watched(config, make_accelerator(config.train), self.index, None, watchdog)
        self.made.append(trainer)
        return trainer

    def both(self) -> tuple[nn.Module, nn.Module]:
        return self.trainer.game.bare_generator, self.trainer.game.bare_critic

    def check_networks(self) -> None:
        game = self.trainer.game
        for what, net in (("generator", game.bare_generator), ("critic", game.bare_critic), ("average", game.ema)):
            check_finite(what, net.state_dict())

    def check_learns(self, steps: Callable[[], None], learner: nn.Module, other: nn.Module) -> None:
        """Run `steps` under anomaly detection: all gradients are finite, the learner changes, the other one does not."""
        before, held = parameters(learner), parameters(other)
        with anomalies(self.config):
            steps()
        self.check_networks()
        if self.config.train.precision != "fp16":  # whose first steps look for a scale that does not overflow
            check_finite("gradient of", {n: p.grad for n, p in learner.named_parameters() if p.grad is not None})
            without = [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
            still = [name for name, value in parameters(learner).items() if same(value, before[name])]
            if without or len(still) == len(before):
                raise Fault(f"no gradient reaches {without[0]}" if without else "no weight has changed")
        moved = [name for name, value in parameters(other).items() if not same(value, held[name])]
        if moved:
            raise Fault(f"{moved[0]} of the other network has changed")

    def reported(self, values: list[Values], letter: str) -> str:
        means = {name: float(value) for name, value in values[-1].means().items()}
        first = {name: float(value) for name, value in values[0].means().items()}
        for name, value in (first | means).items():
            if not math.isfinite(value):
                raise Fault(f"{name} is {value}")
        penalties = "".join(
            f", {name} {first[name]:.3g}" for name in ("r1", "r2", "gp", "path", "diversity/G") if name in first
        )
        return f"loss {means[f'loss/{letter}']:.3g}, gradient norm {means[f'grad_norm/{letter}']:.3g}{penalties}"


class Watched(Trainer):
    """The very loop of a run, with anomaly detection, without its evaluation (a part of its own), stopped on the way."""

    stop_at = -1

    def train(self) -> bool:
        with anomalies(self.config):
            return super().train()

    def evaluate(self) -> bool:
        return False

    def run_due(self, due: set[str]) -> None:
        super().run_due(due)
        if self.clock.images_seen == self.stop_at:
            signal.raise_signal(signal.SIGUSR1)


def anomalies(config: Config) -> torch.autograd.set_detect_anomaly:
    """Names the operation whose gradient is NaN; but fp16 has such ones until its loss scale is found."""
    return torch.autograd.set_detect_anomaly(True, check_nan=config.train.precision != "fp16")


def run_to_end(trainer: Trainer) -> None:
    if not trainer.train():
        raise KeyboardInterrupt  # the one signal that nobody here has sent


def check_finite(what: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise Fault(f"{what} {name} is not finite")


def contents(last: checkpoint.Checkpoint, name: str) -> bytes:
    """Of a file of the run that a checkpoint belongs to."""
    return (last.path.parents[1] / name).read_bytes()


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
