"""Real images that a run is watched by and never trained on: shards that came with its own, or a second folder."""

from __future__ import annotations

from scalegan.data.index import Index, read_index, safe_name
from scalegan.errors import UserError

FOLDER = "held_out"
"""Where `scalegan shards` writes them, below the shards that they were kept out of; their index names it in its details."""
NONE = "none"
"""As `data.held_out`: no held-out images, even where there are some."""


def held_out_of(asked: str, index: Index) -> str:
    """The folder or URL that `data.held_out` means beside the shards of `index`; empty where there is none."""
    if asked:
        return "" if asked == NONE else asked
    beside = index.details.get(FOLDER)
    return f"{index.root.rstrip('/')}/{safe_name(str(beside))}" if beside else ""


def read_held_out(path: str, index: Index) -> Index:
    """The index of `data.held_out`. Raises `UserError` where its images are not like those of `index`, or among them."""
    held_out = read_index(path)
    for name in ("height", "width", "channels", "classes"):
        ours, theirs = getattr(index, name), getattr(held_out, name)
        if ours != theirs:
            raise UserError(
                f"data.held_out {path} has {name} {theirs} and data.path {index.root} has {ours}: write both folders with the "
                "same options of `scalegan shards`"
            )
    shared = {shard.sha256 for shard in index.shards} & {shard.sha256 for shard in held_out.shards}
    if shared:
        raise UserError(
            f"data.held_out {path} shares {len(shared)} shards with data.path {index.root}: name images that are not trained on"
        )
    return held_out
