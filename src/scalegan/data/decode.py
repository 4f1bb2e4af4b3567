"""From the stored bytes of one image to its pixels, by an explicit list of formats and never by guessing or pickle."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from scalegan.data.cache import Unreadable

MODES = {1: "L", 3: "RGB"}

# By what a file begins with: its name was checked when the index was made, and lies where reading by offset does not look.
# Calling the decoder itself, rather than `Image.open`, saves a tenth of the time of a small JPEG.
FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
)


def decode(data: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """An encoded image -> uint8 [height, width, channels]. Raises `Unreadable` if it is no image of just that shape.

    The size is compared before a pixel is decoded, so a small file that claims to be huge costs nothing.
    """
    open_image = next((opener for beginning, opener in FORMATS if data.startswith(beginning)), None)
    if open_image is None:
        raise Unreadable("is no JPEG, PNG or WebP image")
    try:
        image = open_image(io.BytesIO(data))
        if image.size != (width, height) or image.mode != MODES[channels]:
            found, wanted = f"{image.height}x{image.width} {image.mode}", f"{height}x{width} {MODES[channels]}"
            raise Unreadable(f"is {found} (height x width), the index says {wanted}")
        pixels = image.tobytes()
    except Unreadable:
        raise
    except Exception as error:  # damaged files reach every corner of the decoders
        raise Unreadable(f"cannot be decoded ({type(error).__name__}: {error})") from None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
