"""What `scalegan shards` says at its end: what was written, and what a user should know of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from scalegan.data.held_out import FOLDER
from scalegan.data.index import Index
from scalegan.data.sources.base import Source


def hints(
    index: Index,
    source: Source,
    split: Source | None,
    transparent: int,
    enlarged: Counter[tuple[int, int]],
    *,
    lighter: bool,
    nothing_held_out: str,
) -> list[str]:
    """Notes on what was done, and on what other options would do.

    `enlarged` counts the images that were, by height and width; `lighter`: grey in one channel would be the same images.
    """
    told = []
    if lighter and index.channels == 3:
        told.append("the images are grey but stored in colour: --channels 1 makes training lighter")
    if transparent:
        told.append(f"{images(transparent)} had transparency: it was laid over white")
    if enlarged:
        height, width = min(enlarged, key=math.prod)
        told.append(
            f"{images(enlarged.total())} had to be enlarged to {index.height}x{index.width} "
            f"(the smallest is {height}x{width}): that blurs detail, and a smaller --size keeps it sharp"
        )
    if nothing_held_out and "held_out_note" not in index.details:
        told.append(nothing_held_out)
    left_out = source.outside - (split.count if split is not None else 0)
    if left_out > 0:
        told.append(f"{left_out} images outside the split {source.details['split']} are not among them (--split chooses)")
    return told


def images(number: int) -> str:
    return f"{number:,} image" + ("s" if number > 1 else "")


def summary(index: Index, kept_out: Index | None, out: Path, source: Source, notes: list[str]) -> list[str]:
    """Lines to print."""
    shards = f"{len(index.shards)} shard" + ("s" if len(index.shards) > 1 else "")
    megabytes = sum(shard.bytes for shard in index.shards) / 1e6
    channels = "grey" if index.channels == 1 else "colour"
    lines = [
        f"{index.samples:,} images, {index.height}x{index.width} (height x width), {channels}, {shards}, {megabytes:.1f} MB"
    ]
    if index.labelled:
        counted = [f"{name} {count:,}" for name, count in zip(index.classes, index.class_counts, strict=True)]
        more = f", and {len(counted) - 20} classes more" if len(counted) > 20 else ""
        lines.append(f"classes: {', '.join(counted[:20])}{more}")
    else:
        lines.append("classes: none (no labels)")
    if kept_out is not None:
        split = kept_out.details.get("split")
        whence = f" of the {split} split" if split != index.details.get("split") else ""
        lines.append(
            f"held out: {kept_out.samples:,} images{whence}, in {out / FOLDER}: runs on these shards are watched by them"
        )
    told = [name for name in ("split", "axis", "slices", "window", "fit") if index.details.get(name)]
    if told:
        lines.append(", ".join(f"{name}: {index.details[name]}" for name in told))
    if source.unit == "volumes":
        lines += volume_lines(index.details["volumes"], index.details["volume_count"])
    held_out = index.details.get("held_out_note")
    lines += [f"note: {note}" for note in (*source.notes, *notes, *([held_out] if held_out else []))]
    lines.append(f"written to {out}; look at {out / 'contact.png'}")
    return lines


def volume_lines(facts: list[dict[str, Any]], count: int) -> list[str]:
    lines = []
    for number, fact in enumerate(facts[:3]):
        if "slices" in fact:
            low, high = fact["slices"]
            lines.append(
                f"volume {number}: {fact['taken']} of {fact['of']} slices ({low} to {high - 1}), window {fact['window']}"
            )
    if count > 3:
        lines.append(f"and {count - 3} volumes more: see index.json")
    notes = dict.fromkeys(fact["note"] for fact in facts if "note" in fact)
    return lines + [f"note: {note}" for note in notes]
