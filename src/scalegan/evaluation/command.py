"""`scalegan evaluate`: measure the generator of a run, or images that lie somewhere, against others.

On several processes: `accelerate launch --config_file launch/cpu.yaml -m scalegan evaluate RUN`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from scalegan.config import DataConfig, LogConfig, TrainConfig
from scalegan.errors import UserError
from scalegan.evaluation.names import METRICS, best_among, chosen
from scalegan.evaluation_config import EvaluationConfig
from scalegan.files import try_out

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from scalegan.checkpoint import Checkpoint
    from scalegan.evaluation import sides
    from scalegan.evaluation.features import Extractor
    from scalegan.evaluation.real import Progress
    from scalegan.evaluation.team import Team

OVERRIDES = (
    "extractor", "weights", "resize", "precision", "samples", "real", "batch", "metrics", "lpips", "lpips_weights",
)  # fmt: skip
"""Options that are fields of `EvaluationConfig`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN|FOLDER|SHARDS", help="a run, one of its checkpoints, or generated images")
    parser.add_argument(
        "--checkpoint", default="latest", metavar="WHICH", help="latest, best, all (a curve), or a checkpoint folder (latest)"
    )
    parser.add_argument(
        "--against", default="", metavar="FOLDER|SHARDS|RUN|NPZ",
        help="images to compare with, a run (its training images), or statistics (default: the training images of RUN)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, metavar="N", help="generated images (of FOLDER or SHARDS: all)")
    parser.add_argument(
        "--metrics", metavar="A,B", help="what to measure besides the Frechet distance: kid,prdc,memorisation,..."
    )
    networks = get_args(get_type_hints(EvaluationConfig)["lpips"])
    parser.add_argument("--lpips", choices=networks, help="network of the metrics lpips and ppl (default: as in RUN's config)")
    parser.add_argument("--lpips-weights", metavar="FILE", help="weights of that network")
    parser.add_argument(
        "--held-out",
        default="",
        metavar="FOLDER|SHARDS|none",
        help="images never trained on, for memorisation and accuracy (default: RUN's, else those beside the real ones)",
    )
    add_extractor_arguments(parser)
    parser.add_argument("--seed", type=int, help="seed of the generated images")
    parser.add_argument("--generator", default="", metavar="NAME", help="class of the run's generator, if it is your own")
    modes = get_args(get_type_hints(LogConfig)["wandb"])
    parser.add_argument(
        "--wandb", choices=modes, help="also send the record to the W&B run of RUN (default: as in RUN's config)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the record here (for RUN always in RUN/evaluations)"
    )


def add_extractor_arguments(parser: argparse.ArgumentParser) -> None:
    """Which features of which real images: shared with `scalegan stats`."""
    parser.add_argument(
        "--extractor",
        metavar="NAME",
        help="lite0, inception (FID), dinov2, or your own as module:Class (default for this and all below: as in RUN's config)",
    )
    parser.add_argument("--weights", metavar="FILE", help="the extractor's weights")
    hints = get_type_hints(EvaluationConfig)
    parser.add_argument(
        "--resize", choices=get_args(hints["resize"]), help="resizing for extractor inception, see docs/evaluation.md"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(hints["precision"]),
        help="bfloat16: the monitor mode, whose figures are not FID",
    )
    parser.add_argument("--real", type=int, metavar="N", help="real images, at most; 0 is all of them")
    parser.add_argument("--batch", type=int, metavar="N", help="images per pass")
    parser.add_argument(
        "--window", default="", metavar="LO,HI", help="values of black and white in images of more than 8 bits: 0,65535"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto uses a GPU if there is one")


def run(args: argparse.Namespace) -> int:
    from scalegan.distributed import in_company
    from scalegan.evaluation import report, sides, to_wandb

    kind = sides.kind_of(args.source)
    if kind == "statistics":
        raise UserError(
            f"{args.source} is an .npz, of which statistics alone are read: name these by --against, and images by their folder"
        )
    held_out = sides.kind_of_held_out(args.held_out) or ""
    check_options(args, kind, sides.kind_of(args.against) if args.against else "", held_out)
    accelerator, team = start(args.device)
    run_dir = run_folder(args.source) if kind == "run" else None
    records, best, problems = [], "", []
    with in_company(), ExitStack() as stack:
        with team.as_one():
            if team.first and args.json:
                try_out(args.json, "--json")
        progress = stack.enter_context(progress_bar(team.first and sys.stderr.isatty()))
        if run_dir:
            measured = of_run(args, run_dir, accelerator.device, team, stack, progress)
        else:
            measured = of_images(args, kind, accelerator.device, team, stack, progress)
        for config, record in measured:
            records.append(record)
            best = config.best
            if team.first:
                problems += report.write(records, run_dir, args.json)
    if team.first:
        report.show(records, None if problems else run_dir, best)
        if problems:
            raise UserError(f"{problems[0]}; the figures are above: give --json FILE on another disk")
        if run_dir:
            to_wandb.send(run_dir, records, args.wandb, lambda text: print(f"scalegan: {text}", file=sys.stderr))
    accelerator.end_training()
    return 0


def check_options(args: argparse.Namespace, kind: str, against: str, held_out: str) -> None:
    """Raises `UserError` for an option that would change nothing, and for a metric that cannot be had."""
    sides = kind, against, held_out
    for option, given, matters, where in (
        ("--checkpoint", args.checkpoint != "latest", kind == "run", f"{args.source}, which is no run"),
        ("--wandb", args.wandb, kind == "run", f"{args.source}, which is no run"),
        ("--seed", args.seed is not None, kind == "run", f"{args.source}, which is no run"),
        ("--real", args.real is not None, against != "statistics", f"{args.against}, which is of as many images as it is"),
        ("--lpips", args.lpips, against != "statistics", f"{args.against}, which has no images to look at"),
        ("--lpips-weights", args.lpips_weights, against != "statistics", f"{args.against}, which has no images to look at"),
        ("--held-out", args.held_out, against != "statistics", f"{args.against}, which has no images to look at"),
        ("--window", args.window, "folder" in sides, "shards, whose images went through theirs, and statistics"),
    ):
        if given and not matters:
            raise UserError(f"{option} means nothing for {where}: leave it out")
    impossible = [name for name in chosen(args.metrics or "") if not METRICS[name].statistics]
    if against == "statistics" and impossible:
        raise UserError(
            f"metric {impossible[0]} needs real images and {args.against} holds their mean and covariance alone: take it out "
            "of --metrics, or compare with the images"
        )


def start(device: str) -> tuple[Accelerator, Team]:
    import torch

    from scalegan.distributed import make_accelerator
    from scalegan.evaluation.team import Team

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda but torch sees no GPU here: use --device cpu, or check the driver and torch build")
    accelerator = make_accelerator(TrainConfig(device=device, precision="fp32"))  # type: ignore[arg-type]
    return accelerator, Team(accelerator.process_index, accelerator.num_processes)


def of_run(
    args: argparse.Namespace, run_dir: Path, device: torch.device, team: Team, stack: ExitStack, progress: Progress
) -> Iterator[tuple[EvaluationConfig, dict[str, Any]]]:
    """How the checkpoints that were asked for are measured, and the record of each; the oldest first."""
    from scalegan import own, settings
    from scalegan.checkpoint import read
    from scalegan.evaluation import folder, sides, statistics_file
    from scalegan.sampling import load_generator

    network = own.network("--generator", args.generator)
    with team.as_one():  # by one process for all, as a training may save and delete meanwhile
        chosen = choose(Path(args.source), run_dir, args.checkpoint) if team.first else []
    paths = team.from_first([str(checkpoint.path) for checkpoint in chosen])
    with team.as_one():
        found = [read(Path(path)) for path in paths]
        newest = settings.config_of(found[-1])  # for all, as a run may have changed meanwhile what it compares
    against = sides.reference(args.against, args.window, team) if args.against else sides.trained_on(found[-1])
    held_out = sides.held_out_given(args.held_out, args.window, against, team)
    folder.check_window(args.window, against, held_out)
    extractor = own_extractor(args, device)
    cache = cache_for(extractor, run_dir / "cache", stack)
    config = overridden(newest.evaluation, args)
    if isinstance(against, statistics_file.Statistics):
        possible = statistics_file.without_images(config)
        missing = ", ".join(name for name in config.wanted if name not in possible.wanted)
        if team.first and missing:
            print(f"scalegan: {against.path} has no real images to look at: without {missing}", file=sys.stderr)
        config = possible
    data = replace(newest.data, held_out=args.held_out or newest.data.held_out)
    comparison = sides.Comparison(against, config, extractor, team, device, cache, data, held_out, run_dir / "evaluations")
    left_out = 0
    for checkpoint in found:
        try:
            with team.as_one():  # a training beside it may have deleted this one, for one process sooner than for another
                loaded = load_generator(checkpoint.path, device, network)
                made = sides.made_by(loaded, loaded.config.train.seed if args.seed is None else args.seed, checkpoint)
        except UserError as error:
            left_out += 1
            if left_out == len(found):
                raise
            if team.first:
                print(f"scalegan: left out of the curve: {error}", file=sys.stderr)
            continue
        yield config, comparison.measure(made, progress)


def of_images(
    args: argparse.Namespace, kind: sides.Kind, device: torch.device, team: Team, stack: ExitStack, progress: Progress
) -> Iterator[tuple[EvaluationConfig, dict[str, Any]]]:
    """How images that lie somewhere are measured, and their record."""
    from scalegan.data.index import Index
    from scalegan.evaluation import folder, sides, statistics_file
    from scalegan.evaluation.weights import user_cache

    if not args.against:
        raise UserError(f"{args.source} is no run, whose data would be known: say what to compare with, by --against")
    index, against = sides.images_of(args.source, kind, args.window, team), sides.reference(args.against, args.window, team)
    index = sides.in_colour(index, against)
    if isinstance(against, Index):
        against = sides.in_colour(against, index)
    held_out = sides.held_out_given(args.held_out, args.window, against, team)
    folder.check_window(args.window, index, against, held_out)
    extractor = own_extractor(args, device)
    config = overridden(EvaluationConfig(samples=max(2, index.samples)), args)
    if isinstance(against, statistics_file.Statistics):
        config = statistics_file.without_images(config)
    made = sides.found_in(index, config.samples, stack)
    cache = cache_for(extractor, user_cache() / "scalegan" / "statistics", stack)
    pictures = args.json.with_name(f"{args.json.stem}-closest.png") if args.json else None
    data = DataConfig(held_out=args.held_out)
    comparison = sides.Comparison(against, config, extractor, team, device, cache, data, held_out, pictures)
    yield config, comparison.measure(made, progress)


def run_folder(given: str) -> Path:
    """The folder of the run that is given, or of the run that the checkpoint which is given belongs to."""
    from scalegan.checkpoint import CHECKPOINTS, MANIFEST
    from scalegan.ema_cli import AVERAGES

    path = Path(given)
    if not (path / MANIFEST).is_file():
        return path
    within = path.resolve().parent
    return within.parent if within.name in (CHECKPOINTS, AVERAGES) else path


def choose(given: Path, run_dir: Path, which: str) -> list[Checkpoint]:
    """The checkpoints to evaluate. Raises `UserError`."""
    from scalegan import checkpoint
    from scalegan.sampling import find_checkpoint

    if which == "all":
        return checkpoint.list_valid(run_dir)[::-1] or [find_checkpoint(run_dir)]
    if which not in ("latest", "best"):
        return [of_this_run(find_checkpoint(Path(which)), run_dir)]
    found = find_checkpoint(given)
    if which == "best":
        best = found.state["best"]
        if not best:
            raise UserError(f"{run_dir} has no best checkpoint, as it was not evaluated in training: use --checkpoint latest")
        found = checkpoint.read(checkpoint.checkpoints(run_dir) / f"{best['images_seen']:09d}")
    return [found]


def of_this_run(found: Checkpoint, run_dir: Path) -> Checkpoint:
    """Raises `UserError` for a checkpoint in the folder of another run, whose record would be among those of this one. One that
    lies by itself, as `scalegan ema --out` makes them, is taken for one of this run."""
    from scalegan.checkpoint import CHECKPOINTS
    from scalegan.ema_cli import AVERAGES

    within, own = found.path.parent.resolve(), [(run_dir / name).resolve() for name in (CHECKPOINTS, AVERAGES)]
    if within.name in (CHECKPOINTS, AVERAGES) and within not in own:
        raise UserError(f"--checkpoint {found.path} is none of {run_dir}: give it alone, `scalegan evaluate {found.path}`")
    return found


def own_extractor(args: argparse.Namespace, device: torch.device) -> Extractor | None:
    """The user's own extractor, where the command line names one."""
    from scalegan.evaluation import user_extractor

    if args.extractor is None or not user_extractor.is_dotted(args.extractor):
        return None
    if args.resize is not None:
        raise UserError(f"--resize means nothing for --extractor {args.extractor}, which resizes by itself: leave it out")
    default = EvaluationConfig()
    return user_extractor.load_user_extractor(
        args.extractor, args.weights or "", device, args.batch or default.batch, args.precision or default.precision
    )


def cache_for(own: Extractor | None, usual: Path, stack: ExitStack) -> Path:
    """Where statistics of real images are kept: those of a user's own extractor as long as `stack` is open, as no hash covers
    all that its features may depend on."""
    return usual if own is None else Path(stack.enter_context(TemporaryDirectory(prefix="scalegan-")))


def overridden(config: EvaluationConfig, args: argparse.Namespace) -> EvaluationConfig:
    """The run's own settings but for the options given; its weights and resize go with the networks that they are of."""
    from scalegan.evaluation.user_extractor import is_dotted

    given: dict[str, Any] = {name: getattr(args, name, None) for name in OVERRIDES}
    asked = {name for name, value in given.items() if value is not None}
    if given["extractor"] is not None and is_dotted(given["extractor"]):
        given = given | {"extractor": None, "weights": None}  # of `own_extractor`
    elif given["extractor"] not in (None, config.extractor):
        given = {"weights": "", "resize": "tf1"} | {name: value for name, value in given.items() if value is not None}
    if given.get("lpips") not in (None, config.lpips) and given.get("lpips_weights") is None:
        given = given | {"lpips_weights": ""}
    given = {name: value for name, value in given.items() if value is not None}
    best = best_among(config.best, chosen(given.get("metrics", config.metrics)))
    config = replace(config, best=best, **given)
    if {"lpips", "lpips_weights"} & asked and not config.wants_lpips:
        raise UserError("--lpips and --lpips-weights are of metrics lpips and ppl: name one by --metrics, or leave them out")
    if getattr(args, "held_out", "") and not any(METRICS[name].held_out for name in config.wanted):
        raise UserError("--held-out is of metrics accuracy and memorisation: name one by --metrics, or leave it out")
    return config


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    if not shown:  # rather than a bar that is disabled, of which older versions of rich print an empty line
        yield lambda what, done, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        rows: dict[str, Any] = {}

        def progress(what: str, done: int, count: int) -> None:
            if what not in rows:
                rows[what] = bars.add_task(what, total=count)
            bars.update(rows[what], completed=done)

        yield progress
