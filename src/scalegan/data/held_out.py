"""Real images that a run is watched by and never trained on: a second folder of shards."""

from __future__ import annotations

from scalegan.data.index import Index, read_index
from scalegan.errors import UserError


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
