"""The held-out side of an evaluation: images that were never trained on, where a metric looks at some."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from scalegan.config import DataConfig
from scalegan.data.held_out import check_apart, held_out_of
from scalegan.data.index import Index, read_index
from scalegan.errors import UserError
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.folder import open_images
from scalegan.evaluation.names import CELL_MINIMUM, METRICS
from scalegan.evaluation.real import Progress
from scalegan.evaluation.suite import Suite
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig


def held_out_images(config: EvaluationConfig, index: Index, data: DataConfig, given: Index | None) -> Index | None:
    """The images `given`, else those of `data`, where there are any and a metric looks at them.

    Raises `UserError` for those it cannot use.
    """
    if not any(METRICS[name].held_out for name in config.wanted):
        return None
    held_out = given or beside(index, data)
    if held_out is None:
        return None
    ours, theirs = ((i.channels, i.height, i.width) for i in (index, held_out))
    if ours != theirs:
        raise UserError(f"held-out images {held_out.root} are of {theirs} and {index.root} of {ours}: give the same size")
    check_apart(held_out, index)
    if "memorisation" in config.wanted and held_out.samples < CELL_MINIMUM:
        raise UserError(f"metric memorisation needs {CELL_MINIMUM} held-out images; {held_out.root} holds {held_out.samples}")
    if "memorisation" not in config.wanted and held_out.classes != index.classes:
        return None  # accuracy has no use for images of other classes, or of none
    return held_out


def beside(index: Index, data: DataConfig) -> Index | None:
    folder = held_out_of(data.held_out, index)
    if not folder:
        return None
    try:
        return read_index(folder, compare=data.fails)
    except UserError as error:
        raise UserError(f"held-out images: {error}; or do without, --held-out none") from None


def add_held_out(
    suite: Suite, held_out: Index, data: DataConfig, extractor: Extractor, batch: int, team: Team, progress: Progress
) -> None:
    """The features of the held-out images, and their labels where they are of the classes that are compared."""
    reader = open_images(held_out, replace(data, path=held_out.root), extractor.device)
    with closing(reader), team.as_one():
        for first, count in team.blocks(held_out.samples, batch):
            progress("held-out images", first, held_out.samples)
            read = reader.read(np.arange(first, first + count))
            labels = read.labels.cpu().numpy() if held_out.classes == suite.classes else None
            suite.add("held_out", extractor(read.images), first, labels)
