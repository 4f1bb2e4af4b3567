"""From a picture to the bytes that are stored: decode, check, window, resize, encode.

A JPEG or PNG file that needs no change is stored as it is; everything else becomes PNG, so that nothing is lost to a
second compression. Resizing is by Pillow's Lanczos filter, which is antialiased: it averages over all pixels that fall
into a new one.
"""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scalegan.data.sources.base import Damaged, Fit, Picture, one_line
from scalegan.data.sources.window import Window, apply_window
from scalegan.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
JPEG = ("JPEG", "MPO")  # MPO: a telephone's JPEG with further pictures behind it, which no ordinary reader looks at
MOST_PIXELS = 100_000_000
"""A file of some kilobytes can claim more pixels than memory holds."""
EXIF_ORIENTATION = 0x0112
TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 0x0106, 0
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of that orientation upright."""


@dataclass(frozen=True)
class Encoded:
    """One image as it goes into a shard."""

    name: str
    data: bytes
    suffix: Literal["jpg", "png"]
    label: int
    height: int
    width: int
    channels: int
    transparent: bool = False
    """It had transparency, which was laid over white."""
    enlarged: tuple[int, int] | None = None
    """Height and width that it had, if it was smaller than `--size` and was enlarged."""
    deep: bool | None = None
    """Whether its file has more than 8 bits, where a window of intensities (and not of percentiles) was applied to it."""


@dataclass(frozen=True)
class Transform:
    size: tuple[int, int] | None
    """Height and width."""
    fit: Fit
    channels: int | None
    """1, 3, or None: as the picture is."""
    window: Window | None = None
    """Of greyscale files; slices of volumes come through theirs already."""

    def __call__(self, picture: Picture) -> Encoded:
        content = picture.content
        if isinstance(content, bytes):
            return self._file(picture, content)
        if content.dtype == np.uint8 and not self.window:
            return self._finish(picture, Image.fromarray(content))
        if content.dtype == np.uint8:
            return self._finish(picture, self._windowed(picture.name, Image.fromarray(content)))
        return self._finish(picture, Image.fromarray(np.asarray(content * 255.0, np.float32)))

    def _file(self, picture: Picture, data: bytes) -> Encoded:
        image, unchanged = _decode(picture.name, data)
        deep = image.mode in ("F", "I") or image.mode.startswith("I;16")
        transparent = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or ("transparency" in image.info and not deep)
        if transparent:
            image, unchanged = _over_white(image), False
        if self.window:
            image, unchanged = self._windowed(picture.name, image), False
        elif deep:
            values = np.asarray(image)
            shares = image.mode == "F" and values.min() >= 0 and values.max() <= 1
            raise UserError(
                f"{picture.name} has more than 8 bits, and values from {values.min():g} to {values.max():g}: say which "
                f"intensities become black and white, such as --window {'0,1' if shares else '0,65535'} or --window p1,p99"
            )
        elif image.mode not in ("L", "RGB"):
            image, unchanged = image.convert("L" if image.mode == "1" else "RGB"), False
        size_kept = self.size is None or self.size == (image.height, image.width)
        channels = 1 if image.mode == "L" else 3
        if unchanged and size_kept and self.channels in (None, channels):
            suffix: Literal["jpg", "png"] = "jpg" if image.format in JPEG else "png"
            return Encoded(picture.name, data, suffix, picture.label, image.height, image.width, channels)
        encoded = self._finish(picture, image, transparent)
        return replace(encoded, deep=deep) if self.window and self.window.kind == "range" else encoded

    def _windowed(self, name: str, image: Image.Image) -> Image.Image:
        """A greyscale image of any depth -> mode F, from 0 to 255."""
        assert self.window is not None
        if self.window.kind == "dicom":
            raise UserError(f"--window dicom: {name} is no DICOM file: give LO,HI or percentiles such as p1,p99")
        if image.mode not in ("L", "1", "I", "F") and not image.mode.startswith("I;16"):
            raise UserError(f"--window is for grey images and {name} is in colour: leave it out, or convert the image first")
        values = np.asarray(image, np.float64)
        # What Pillow turns round itself up to 8 bits.
        inverted = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
        shown = apply_window(values, *self.window.limits(values, name, inverted=inverted))
        if inverted:
            shown = 1.0 - shown
        return Image.fromarray((shown * 255.0).astype(np.float32))

    def _finish(self, picture: Picture, image: Image.Image, transparent: bool = False) -> Encoded:
        """Mode L, RGB or F (grey, from 0 to 255) -> resized, with the channels asked for, as PNG."""
        if self.channels == 1 and image.mode == "RGB":
            image = image.convert("L")
        size = self.size or _square_pixels(image.height, image.width, picture.spacing)
        if size[0] * size[1] > MOST_PIXELS:
            raise UserError(
                f"{picture.name} has pixels of {picture.spacing[0]:g} x {picture.spacing[1]:g}: give --size and --fit"
            )
        before = (image.height, image.width)
        enlarged = before if enlarges(before, size, self.fit, picture.spacing) else None
        # Square pixels are a whole number of them: less than half a pixel is stretched, rather than padded or cut.
        image = resize(image, size, self.fit if self.size else "stretch", picture.spacing)
        if image.mode == "F":
            image = Image.fromarray(np.rint(np.clip(np.asarray(image), 0, 255)).astype(np.uint8))
        if self.channels == 3 and image.mode == "L":
            image = image.convert("RGB")
        channels = 1 if image.mode == "L" else 3
        data = _png(image)
        return Encoded(picture.name, data, "png", picture.label, image.height, image.width, channels, transparent, enlarged)


def _decode(name: str, data: bytes) -> tuple[Image.Image, bool]:
    """The image, upright, and whether its file says all there is to say about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"{name} has {image.width}x{image.height} pixels, over {MOST_PIXELS:,}: make it smaller first")
            if image.format not in JPEG and getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{name} holds several images: save them as one file each")
            if image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(map(_is_deep, image.tile)):  # type: ignore[attr-defined]
                raise UserError(f"{name} is in colour with 16 bits, which would be cut to 8: convert it to 8 bits first")
            image.load()
            if (turn := UPRIGHT.get(_orientation(image))) is not None:
                return image.transpose(turn), False
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{name} has far more than {MOST_PIXELS:,} pixels: make it smaller first") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, ArithmeticError) as error:
        said = "" if isinstance(error, UnidentifiedImageError) else f" ({one_line(error)})"
        raise Damaged(f"{name} is no readable image{said}") from None
    return image, image.format in (*JPEG, "PNG")


