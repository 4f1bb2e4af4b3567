"""From the stored bytes of one image to its pixels, by an explicit list of formats and never by guessing or pickle."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from scalegan.data.cache import Unreadable

MODES = {1: "L", 3: "RGB"}

# By what a file begins with: its name was checked when the index was made, and lies where reading by offset does not look.
FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
)


def decode(data: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """An encoded image -> uint8 [height, width, channels]. Raises `Unreadable` if it is no image of just that shape.

    The size is compared before a pixel is decoded, so a small file that claims to be huge costs nothing.
    """
    mode = MODES[channels]
    try:
        if jpeg_frame(data) == (height, width, channels):
            # Straight to libjpeg. Pillow's own look at the header, in Python, costs a quarter of the time of a small image.
            image = Image.frombytes(mode, (width, height), data, "jpeg", mode, "")
        else:
            image = open_image(data)
            if image.size != (width, height) or image.mode != mode:
                found, wanted = f"{image.height}x{image.width} {image.mode}", f"{height}x{width} {mode}"
                raise Unreadable(f"is {found} (height x width), the index says {wanted}")
        pixels = image.tobytes()
    except Unreadable:
        raise
    except Exception as error:  # damaged files reach every corner of the decoders
        raise Unreadable(f"cannot be decoded ({type(error).__name__}: {error})") from None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, channels)


def open_image(data: bytes) -> Image.Image:
    for beginning, opener in FORMATS:
        if data.startswith(beginning):
            return opener(io.BytesIO(data))
    raise Unreadable("is no JPEG, PNG or WebP image")


def jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of a plain JPEG file; None if it is none, or has anything out of the ordinary.

    Walks from segment to segment as libjpeg does, so both see the same frame header (ITU T.81, B.1 and B.2).
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xC2:  # baseline, extended, progressive
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return (height, width, components) if bits == 8 else None
        if not (0xE0 <= marker <= 0xEF or marker in (0xDB, 0xC4, 0xDD, 0xFE)):  # application, tables, restarts, comment
            return None
        at += 2 + (data[at + 2] << 8) + data[at + 3]
    return None
