"""`--dry_run`: what a run would be, take and leave behind, found by a few real steps. Writes nothing."""

from __future__ import annotations

import io
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from scalegan import checkpoint, figures, launcher, own, run, sampling, start, state
from scalegan.config import Config
from scalegan.data.held_out import held_out_of
from scalegan.data.index import Index, read_index
from scalegan.data.loader import Batch, batches
from scalegan.data.order import make_order
from scalegan.distributed import as_one, control_group, from_main, in_company, make_accelerator, settle_precision
from scalegan.errors import UserError
from scalegan.evaluation.features import Extractor, load_extractor, to_download
from scalegan.evaluation.names import METRICS, compared
from scalegan.evaluation.real import MOST_THUMBNAILS
from scalegan.evaluation.ssim import THUMBNAIL
from scalegan.evaluation.team import Team
from scalegan.probe import make_probe, steepness
from scalegan.statistics import Statistics
from scalegan.status import human_time
from scalegan.steps import Game
from scalegan.train import check_data
from scalegan.trainer import memory_mb

WARM_UP = 2
SECONDS = 3.0
"""How long the measured steps are to take, about."""
MOST_STEPS = 200


@dataclass
class Measured:
    """Seconds on this process, and bytes."""

    download: str = ""
    """Weights of the extractor that are not here, so that evaluation cannot be timed: to fetch them would leave a file."""
    start: float = 0.0
    """To the first batch."""
    steps: int = 0
    step: float = 0.0
    waited: float = 0.0
    """Of `step`, for data."""
    probe: float = 0.0
    """At each line of metrics, to find how steep the critic is and, where there are any, to score held-out images."""
    drawing: float = 0.0
    """To make one image."""
    features: float = 0.0
    """To extract the features of one image."""
    checkpoint: int = 0
    snapshot: int = 0
    grid: int = 0
    real: int = 0
    """What evaluation keeps of the real images; 0 where its weights are not here, which tell its size."""
    memory_mb: float = 0.0


def dry_run(config: Config) -> int:
    """Print what `config` would do, on as many processes as were started; returns the exit code. Raises `UserError`."""
    config.check(launcher.world_size())
    run.refuse_file(Path(config.run))
    config = settle_precision(config, run.recorded_precision(Path(config.run)))
    index = read_index(config.data.path, compare=config.data.fails)
    check_data(config, index)
    own.check(config)
    run.check(Path(config.run), config, index.sha256)
    origin = start.find(config, index)
    with in_company(), tempfile.TemporaryDirectory() as cache:  # shards that a few steps fetch or check are not kept
        accelerator = make_accelerator(config.train)
        here = replace(config, data=replace(config.data, cache=cache))
        game = Game(here, accelerator, start.facts_of(index))
        measured = measure(here, index, accelerator, game)
    if accelerator.is_main_process:
        print(run.config_text(config))
        if origin:
            print(start.described(origin, index), end="\n\n")
        show(report(config, index, accelerator, game, measured))
    accelerator.end_training()
    return 0


# --- measure


def measure(config: Config, index: Index, accelerator: Accelerator, game: Game) -> Measured:
    group, device = control_group(), accelerator.device
    place = accelerator.process_index, accelerator.num_processes
    measured = Measured(download=from_main(to_download(config.evaluation), group))
    extractor = None if measured.download else load_extractor(config.evaluation, device, Team(*place))
    game.prime()
    statistics = Statistics(device, every_step=False, limit=config.train.nonfinite_limit)
    began = time.perf_counter()
    with as_one(group):
        loader = batches(index, config, 0, *place, device)
    with closing(loader):
        reals = [next(loader) for _ in range(config.train.accumulate)]
        measured.start = time.perf_counter() - began
        images_seen = 0

        def take(steps: int) -> float:
            """Seconds of `steps` steps, all that the loop does in one."""
            nonlocal images_seen, reals
            synchronise(device)
            began = time.perf_counter()
            for _ in range(steps):
                critic = game.discriminator_step(reals, images_seen)
                generator = game.generator_step(reals, images_seen)
                images_seen += config.train.batch
                game.average(images_seen)
                statistics.add(critic, generator, images_seen, game.nonfinite)
                asked = time.perf_counter()
                reals = [next(loader) for _ in range(config.train.accumulate)]
                measured.waited += time.perf_counter() - asked
            synchronise(device)
            return time.perf_counter() - began

        take(WARM_UP - 1)
        measured.steps = from_main(enough_steps(config, take(1)), group)  # all processes take as many
        measured.waited = 0.0
        measured.step = take(measured.steps) / measured.steps
        measured.waited /= measured.steps
        measured.grid = grid_bytes(reals, min(config.log.grid, index.samples), config.log.grid)
    with as_one(group):
        probe = make_probe(index, game)
    synchronise(device)
    began = time.perf_counter()
    steepness(game, reals, 0)
    if probe is not None:
        probe.measure()
    measured.probe = time.perf_counter() - began
    measured.drawing, images = draw(config, index, game)
    measured.features = time_features(extractor, images) if extractor else 0.0
    measured.real = real_bytes(config, index, extractor.width) if extractor else 0
    measured.checkpoint = checkpoint_bytes(game)
    measured.snapshot = sum(t.nbytes for average in game.powers.values() for t in average.state_dict().values())
    measured.memory_mb = memory_mb(device)
    return measured


