"""`scalegan evaluate`: measure the generator of a run against its data.

On several processes: `accelerate launch --config_file launch/cpu.yaml -m scalegan.cli evaluate RUN`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalegan.config import EvaluationConfig, TrainConfig
from scalegan.errors import UserError

if TYPE_CHECKING:
    from scalegan.checkpoint import Checkpoint
    from scalegan.data.index import Index
    from scalegan.evaluation.real import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest, best, or a checkpoint folder (latest)")
    parser.add_argument("--against", default="", metavar="SHARDS", help="shards to compare with (those the run was trained on)")
    parser.add_argument("--extractor", help="lite0, or inception for FID (as the run's configuration says, like all below)")
    parser.add_argument("--weights", help="file with the extractor's weights")
    parser.add_argument("--samples", type=int, metavar="N", help="generated images")
    parser.add_argument("--real", type=int, metavar="N", help="real images; 0 is all of them")
    parser.add_argument(
        "--metrics", metavar="A,B", help="what to measure beside the Frechet distance: kid,prdc,memorisation,..."
    )
    parser.add_argument("--held-out", metavar="SHARDS", help="images never trained on, for the metric memorisation")
    parser.add_argument("--seed", type=int, help="of the generated images")
    parser.add_argument("--batch", type=int, metavar="N", help="images of one pass")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto takes a GPU if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here too (always: RUN/evaluations)")


def run(args: argparse.Namespace) -> int:
    import torch

    from scalegan.distributed import make_accelerator
    from scalegan.evaluation.evaluator import evaluate
    from scalegan.sampling import load_generator

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda but torch sees no GPU here: use --device cpu, or check the driver and torch build")
    found, run_dir = choose(args.run, args.checkpoint)
    index = reference(found, args.against)
    accelerator = make_accelerator(TrainConfig(device=args.device, precision="fp32"))
    loaded = load_generator(found.path, accelerator.device)
    shape = index.channels, index.height, index.width
    if loaded.shape != shape:
        made, held = ("x".join(map(str, s)) for s in (loaded.shape, shape))
        raise UserError(f"the generator makes {made} images and {index.root} holds {held}: give shards of its own size")
    seed = loaded.config.train.seed if args.seed is None else args.seed
    data = replace(loaded.config.data, path=index.root, held_out=args.held_out or loaded.config.data.held_out)
    with progress_bar(accelerator.is_main_process and sys.stderr.isatty()) as progress:
        record = evaluate(
            lambda first, count: loaded.sample_range(first, count, seed),
            index,
            overridden(loaded.config.evaluation, args),
            seed=seed,
            images_seen=loaded.images_seen,
            ema=True,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            device=accelerator.device,
            cache=run_dir / "cache",
            data=data,
            labels=(lambda first, count: loaded.labels_of(first, count, seed)) if loaded.config.model.conditional else None,
            pictures=run_dir / "evaluations",
            progress=progress,
        )
    if accelerator.is_main_process:
        report(record | {"checkpoint": str(found.path), "against": index.root}, run_dir, args.json)
    accelerator.end_training()
    return 0


def choose(run: Path, which: str) -> tuple[Checkpoint, Path]:
    """The checkpoint to evaluate and the run folder it belongs to. Raises `UserError`."""
    from scalegan import checkpoint
    from scalegan.sampling import find_checkpoint

    found = find_checkpoint(run if which in ("latest", "best") else Path(which))
    run_dir = found.path.resolve().parent.parent
    if which == "best":
        best = found.state["best"]
        if not best:
            raise UserError(f"{run_dir} has no best checkpoint, as it was not evaluated in training: use --checkpoint latest")
        found = checkpoint.read(checkpoint.checkpoints(run_dir) / f"{best['images_seen']:09d}")
    return found, run_dir


def reference(found: Checkpoint, against: str) -> Index:
    """The index of the shards to compare with; without `against` they must be those of the training."""
    from scalegan.data.index import read_index

    if against:
        return read_index(against)
    trained = found.state["data"]
    try:
        index = read_index(trained["path"])
    except UserError as error:
        raise UserError(f"the data of the training: {error}; or name the shards by --against") from None
    if index.sha256 != trained["sha256"]:
        raise UserError(f"{index.root} has changed since the training: give --against {index.root} to compare with it as it is")
    return index


def overridden(config: EvaluationConfig, args: argparse.Namespace) -> EvaluationConfig:
    """The run's own settings but for the options given; its weights go with its extractor."""
    given = {name: getattr(args, name) for name in ("extractor", "weights", "samples", "real", "batch", "metrics")}
    if given["extractor"] not in (None, config.extractor) and given["weights"] is None:
        given["weights"] = ""
    return replace(config, **{name: value for name, value in given.items() if value is not None})


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bars(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bars:
        rows: dict[str, Any] = {}

        def progress(what: str, done: int, count: int) -> None:
            if what not in rows:
                rows[what] = bars.add_task(what, total=count)
            bars.update(rows[what], completed=done)

        yield progress


def report(record: dict[str, Any], run_dir: Path, copy: Path | None) -> None:
    """Write the record and print what was measured."""
    from rich.console import Console
    from rich.table import Column, Table

    from scalegan.evaluation.features import metric_name
    from scalegan.evaluation.table import rows
    from scalegan.files import write_atomically

    metric = metric_name(record["extractor"])
    name = f"{record['images_seen']:09d}-{metric}-{record['generated']}-{record['real']}-seed{record['seed']}"
    path = run_dir / "evaluations" / f"{name}-{record['index_sha256'][:8]}.json"
    for target in (path, copy):
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, (json.dumps(record, indent=1) + "\n").encode())
    table = Table("measure", Column("value", justify="right"), Column("beside", justify="right"), "which is that of")
    halves = " and ".join(map(str, record["floor_counts"]))
    table.add_row(metric, f"{record[metric]:.2f}", f"{record[metric + '_floor']:.2f}", f"real against real, {halves} images")
    for row in rows(record):
        table.add_row(*row)
    console = Console()
    console.print(f"{record['checkpoint']} ({record['images_seen']} images seen)", soft_wrap=True)
    console.print(table)
    console.print(
        f"{record['generated']} generated (seed {record['seed']}, EMA), {record['real']} real images of {record['against']}; "
        f"{record['seconds']:.0f} s; record: {path}",
        soft_wrap=True,
    )
