"""`scalegan shards SOURCE OUT`: from images or volumes, in the form they are found in, to the shards that training reads."""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalegan.bars import progress_bar
from scalegan.errors import UserError
from scalegan.files import flush
from scalegan.launcher import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scalegan.data.index import Index
    from scalegan.data.sources.base import Request, Source
    from scalegan.data.sources.convert import Spool
    from scalegan.data.sources.encode import Transform

AXES = {"sagittal": 0, "coronal": 1, "axial": 2, "0": 0, "1": 1, "2": 2}
KINDS = ("auto", "folders", "flat", "stylegan", "idx", "cifar10", "nifti", "dicom", "webdataset")
MOST_SIDE = 8192
MOST_FACTS = 1000
"""Volumes whose window and slices are recorded one by one; the index is read at every start."""

EPILOG = """\
kinds of SOURCE, found out by themselves (--kind overrides):
  folders     SOURCE/<class>/*.jpg, or SOURCE/Training/<class>/*.jpg and SOURCE/Test/<class>/*.jpg (Fruits-360)
  flat        images in one folder, with --labels file.csv (columns file,label) or without labels
  stylegan    zip, or folder, of images with dataset.json
  idx         train-images-idx3-ubyte[.gz] with its labels: MNIST and its relatives; a folder of them, or the file of images
  cifar10     cifar-10-binary.tar.gz
  nifti       .nii, .nii.gz, also Analyze (.hdr) and MGH: a file, a folder, or a pattern in quotes
  dicom       a folder of series, or files
  webdataset  tars of <key>.jpg and <key>.cls or .json, with an index of ours or without; a folder, or a pattern in quotes

A JPEG or PNG that needs no change is stored as it is, everything else becomes PNG. --size resizes by an antialiased
Lanczos filter. A test split, or by --hold-out a share, is kept out of the training in OUT/held_out. Images are shuffled
(--seed) and cut into tars of --shard-samples; the same source and options give the same index whatever --workers is.
While it runs, OUT needs room for the images twice.

  scalegan shards fruits360 shards/kiwi --classes Kiwi --size 64
  scalegan shards brain.nii.gz shards/brain --axis axial --slices 30%:80% --size 96x80
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, file, or pattern in quotes")
    add("out", metavar="OUT", type=Path, help="new folder for the shards, index.json, contact.png and held_out/")
    add("--kind", choices=KINDS, default="auto", help="what SOURCE is (default: found out)")
    add("--size", metavar="N|HxW", help="height x width to resize to; one number for a square (default: as they are)")
    fit = "when the aspect differs: keep the middle, add a black margin, or distort (default: crop; pad for volumes)"
    add("--fit", choices=("crop", "pad", "stretch"), help=fit)
    add("--channels", type=int, choices=(1, 3), help="1 grey, 3 colour (default: as they are)")
    add("--classes", metavar="A,B", help="only these classes; labels are numbered in this order (default: all, by name)")
    labels = "table with the columns file,label; file is relative to SOURCE (for DICOM: a series by its folder or first file)"
    add("--labels", metavar="CSV", help=labels)
    add("--split", help="Training (or train), Test, val or all, where SOURCE has them (default: train)")
    hold_out = (
        "share of the images, or of whole volumes, to keep out of the training in OUT/held_out; 0 is none "
        "(default: the test split where SOURCE has one and --split is not given)"
    )
    add("--hold-out", type=float, metavar="SHARE", help=hold_out)
    axis = "direction of slices, 0 1 2 meaning the same in this order (default: axial; DICOM: as acquired)"
    add("--axis", choices=tuple(AXES), help=axis)
    slices = "part of the axis, such as 40:150, 30%%:80%% or 40: (default: slices with at least 5%% foreground)"
    add("--slices", metavar="LO:HI", help=slices)
    window = (
        "intensities that become black and white, such as 0,1500; or percentiles of the foreground of each volume or image, "
        "such as p1,p99 (default for volumes); or `dicom`, the window in the files; --window=-1000,400 where LO is negative"
    )
    add("--window", metavar="LO,HI", help=window)
    add("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    add("--shard-samples", type=int, default=1000, metavar="N", help="most images in one tar (default: 1000)")
    add("--workers", type=int, metavar="N", help="processes that decode and encode (default: one per core)")
    add("--licence", default="", metavar="TEXT", help="of the images, for the index")
    add("--force", action="store_true", help="replace OUT if it holds shards")


def run(args: argparse.Namespace) -> int:
    with _stopped_by_term():
        try:
            lines = write(args)[1]
        except KeyboardInterrupt:
            print("scalegan: interrupted: nothing was written", file=sys.stderr)
            return 130
    print("\n".join(lines))
    return 0


@contextmanager
def _stopped_by_term() -> Iterator[None]:
    """A scheduler's SIGTERM cleans up as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are someone else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write(args: argparse.Namespace) -> tuple[Index, list[str]]:
    """Do it; returns the index and the lines of the summary."""
    from scalegan.data.contact import contact_sheet
    from scalegan.data.shards_summary import hints, summary
    from scalegan.data.sources.convert import Spool
    from scalegan.data.sources.detect import open_source
    from scalegan.data.sources.encode import Transform
    from scalegan.data.sources.hold_out import other_split
    from scalegan.data.writer import check_free, new_folder

    size = parse_size(args.size) if args.size is not None else None
    request, out = make_request(args), args.out.resolve()
    workers = _at_least_one("--workers", cores() if args.workers is None else args.workers)
    shard_samples = _at_least_one("--shard-samples", args.shard_samples)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    if args.hold_out is not None and not 0 <= args.hold_out < 1:
        raise UserError(f"--hold-out {args.hold_out:g}: give a share of the images from 0, none, to less than 1")
    check_free(out, force=args.force)
    places = [place.resolve() for place in ([request.folder] if request.folder else request.files)]
    if any(out in (place, *place.parents) for place in places):
        raise UserError(f"{out} holds SOURCE: write to another folder")
    source = open_source(request)
    if not source.count:
        raise UserError(f"{args.source} holds no images of the classes and split that were asked for")
    split, hint = other_split(request, source, args.hold_out)
    of_files = source.unit == "images"
    transform = Transform(size, args.fit or source.fit, args.channels, request.window if of_files else None)
    with new_folder(out, force=args.force) as folder, Spool(folder / "spool") as spool:
        _read_all(source, transform, workers, spool)
        ours, transparent = len(spool), spool.transparent
        if split is not None:
            _read_held_out(split, transform, workers, spool)
        spool.check_readable()
        index, held_out = fill(folder, args, source, split or source, transform, spool, ours, shard_samples)
        lighter = contact_sheet(folder, index) and not args.channels
    told = hints(index, source, split, transparent, spool.enlarged, lighter=lighter, nothing_held_out=hint)
    return index, summary(index, held_out, out, source, told)


