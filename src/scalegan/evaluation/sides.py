"""The two sides of a comparison, as they are given on the command line: runs, folders of images, shards, statistics."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalegan import checkpoint, settings
from scalegan.checkpoint import Checkpoint
from scalegan.config import Config, DataConfig
from scalegan.data.held_out import NONE
from scalegan.data.index import INDEX_NAME, Index, is_remote, read_index
from scalegan.data.order import COMPARED, MIXED, draw, permute
from scalegan.errors import UserError, sought
from scalegan.evaluation import folder, statistics_file
from scalegan.evaluation.evaluator import LabelFn, evaluate, labels_of
from scalegan.evaluation.features import Extractor, load_extractor
from scalegan.evaluation.folder import ImageFolder, open_images
from scalegan.evaluation.names import METRICS
from scalegan.evaluation.path_length import LatentPaths
from scalegan.evaluation.real import Progress
from scalegan.evaluation.statistics_file import Statistics
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.run import IDENTITY
from scalegan.sampling import LoadedGenerator, Passes, find_checkpoint

Kind = Literal["run", "folder", "shards", "statistics"]
EMA_FILE = "ema.safetensors"
"""Of a checkpoint: what `load_generator` reads."""
OF_A_RUN = ("images_seen", "seed", "ema")
"""Facts of a record that images which no run has made do not have."""


def kind_of(given: str) -> Kind:
    """What a path is, by what lies there. Raises `UserError`."""
    if is_remote(given):
        return "shards"
    path = Path(given)
    if path.suffix in (".pkl", ".pickle"):
        raise UserError(f"{path} is a pickle, which runs code when it is read: make an .npz of it, see docs/evaluation.md")
    if path.suffix == ".npz":
        return "statistics"
    if not path.is_dir():
        problem = f"{path} is no folder" if path.exists() else f"{sought(path)} does not exist"
        raise UserError(f"{problem}: give a run or checkpoint, a folder of images, shards, or statistics (.npz)")
    if (path / INDEX_NAME).is_file():
        return "shards"
    if (path / checkpoint.MANIFEST).is_file() or (path / IDENTITY).is_file() or checkpoint.checkpoints(path).is_dir():
        return "run"
    return "folder"


@dataclass(frozen=True)
class Made:
    """The generated side."""

    sample: Callable[[int, int], Tensor]
    """(first, count) -> uint8 [count, C, H, W] on the CPU."""
    shape: tuple[int, int, int]
    """(channels, height, width)"""
    facts: dict[str, Any]
    """Of the record: where the images come from."""
    labels: LabelFn | None = None
    """(first, count) -> int64 [count], of a generator that is told the class and of labelled shards."""
    classes: tuple[str, ...] = ()
    """Names in the order of those labels."""
    paths: LatentPaths | None = None
    """Steps in the latents, of a generator."""
    numbers: NDArray[np.int64] | None = None
    """Of images that lie in a folder or in shards: which one of them each is."""


def made_by(loaded: LoadedGenerator, seed: int, found: Checkpoint) -> Made:
    """The images of the generator in the checkpoint `found`, which may be of an average that was made after the training.

    Raises `UserError` where its weights are no numbers.
    """
    if not all(bool(t.isfinite().all()) for t in loaded.network.state_dict().values()):
        raise UserError(f"{loaded.path} has NaN or infinite weights, as its training diverged: take an earlier --checkpoint")
    facts = {"images_seen": loaded.images_seen, "seed": seed, "ema": True, "checkpoint": str(loaded.path)}
    # A sha256, but not by that ending: what ends so is the same for all checkpoints of a curve, see `report.comparison`.
    facts["generator_weights"] = found.files[EMA_FILE]
    if "ema_std" in found.state:
        facts["ema_std"] = found.state["ema_std"]
    model, told = loaded.config.model, loaded.config.model.conditional
    return Made(
        Passes(lambda first, count: loaded.sample_range(first, count, seed)),
        loaded.shape,
        facts,
        (lambda first, count: loaded.labels_of(first, count, seed)) if told else None,
        loaded.classes if told else (),
        LatentPaths(loaded.network, model.z_dim, loaded.class_counts if told else (), seed),
    )


def found_in(index: Index, wanted: int, stack: ExitStack) -> Made:
    """Images that lie in a folder or in shards: `wanted` of them, a fixed random choice in a fixed random order, read as long
    as `stack` is open.

    Some figures are of the first images alone, or of groups by number. In the order of their names these would be of one class.
    """
    if index.samples < 2:
        raise UserError(f"{index.root} holds {index.samples} image, and a Frechet distance needs 2: give more")
    if wanted > index.samples:
        raise UserError(f"--samples {wanted} is more than the {index.samples} images of {index.root}: leave it out to take all")
    chosen = np.sort(permute(np.arange(wanted), index.samples, index.samples, draw(0, COMPARED)))
    # Not the order of that choice, which is also how real images get their halves: files of equal names would go together.
    chosen = chosen[permute(np.arange(wanted), wanted, wanted, draw(0, MIXED))]
    reader = open_images(index, DataConfig(path=index.root), torch.device("cpu"))
    stack.callback(reader.close)
    facts = {"images": index.root, "images_sha256": index.sha256}
    shape = index.channels, index.height, index.width
    return Made(
        lambda first, count: reader.read(chosen[first : first + count]).images,
        shape,
        facts,
        (lambda first, count: labels_of(index, chosen[first : first + count])) if index.labelled else None,
        index.classes,
        numbers=chosen,
    )


def images_of(given: str, kind: Kind, window: str, team: Team, option: str = "--against ") -> Index:
    """The images of shards or of a folder, which process 0 looks at for all; those of a run are its data.

    `option` goes before what the command takes in place of the run; empty where that stands alone.
    """
    if kind == "run":
        return trained_on(find_checkpoint(Path(given)), option)
    if kind == "shards":
        return read_index(given)
    facts: dict[str, Any] = {}
    with team.as_one():
        if team.first:
            facts = folder.to_json(folder.read_folder(Path(given), window))
    return folder.from_json(team.from_first(facts))


def kind_of_held_out(given: str) -> Kind | None:
    """What `--held-out` names; None where that is nothing. Raises `UserError`."""
    if given in ("", NONE):
        return None
    kind = kind_of(given) if is_remote(given) or Path(given).is_dir() else None
    if kind not in ("folder", "shards"):
        raise UserError(f"--held-out {given} is no folder of images or shards: give one that is, or {NONE}")
    return kind


def held_out_given(given: str, window: str, against: Index | Statistics, team: Team) -> Index | None:
    """The images that `--held-out` names. Raises `UserError`."""
    kind = kind_of_held_out(given)
    return in_colour(images_of(given, kind, window, team), against) if kind else None


def trained_on(found: Checkpoint, option: str = "--against ") -> Index:
    """The index of the data of a training, as they were then."""
    trained, compare = found.state["data"], settings.config_of(found).data.fails
    try:
        index = read_index(trained["path"], compare=compare)
    except UserError as error:
        raise UserError(f"the data of the training: {error}; or give {option}FOLDER of other images") from None
    if index.sha256 != trained["sha256"]:
        raise UserError(f"{index.root} has changed since the training: give {option}{index.root} to take it as it is")
    return index


def config_of(run: str) -> Config:
    """How a run itself reads its data and evaluates."""
    return settings.config_of(find_checkpoint(Path(run)))


def reference(given: str, window: str, team: Team) -> Index | Statistics:
    """What `--against` names. Raises `UserError`."""
    kind = kind_of(given)
    return statistics_file.read(Path(given)) if kind == "statistics" else images_of(given, kind, window, team)


def in_colour(index: Index, beside: Index | Statistics) -> Index:
    """Grey images become red, green and blue, all equal, where they are compared with colour ones."""
    grey = isinstance(index, ImageFolder) and isinstance(beside, Index) and index.channels < beside.channels
    return replace(index, channels=3) if grey else index


def comparable_labels(made: Made, against: Index, config: EvaluationConfig) -> LabelFn | None:
    """The labels of the generated images, where each means the class that it means in `against`; else None.

    Raises `UserError` where both sides are labelled, a metric goes by class, and a label is not the same class in both.
    """
    if made.classes == against.classes:
        return made.labels
    by_class = [name for name in config.wanted if METRICS[name].classes]
    if not (by_class and made.classes and against.classes):
        return None
    alone = sorted(set(made.classes) ^ set(against.classes))
    problem = f"class {alone[0]} is in one of them alone" if alone else "they are in another order"
    raise UserError(
        f"metric {by_class[0]} needs generated images with the classes of {against.root}, and {problem}: label both alike, or "
        f"take {by_class[0]} out of evaluation.metrics"
    )


@dataclass(frozen=True)
class Comparison:
    """What all checkpoints of a run are compared with, and how."""

    against: Index | Statistics
    config: EvaluationConfig
    extractor: Extractor | None
    """A user's own; else the one that `config` names."""
    team: Team
    device: torch.device
    cache: Path
    data: DataConfig
    """How images are read, and which ones are held out."""
    held_out: Index | None
    """In place of those that `data` names."""
    pictures: Path | None
    """Folder for the pairs of samples and training images that are nearest to each other, or the .png file itself."""

    def measure(self, made: Made, progress: Progress) -> dict[str, Any]:
        """The record; on all processes. Raises `UserError`."""
        against = self.against
        if isinstance(against, Statistics):
            extractor = self.extractor or load_extractor(self.config, self.device, self.team)
            record = statistics_file.compare(made.sample, against, self.config, extractor, self.team, progress)
            return record | made.facts | {"against": against.path}
        shape = against.channels, against.height, against.width
        if made.shape != shape:
            own, held = ("x".join(map(str, s)) for s in (made.shape, shape))
            who = "the generator makes" if "checkpoint" in made.facts else f"{made.facts['images']} holds"
            channels, height, width = made.shape
            words = ["scalegan", "shards", against.root, "DIR"]
            words += ["--size", f"{height}x{width}"] if (height, width) != shape[1:] else []
            words += ["--channels", f"{channels}"] if channels != shape[0] else []
            alike = f"`{shlex.join(words)}`"
            raise UserError(f"{who} {own} images and {against.root} holds {held}: give --against the DIR that {alike} writes")
        labels = comparable_labels(made, against, self.config)
        record = evaluate(
            made.sample,
            against,
            self.config,
            seed=made.facts.get("seed", 0),
            images_seen=made.facts.get("images_seen", 0),
            ema=made.facts.get("ema", False),
            rank=self.team.rank,
            processes=self.team.processes,
            device=self.device,
            cache=self.cache,
            data=replace(self.data, path=against.root),
            held_out=self.held_out,
            extractor=self.extractor,
            labels=labels,
            paths=made.paths,
            facts=made.facts | {"against": against.root},
            pictures=self.pictures,
            progress=progress,
        )
        if made.numbers is not None:
            for pair in record.get("closest", ()):
                pair["generated"] = int(made.numbers[pair["generated"]])
        return {name: value for name, value in record.items() if name in made.facts or name not in OF_A_RUN}
