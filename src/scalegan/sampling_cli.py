"""`scalegan sample`: images from a trained generator, as PNG files, as one grid, as a film, or as an .npz of arrays."""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from scalegan.bars import progress_bar
from scalegan.data.sources.base import composed
from scalegan.errors import UserError

if TYPE_CHECKING:
    from scalegan.sampling import LoadedGenerator

CHUNK = 512
"""Images that are in memory at a time."""
GRID_MOST = 4096
FILM_MOST = 256
SEEDS, STEPS, FRAME = 4, 24, 40
"""Of a film: seeds, frames from one to the next, milliseconds of a frame."""
FILES = {"grid": "grid.png", "npz": "samples.npz", "gif": "walk.gif"}
"""By the format that has a single one."""
LABELS = "labels.csv"
"""Beside PNG files of a generator with classes."""
WIDEST = 20
"""Classes that still get a column each on a grid."""


Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Chunk:
    first: int
    images: NDArray[np.uint8]
    """[n, H, W, C]"""
    labels: NDArray[np.int64]
    """[n], -1 from a generator without classes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its newest checkpoint) or one of its checkpoints")
    parser.add_argument("--n", type=int, default=64, help="how many images (64)")
    parser.add_argument("--seed", type=int, default=0, help="image i of a seed is always the same (0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--class", dest="classes", nargs="+", action="extend", default=[], metavar="NAME",
        help="only these classes, in turn (all, as often as in the training data)",
    )  # fmt: skip
    parser.add_argument(
        "--truncation", type=float, default=1.0,
        help="of a stylegan2: under 1 images are more typical, and less diverse, down to a single one at 0 (1)",
    )  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="number of the first image: several jobs can share a set (0)")
    parser.add_argument(
        "--format", choices=["png", "grid", "npz", "gif"], default="png",
        help="png: a file an image; grid: grid.png; npz: samples.npz with images uint8 [n, H, W, C] and labels; gif: walk.gif, "
        "in which each image of a grid turns into those of the next seeds (png)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help=f"of a gif: how many seeds, from --seed on ({SEEDS})")
    parser.add_argument("--steps", type=int, metavar="N", help=f"of a gif: frames from one seed to the next ({STEPS})")
    parser.add_argument("--generator", default="", metavar="NAME", help="class of the run's generator, if it is your own")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto takes a GPU if there is one")


def run(args: argparse.Namespace) -> int:
    out: Path = args.out
    check(args)
    from scalegan import own  # loads torch
    from scalegan.sampling import load_generator

    generator = load_generator(args.run, pick_device(args.device), own.network("--generator", args.generator))
    chosen = class_numbers(args.classes, generator)
    if args.truncation != 1:
        generator.truncate(args.truncation)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"--out {out} is a file: give a folder") from None
    chunks = progress(make_chunks(generator, args.first, args.n, args.seed, chosen), args.n, lambda chunk: len(chunk.images))
    if args.format == "png":
        made = write_pngs(chunks, out, generator.classes)
    elif args.format == "grid":
        made = write_grid(chunks, out / FILES["grid"], len(chosen))
    elif args.format == "gif":
        made = write_film(generator, out / FILES["gif"], args, chosen)
    else:
        made = write_npz(chunks, out / FILES["npz"], args.n, generator.shape, generator.classes)
    images = f"{args.n} images" if args.n > 1 else "1 image"
    seeds = f"seeds {args.seed} to {args.seed + seeds_of(args) - 1}" if args.format == "gif" else f"seed {args.seed}"
    print(f"{images} of {seeds} in {made}, by {generator.path} ({generator.images_seen} images seen)")
    return 0


def check(args: argparse.Namespace) -> None:
    """What can be told before the generator is loaded. Raises `UserError`."""
    if args.n < 1:
        raise UserError(f"--n is {args.n}: give at least 1")
    if args.first < 0:
        raise UserError(f"--first is {args.first}: give 0 or more")
    if not 0 <= args.truncation <= 1:
        raise UserError(f"--truncation is {args.truncation}: give a share from 0 to 1")
    if args.format == "grid" and args.n > GRID_MOST:
        raise UserError(f"--n {args.n} is too much for one grid: give at most {GRID_MOST}, or --format png")
    if args.format != "gif":
        for option in ("seeds", "steps"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} means nothing for --format {args.format}: leave it out, or make a gif")
    elif args.n > FILM_MOST:
        raise UserError(f"--n {args.n} is too much for a film: give at most {FILM_MOST}")
    elif args.first:
        raise UserError("--first means nothing for --format gif, whose images are the first ones of each seed: leave it out")
    elif args.seeds is not None and args.seeds < 2:
        raise UserError(f"--seeds is {args.seeds}: give at least 2, as a film leads from one to the next")
    elif args.steps is not None and args.steps < 1:
        raise UserError(f"--steps is {args.steps}: give at least 1")
    # What another generator left would pass for this one's.
    if args.format == "png":
        there = set(os.listdir(args.out)) if args.out.is_dir() else set()
        names = [png_name(i) for i in range(args.first, args.first + args.n)] if there else []
        if taken := next((name for name in names if name in there), None):
            raise UserError(f"{args.out / taken} exists already: give another --out, or --first to add to those there")
        rows = (args.out / LABELS).read_text(errors="replace").splitlines() if LABELS in there else []
        labelled = {row.partition(",")[0] for row in rows}
        if taken := next((name for name in names if name in labelled), None):
            raise UserError(f"{args.out / LABELS} is left over, with a label of {taken}: give another --out, or delete it")
    elif (args.out / FILES[args.format]).exists():
        raise UserError(f"{args.out / FILES[args.format]} exists already: give another --out, or delete it")


def pick_device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda but torch sees no GPU here: use --device cpu, or check the driver and torch build")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def class_numbers(names: Sequence[str], generator: LoadedGenerator) -> list[int]:
    """Class numbers by name; none where no names are given. Raises `UserError` with the nearest name."""
    if names and not generator.config.model.conditional:
        raise UserError(f"--class {names[0]}: {generator.path} was trained without classes: leave it out")
    numbers = {composed(name): number for number, name in enumerate(generator.classes)}
    for name in names:
        if composed(name) not in numbers:
            by_lower = {known.lower(): known for known in numbers}
            near = difflib.get_close_matches(name.lower(), by_lower, n=1)
            listed = ", ".join(generator.classes[:12]) + (", ..." if len(generator.classes) > 12 else "")
            hint = f"did you mean {by_lower[near[0]]}?" if near else f"there are {listed}"
            raise UserError(f"--class {name}: no such class; {hint}")
    return [numbers[composed(name)] for name in names]


def make_chunks(generator: LoadedGenerator, first: int, count: int, seed: int, chosen: Sequence[int]) -> Iterator[Chunk]:
    """The images in pieces that fit the memory. The chosen classes come in turn, by the number of the image."""
    for start in range(first, first + count, CHUNK):
        size = min(CHUNK, first + count - start)
        labels = labels_for(generator, start, size, seed, chosen)
        given = labels.tolist() if generator.config.model.conditional else None
        images = generator.sample_range(start, size, seed, given)
        yield Chunk(start, images.permute(0, 2, 3, 1).contiguous().numpy(), labels)


def labels_for(generator: LoadedGenerator, first: int, count: int, seed: int, chosen: Sequence[int]) -> NDArray[np.int64]:
    """[count]: the chosen classes in turn, else as the data has them; -1 without classes."""
    if chosen:
        return np.asarray(chosen)[np.arange(first, first + count) % len(chosen)]
    return generator.labels_of(first, count, seed)


def write_pngs(chunks: Iterable[Chunk], out: Path, classes: Sequence[str]) -> Path:
    """One file an image; and labels.csv, as `scalegan shards --labels` reads it, where the generator has classes."""
    for chunk in chunks:
        names = [png_name(chunk.first + i) for i in range(len(chunk.images))]
        try:
            with ThreadPoolExecutor() as pool:  # compression goes on outside Python's lock
                list(pool.map(write_png, [out / name for name in names], chunk.images))
        finally:  # what Ctrl-C breaks off has its labels too, else the set could not be read back
            if chunk.labels[0] >= 0:
                rows = zip(names, [classes[label] for label in chunk.labels.tolist()], strict=True)
                add_labels(out / LABELS, (row for row in rows if (out / row[0]).exists()))
    return out


def png_name(number: int) -> str:
    return f"{number:06d}.png"


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """image [H, W, C]. Not flushed to disk, which would take longer than making it; a reader never sees half of it."""
    from PIL import Image

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(temporary, "png")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def add_labels(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with open(path, "a", encoding="utf-8") as file:  # one write, so that several jobs can share the file
        file.write(text.getvalue() if file.tell() else f"file,label\n{text.getvalue()}")


def write_grid(chunks: Iterable[Chunk], path: Path, classes: int) -> Path:
    from scalegan.figures import save_png

    images = np.concatenate([chunk.images for chunk in chunks])
    save_png(path, images.transpose(0, 3, 1, 2), classes if 1 < classes <= WIDEST else None)
    return path


def seeds_of(args: argparse.Namespace) -> int:
    return args.seeds or SEEDS


def write_film(generator: LoadedGenerator, path: Path, args: argparse.Namespace, chosen: Sequence[int]) -> Path:
    """The grid of the first seed on its way to those of the next ones, and back."""
    import torch

    from scalegan.figures import fit, grid, save_gif
    from scalegan.walks import walk

    seeds, steps = range(args.seed, args.seed + seeds_of(args)), args.steps or STEPS
    labels = torch.from_numpy(labels_for(generator, 0, args.n, args.seed, chosen))
    columns = len(chosen) if 1 < len(chosen) <= WIDEST else None
    walked = progress(walk(generator, args.n, seeds, steps, labels), len(seeds) * steps * args.n, len)
    frames = [fit(grid(images.numpy(), columns), 320, 960) for images in walked]
    save_gif(path, frames, FRAME, hold=FRAME)
    return path


def write_npz(chunks: Iterable[Chunk], path: Path, count: int, shape: tuple[int, int, int], classes: Sequence[str]) -> Path:
    """images uint8 [n, H, W, C], labels int64 [n] and the names of the classes; written chunk by chunk."""
    channels, height, width = shape
    labels = []
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
            np.lib.format.write_array_header_1_0(member, header)
            for chunk in chunks:
                member.write(chunk.images.tobytes())
                labels.append(chunk.labels)
        for name, array in (("labels", np.concatenate(labels)), ("classes", np.array(classes, dtype=str))):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def progress(pieces: Iterator[Piece], count: int, size: Callable[[Piece], int]) -> Iterator[Piece]:
    """A bar on a terminal, for what takes longer than a moment: `count` images in pieces of some size."""
    if count <= CHUNK:
        yield from pieces
        return
    with progress_bar("sampling", count, "pieces") as advance:
        for piece in pieces:
            yield piece
            advance(size(piece))