def fill(
    folder: Path,
    args: argparse.Namespace,
    source: Source,
    split: Source,
    transform: Transform,
    spool: Spool,
    count: int,
    shard_samples: int,
) -> tuple[Index, Index | None]:
    """Write the shards of the first `count` images, and those of what is kept out of them or, of `split`, follows them."""
    from scalegan.data.held_out import FOLDER
    from scalegan.data.sources.hold_out import chosen
    from scalegan.data.writer import fill_folder

    ours, theirs = spool.order(args.seed, 0, count), spool.order(args.seed, count, len(spool))
    if args.hold_out:
        kept = chosen(spool.labels, spool.tasks if source.unit == "volumes" else range(len(spool)), args.hold_out, args.seed)
        ours, theirs = ours[~kept[ours]], ours[kept[ours]]
    (height, width), channels = next(iter(spool.sizes)), next(iter(spool.depths))

    def written(place: Path, order: NDArray[np.int64], origin: Source, beside: str) -> Index:
        return fill_folder(
            place, spool.samples(order), shard_samples, height=height, width=width, channels=channels,
            classes=source.classes, source=_source_name(args.source), licence=args.licence,
            details=make_details(args, origin, transform, spool, order), held_out=beside,
        )  # fmt: skip

    if not len(theirs):
        return written(folder, ours, source, ""), None
    (folder / FOLDER).mkdir()
    held_out = written(folder / FOLDER, theirs, split, "")
    flush(folder / FOLDER)
    return written(folder, ours, source, FOLDER), held_out