def enough_steps(config: Config, seconds: float) -> int:
    """Steps that take about `SECONDS`, if one takes `seconds`; whole rounds of what comes every so many."""
    loss, critic_steps = config.loss, config.optim.critic_steps
    turn = math.lcm(loss.penalty_every if loss.penalised else 1, critic_steps * (loss.path_every if loss.path_weight else 1))
    return math.ceil(min(SECONDS / seconds, MOST_STEPS) / turn) * turn


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw(config: Config, index: Index, game: Game) -> tuple[float, Tensor]:
    """Seconds to make one image for a grid or an evaluation, and some of them."""
    counts = index.class_counts if config.model.conditional else ()
    count = sampling.BLOCK
    for turn in range(2):  # the first warms up
        began = time.perf_counter()
        images = sampling.images_of(game.ema, config.model.z_dim, counts, config.train.seed, turn * count, count)
    return (time.perf_counter() - began) / count, images


def time_features(extractor: Extractor, images: Tensor) -> float:
    """Seconds to extract the features of one image."""
    batch = images.repeat(math.ceil(extractor.batch / len(images)), 1, 1, 1)[: extractor.batch]
    extractor(batch)
    synchronise(extractor.device)
    began = time.perf_counter()
    extractor(batch)
    synchronise(extractor.device)
    return (time.perf_counter() - began) / len(batch)


def real_bytes(config: Config, index: Index, width: int) -> int:
    """Of sums of `width` features and of their products, of all images and of one half, and of thumbnails."""
    shown = min(compared(config.evaluation.real, index.samples), MOST_THUMBNAILS)
    return 2 * (width + width**2) * np.dtype(np.float64).itemsize + shown * THUMBNAIL**2


def checkpoint_bytes(game: Game) -> int:
    parts: list[dict[str, Tensor]] = [
        net.state_dict() for net in (game.bare_generator, game.bare_critic, game.ema, *game.powers.values())
    ]
    parts += [checkpoint.optimizer_tensors(optimizer.optimizer) for optimizer in (game.opt_g, game.opt_d)]
    return sum(tensor.nbytes for part in parts for tensor in part.values())


def grid_bytes(reals: list[Batch], at_hand: int, count: int) -> int:
    """Of a sample grid, estimated by real images, as those of an untrained generator are too plain."""
    images = torch.cat([batch.images for batch in reals])[:at_hand].cpu().numpy()
    buffer = io.BytesIO()
    figures.grid(np.ascontiguousarray(images)).save(buffer, "png")
    return round(len(buffer.getvalue()) / len(images) * count)


# --- report


def report(config: Config, index: Index, accelerator: Accelerator, game: Game, measured: Measured) -> Iterator[tuple[str, str]]:
    """Rows of the summary: what, and what about it. Raises `UserError` where the run could not go on."""
    train, processes = config.train, accelerator.num_processes
    yield from networks(game)
    yield "data", data(config, index)
    newest = state.newest(Path(config.run))
    if isinstance(newest, UserError):
        raise newest
    done = checkpoint.number(Path(newest)) if newest else 0
    made = checkpoint.read(Path(newest)).state["done"] if newest else {}
    if done:
        yield "goes on", f"at {done:,} images, from {newest}"
    remaining = max(0, math.ceil((train.images - done) / train.batch))
    pace = train.batch / measured.step
    waits = f", of it {measured.waited / measured.step:.0%} for data" if measured.waited > 0.1 * measured.step else ""
    yield "start", f"{measured.start:.1f} s to the first batch"
    cores = torch.get_num_threads()
    threads = f", {cores} thread{'s' * (cores > 1)}" if accelerator.device.type == "cpu" else ""
    many = f"{processes} processes on " if processes > 1 else ""
    machine = f"{many}{accelerator.device.type}{threads}, {train.precision}"
    yield (
        "steps",
        (
            f"{measured.steps} of {train.batch} images in {measured.step * measured.steps:.1f} s: "
            f"{measured.step:.3g} s a step{waits}, {pace:,.0f} images/s ({machine})"
        ),
    )
    looks = times(config.log.every, train.images - done, train.batch, done) if remaining else 0
    training = remaining * measured.step + looks * measured.probe
    given_up = made.get("evaluation") != done  # by a run that is at its end and makes nothing else
    evaluations = times(config.evaluation.every, train.images - done, train.batch, done) if remaining else int(given_up)
    evaluating = evaluation_seconds(config, index, evaluations, measured) / processes if evaluations else 0.0
    untimed = f" without their features (the start of the run downloads {measured.download})" if measured.download else ""
    yield (
        "time",
        (
            f"{human_time(measured.start + training + evaluating)}: {human_time(training)} for {remaining:,} steps, "
            f"{human_time(evaluating)} for {evaluations} evaluation{'s' * (evaluations != 1)}{untimed}"
        ),
    )
    device = "GPU" if accelerator.device.type == "cuda" else "main memory, without loader workers"
    yield "memory", f"{measured.memory_mb:,.0f} MB a process ({device})"
    yield "leaves", outputs(config, measured)


