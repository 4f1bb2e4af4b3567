"""Pictures made of images: the sample grid, and the film of a training. Needs NumPy and PIL only."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scalegan.files import write_atomically

GAP = 2
"""Pixels between the images of a grid."""


def columns_for(count: int) -> int:
    """Columns of a grid that is full if it can be (32 -> 8 x 4), else about square."""
    square = math.isqrt(count - 1) + 1
    full = (n for n in range(square, math.isqrt(4 * count) + 1) if count % n == 0)
    return next(full, square)


def grid(images: NDArray[np.uint8], columns: int | None = None) -> Image.Image:
    """images uint8 [n, C, H, W] with 1 or 3 channels -> one picture, row by row, at their own resolution on white."""
    images = np.asarray(images)
    count, channels, height, width = images.shape
    columns = columns or columns_for(count)
    rows = math.ceil(count / columns)
    tiles = np.full((rows * columns, channels, height + GAP, width + GAP), 255, np.uint8)
    tiles[:count, :, :height, :width] = images
    canvas = rearrange(tiles, "(rows columns) c h w -> (rows h) (columns w) c", rows=rows)[:-GAP, :-GAP]
    return Image.fromarray(np.ascontiguousarray(canvas if channels == 3 else canvas[:, :, 0]))


def tiles(picture: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The images uint8 [n, C, H, W] of a `grid`, and the white places at its end."""
    pixels = np.atleast_3d(np.asarray(picture))
    pixels = np.pad(pixels, [(0, GAP), (0, GAP), (0, 0)])  # the gap that the last row and column lack
    cut = rearrange(pixels, "(rows h) (columns w) c -> (rows columns) c h w", h=height + GAP, w=width + GAP)
    return np.ascontiguousarray(cut[:, :, :height, :width])


def save_png(path: Path, images: NDArray[np.uint8], columns: int | None = None) -> None:
    """Write images uint8 [n, C, H, W] as one grid; a reader never sees half a file."""
    save_picture(path, grid(images, columns))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write one picture in the format of its suffix, atomically; the folder is made."""
    buffer = io.BytesIO()
    picture.save(buffer, format=path.suffix[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def fit(picture: Image.Image, smallest: int, largest: int) -> Image.Image:
    """Bring the longer side between the two bounds: whole pixel multiples upwards, a smooth filter downwards."""
    side = max(picture.size)
    if side > largest:
        return picture.resize(
            (_scaled(picture.width, largest / side), _scaled(picture.height, largest / side)), Image.Resampling.LANCZOS
        )
    times = max(1, min(math.ceil(smallest / side), largest // side))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def _scaled(length: int, factor: float) -> int:
    return max(1, round(length * factor))


def captioned(picture: Image.Image, caption: str, size: int = 16) -> Image.Image:
    """The picture on white with a line of text above it."""
    font = ImageFont.load_default(size)
    bar = round(size * 1.8)
    canvas = Image.new(picture.mode, (picture.width, picture.height + bar), "white")
    canvas.paste(picture, (0, bar))
    ImageDraw.Draw(canvas).text((picture.width / 2, bar / 2), caption, fill="black", font=font, anchor="mm")
    return canvas


def side_by_side(pictures: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Pictures of one mode in a row on white, their upper edges in line."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new(pictures[0].mode, (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + gap
    return canvas


def save_gif(path: Path, frames: Sequence[Image.Image], milliseconds: int = 200, hold: int = 2000) -> None:
    """Write grey or RGB frames of one size as an endless film; the last one is held, in milliseconds."""
    # Grey frames keep all their 256 levels; the octree is 70 times faster than median cut, and looks the same.
    colours = [frame if frame.mode == "L" else frame.quantize(256, method=Image.Quantize.FASTOCTREE) for frame in frames]
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    buffer = io.BytesIO()
    colours[0].save(buffer, format="gif", save_all=True, append_images=colours[1:], duration=durations, loop=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
