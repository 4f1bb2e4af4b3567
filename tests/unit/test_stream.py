"""Any image of any shard is read by its byte offset, and a bad one is never mistaken for a good one."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_shards import HEIGHT, WIDTH, damage, encode, few_handles, label, make_shards, numbers, open_shards, picture

from scalegan.config import DataConfig
from scalegan.data import stream as module
from scalegan.data.cache import Unreadable
from scalegan.data.decode import decode, jpeg_frame
from scalegan.data.index import Index, read_index
from scalegan.data.stream import StreamReader
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import MachineError, UserError


def config(tmp_path: Path, **fields: object) -> DataConfig:
    return DataConfig(cache=str(tmp_path / "cache"), **fields)  # type: ignore[arg-type]


def with_bad_images(out: Path, bad: dict[int, bytes], samples: int = 40) -> Index:
    """Shards whose images `bad` hold other bytes, as written by a program that did not look."""
    images = (Sample(bad.get(n, encode(picture(n))), "png", label(n)) for n in range(samples))
    return write_shards(images, out, height=HEIGHT, width=WIDTH, channels=3, classes=("a", "b", "c"), shard_samples=16)


# --- reading


def test_an_image_comes_back_as_it_was_written(tmp_path: Path) -> None:
    reader = StreamReader(make_shards(tmp_path / "shards"), config(tmp_path))
    pixels = reader.load(np.array([42]))
    assert np.array_equal(pixels.images[0], picture(42))
    assert pixels.labels.tolist() == [label(42)]


def test_any_images_in_any_order_repeats_included(tmp_path: Path) -> None:
    reader = StreamReader(make_shards(tmp_path / "shards"), config(tmp_path))
    samples = np.random.default_rng(0).integers(0, 100, 300)
    pixels = reader.load(samples)
    assert numbers(pixels.images).tolist() == samples.tolist()
    assert pixels.labels.tolist() == [label(n) for n in samples]


def test_grey_and_unlabelled(tmp_path: Path) -> None:
    reader = StreamReader(make_shards(tmp_path / "shards", channels=1, labelled=False), config(tmp_path))
    pixels = reader.load(np.array([3, 77]))
    assert pixels.images.shape == (2, HEIGHT, WIDTH, 1)
    assert np.array_equal(pixels.images[1], picture(77, channels=1))
    assert pixels.labels.tolist() == [-1, -1]


def test_few_shards_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TABLES", 2)
    reader = StreamReader(make_shards(tmp_path / "shards", shard_samples=5), config(tmp_path), most_open=3)
    samples = np.random.default_rng(1).integers(0, 100, 400)
    assert numbers(reader.load(samples).images).tolist() == samples.tolist()
    assert len(reader.tables) == 2
    assert open_shards() == 3
    reader.close()
    assert open_shards() == 0


def test_too_many_open_files_are_no_fault_of_the_shards(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", shard_samples=1)
    reader = StreamReader(index, config(tmp_path, on_error="skip"))
    with few_handles(60), pytest.raises(MachineError, match=r"Too many open files at once: allow more with `ulimit -n 4096`"):
        reader.load(np.arange(100))
    assert not reader.broken
    reader.close()
    assert not reader.load(np.arange(100)).unreadable


# --- decoding


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_agrees_with_pillow(kind: str, options: dict[str, object], channels: int) -> None:
    if kind == "WEBP" and channels == 1:
        pytest.skip("WebP has no grey images")
    data = encode(picture(5, channels), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data))).reshape(HEIGHT, WIDTH, channels)
    assert np.array_equal(decode(data, HEIGHT, WIDTH, channels), expected)


JPEG_KINDS: list[dict[str, object]] = [
    {},
    {"quality": 30, "subsampling": "4:2:0"},
    {"quality": 100, "subsampling": "4:4:4"},
    {"progressive": True},
    {"optimize": True, "comment": b"a comment"},
    {"restart_marker_rows": 1},
    {"exif": Image.Exif(), "icc_profile": bytes(70_000)},
    {"keep_rgb": True, "subsampling": "4:4:4"},
]


@pytest.mark.parametrize("options", JPEG_KINDS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_short_way_into_a_jpeg_gives_the_same_pixels(options: dict[str, object], channels: int) -> None:
    smooth = np.asarray(Image.fromarray(picture(3, channels).squeeze()).resize((75, 43)))
    data = encode(smooth, "JPEG", **options)
    assert jpeg_frame(data) == (43, 75, channels)
    expected = np.asarray(Image.open(io.BytesIO(data))).reshape(43, 75, channels)
    assert np.array_equal(decode(data, 43, 75, channels), expected)
    unusual = data[:2] + b"\xff" + data[2:]  # a fill byte before a marker: allowed, and left to Pillow
    assert jpeg_frame(unusual) is None
    assert np.array_equal(decode(unusual, 43, 75, channels), expected)


def test_a_grey_jpeg_is_no_colour_image_nor_the_reverse() -> None:
    for stored, wanted in ((1, 3), (3, 1)):
        with pytest.raises(Unreadable, match="the index says 6x10"):
            decode(encode(picture(0, stored), "JPEG"), HEIGHT, WIDTH, wanted)


def test_height_comes_before_width() -> None:
    data = encode(np.zeros((4, 9, 3), np.uint8))
    assert decode(data, 4, 9, 3).shape == (4, 9, 3)
    with pytest.raises(Unreadable, match=r"is 4x9 RGB \(height x width\), the index says 9x4 RGB"):
        decode(data, 9, 4, 3)


def test_another_mode_is_refused() -> None:
    with pytest.raises(Unreadable, match="is 6x10 L"):
        decode(encode(picture(0, 1)), HEIGHT, WIDTH, 3)


def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(Unreadable):
        decode(bytes(data), 60_001, 60_000, 3)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "data", [pickle.dumps(Bomb()), b"", b"GIF89a" + bytes(50), b"BM" + bytes(50), b"\x80\x04N.", b"RIFF" + bytes(60), b"<svg/>"]
)
def test_what_is_no_image_is_refused_by_its_first_bytes(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreadable):
        decode(data, HEIGHT, WIDTH, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_cut_or_scrambled_image_brings_anything_but_unreadable(kind: str) -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8), kind)
    random = np.random.default_rng(7)
    for length in range(0, len(data) - 20, max(1, len(data) // 100)):  # the last bytes of a PNG hold no pixels
        with pytest.raises(Unreadable):
            decode(data[:length], 32, 24, 3)
    for _ in range(300):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 4):
            broken[position] = random.integers(0, 256)
        try:
            assert decode(bytes(broken), 32, 24, 3).shape == (32, 24, 3)
        except Unreadable as problem:
            lines = str(problem).splitlines()
            if len(lines) != 1:
                pytest.fail(f"not one line: {lines}")


# --- what cannot be read


def test_a_bad_image_is_named_with_its_shard(tmp_path: Path) -> None:
    index = with_bad_images(tmp_path / "shards", {20: encode(picture(20))[:60]})
    reader = StreamReader(index, config(tmp_path))
    with pytest.raises(UserError) as caught:
        reader.load(np.arange(16, 32))
    message = str(caught.value)
    assert f"image 000000020.png of shard {tmp_path}/shards/shard-000001.tar cannot be decoded" in message
    assert "\n" not in message


def test_skipping_reports_the_rows_and_keeps_the_others(tmp_path: Path) -> None:
    index = with_bad_images(tmp_path / "shards", {20: b"nothing", 33: encode(np.zeros((3, 3, 3), np.uint8))})
    pixels = StreamReader(index, config(tmp_path, on_error="skip")).load(np.array([33, 5, 20, 6]))
    assert sorted(pixels.unreadable) == [0, 2]
    assert "is 3x3 RGB" in pixels.unreadable[0]
    assert "000000020.png" in pixels.unreadable[2]
    assert numbers(pixels.images[[1, 3]]).tolist() == [5, 6]


@pytest.mark.parametrize("fault", ["missing", "cut", "changed", "no offsets", "other offsets"])
def test_a_bad_shard_is_named_and_none_of_its_images_is_used(tmp_path: Path, fault: str) -> None:
    index = make_shards(tmp_path / "shards")
    tar, table = tmp_path / "shards" / index.shards[1].name, tmp_path / "shards" / index.shards[1].offsets
    if fault == "missing":
        tar.unlink()
    elif fault == "cut":
        os.truncate(tar, 9000)
    elif fault == "changed":
        damage(tar, 9000, 3)
    elif fault == "no offsets":
        table.unlink()
    else:
        damage(table, table.stat().st_size - 1)
    with pytest.raises(UserError, match="shard-000001"):
        StreamReader(index, config(tmp_path)).load(np.arange(10, 40))
    pixels = StreamReader(index, config(tmp_path, on_error="skip")).load(np.arange(10, 40))
    assert sorted(pixels.unreadable) == list(range(6, 22))  # samples 16 to 31


def test_a_bad_shard_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_shards(tmp_path / "shards")
    damage(tmp_path / "shards" / index.shards[1].name, 9000)
    reader = StreamReader(index, config(tmp_path, on_error="skip"))
    tried = []
    opened = reader.storage.open
    monkeypatch.setattr(reader.storage, "open", lambda number: tried.append(number) or opened(number))
    reader.load(np.arange(16, 32))
    reader.load(np.arange(16, 32))
    assert tried == [1]


def test_a_shard_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    reader = StreamReader(index, config(tmp_path))
    reader.load(np.array([0]))
    os.truncate(tmp_path / "shards" / index.shards[0].name, 2000)
    with pytest.raises(UserError, match=r"shard-000000.tar was cut while it was in use"):
        reader.load(np.array([15]))


def test_an_exchanged_shard_of_equal_size_is_noticed(tmp_path: Path) -> None:
    """Its offsets and the sizes of its images fit, and its labels would not."""
    images = (Sample(encode(picture(n), compress_level=0), "png", label(n)) for n in range(32))
    index = write_shards(
        images, tmp_path / "shards", height=HEIGHT, width=WIDTH, channels=3, classes=("a", "b", "c"), shard_samples=16
    )
    one, two = (tmp_path / "shards" / shard.name for shard in index.shards)
    two.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match=r"shard-000001.tar does not match its checksum"):
        StreamReader(read_index(index.root), config(tmp_path)).load(np.array([20]))
