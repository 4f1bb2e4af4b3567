"""Real images that a run is watched by and never trained on: shards that came with its own, or a second folder."""

from __future__ import annotations

from scalegan.data.index import Index, read_index, safe_name
from scalegan.errors import MachineError, UserError

FOLDER = "held_out"
"""Where `scalegan shards` writes them, below the shards that they were kept out of, whose index names it."""
NONE = "none"
"""As `data.held_out`: no held-out images, even where there are some."""


def held_out_of(asked: str, index: Index) -> str:
    """The folder or URL that `data.held_out` means beside the shards of `index`; empty where there is none."""
    if asked:
        return "" if asked == NONE else asked
    return f"{index.root.rstrip('/')}/{safe_name(index.held_out)}" if index.held_out else ""


def read_held_out(path: str, index: Index, *, compare: bool = True) -> Index:
    """The index of the held-out images in `path`, compared with its files as `read_index` does.

    Raises `UserError` where they are not like those of `index`, or among them, and `MachineError` where they are not there.
    """
    try:
        held_out = read_index(path, compare=compare)
    except UserError as error:
        raise MachineError(f"held-out images: {error}; or do without, --data.held_out none") from None
    for name in ("height", "width", "channels", "classes"):
        ours, theirs = getattr(index, name), getattr(held_out, name)
        if ours != theirs:
            raise UserError(
                f"held-out images {path} have {name} {theirs} and data.path {index.root} has {ours}: write both folders with "
                "the same options of `scalegan shards`"
            )
    check_apart(held_out, index)
    return held_out


def check_apart(held_out: Index, index: Index) -> None:
    """Raises `UserError` where shards of the one are among those of the other."""
    shared = {shard.sha256 for shard in index.shards} & {shard.sha256 for shard in held_out.shards}
    if shared:
        raise UserError(
            f"held-out images {held_out.root} share {len(shared)} shards with {index.root}: name images that are not trained "
            f"on, or {NONE}"
        )