def networks(game: Game) -> Iterator[tuple[str, str]]:
    critic: nn.Module = game.bare_critic.discriminator  # type: ignore[assignment]
    for name, net in (("generator", game.bare_generator), ("critic", critic)):
        parts = [f"{part} {count(module):,}" for part, module in net.named_children() if count(module)]
        yield name, f"{count(net):,} parameters: {', '.join(parts)}"


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def data(config: Config, index: Index) -> str:
    shards, classes = len(index.shards), len(index.classes)
    size = sum(shard.bytes for shard in index.shards)
    named = f" of {classes} class{'es' * (classes != 1)}" if classes else ""
    colours = "grey" if index.channels == 1 else "RGB"
    epochs = config.train.images / make_order(config.data, index, config.train.seed).epoch
    return (
        f"{index.samples:,} images{named}, {index.height}x{index.width} {colours}, in {shards} shard{'s' * (shards != 1)} "
        f"({human_bytes(size)}); {epochs:,.1f} epochs in {config.train.images:,} images"
    )


def evaluation_seconds(config: Config, index: Index, evaluations: int, measured: Measured) -> float:
    """On one process; the real images are looked at once, or each time where a metric needs their features at hand."""
    real = compared(config.evaluation.real, index.samples)
    if any(METRICS[name].features for name in config.evaluation.wanted):
        real *= evaluations
    folder = held_out_of(config.data.held_out, index)
    if folder and any(METRICS[name].held_out for name in config.evaluation.wanted):
        real += evaluations * read_index(folder, compare=config.data.fails).samples
    return real * measured.features + evaluations * config.evaluation.samples * (measured.drawing + measured.features)


def times(every: int, images: int, batch: int, done: int = 0) -> int:
    """How often something that comes every so many images is made in the rest of a run: when crossed, and in the last pass."""
    steps = math.ceil(images / batch)
    if every == 0:
        return 1
    if every <= batch:
        return steps
    before_the_end = done + (steps - 1) * batch
    return before_the_end // every - done // every + 1


def outputs(config: Config, measured: Measured) -> str:
    train, log = config.train, config.log
    grids = times(log.samples, train.images, train.batch)
    snapshots = times(log.snapshots, train.images, train.batch) if config.ema.power else 0
    averages = f"{snapshots} snapshots of {human_bytes(measured.snapshot)}, " if snapshots else ""
    kept = min(times(log.checkpoint, train.images, train.batch), log.keep)
    folder = Path(config.run)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    checkpoints = (kept + 2) * measured.checkpoint  # a new one is written before an old one goes
    size = checkpoints + grids * measured.grid + snapshots * measured.snapshot + measured.real
    real = f"statistics of the real images, {human_bytes(measured.real)}, " if measured.real else ""
    room = f"{human_bytes(size)} of {human_bytes(free)} free there{'; TOO LITTLE' if free < size else ''}"
    return (
        f"{grids} sample grids of about {human_bytes(measured.grid)}, {averages}the newest {kept} checkpoints and the best, "
        f"{human_bytes(measured.checkpoint)} each, {real}in {folder}; at most {room}, "
        f"beside figures and lines of metrics{'' if real else ' and the statistics of the real images'}"
    )


def human_bytes(size: float) -> str:
    power = max((i for i in range(5) if size >= 1000**i), default=0)
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def show(rows: Iterator[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    Console(file=sys.stdout, markup=False, highlight=False).print(table)
