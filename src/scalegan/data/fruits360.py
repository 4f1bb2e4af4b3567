"""Single classes of Fruits-360 out of its public git repository, for the megabytes that they weigh.

A partial clone brings the list of files (a few MB for the whole data set) without any picture; a sparse checkout then
brings the pictures of the chosen folders in one batch. The clone lives in a temporary folder and is thrown away: what
stays is `Training/<class>/`, `Test/<class>/`, the licence, and a record of where they came from: a branch moves, but the
commit that it was brings the same images again.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalegan.data.sources.base import named
from scalegan.errors import UserError
from scalegan.files import write_atomically

URL = "https://github.com/fruits-360/fruits-360-100x100"
REVISION = "main"
SPLITS = ("Training", "Test")
PAPERS = ("LICENSE", "README.md")
RECORD = "fruits360.json"

# A class name is a folder name: it becomes a sparse-checkout pattern, where `*?[]!\` would mean something else.
CLASS_NAME = re.compile(r"\w[\w .,'()&+-]*(?<! )")
REVISION_NAME = re.compile(r"\w[\w./+-]*")

# The repository and the user's git configuration are not ours: no transport but these two, no hooks, no links.
SAFE = tuple(
    part
    for setting in (
        "protocol.allow=never",
        "protocol.https.allow=always",
        "protocol.file.allow=always",
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "core.symlinks=false",
        "core.autocrlf=false",
        "init.defaultBranch=main",
        "init.templateDir=",
        "advice.detachedHead=false",
    )
    for part in ("-c", setting)
)

# Variables that would point git at another repository or let something ask for a password.
FOREIGN = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_ALLOW_PROTOCOL",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_ASKPASS",
    "SSH_ASKPASS",
}


@dataclass(frozen=True)
class Fetched:
    classes: tuple[str, ...]
    """Folder names, as the repository spells them."""
    counts: dict[str, int]
    """Images of these classes in the folder, per split."""
    bytes: int
    """What was downloaded: file list and pictures, as git packs them."""
    commit: str
    """That `revision` is now."""
    origins: dict[str, dict[str, str]]
    """By class, as in the record: `url`, the `revision` asked for and the `commit` that its images are of."""


def fetch(folder: Path, classes: Sequence[str], revision: str = REVISION, url: str = URL) -> Fetched:
    """Put `Training/<class>` and `Test/<class>` of each of `classes` (none: of all) into `folder`; those there already stay."""
    check(classes, revision, url)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside, as the folder may be a mount point: nothing can be moved into it from beside it.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.absolute()) as temporary:
        clone = Clone(Path(temporary))
        commit = clone.fetch_file_list(url, revision)
        names = clone.class_names()
        if not names:
            raise UserError(f"{url} at {revision} has no class folders in Training/ or Test/: check --url and --revision")
        chosen = sorted({name for wanted in classes for name in match(wanted, names)}) if classes else names
        record = read_record(folder)
        missing = [name for name in chosen if name not in record]
        if missing:
            check_ours(folder, missing)
            clone.check_out(missing)
            write_record(folder, record, moving=missing)
            move_in(Path(temporary), folder, missing)
            record |= {name: {"url": url, "revision": revision, "commit": commit} for name in missing}
            write_record(folder, record)
        size = clone.size()
    counts = {split: sum(len(list((folder / split / name).glob("*.*"))) for name in chosen) for split in SPLITS}
    return Fetched(tuple(chosen), counts, size, commit, {name: record[name] for name in chosen})


def check(classes: Sequence[str], revision: str, url: str) -> None:
    if not url.startswith(("https://", "file://")):
        raise UserError(f"cannot clone {url}: give an https:// or file:// address to --url")
    if not REVISION_NAME.fullmatch(revision) or ".." in revision:
        raise UserError(f"--revision {revision!r} is no branch, tag or commit: give one of these, for example {REVISION}")
    for name in classes:
        if not CLASS_NAME.fullmatch(name):
            raise UserError(
                f"{name!r} is no class of Fruits-360: give names like Kiwi or 'Apple Golden 1', separated by commas"
            )


def match(wanted: str, names: Sequence[str]) -> list[str]:
    """The class of that name, else its numbered varieties, as `scalegan shards --classes` takes them too."""
    if found := named(wanted, names):
        return found
    near = [name for name in names if wanted.casefold() in name.casefold()] or difflib.get_close_matches(wanted, names, n=5)
    hint = f"did you mean {', '.join(near[:8])}?" if near else f"it has {len(names)}: {', '.join(names[:8])} ..."
    raise UserError(f"Fruits-360 has no class {wanted!r} at this revision: {hint}")


def read_record(folder: Path) -> dict[str, dict[str, str]]:
    classes: dict[str, dict[str, str]] = _record(folder)["classes"]
    return {name: origin for name, origin in classes.items() if any((folder / split / name).is_dir() for split in SPLITS)}


def write_record(folder: Path, classes: dict[str, dict[str, str]], moving: Sequence[str] = ()) -> None:
    """`moving`: classes that are about to be moved in; what is there of them after a fetch that was cut off is ours."""
    content = {"classes": classes, "moving": list(moving)} if moving else {"classes": classes}
    write_atomically(folder / RECORD, json.dumps(content, indent=1, sort_keys=True).encode())


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {"classes": {}}
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return {"classes": content["classes"], "moving": content.get("moving", [])}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete {folder} and fetch again") from error


def check_ours(folder: Path, classes: Sequence[str]) -> None:
    """`UserError` where somebody else has put one of `classes` into `folder`: `move_in` would replace it."""
    half = _record(folder).get("moving", [])
    for target in (folder / split / name for split in SPLITS for name in classes if name not in half):
        if target.exists():
            raise UserError(
                f"{target} is there and {RECORD} does not say that it was fetched: move it away, or fetch into another folder"
            )


def move_in(checkout: Path, folder: Path, classes: Sequence[str]) -> None:
    for split in SPLITS:
        for name in classes:
            source, target = checkout / split / name, folder / split / name
            if source.is_dir():
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)  # of a fetch that was cut off before it was recorded
                source.rename(target)
    for name in PAPERS:
        if (checkout / name).is_file():
            os.replace(checkout / name, folder / name)


class Clone:
    """A partial clone in an empty folder, driven by the `git` command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch_file_list(self, url: str, revision: str) -> str:
        """Bring the newest commit of `revision` and its folders, without file contents. Returns the commit's name."""
        self.git("init", "--quiet", ".")
        self.git("remote", "add", "origin", url)
        self.git("fetch", "--filter=blob:none", "--depth=1", "--no-tags", *self.progress(), "origin", revision)
        return self.git("rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()

    def class_names(self) -> list[str]:
        """The folders in Training/ and Test/, but for names that no class may have."""
        listed = self.git("ls-tree", "-d", "-z", "--name-only", "FETCH_HEAD", *(f"{split}/" for split in SPLITS))
        return sorted({name for path in listed.split("\0") if CLASS_NAME.fullmatch(name := path.rpartition("/")[2])})

    def check_out(self, classes: Sequence[str]) -> None:
        """Bring the pictures of these classes, and nothing else of any size."""
        patterns = [f"/{split}/{name}/" for split in SPLITS for name in classes] + [f"/{name}" for name in PAPERS]
        self.git("sparse-checkout", "init", "--no-cone")
        self.git("sparse-checkout", "set", "--", *patterns)
        self.git("checkout", *self.progress(), "--detach", "FETCH_HEAD")

    def size(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / ".git" / "objects").rglob("*") if path.is_file())

    @staticmethod
    def progress() -> tuple[str, ...]:
        return ("--progress",) if sys.stderr.isatty() else ("--quiet",)

    def git(self, *arguments: str) -> str:
        """Run one git command. Its progress goes to the terminal; its last words make the error message."""
        show = "--progress" in arguments
        try:
            process = subprocess.Popen(
                ["git", *SAFE, *arguments],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if show else subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        except FileNotFoundError:
            raise UserError("git was not found: install git 2.25 or newer to fetch Fruits-360") from None
        with process:
            try:
                output, errors = process.communicate()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            words = (errors or "").strip().splitlines()
            said = f": {words[-1].removeprefix('fatal: ')}" if words else ""
            raise UserError(f"git {arguments[0]} failed{said}: check the network, --url and --revision")
        return output


def environment() -> dict[str, str]:
    """The user's own (with proxies and certificates), but for `FOREIGN`."""
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return inherited | {"GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "never", "LC_ALL": "C"}