def _read_all(source: Source, transform: Transform, workers: int, spool: Spool) -> None:
    from scalegan.data.sources.convert import run_tasks

    with closing(run_tasks(source, transform, workers)) as read, progress_bar(source.unit, source.count, "pieces") as advance:
        for results in read:
            spool.add(results)
            advance(len(results.images) + len(results.damaged) if source.unit == "images" else 1)
    if not len(spool) and not spool.damaged:
        raise UserError("no images: nothing was written")


def _read_held_out(split: Source, transform: Transform, workers: int, spool: Spool) -> None:
    """`_read_all`, whose errors tell of the way out: there is none where images to train on cannot be read either."""
    way_out = "" if spool.damaged else "; this is of the held-out images: --hold-out 0 does without them"
    try:
        _read_all(split, transform, workers, spool)
        spool.check_readable()
    except UserError as error:
        raise UserError(f"{error}{way_out}") from None


def make_request(args: argparse.Namespace) -> Request:
    from scalegan.data.sources.base import Request
    from scalegan.data.sources.window import parse_slices, parse_window

    classes = tuple(name.strip() for name in next(csv.reader([args.classes], skipinitialspace=True))) if args.classes else ()
    if args.classes is not None and not all(classes or [""]):
        raise UserError("--classes has an empty name: give names separated by commas, one that holds a comma in double quotes")
    return Request(
        path=args.source,
        kind=args.kind,
        labels=args.labels,
        classes=classes,
        split=args.split,
        axis=AXES[args.axis] if args.axis else None,
        slices=parse_slices(args.slices) if args.slices is not None else None,
        window=parse_window(args.window) if args.window is not None else None,
    )


def parse_size(text: str) -> tuple[int, int]:
    """`64` or `208x176` -> height, width.

    >>> parse_size("208x176")
    (208, 176)
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= MOST_SIDE for side in size):
        raise UserError(f"--size {text}: give one number or height x width, such as 64 or 208x176, up to {MOST_SIDE}")
    return size


def _at_least_one(option: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{option} {value}: give at least 1")
    return value


def _source_name(path: str) -> str:
    """The last part alone: where the source lies on this machine is no part of what it is."""
    return Path(os.path.abspath(path)).name


def make_details(
    args: argparse.Namespace, source: Source, transform: Transform, spool: Spool, order: NDArray[np.int64]
) -> dict[str, Any]:
    """What was done to the images of `order`, for whoever finds the shards later."""
    from scalegan.data.sources.volume import held_out_note

    details: dict[str, Any] = {"kind": source.kind, "seed": args.seed, **source.details}
    if transform.size:
        details |= {"size": list(transform.size), "fit": transform.fit, "filter": "lanczos"}
    if transform.window:
        details["window"] = str(transform.window)
    if args.channels:
        details["channels"] = args.channels
    if args.hold_out:
        details["hold_out"] = args.hold_out
    if source.unit == "volumes":
        volumes = [spool.facts[number] for number in sorted({spool.tasks[image] for image in order.tolist()})]
        details["volume_count"] = len(volumes)
        details["volumes"] = volumes[:MOST_FACTS]
        note = held_out_note([facts["taken"] for facts in volumes])
        if note and not args.hold_out:
            details["held_out_note"] = note
    return details
