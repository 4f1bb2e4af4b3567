"""The best checkpoint of a run so far: by one figure of its evaluations, `evaluation.best`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalegan import checkpoint
from scalegan.evaluation.names import FIGURES
from scalegan.evaluation_config import EvaluationConfig
from scalegan.tracking import read_lines

Best = dict[str, Any]
"""`metric` (the figure's name in records), its `value` and `images_seen`; empty before the first evaluation."""


def better(config: EvaluationConfig, record: Mapping[str, Any], before: Best) -> Best:
    """The best with one more evaluation: `before` itself unless that one is better. Of equal ones the earlier counts."""
    name = config.judged_by
    value = record[name]
    if before and (value <= before["value"] if FIGURES[config.best].higher else value >= before["value"]):
        return before
    return {"metric": name, "value": value, "images_seen": record["images_seen"]}


def taken_up(config: EvaluationConfig, kept: Best, run_dir: Path, images_seen: int) -> Best:
    """The best of a run that goes on at `images_seen`: the one it `kept`, unless another figure counts from now on.

    Then it is that of the evaluations so far which have the figure and whose checkpoint is still there; empty for none.
    """
    if not kept or kept["metric"] == config.judged_by:
        return kept
    there = {checkpoint.number(path) for path in checkpoint.folders(run_dir)}
    best: Best = {}
    for record in read_lines(run_dir / "evaluations.jsonl"):
        if record["images_seen"] <= images_seen and record["images_seen"] in there and config.judged_by in record:
            best = better(config, record, best)
    return best
