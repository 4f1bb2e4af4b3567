"""A picture of some of the images of a data set, to look at before training: `contact.png` beside the index."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scalegan.data.index import Index, read_bytes, read_offsets
from scalegan.data.sources.encode import decode
from scalegan.data.writer import write_file

CELL = 96
"""Smaller images are magnified by a whole number to about this size, larger ones are shrunk to `MOST`."""
MOST = 128
GAP = 2
COLUMNS = 10
ROWS = 10
MOST_ROWS = 20
TITLE_HEIGHT = 14


def contact_sheet(folder: Path, index: Index) -> bool:
    """Write `contact.png`: ten rows, shared by the classes, or a row for each class (of the first twenty).

    Says whether all images on it are grey.
    """
    rows = _rows(index)
    height, width = _cell(index.height, index.width)
    tops = np.cumsum([0] + [height + GAP + (TITLE_HEIGHT if title else 0) for title, _ in rows])
    colour = index.channels == 3
    grey, white = ((128,) * 3, (255,) * 3) if colour else (128, 255)
    resample = Image.Resampling.NEAREST if height >= index.height else Image.Resampling.LANCZOS
    sheet = Image.new("RGB" if colour else "L", (COLUMNS * (width + GAP) - GAP, int(tops[-1]) - GAP), grey)
    draw = ImageDraw.Draw(sheet)
    for (title, images), top, bottom in zip(rows, tops[:-1].tolist(), tops[1:].tolist(), strict=True):
        draw.text((2, top), title, fill=white)
        for column, image in enumerate(images):
            cell = Image.fromarray(image).resize((width, height), resample)
            sheet.paste(cell, (column * (width + GAP), bottom - GAP - height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_file(folder / "contact.png", buffer.getvalue())
    return not colour or all((image[..., :1] == image).all() for _, images in rows for image in images)


def _rows(index: Index) -> list[tuple[str, list[NDArray[np.uint8]]]]:
    """Title and images of each row; the title of a class stands over its first row alone."""
    titles = list(index.classes[:MOST_ROWS]) or [""]
    each = COLUMNS * max(1, ROWS // len(titles))
    found: list[list[NDArray[np.uint8]]] = [[] for _ in titles]
    wanted = [min(each, count) for count in index.class_counts[: len(titles)] or [index.samples]]
    for shard_number, shard in enumerate(index.shards):
        if [len(images) for images in found] == wanted:
            break
        for start, length, label in read_offsets(index, shard_number).tolist():
            row = max(label, 0)
            if row < len(found) and len(found[row]) < each:
                found[row].append(decode(read_bytes(index.root, shard.name, start, length)))
    return [
        (title if not start else "", images[start : start + COLUMNS])
        for title, images in zip(titles, found, strict=True)
        for start in range(0, max(1, len(images)), COLUMNS)
    ]


def _cell(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest > MOST:
        return max(1, height * MOST // longest), max(1, width * MOST // longest)
    factor = max(1, CELL // longest)
    return height * factor, width * factor
