"""`scalegan plot RUN`: the curves of a run, its grids at a few epochs, and a film of its training, in RUN/figures.

Works on a run that is still running, or has not been evaluated yet: what there is nothing to draw from is left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scalegan.axes import figure, limit, marker
from scalegan.config import DataConfig
from scalegan.data.index import Index, read_index
from scalegan.data.stream import StreamReader
from scalegan.errors import UserError
from scalegan.evaluation.names import facts_compared
from scalegan.figures import captioned, fit, grid, save_gif, save_picture, side_by_side, tiles
from scalegan.panels import kimg_of, panels
from scalegan.run import CONFIG, record
from scalegan.settings import read_fields
from scalegan.tracking import read_lines

Lines = list[dict[str, Any]]

BLUE, ORANGE, GREY = "#2f6db3", "#e07b28", "#8a8a8a"
IN_NATS = ("non_saturating", "minimax", "relativistic")
"""Losses that are logarithms of probabilities."""
MOST_FRAMES = 60
"""Frames of a film: with the pause between them, 12 seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")


def run(args: argparse.Namespace) -> int:
    if not args.run.is_dir():
        raise UserError(f"no run folder {args.run}: give the folder that --run named in training")
    made = plot_run(args.run)
    if not made:
        raise UserError(f"nothing to plot in {args.run}: it has no line of metrics and no samples yet, train first")
    for path in made:
        print(path)
    return 0


def plot_run(run_dir: Path) -> list[Path]:
    """Draw all that a run has data for; returns the files that were written, none for a run that has only begun."""
    history = read_history(run_dir)
    drawn = [draw_losses(history), draw_accuracy(history), draw_quality(history), draw_schedule(history)]
    drawn += [draw_epochs(history), draw_nearest(history), draw_random(history), draw_film(history)]
    return [path for path in drawn if path]


@dataclass(frozen=True)
class History:
    """What a run has written so far."""

    run_dir: Path
    metrics: Lines
    evaluations: Lines
    likeness: Lines
    samples: list[tuple[int, Path]]
    """(images seen, sample grid), oldest first."""
    data: Index | None
    """None where the data is not at hand: moved, changed, or on another machine; the plots then count in kimg alone."""
    cache: dict[str, Any]
    """Where the run keeps shards that lie far away, as fields of `DataConfig`."""
    loss: str
    """Its name; empty for the user's own."""
    evaluation: dict[str, Any]
    """The section of the configuration."""

    @property
    def epoch(self) -> int | None:
        """Images of one epoch."""
        return self.data.samples if self.data else None

    def caption(self, images_seen: int) -> str:
        kimg = kimg_of(images_seen)
        if self.epoch is None:
            return kimg
        epochs = images_seen / self.epoch
        return f"epoch {epochs:.0f}, {kimg}" if epochs >= 10 or epochs.is_integer() else f"epoch {epochs:.1f}, {kimg}"


def read_history(run_dir: Path) -> History:
    path = run_dir / CONFIG
    config = read_fields(path) if path.exists() else {}
    loss, data = config.get("loss", {}), config.get("data", {})
    named = (path for path in run_dir.glob("samples/*.png") if path.stem.isdigit())
    # Not the images that `scalegan sample --out RUN/samples` puts beside the grids, whose names are shorter.
    grids = (path for path in named if path.stem == f"{int(path.stem):09d}" and _is_picture(path))
    return History(
        run_dir,
        read_lines(run_dir / "metrics.jsonl"),
        read_lines(run_dir / "evaluations.jsonl"),
        read_lines(run_dir / "samples.jsonl"),
        sorted((int(path.stem), path) for path in grids),
        _index(run_dir, data.get("path", "")),
        {name: data[name] for name in ("cache", "cache_gb") if name in data},
        "" if loss.get("own") else loss.get("name", ""),
        config.get("evaluation", {}),
    )


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.verify()
    except Image.DecompressionBombError:
        print(f"scalegan: {path} has too many pixels to be drawn from: it is left out", file=sys.stderr)
        return False
    except (OSError, SyntaxError):  # the latter is PIL's word for a wrong checksum
        print(f"scalegan: {path} is no picture: it is left out", file=sys.stderr)
        return False
    return True


