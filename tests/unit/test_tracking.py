"""The record of a run: what a repeat would reproduce reads, after any number of resumes, as if nothing had happened."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from scalegan.config import Config, LogConfig
from scalegan.tracking import Tracker, cut_back, json_line, numbers_in, read_lines

LOCAL = Config(log=LogConfig(wandb="off", step_losses=True))


def train(run_dir: Path, first: int, last: int, config: Config = LOCAL) -> None:
    """A training that ticks every 1,000 images and evaluates every 2,000, in steps of 500."""
    tracker = Tracker(run_dir, config, first)
    for seen in range(first + 1000, last + 1, 1000):
        tracker.losses((step, step / 7, step / 9) for step in (seen - 500, seen))
        tracker.log(seen, {"loss/G": math.sin(seen), "loss/D": math.cos(seen)})
        tracker.timing(seen, {"seconds": seen / 300})
        if seen % 2000 == 0:
            tracker.record(seen, {"fd_lite0": 1e5 / seen, "extractor": "lite0"})
    tracker.close()


def test_a_tick_is_one_line_that_reads_back(tmp_path: Path) -> None:
    train(tmp_path, 0, 2000)
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"images_seen": seen, "loss/D": float(f"{math.cos(seen):.9g}"), "loss/G": float(f"{math.sin(seen):.9g}")}
        for seen in (1000, 2000)
    ]
    assert read_lines(tmp_path / "evaluations.jsonl") == [{"images_seen": 2000, "extractor": "lite0", "fd_lite0": 50.0}]
    assert (tmp_path / "losses.csv").read_text().splitlines()[:2] == ["images_seen,loss/D,loss/G", "500,71.4285714,55.5555556"]


def test_keys_have_one_order_and_images_seen_comes_first() -> None:
    assert json_line(64, {"r1": 1.0, "accuracy/real": 0.5}) == json_line(64, {"accuracy/real": 0.5, "r1": 1.0})
    assert json_line(64, {"a": 1}).startswith('{"images_seen": 64, ')


def test_what_json_has_no_number_for_is_null() -> None:
    assert json.loads(json_line(1, {"a": math.nan, "b": [math.inf, 2.5], "c": True})) == {
        "images_seen": 1,
        "a": None,
        "b": [None, 2.5],
        "c": True,
    }


def test_a_resumed_run_leaves_the_same_bytes_as_an_unbroken_one(tmp_path: Path) -> None:
    train(tmp_path / "unbroken", 0, 8000)
    train(tmp_path / "resumed", 0, 5000)
    train(tmp_path / "resumed", 3000, 6000)  # the checkpoint was at 3,000: two ticks and an evaluation come again
    train(tmp_path / "resumed", 6000, 8000)
    for name in ("metrics.jsonl", "evaluations.jsonl", "losses.csv"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    assert len(read_lines(tmp_path / "resumed" / "timing.jsonl")) == 10  # time that was really spent stays


def test_a_run_that_starts_again_from_nothing_drops_everything(tmp_path: Path) -> None:
    train(tmp_path, 0, 2000)
    train(tmp_path, 0, 1000)
    assert [line["images_seen"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1000]
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("torn", ['{"images_seen": 3000, "loss', '{"images_seen": 30'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    train(tmp_path, 0, 2000)
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write(torn)
        assert [line["images_seen"] for line in read_lines(tmp_path / name)] == [1000, 2000]
    with open(tmp_path / "losses.csv", "a") as file:
        file.write("2500,0.1")
    train(tmp_path, 2000, 3000)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert [line["images_seen"] for line in read_lines(tmp_path / name)] == [1000, 2000, 3000]
    assert [line.split(",")[0] for line in (tmp_path / "losses.csv").read_text().splitlines()[1:]] == [
        "500",
        "1000",
        "1500",
        "2000",
        "2500",
        "3000",
    ]


def test_a_file_that_needs_no_cut_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json_line(1000, {"a": 1}))
    before = path.stat()
    cut_back(path, 1000)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_step_losses_are_written_only_when_asked_for(tmp_path: Path) -> None:
    train(tmp_path, 0, 1000, Config(log=LogConfig(wandb="off")))
    assert not (tmp_path / "losses.csv").exists()


def test_before_a_checkpoint_counts_the_losses_of_single_steps_are_on_the_disk_too(tmp_path: Path, monkeypatch) -> None:
    synced, fsync = [], os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    tracker = Tracker(tmp_path, LOCAL, 0)
    tracker.losses([(500, 1.0, 2.0)])
    assert synced == []
    assert tracker.waiting() == []
    assert synced == ["losses.csv"]


def test_a_disk_that_does_not_take_them_is_told(tmp_path: Path, monkeypatch) -> None:
    tracker = Tracker(tmp_path, LOCAL, 0)
    tracker.losses([(500, 1.0, 2.0)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert tracker.waiting() == ["losses.csv"]
    assert tracker.waiting() == []


def test_a_figure_by_class_is_a_number_a_class_for_wandb() -> None:
    values = {
        "images_seen": 8,
        "fd_lite0": 3.0,
        "best": "fid",
        "fd_lite0_per_class": {"Kiwi": 1.5, "Plum": 2.5},
        "closest": [1],
    }
    found = {"images_seen": 8, "fd_lite0": 3.0, "fd_lite0_per_class/Kiwi": 1.5, "fd_lite0_per_class/Plum": 2.5}
    assert numbers_in(values) == found
