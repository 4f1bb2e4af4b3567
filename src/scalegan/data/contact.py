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
MOST = 256
GAP = 2
COLUMNS = 10
MOST_ROWS = 20
LABEL_HEIGHT = 14


def contact_sheet(folder: Path, index: Index) -> None:
    """Write `contact.png`: a row for each class (the first twenty), or ten rows of images without labels."""
    rows = _rows(index)
    height, width = _cell(index.height, index.width)
    head = LABEL_HEIGHT if index.labelled else 0
    step = height + GAP + head
    colour = index.channels == 3
    grey, white = ((128,) * 3, (255,) * 3) if colour else (128, 255)
    resample = Image.Resampling.NEAREST if height >= index.height else Image.Resampling.LANCZOS
    sheet = Image.new("RGB" if colour else "L", (COLUMNS * (width + GAP) - GAP, len(rows) * step - GAP), grey)
    draw = ImageDraw.Draw(sheet)
    for y, (title, images) in enumerate(rows):
        if title:
            draw.text((2, y * step), title, fill=white)
        for x, image in enumerate(images):
            sheet.paste(Image.fromarray(image).resize((width, height), resample), (x * (width + GAP), y * step + head))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_file(folder / "contact.png", buffer.getvalue())


def first_images(index: Index, number: int) -> list[NDArray[np.uint8]]:
    """The first images of the shards, which are shuffled: uint8 [H, W] or [H, W, 3]."""
    return [image for _, images in _rows(index, number) for image in images][:number]


def _rows(index: Index, number: int = COLUMNS * COLUMNS) -> list[tuple[str, list[NDArray[np.uint8]]]]:
    titles = list(index.classes[:MOST_ROWS]) or [""]
    most = COLUMNS if index.labelled else number
    found: list[list[NDArray[np.uint8]]] = [[] for _ in titles]
    wanted = [min(most, count) for count in index.class_counts[: len(titles)] or [index.samples]]
    for shard_number, shard in enumerate(index.shards):
        if [len(images) for images in found] == wanted:
            break
        for start, length, label in read_offsets(index, shard_number).tolist():
            row = max(label, 0)
            if row < len(found) and len(found[row]) < most:
                found[row].append(decode(read_bytes(index.root, shard.name, start, length)))
    if index.labelled:
        return list(zip(titles, found, strict=True))
    return [("", found[0][i : i + COLUMNS]) for i in range(0, len(found[0]), COLUMNS)]


def _cell(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest > MOST:
        return max(1, height * MOST // longest), max(1, width * MOST // longest)
    factor = max(1, CELL // longest)
    return height * factor, width * factor