def _index(run_dir: Path, data: str) -> Index | None:
    """Of the data that the run was trained on."""
    try:
        index = read_index(data) if data else None
    except UserError as error:
        print(f"scalegan: no epochs and no nearest training images: {error}", file=sys.stderr)
        return None
    trained_on = record(run_dir).get("data")
    if index and trained_on and index.sha256 != trained_on:
        print(f"scalegan: {data} has changed since the training: no epochs and no nearest training images", file=sys.stderr)
        return None
    return index


def series(lines: Lines, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(kimg, value) where the key was written; null, which stands for NaN, is a gap."""
    rows = [(line["images_seen"] / 1000, line[key]) for line in lines if key in line]
    values = [math.nan if value is None else float(value) for _, value in rows]
    return np.array([kimg for kimg, _ in rows]), np.array(values)


def draw_losses(history: History) -> Path | None:
    if not history.metrics:
        return None
    steps = _read_steps(history.run_dir / "losses.csv")
    with figure(history.run_dir, "losses.png", history.epoch) as axes_of:
        [axes] = axes_of(1)
        seen = []
        for column, (name, key, colour) in enumerate((("D", "loss/D", BLUE), ("G", "loss/G", ORANGE)), 1):
            kimg, values = series(history.metrics, key)
            seen.append(values)
            if len(steps):
                axes.plot(steps[:, 0] / 1000, steps[:, column], color=colour, alpha=0.35, linewidth=0.6)
                seen.append(steps[:, column])
            axes.plot(kimg, values, color=colour, label=name, marker=marker(kimg))
        if history.loss == "non_saturating":
            for height, colour, text in ((2 * math.log(2), BLUE, "D"), (math.log(2), ORANGE, "G")):
                label = f"{text} while D only guesses"
                axes.axhline(height, color=colour, linestyle=(0, (2, 3)), linewidth=1, label=label)
        limit(axes, seen)
        unit = " (nats)" if history.loss in IN_NATS else ""
        axes.set(title="Losses" + (" (every step, and its mean per tick)" if len(steps) else ""), ylabel=f"loss{unit}")
        axes.legend(ncols=2)
    return history.run_dir / "figures" / "losses.png"


def draw_accuracy(history: History) -> Path | None:
    if not any("accuracy/real" in line for line in history.metrics):
        return None
    with figure(history.run_dir, "accuracy.png", history.epoch) as axes_of:
        [axes] = axes_of(1)
        for name, colour, style in (("real", BLUE, "-"), ("fake", ORANGE, "-"), ("held_out", BLUE, ":")):
            kimg, values = series(history.metrics, f"accuracy/{name}")
            if len(kimg):
                label = f"{name.replace('_', '-')} images"
                axes.plot(kimg, 100 * values, color=colour, linestyle=style, label=label, marker=marker(kimg))
        axes.axhline(50, color=GREY, linestyle="--", linewidth=1, label="guessing")
        axes.set(title="Accuracy of the discriminator", ylabel="judged right (%)", ylim=(0, 102))
        axes.legend(ncols=4)
    return history.run_dir / "figures" / "accuracy.png"


def draw_quality(history: History) -> Path | None:
    """Each measure beside what it has to be compared with."""
    lines = history.evaluations
    drawn = panels(lines, history.evaluation)
    if not drawn:
        return None
    alike = [line for line in lines if facts_compared(line) == facts_compared(lines[-1])]
    with figure(history.run_dir, "quality.png", history.epoch) as axes_of:
        for axes, panel in zip(axes_of(len(drawn)), drawn, strict=True):
            kimg, values = series(lines, panel.name)
            axes.plot(kimg, values, color=BLUE, marker="o", markersize=4, label=panel.name)
            if panel.control:
                beside = series(lines, panel.control)
                axes.plot(*beside, color=GREY, linestyle="--", linewidth=1.2, label=panel.words, marker=marker(kimg))
            axes.set(title=panel.title(*series(alike, panel.name)), ylabel=panel.name)
            axes.legend()
            if panel.from_zero:
                axes.set_ylim(bottom=0)
    return history.run_dir / "figures" / "quality.png"


def draw_schedule(history: History) -> Path | None:
    if not any("lr/G" in line for line in history.metrics):
        return None
    with figure(history.run_dir, "schedule.png", history.epoch) as axes_of:
        rates, half_life = axes_of(2)
        rates.plot(*series(history.metrics, "lr/D"), color=BLUE, label="D", linewidth=3)
        rates.plot(*series(history.metrics, "lr/G"), color=ORANGE, label="G")
        rates.set(title="Learning rate", ylabel="learning rate")
        rates.yaxis.set_major_formatter("{x:g}")
        rates.legend()
        kimg, values = series(history.metrics, "ema/half_life")
        half_life.plot(kimg, values / 1000, color=BLUE)
        half_life.set(title="Half-life of the averaged generator", ylabel="half-life (kimg)")
        for axes in (rates, half_life):
            axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    return history.run_dir / "figures" / "schedule.png"


def draw_epochs(history: History, count: int = 5) -> Path | None:
    """The first grid and those at the quarters of the way so far, side by side: of 100 epochs 5, 25, 50, 75 and 100."""
    if len(history.samples) < 2:
        return None
    chosen = nearest([seen for seen, _ in history.samples], count)
    panels = []
    for i in chosen:
        seen, path = history.samples[i]
        with Image.open(path) as picture:
            panels.append(captioned(fit(picture, 240, 480), history.caption(seen)))
    path = history.run_dir / "figures" / "epochs.png"
    save_picture(path, side_by_side(panels))
    return path


def draw_nearest(history: History, count: int = 8) -> Path | None:
    """The samples of the last grid that lie nearest to training images, above these: the eye tells a copy from a likeness."""
    return draw_pairs(history, "nearest.png", lambda distances: np.argsort(distances, kind="stable")[:count])


def draw_random(history: History, count: int = 16) -> Path | None:
    """The first samples of the last grid, which are as good as any, above the training images nearest to them."""
    return draw_pairs(history, "random.png", lambda distances: np.arange(min(count, len(distances))))


def draw_pairs(history: History, name: str, choose: Callable[[list[float]], NDArray[np.int64]]) -> Path | None:
    """Samples of the last grid, chosen by their distances [n] to training images, above the nearest ones."""
    paths, index = dict(history.samples), history.data
    lines = [line for line in history.likeness if line["images_seen"] in paths]
    if not lines or index is None:
        return None
    last = lines[-1]
    chosen = choose(last["nearest_distances"])
    with Image.open(paths[last["images_seen"]]) as picture:
        samples = tiles(picture, index.height, index.width)[chosen]
    try:
        with closing(StreamReader(index, DataConfig(path=index.root, **history.cache))) as reader:
            real = reader.load(np.array(last["nearest_images"])[chosen]).images.transpose(0, 3, 1, 2)
    except UserError as error:
        print(f"scalegan: no {name} of nearest training images: {error}", file=sys.stderr)
        return None
    pairs = fit(grid(np.concatenate([samples, real]), len(chosen)), 480, 960)
    path = history.run_dir / "figures" / name
    save_picture(path, captioned(pairs, f"{history.caption(last['images_seen'])}: nearest training images below"))
    return path


def nearest(positions: Sequence[int], count: int) -> list[int]:
    """Places in ascending `positions` that lie nearest to equal shares of the last one, the first one in any case."""
    last = positions[-1]
    wanted = [positions[0]] + [last * part / (count - 1) for part in range(1, count)]
    return sorted({min(range(len(positions)), key=lambda i: abs(positions[i] - want)) for want in wanted})


def draw_film(history: History) -> Path | None:
    """RUN/figures/training.gif from the sample grids; None when there are fewer than two."""
    samples = history.samples
    if len(samples) > MOST_FRAMES:
        samples = [samples[round(i * (len(samples) - 1) / (MOST_FRAMES - 1))] for i in range(MOST_FRAMES)]
    frames = []
    for seen, path in samples:
        with Image.open(path) as picture:
            frames.append(captioned(fit(picture, 320, 560), history.caption(seen)))
    frames = [frame for frame in frames if frame.size == frames[-1].size]  # the grid may have been changed on the way
    if len(frames) < 2:
        if frames:
            print("scalegan: no film: it takes two grids of one size (log.samples: images between them)", file=sys.stderr)
        return None
    path = history.run_dir / "figures" / "training.gif"
    save_gif(path, frames)
    return path


def _read_steps(path: Path) -> NDArray[np.float64]:
    """losses.csv as [steps, 3]; a last line that is still being written is left out."""
    if not path.exists():
        return np.zeros((0, 3))
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()[1:]
    return np.array([line.split(",") for line in whole], np.float64).reshape(-1, 3)
