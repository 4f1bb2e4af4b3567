"""`scalegan fetch`: public data sets, checked by sha256 and in a form that `scalegan shards` reads.

Nothing is pickled: MNIST and Fashion-MNIST come as their IDX files, CIFAR-10 as its binary archive.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from scalegan.bars import progress_bar
from scalegan.data import fruits360
from scalegan.errors import UserError
from scalegan.files import sha256


class WrongContent(Exception):
    """A mirror gave another file than the known one."""


@dataclass(frozen=True)
class Remote:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    title: str
    shards: str
    """Where the presets look for its shards."""
    mirrors: tuple[str, ...]
    """Folders on the web that hold all of `files`, tried in this order."""
    files: tuple[Remote, ...]


DATASETS = {
    "mnist": Dataset(
        "MNIST",
        "data/mnist",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            Remote("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            Remote("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            Remote("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            Remote("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion-mnist": Dataset(
        "Fashion-MNIST",
        "data/fashion",
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        (
            Remote("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            Remote("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            Remote("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            Remote("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "cifar10": Dataset(
        "CIFAR-10",
        "data/cifar10",
        ("https://www.cs.toronto.edu/~kriz/",),
        (Remote("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),
    ),
}

TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=["fruits360", *DATASETS], help="which data set")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to put it into")
    parser.add_argument("--classes", default="", help="fruits360: names such as Kiwi,Plum, or all")
    parser.add_argument("--revision", default="", help=f"fruits360: branch, tag or full commit (default: {fruits360.REVISION})")
    parser.add_argument("--url", default="", help="another mirror: the repository, or the web folder that holds the files")


def run(args: argparse.Namespace) -> int:
    folder: Path = args.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
    if args.dataset != "fruits360" and (args.classes or args.revision):
        raise UserError(f"--classes and --revision are for fruits360, not {args.dataset}: leave them out")
    new = not folder.exists()
    try:
        if args.dataset == "fruits360":
            run_fruits360(folder, args.classes, args.revision, args.url)
        else:
            run_download(DATASETS[args.dataset], folder, args.url)
    except BaseException:
        if new:
            with suppress(OSError):  # it stays when something has come
                folder.rmdir()
        raise
    return 0


def run_download(dataset: Dataset, folder: Path, url: str) -> None:
    mirrors = (url.rstrip("/") + "/",) if url else dataset.mirrors
    folder.mkdir(parents=True, exist_ok=True)
    for remote in dataset.files:
        missing = [known.name for known in dataset.files if not (folder / known.name).exists()]
        fetch_file(remote, mirrors, folder, missing)
    files = f"{len(dataset.files)} files" if len(dataset.files) > 1 else "1 file"
    print(f"{dataset.title} is in {folder}: {files}, sha256 as expected")
    print_next(str(folder), dataset.shards)


def run_fruits360(folder: Path, classes: str, revision: str, url: str) -> None:
    wanted = [name.strip() for name in classes.split(",") if name.strip()]
    if not wanted:
        raise UserError("which classes of Fruits-360? Give --classes Kiwi, or several as in Kiwi,Plum, or all (hundreds of MB)")
    everything = wanted == ["all"]
    fetched = fruits360.fetch(folder, [] if everything else wanted, revision or fruits360.REVISION, url or fruits360.URL)
    training, test = (fetched.counts[split] for split in fruits360.SPLITS)
    names = f"{len(fetched.classes)} classes" if everything else ", ".join(fetched.classes)
    print(f"{names}: {training} training and {test} test images in {folder}; {fetched.bytes / 1e6:.1f} MB came")
    print(f"licence: see {folder / 'README.md'}")
    for (address, commit), there in by_origin(fetched).items():
        if commit != fetched.commit:
            print(
                f"left as fetched before, from commit {commit[:12]} of {address}: {', '.join(there)}; to have them from "
                f"{fetched.commit[:12]}, delete their folders in {folder / 'Training'} and {folder / 'Test'} first"
            )
        named = "all" if everything and len(there) == len(fetched.classes) else ",".join(there)
        mirror = [] if address == fruits360.URL else ["--url", address]
        again = ["fetch", "fruits360", "--classes", named, "--revision", commit, *mirror, str(folder)]
        print(f"the same images again: {shlex.join(['scalegan', *again])}")
    if everything:
        print_next(str(folder), "data/fruits360")
    else:
        shards = "data/" + wanted[0].lower().replace(" ", "-") if len(wanted) == 1 else "data/fruits"
        print_next(str(folder), shards, "--classes", ",".join(fetched.classes))


def by_origin(fetched: fruits360.Fetched) -> dict[tuple[str, str], list[str]]:
    """(address, commit) -> the classes whose images are of it; a branch that has moved between two calls gives two."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in fetched.classes:
        origin = fetched.origins[name]
        found.setdefault((origin["url"], origin["commit"]), []).append(name)
    return found


def print_next(*arguments: str) -> None:
    print(f"next: {shlex.join(['scalegan', 'shards', *arguments])}")


def fetch_file(remote: Remote, mirrors: tuple[str, ...], folder: Path, missing: Sequence[str]) -> None:
    """Have `remote` in `folder`, whole and checked: as it lies there, or from the first mirror that answers.

    Where none does, all files that are `missing` are named: whoever has no network fetches them in one go.
    """
    path = folder / remote.name
    if path.exists():
        if sha256(path) != remote.sha256:
            raise UserError(f"{path} is not the file that {mirrors[0]}{remote.name} is: delete it to fetch it again")
        return
    for mirror in mirrors:
        if not mirror.startswith(("https://", "http://", "file://")):
            raise UserError(f"cannot read {mirror}: give an https://, http:// or file:// address to --url")
    failures = []
    for mirror in mirrors:
        url = mirror + remote.name
        try:
            download(url, path, remote)
            return
        except (WrongContent, urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            failures.append(f"{url} ({getattr(error, 'reason', None) or error})")
    others = [mirrors[0] + name for name in missing if name != remote.name]
    likewise = f"; likewise {', '.join(others)}" if others else ""
    raise UserError(
        f"could not download {' nor '.join(failures)}: fetch it elsewhere, put it at {path} and run this again{likewise}"
    )


def download(url: str, path: Path, remote: Remote) -> None:
    """Into a temporary file beside `path`, at most as many bytes as expected, checked and then renamed."""
    with tempfile.TemporaryDirectory(prefix=f".{remote.name}.", dir=path.parent) as temporary:
        part = Path(temporary) / remote.name
        digest, got = hashlib.sha256(), 0
        with (
            urllib.request.urlopen(
                urllib.request.Request(url, headers={"User-Agent": "scalegan"}), timeout=TIMEOUT_S
            ) as answer,
            open(part, "wb") as file,
            progress_bar(remote.name, remote.size, "bytes") as advance,
        ):
            while chunk := answer.read(min(1 << 16, remote.size + 1 - got)):
                file.write(chunk)
                digest.update(chunk)
                got += len(chunk)
                advance(len(chunk))
        if got != remote.size or digest.hexdigest() != remote.sha256:
            size = f"more than {remote.size}" if got > remote.size else str(got)
            raise WrongContent(f"{size} bytes, not the known {remote.size} with sha256 {remote.sha256[:12]}...")
        os.replace(part, path)
