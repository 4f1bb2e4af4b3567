"""The sample grid: images side by side, at their own resolution, written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalegan.figures import GAP, captioned, columns_for, fit, grid, save_gif, save_png, tiles


def test_a_grid_holds_every_image_pixel_for_pixel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 7), np.uint8)
    canvas = np.asarray(grid(images, columns=3))
    assert canvas.shape == (2 * 5 + GAP, 3 * 7 + 2 * GAP, 3)
    for i in range(6):
        top, left = i // 3 * (5 + GAP), i % 3 * (7 + GAP)
        assert np.array_equal(canvas[top : top + 5, left : left + 7], images[i].transpose(1, 2, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_can_be_cut_up_again(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 5, 7), np.uint8)
    cut = tiles(grid(images, columns=3), 5, 7)
    assert np.array_equal(cut[:5], images)
    assert len(cut) == 6
    assert (cut[5] == 255).all()


def test_one_channel_gives_a_grey_picture() -> None:
    assert grid(np.zeros((2, 1, 4, 4), np.uint8)).mode == "L"


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (5, 3), (7, 3), (10, 5), (16, 4), (32, 8), (64, 8), (100, 10)])
def test_a_grid_is_full_where_it_can_be_else_about_square(count: int, columns: int) -> None:
    assert columns_for(count) == columns


def test_a_png_is_written_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8)
    save_png(tmp_path / "samples" / "000000064.png", images)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / "000000064.png")), np.asarray(grid(images)))
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["000000064.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_png(path, np.zeros((1, 1, 4, 4), np.uint8))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_png(path, np.full((1, 1, 4, 4), 255, np.uint8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_small_pictures_grow_by_whole_pixels_and_large_ones_shrink() -> None:
    assert fit(Image.new("L", (28, 20)), 100, 300).size == (112, 80)
    assert fit(Image.new("L", (600, 300)), 100, 300).size == (300, 150)
    assert fit(Image.new("L", (200, 150)), 100, 300).size == (200, 150)


def test_a_film_has_every_frame_and_holds_the_last(tmp_path: Path) -> None:
    frames = [captioned(Image.new("RGB", (64, 48), (shade, 0, 255 - shade)), f"{shade} kimg") for shade in (0, 120, 250)]
    save_gif(tmp_path / "training.gif", frames, milliseconds=100, hold=1500)
    durations = []
    with Image.open(tmp_path / "training.gif") as film:
        for i in range(film.n_frames):
            film.seek(i)
            durations.append(film.info["duration"])
    assert durations == [100, 100, 1500]
