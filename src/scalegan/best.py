"""The best checkpoint of a run so far: by one figure of its evaluations, `evaluation.best`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalegan import checkpoint
from scalegan.evaluation.names import FIGURES, facts_compared
from scalegan.evaluation_config import EvaluationConfig
from scalegan.tracking import read_lines

Best = dict[str, Any]
"""`metric` (the figure's name in records), its `value`, `images_seen` and what was compared; empty before the first
evaluation."""


def better(config: EvaluationConfig, record: Mapping[str, Any], before: Best) -> Best:
    """The best with one more evaluation: `before` itself unless that one is better, or of another comparison. Of equal ones the
    earlier counts."""
    name = config.judged_by
    value, facts = record[name], facts_compared(record)
    alike = all(before.get(fact, found) == found for fact, found in facts.items())  # older checkpoints have none
    if before and alike and (value <= before["value"] if FIGURES[config.best].higher else value >= before["value"]):
        return before
    return {"metric": name, "value": value, "images_seen": record["images_seen"]} | facts


def saved(config: EvaluationConfig, found: Best, run_dir: Path, images_seen: int) -> Best:
    """The best that has a checkpoint, where that of `images_seen` is the newest or about to be: the one `found`, unless its
    own could not be written or another figure counts from now on.

    Then it is that of the evaluations so far which have the figure and whose checkpoint is still there; empty for none.
    """
    there = {checkpoint.number(path) for path in checkpoint.folders(run_dir)}
    if not found or (found["metric"] == config.judged_by and found["images_seen"] in there | {images_seen}):
        return found
    best: Best = {}
    for record in read_lines(run_dir / "evaluations.jsonl"):
        if record["images_seen"] <= images_seen and record["images_seen"] in there and config.judged_by in record:
            best = better(config, record, best)
    return best
