"""Images are stored as they came where nothing changes, and never lose depth, sides or colour without a word."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opening import encoded, photo, scan
from PIL import Image, ImageOps

from scalegan.data.sources import encode
from scalegan.data.sources.base import Picture
from scalegan.data.sources.encode import Transform, decode, enlarges, resize
from scalegan.data.sources.window import Slices, Window, parse_slices, parse_window
from scalegan.errors import UserError


def transform(content: Any, label: int = 0, **options: Any) -> encode.Encoded:
    settings = {"size": None, "fit": "crop", "channels": None, "window": None} | options
    return Transform(**settings)(Picture("x.png", content, label))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, bits: int, data: bytes) -> bytes:
    """A colour PNG of any claims."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep(values: np.ndarray) -> bytes:
    """A 16-bit grey PNG."""
    return encoded(values.astype(np.uint16))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_file_that_needs_no_change_is_stored_as_it_is(form: str) -> None:
    for image in (photo(), scan()):
        data = encoded(image, form)
        assert transform(data).data is data
        assert transform(data, size=(10, 12)).data is data
        assert transform(data, channels=1 if image.ndim == 2 else 3).data is data


def test_suffix_size_and_channels_are_stated() -> None:
    made = transform(encoded(scan(), "JPEG"), label=3)
    assert (made.suffix, made.height, made.width, made.channels, made.label) == ("jpg", 10, 12, 1, 3)


@pytest.mark.parametrize("form", ["WEBP", "BMP", "TIFF"])
def test_other_formats_become_png_without_loss(form: str) -> None:
    made = transform(encoded(photo(), form, **({"lossless": True} if form == "WEBP" else {})))
    assert made.suffix == "png"
    np.testing.assert_array_equal(decode(made.data), photo())


def test_arrays_become_png_without_loss() -> None:
    np.testing.assert_array_equal(decode(transform(photo()).data), photo())
    np.testing.assert_array_equal(decode(transform(scan()).data), scan())


