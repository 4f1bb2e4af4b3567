"""A folder of images is compared as it lies there, and what is wrong with it is told before anything is measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.shards import make_images
from scalegan.errors import UserError
from scalegan.evaluation.folder import FolderReader, from_json, read_folder, to_json

CPU = torch.device("cpu")


def fill(folder: Path, count: int = 5, channels: int = 3, height: int = 10, width: int = 14, seed: int = 0) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images, _ = make_images(count, height, width, channels, seed)
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{number}.png")
    return images


def pixels(folder: Path, window: str = "") -> np.ndarray:
    index = read_folder(folder, window)
    reader = FolderReader(index, CPU)
    try:
        return reader.read(np.arange(index.samples)).images.permute(0, 2, 3, 1).numpy()
    finally:
        reader.close()


def test_images_are_read_as_they_were_saved(tmp_path):
    images = fill(tmp_path / "a")
    assert np.array_equal(pixels(tmp_path / "a"), images)
    index = read_folder(tmp_path / "a", "")
    assert (index.samples, index.height, index.width, index.channels) == (5, 10, 14, 3)


def test_grey_images_among_coloured_ones_become_red_green_and_blue(tmp_path):
    grey = fill(tmp_path / "a" / "grey", channels=1)
    assert pixels(tmp_path / "a").shape == (5, 10, 14, 1)
    fill(tmp_path / "a" / "red")
    read = pixels(tmp_path / "a")
    assert read.shape == (10, 10, 14, 3)
    assert np.array_equal(read[:5], np.repeat(grey, 3, 3))


def test_the_hash_is_of_the_content(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "elsewhere" / "b")
    one = read_folder(tmp_path / "a", "").sha256
    assert read_folder(tmp_path / "elsewhere" / "b", "").sha256 == one
    image = np.array(Image.open(tmp_path / "a" / "3.png"))
    image[0, 0, 0] ^= 1
    Image.fromarray(image).save(tmp_path / "a" / "3.png")
    assert read_folder(tmp_path / "a", "").sha256 != one


def test_another_process_gets_the_same_folder(tmp_path):
    fill(tmp_path / "a")
    index = read_folder(tmp_path / "a", "")
    assert from_json(json.loads(json.dumps(to_json(index)))) == index


def test_more_than_8_bits_need_a_window(tmp_path):
    (tmp_path / "deep").mkdir()
    values = np.linspace(0, 4000, 80).astype(np.uint16).reshape(8, 10)
    Image.fromarray(values).save(tmp_path / "deep" / "a.png")
    with pytest.raises(UserError, match=r"a\.png has more than 8 bits: .* --window"):
        read_folder(tmp_path / "deep", "")
    shown = pixels(tmp_path / "deep", "1000,3000")[0, :, :, 0]
    assert np.array_equal(shown, np.rint(np.clip((values - 1000.0) / 2000, 0, 1) * 255))
    assert read_folder(tmp_path / "deep", "0,4000").sha256 != read_folder(tmp_path / "deep", "1000,3000").sha256


def test_a_window_is_for_images_of_more_than_8_bits_alone(tmp_path):
    values = np.linspace(0, 65535, 80).astype(np.uint16).reshape(8, 10)
    for name, image in (("deep", values), ("flat", np.rint(values / 257).astype(np.uint8))):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "a.png")
    assert np.array_equal(pixels(tmp_path / "flat", "0,65535"), pixels(tmp_path / "deep", "0,65535"))
    assert read_folder(tmp_path / "flat", "0,65535") == read_folder(tmp_path / "flat", "")
    shutil.copy(tmp_path / "flat" / "a.png", tmp_path / "deep" / "b.png")
    with pytest.raises(UserError, match=r"deep holds images of 8 bits \(b\.png\) and of more \(a\.png\), .* p1,p99$"):
        read_folder(tmp_path / "deep", "0,65535")
    deep, flat = pixels(tmp_path / "deep", "p0,p100").astype(int)
    assert abs(deep - flat).max() <= 1  # percentiles are of each image's own intensities


def test_what_is_wrong_is_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    fill(tmp_path / "sizes")
    Image.new("RGB", (14, 11)).save(tmp_path / "sizes" / "9.png")
    fill(tmp_path / "lost" / "kiwi")
    (tmp_path / "lost" / "peach").mkdir()
    fill(tmp_path / "broken")
    (tmp_path / "broken" / "2.png").write_bytes(b"no image")
    cases = {
        "none": "holds no images, and index.json is missing",
        "sizes": r"several sizes, height x width: 10x14 \(0.png\) and 11x14 \(9.png\)",
        "lost": "peach holds no images while other folders",
        "broken": r"2\.png is no readable image",
    }
    for name, said in cases.items():
        with pytest.raises(UserError, match=said) as error:
            read_folder(tmp_path / name, "")
        assert "\n" not in str(error.value)


def test_a_file_that_changes_meanwhile_is_named(tmp_path):
    fill(tmp_path / "a")
    reader = FolderReader(read_folder(tmp_path / "a", ""), CPU)
    Image.new("RGB", (20, 20)).save(tmp_path / "a" / "2.png")
    with pytest.raises(UserError, match=r"2\.png .* has changed since"):
        reader.read(np.array([1, 2]))
    (tmp_path / "a" / "3.png").unlink()
    with pytest.raises(UserError, match=r"3\.png cannot be read"):
        reader.read(np.array([3]))
    reader.close()