def _is_deep(tile: Any) -> bool:
    """Whether the file has 16 bits a channel in this part, by how its bytes are unpacked; BGR;16 is all three in 16 bits."""
    raw: str = tile[3] if isinstance(tile[3], str) else tile[3][0]
    return "16" in raw and raw != "BGR;16"


def _orientation(image: Image.Image) -> Any:
    """1 to 8, or whatever the file says; 1 where what it says about itself is damaged, as it is no part of the picture."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow hands on whatever a damaged tag breaks inside it
        return 1


def _over_white(image: Image.Image) -> Image.Image:
    grey = image.mode in ("L", "LA", "La", "1")
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # Pillow knows no way straight from La
    flat = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat.alpha_composite(image)
    return flat.convert("L" if grey else "RGB")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Z_RLE: as small as the default for filtered images, in half the time. No profile: the trainer would never look at it.
    image.save(buffer, "PNG", compress_type=zlib.Z_RLE, icc_profile=None)
    return buffer.getvalue()


def _square_pixels(height: int, width: int, spacing: tuple[float, float]) -> tuple[int, int]:
    """Size that keeps every detail and makes pixels square: the finer spacing in both directions."""
    down, across = spacing
    fine = min(spacing)
    if max(spacing) / fine < 1.01:
        return height, width
    return max(1, round(height * down / fine)), max(1, round(width * across / fine))


def enlarges(before: tuple[int, int], size: tuple[int, int], fit: Fit, spacing: tuple[float, float]) -> bool:
    """Whether `resize` makes more pixels than there were, in either direction; of thick slices, after making pixels square."""
    height, width = _square_pixels(*before, spacing)
    factors = size[0] / height, size[1] / width
    return (min(factors) if fit == "pad" else max(factors)) > 1


def resize(image: Image.Image, size: tuple[int, int], fit: Fit, spacing: tuple[float, float] = (1.0, 1.0)) -> Image.Image:
    """Bring an image to height and width `size`. `crop` keeps the middle, `pad` adds a black margin, `stretch` distorts."""
    height, width = size
    down, across = spacing
    tall, wide = image.height * down, image.width * across
    if fit == "stretch":
        return _lanczos(image, size, (0, 0, image.width, image.height))
    if fit == "crop":
        scale = min(tall / height, wide / width)
        rows, columns = height * scale / down, width * scale / across
        top, left = (image.height - rows) / 2, (image.width - columns) / 2
        box = (max(left, 0), max(top, 0), min(left + columns, image.width), min(top + rows, image.height))
        return _lanczos(image, size, box)
    scale = max(tall / height, wide / width)
    inner = min(height, max(1, round(tall / scale))), min(width, max(1, round(wide / scale)))
    small = _lanczos(image, inner, (0, 0, image.width, image.height))
    if inner == size:
        return small
    framed = Image.new(image.mode, (width, height))
    framed.paste(small, ((width - inner[1]) // 2, (height - inner[0]) // 2))
    return framed


def _lanczos(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    whole = (0.0, 0.0, float(image.width), float(image.height))
    if size == (image.height, image.width) and box == whole:
        return image
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)


def decode(data: bytes) -> NDArray[np.uint8]:
    """A stored image -> uint8 [H, W] or [H, W, 3]."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        return np.asarray(image)