def test_grey_and_colour_convert_when_asked() -> None:
    grey = transform(encoded(photo(), "JPEG"), channels=1)
    assert (grey.suffix, grey.channels, decode(grey.data).shape) == ("png", 1, (10, 12))
    colour = decode(transform(encoded(scan()), channels=3).data)
    np.testing.assert_array_equal(colour, np.repeat(scan()[..., None], 3, 2))


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(photo()).quantize(16)
    data = io.BytesIO()
    image.save(data, "PNG")
    np.testing.assert_array_equal(decode(transform(data.getvalue()).data), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_over_white_and_counted() -> None:
    image = np.dstack([photo(), np.zeros((10, 12), np.uint8)])
    made = transform(encoded(image))
    assert made.transparent
    assert (decode(made.data) == 255).all()


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[encode.EXIF_ORIENTATION] = 6
    made = transform(encoded(photo(), "JPEG", exif=exif, quality=95))
    assert (made.height, made.width, made.suffix) == (12, 10, "png")


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[encode.EXIF_ORIENTATION] = orientation
    data = encoded(photo(), "JPEG", exif=exif, quality=95)
    made = transform(data)
    np.testing.assert_array_equal(decode(made.data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert (made.data is data) == (orientation not in range(2, 9))


def with_exif(payload: bytes) -> bytes:
    """A JPEG that states its resolution, so that the payload is not looked at on opening, with `payload` after that."""
    data = encoded(photo(), "JPEG", dpi=(72, 72))
    end = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:end] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[end:]


@pytest.mark.parametrize(
    "payload",
    [bytes(16), b"II*\0", b"II*\0\xff\xff\xff\x7f", b"II+\0\x08\0\0\0", b"http://ns.adobe.com"],
    ids=["zeros", "short", "offset", "big", "text"],
)
def test_a_good_picture_with_damaged_exif_is_stored_as_it_is(payload: bytes) -> None:
    data = with_exif(b"Exif\0\0" + payload)
    assert transform(data).data is data


@pytest.mark.parametrize(
    "tag",
    [
        struct.pack("<HHI4s", 0x011A, 1, 1, b"\1\0\0\0"),
        struct.pack("<HHIi", 0x0100, 9, 1, -5),
        struct.pack("<HHIhH", 0x0101, 8, 1, -5, 0),
        struct.pack("<HHI4s", 0xA005, 2, 4, b"abc\0"),
        struct.pack("<HHI4s", 0x0128, 2, 2, b"2\0\0\0"),
    ],
    ids=["resolution", "width", "height", "interoperability", "unit"],
)
def test_a_photograph_is_turned_upright_whatever_its_other_tags_say(tag: bytes) -> None:
    tags = sorted(
        [tag, struct.pack("<HHIHH", encode.EXIF_ORIENTATION, 3, 1, 6, 0)], key=lambda tag: struct.unpack("<H", tag[:2])
    )
    made = transform(with_exif(b"Exif\0\0II*\0\x08\0\0\0\2\0" + b"".join(tags) + bytes(4)))
    assert (made.height, made.width) == (12, 10)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_colour_profile_is_not_stored(form: str) -> None:
    plain, profiled = (
        transform(encoded(photo(), form, **options), size=(5, 6)) for options in ({}, {"icc_profile": bytes(400)})
    )
    assert profiled.data == plain.data


def test_sixteen_bits_need_a_window() -> None:
    data = deep(scan().astype(np.uint16) * 200)
    with pytest.raises(UserError, match=r"x.png has more than 8 bits.*--window"):
        transform(data)


@pytest.mark.parametrize(("largest", "window"), [(1.0, "0,1"), (1.5, "0,65535")])
def test_floats_are_told_a_window_that_shows_them(largest: float, window: str) -> None:
    data = encoded(np.array([[0.0, 0.25, largest]], np.float32), "TIFF")
    with pytest.raises(UserError, match=f"values from 0 to {largest:g}: .* such as --window {window} or"):
        transform(data)
    lo, hi = map(float, window.split(","))
    assert decode(transform(data, window=Window("range", lo, hi)).data).max() == (255 if hi == 1 else 0)


def test_sixteen_bits_stay_so_where_one_shade_is_transparent() -> None:
    values = np.array([[0, 1000, 1500, 2000]])
    data = deep(values)
    data = data[:33] + chunk(b"tRNS", b"\0\0") + data[33:]  # behind the header
    with pytest.raises(UserError, match=r"x.png has more than 8 bits.*--window"):
        transform(data)
    assert decode(transform(data, window=Window("range", 1000, 2000)).data).tolist() == [[0, 0, 128, 255]]


def test_a_window_maps_in_full_depth_and_rounds() -> None:
    values = np.array([[0, 1000, 1002, 1500, 2000, 65535]])
    made = decode(transform(deep(values), window=Window("range", 1000, 2000)).data)
    assert made.tolist() == [[0, 0, 1, 128, 255, 255]]  # 1002 -> 0.51, 1500 -> 127.5 to even


def test_percentiles_are_of_the_foreground() -> None:
    values = np.zeros((10, 12))
    values[:2] = np.linspace(1000, 5000, 24).reshape(2, 12)
    assert Window("percentile", 0, 100).limits(values, "x") == (pytest.approx(1000), pytest.approx(5000))


def test_a_window_works_on_8_bits_too_but_not_on_colour() -> None:
    made = decode(transform(encoded(scan()), window=Window("range", 100, 101)).data)
    np.testing.assert_array_equal(made, np.where(scan() > 100, 255, 0))
    with pytest.raises(UserError, match="in colour"):
        transform(encoded(photo()), window=Window("range", 0, 1))


def test_sixteen_bits_in_colour_are_refused() -> None:
    rows = b"".join(b"\0" + np.arange(36, dtype=">u2").tobytes() for _ in range(4))
    data = raw_png(12, 4, 16, zlib.compress(rows))
    with pytest.raises(UserError, match="in colour with 16 bits"):
        transform(data)


def raw_tiff(pixels: np.ndarray, kind: int, *extra: int) -> bytes:
    """One row [W, channels] as a TIFF that Pillow reads and does not write; `kind`: 0 white is zero, 1 grey, 2 colour."""
    bits, channels = pixels.dtype.itemsize * 8, pixels.shape[1]
    depth = bits * 0x10001 if channels < 3 else 8  # two of them fit into the tag; of more it says where they are
    tags = [
        (256, 3, 1, len(pixels)), (257, 3, 1, 1), (258, 3, channels, depth), (259, 3, 1, 1), (262, 3, 1, kind), (273, 4, 1, 14),
        (277, 3, 1, channels), (278, 3, 1, 1), (279, 4, 1, pixels.nbytes), *((338, 3, 1, number) for number in extra),
    ]  # fmt: skip
    content = struct.pack("<3H", bits, bits, bits) + pixels.tobytes()
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def test_sixteen_bits_in_colour_are_refused_in_tiff() -> None:
    with pytest.raises(UserError, match="in colour with 16 bits"):
        transform(raw_tiff(np.arange(36, dtype="<u2").reshape(12, 3), 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.dtype("<u2")])
def test_zero_is_white_where_the_file_says_so_at_any_depth(dtype: Any) -> None:
    most = np.iinfo(dtype).max
    data = raw_tiff(np.array([[0], [most // 5], [most]], dtype), 0)
    made = transform(data, window=Window("range", 0, most))
    assert decode(made.data)[0].tolist() == [255, 204, 0]


def test_where_zero_is_white_the_foreground_is_what_is_brighter_all_the_same() -> None:
    values = np.concatenate([np.zeros(50), np.linspace(1000, 5000, 50)]).astype("<u2")[:, None]
    window = Window("percentile", 10, 95)
    made, expected = (
        decode(transform(raw_tiff(data, kind), window=window).data).astype(int)
        for data, kind in ((65535 - values, 0), (values, 1))
    )
    np.testing.assert_allclose(made, expected, atol=1)


def test_grey_that_is_multiplied_by_its_opacity_is_laid_over_white() -> None:
    data = raw_tiff(np.array([[0, 255], [200, 255], [50, 127], [0, 0]], np.uint8), 1, 1)
    made = transform(data)
    assert made.transparent
    assert decode(made.data)[0].tolist() == [0, 200, pytest.approx(178, abs=1), 255]


def test_a_size_or_place_with_the_digits_16_in_it_is_no_depth() -> None:
    """A row of a BMP 720 pixels wide has 2160 bytes; where the directory of a packed TIFF lies is a number too."""
    for width in (5, 53, 72, 105, 205, 539, 720, 1720):
        assert transform(encoded(photo(0, 1, width), "BMP")).width == width
    for height in range(20, 100):
        assert transform(encoded(photo(0, height, 50), "TIFF", compression="tiff_lzw")).height == height


def test_a_bmp_of_16_bits_a_pixel_is_read() -> None:
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 14 + len(info) + 4, 0, 0, 14 + len(info)) + info + struct.pack("<2H", 0xF800, 0x1F)
    assert decode(transform(data).data).tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(photo(), "PNG")[:60],
        encoded(photo(0, 64, 64), "JPEG")[:-200],
        encoded(photo(), "GIF"),
        encoded(photo())[:40] + b"\xff" * 20 + encoded(photo())[60:],
    ],
)
def test_what_cannot_be_read_is_named(data: bytes) -> None:
    with pytest.raises(UserError, match=r"x.png is no readable image"):
        transform(data)


def test_several_images_in_one_file_are_refused() -> None:
    frames = [Image.fromarray(photo(i)) for i in (1, 2)]
    with pytest.raises(UserError, match="several images"):
        transform(encoded(photo(), "TIFF", save_all=True, append_images=frames))


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MOST_PIXELS", 100)
    with pytest.raises(UserError, match=r"12x10 pixels, over 100"):
        transform(encoded(photo()))
    monkeypatch.undo()
    with pytest.raises(UserError, match="pixels"):
        transform(raw_png(60_000, 60_000, 8, zlib.compress(bytes(1000))))


def test_resizing_averages_instead_of_skipping() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    made = decode(transform(stripes, size=(16, 16)).data)
    assert abs(made[4:-4, 4:-4].astype(int) - 128).max() < 20


def test_crop_keeps_the_middle() -> None:
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 200
    assert (decode(transform(image, size=(10, 10), fit="crop").data) == 200).all()


def test_pad_keeps_everything_in_a_black_frame() -> None:
    made = decode(transform(np.full((10, 30), 200, np.uint8), size=(30, 30), fit="pad").data)
    assert (made[10:20] == 200).all()
    assert (made[:10] == 0).all()
    assert (made[20:] == 0).all()


def test_stretch_distorts() -> None:
    assert (decode(transform(np.full((10, 30), 200, np.uint8), size=(30, 30), fit="stretch").data) == 200).all()


@pytest.mark.parametrize(
    ("before", "fit", "enlarged"),
    [
        ((30, 30), "crop", True),
        ((60, 60), "crop", False),
        ((64, 30), "crop", True),
        ((60, 100), "crop", False),
        ((30, 100), "pad", False),
        ((30, 60), "pad", False),
        ((30, 59), "pad", True),
        ((30, 100), "stretch", True),
        ((60, 100), "stretch", False),
    ],
)
def test_an_image_that_is_enlarged_says_what_it_was(before: tuple[int, int], fit: Any, enlarged: bool) -> None:
    made = transform(photo(0, *before), size=(60, 60), fit=fit)
    assert made.enlarged == (before if enlarged else None)
    assert transform(encoded(photo(0, *before)), size=(60, 60), fit=fit).enlarged == made.enlarged


def test_without_a_size_nothing_is_enlarged() -> None:
    assert transform(photo()).enlarged is None
    assert Transform(None, "pad", None)(Picture("x", np.full((10, 10), 0.5), 0, (2.0, 1.0))).enlarged is None


def test_thick_slices_are_enlarged_where_the_finer_direction_is() -> None:
    assert not enlarges((10, 40), (40, 40), "pad", (4.0, 1.0))
    assert enlarges((10, 40), (41, 41), "pad", (4.0, 1.0))


def test_pixels_that_are_not_square_are_made_so() -> None:
    picture = Picture("x", np.full((10, 10), 0.5), 0, (2.0, 1.0))
    made = Transform(None, "pad", None)(picture)
    assert (made.height, made.width) == (20, 10)
    made = Transform((20, 20), "pad", None)(picture)
    columns = decode(made.data)[10] > 0
    assert columns.sum() == 10


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize(("down", "height"), [(1.1, 14), (1.12, 15), (1.006, 13)])
def test_making_pixels_square_leaves_the_finer_direction_as_it_is(fit: Any, down: float, height: int) -> None:
    """13 rows are 14.3 or 14.6 columns high, which is no whole number: that is no aspect to be padded or cut."""
    columns = scan(width=400)[:1]
    made = Transform(None, fit, None)(Picture("x", columns.repeat(13, axis=0), 0, (down, 1.0)))
    np.testing.assert_array_equal(decode(made.data), columns.repeat(height, axis=0))


def test_absurd_pixels_are_an_error() -> None:
    with pytest.raises(UserError, match=r"x has pixels of 1e\+30 x 1: give --size"):
        Transform(None, "pad", None)(Picture("x", np.full((10, 10), 0.5), 0, (1e30, 1.0)))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["crop", "pad", "stretch"]),
    st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)),
)
def test_every_size_is_reached(before: tuple[int, int], after: tuple[int, int], fit: Any, spacing: tuple[float, float]) -> None:
    made = resize(Image.fromarray(np.full(before, 7, np.uint8)), after, fit, spacing)
    assert (made.height, made.width) == after
    if fit != "pad":
        assert (np.asarray(made) == 7).all()


@pytest.mark.parametrize("text", ["1", "a,b", "5,5", "9,1", "p1,99", "p5,p101", "nan,1", "1,2,3", ""])
def test_windows_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--window"):
        parse_window(text)


def test_windows_are_read() -> None:
    assert parse_window("-1000,400") == Window("range", -1000, 400)
    assert parse_window("p1,p99.5") == Window("percentile", 1, 99.5)
    assert parse_window("dicom").kind == "dicom"


@pytest.mark.parametrize("text", ["", "5", "5:5", "9:1", "10%:80", "a:b", "-1:5", "50%:120%", "1:2:3"])
def test_slices_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--slices"):
        parse_slices(text)


def test_slices_are_read() -> None:
    assert parse_slices("40:150").bounds(189, "x") == (40, 150)
    assert parse_slices("30%:80%").bounds(200, "x") == (60, 160)
    assert parse_slices("100:").bounds(189, "x") == (100, 189)
    assert parse_slices(":").bounds(189, "x") == (0, 189)
    assert str(parse_slices("30%:")) == "30%:"
    with pytest.raises(UserError, match=r"x.nii has 100 slices"):
        Slices(50, 150, percent=False).bounds(100, "x.nii")
