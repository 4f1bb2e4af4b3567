"""What `scalegan evaluate` leaves and prints: a JSON record of each evaluation, and a table of values beside their controls."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from scalegan.evaluation.names import FIGURES, key_in
from scalegan.evaluation.table import rows
from scalegan.files import write_atomically

WIDTH = 30
"""Of the longest bar of a curve."""


def write(records: list[dict[str, Any]], run_dir: Path | None, copy: Path | None) -> list[str]:
    """The newest record into the folder of its run; it alone, or a list of all, into `copy`. Returns what went wrong."""
    record, problems = records[-1], []
    targets = [(record_path(record, run_dir), record)] if run_dir else []
    if copy:
        targets.append((copy, record if len(records) == 1 else records))  # type: ignore[arg-type]
    for path, content in targets:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            problems.append(f"record {path} could not be written ({error.strerror or error})")
    return problems


def record_path(record: dict[str, Any], run_dir: Path) -> Path:
    """Another comparison is another file and a repeat is the same."""
    return run_dir / "evaluations" / f"{name_of(record)}.json"


def name_of(record: dict[str, Any]) -> str:
    """Of the files of one evaluation of a run."""
    return f"{record['images_seen']:09d}-{comparison(record)}"


def comparison(record: dict[str, Any]) -> str:
    """A name for what was compared and how: the same for all checkpoints of a run, which can be held against each other."""
    metric = key_in(record, "fid")
    resize = record["resize"].partition(":")[0] if record["extractor"] == "inception" else "tf1"
    way = metric if resize == "tf1" else f"{metric}-{resize}"
    name = f"{way}-{record['generated']}-{record['real'] or 'unknown'}-seed{record['seed']}"
    name += f"-std{record['ema_std']:g}" if "ema_std" in record else ""
    return f"{name}-{comparison_sha256(record)[:8]}"


def comparison_sha256(record: dict[str, Any]) -> str:
    """Of which figures there are, and of what was compared by what."""
    facts = {name: value for name, value in record.items() if name.endswith("sha256")}
    return hashlib.sha256(json.dumps([sorted(record), facts], sort_keys=True).encode()).hexdigest()


def show(records: list[dict[str, Any]], run_dir: Path | None, best: str) -> None:
    """`best` is the figure that tells the best checkpoint, by its name in `names.FIGURES`."""
    console = Console()
    record = records[-1]
    if record.get("monitor"):
        console.print("monitor mode: features in bfloat16, not the published figures", soft_wrap=True)
    if len(records) > 1:
        console.print(curve(records, best))
    else:
        console.print(origin(record), soft_wrap=True, markup=False)
        console.print(values(record))
    count = record["real"] or "an unknown number of"
    line = f"{record['generated']} generated, {count} real images of {record['against']}; {record['resize']}; "
    line += f"{sum(r['seconds'] for r in records):.0f} s"
    if run_dir:
        line += f"; record{'s' * (len(records) > 1)}: "
        line += str(record_path(record, run_dir) if len(records) == 1 else run_dir / "evaluations")
    console.print(line, soft_wrap=True, markup=False)
    if "note" in record:
        console.print(f"note: {record['note']}", soft_wrap=True, markup=False)


def origin(record: dict[str, Any]) -> str:
    if "checkpoint" in record:
        return f"{record['checkpoint']} ({record['images_seen']} images seen, seed {record['seed']}, EMA)"
    return str(record["images"])


def values(record: dict[str, Any]) -> Table:
    table = Table("measure", Column("value", justify="right"), Column("beside", justify="right"), "which is that of")
    metric = key_in(record, "fid")
    table.add_row(metric, f"{record[metric]:.2f}", "", "")
    for row in rows(record):
        table.add_row(*row)
    return table


def curve(records: list[dict[str, Any]], best: str) -> Table:
    """The checkpoints of a run, the oldest first: their distance with a bar, and a mark at the best by the figure `best`."""
    metric, figure = (key_in(records[0], name) for name in ("fid", best))
    if figure not in records[0]:  # as where statistics alone are compared with
        best, figure = "fid", metric
    distances, values = ([record[name] for record in records] for name in (metric, figure))
    word, chosen = ("highest", max(values)) if FIGURES[best].higher else ("lowest", min(values))
    table = Table(Column("images seen", justify="right"), Column(metric, justify="right"), "")
    if figure != metric:
        table.add_column(figure, justify="right")
    table.add_column("")
    for record, distance, value in zip(records, distances, values, strict=True):
        bar = "█" * max(1, round(WIDTH * distance / max(*distances, 1e-12)))
        more = [] if figure == metric else [f"{value:.4g}"]
        table.add_row(str(record["images_seen"]), f"{distance:.2f}", bar, *more, word if value == chosen else "")
    if f"{metric}_half" in records[0]:
        counts = " and ".join(map(str, records[0]["floor_counts"]))
        table.caption = f"{metric}_floor (real against real, {counts} images): {records[0][f'{metric}_floor']:.2f}; "
        table.caption += f"what is to be held against it is {metric}_half, {records[-1][f'{metric}_half']:.2f} at the last"
    return table
