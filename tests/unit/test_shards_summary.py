"""`scalegan shards` says what it wrote, and what a user should know of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from opening import photo, save, scan
from test_shards_cli import classes

from scalegan import cli


def test_the_summary_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = classes(tmp_path / "fruit")
    (source / "notes.txt").write_text("x")
    assert cli.main(["shards", str(source), str(tmp_path / "s"), "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "18 images, 10x12 (height x width), colour, 1 shard, 0.0 MB" in out
    assert "classes: kiwi 6, pear 6, plum 6" in out
    assert "note: other files left alone: 1" in out
    assert str(tmp_path / "s/contact.png") in out
    assert err == ""


def test_grey_images_stored_in_colour_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x/a/1.png", np.repeat(scan()[..., None], 3, 2))
    cli.main(["shards", str(tmp_path / "x"), str(tmp_path / "s")])
    assert "--channels 1 makes training lighter" in capsys.readouterr().out


def test_transparency_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "x/a/1.png", np.dstack([photo(), np.full((10, 12), 99, np.uint8)]))
    cli.main(["shards", str(tmp_path / "x"), str(tmp_path / "s")])
    assert "note: 1 image had transparency: it was laid over white" in capsys.readouterr().out


def test_images_that_were_enlarged_are_counted_in_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, sides in (("Training", [(10, 12), (9, 30), (50, 50)]), ("Test", [(11, 8), (40, 60)])):
        for number, (height, width) in enumerate(sides):
            save(tmp_path / f"x/{split}/a/{number}.png", photo(number, height, width))
    cli.main(["shards", str(tmp_path / "x"), str(tmp_path / "s"), "--size", "40"])
    assert (
        "note: 3 images had to be enlarged to 40x40 (the smallest is 11x8): "
        "that blurs detail, and a smaller --size keeps it sharp\n"
    ) in capsys.readouterr().out
    cli.main(["shards", str(tmp_path / "x"), str(tmp_path / "t"), "--size", "40", "--split", "Test"])
    assert "note: 1 image had to be enlarged to 40x40 (the smallest is 11x8)" in capsys.readouterr().out
    cli.main(["shards", str(tmp_path / "x"), str(tmp_path / "u"), "--size", "8"])
    assert "had to be" not in capsys.readouterr().out


def test_several_images_that_had_transparency_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        save(tmp_path / f"x/a/{number}.png", np.dstack([photo(number), np.full((10, 12), 99, np.uint8)]))
    cli.main(["shards", str(tmp_path / "x"), str(tmp_path / "s")])
    assert "note: 2 images had transparency: it was laid over white" in capsys.readouterr().out
