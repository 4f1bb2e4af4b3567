"""The figures of a run: what there is data for is drawn, what there is none for is left out."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers.shards import make_images, make_shards
from scalegan import plots
from scalegan.cli import main
from scalegan.config import Config, DataConfig, LogConfig
from scalegan.figures import GAP, save_png
from scalegan.plots import draw_film, nearest, plot_run, read_history, series
from scalegan.run import claim
from scalegan.tracking import Tracker

CONFIG = Config(log=LogConfig(wandb="off", step_losses=True))
ALL = ["losses.png", "accuracy.png", "quality.png", "schedule.png", "epochs.png", "training.gif"]


def make_run(run_dir: Path, ticks: int, *, evaluated: bool = True, samples: int = 0, channels: int = 3) -> Path:
    """A run of so many ticks of 1,000 images; its sample grids get brighter."""
    tracker = Tracker(run_dir, CONFIG, 0)
    for seen in range(1000, 1000 * ticks + 1, 1000):
        tracker.losses((step, 1.4, 0.7 + 30 * (step == 500)) for step in (seen - 500, seen))
        values = {"loss/D": 1.4, "loss/G": math.nan if seen == 2000 else 0.7, "accuracy/real": 0.6, "accuracy/fake": 0.7}
        tracker.log(seen, values | {"lr/G": 1e-3, "lr/D": 1e-3, "ema/half_life": seen / 20})
        if evaluated:
            controls = {"fd_lite0_floor": 11.0, "ssim_mean_image": 0.69, "diversity_real": 0.4}
            tracker.record(seen, controls | {"fd_lite0": 1e5 / seen, "ssim_max": 0.7, "diversity": 0.3, "extractor": "lite0"})
    tracker.close()
    for i in range(samples):
        images = np.full((4, channels, 12, 10), i * 255 // samples, np.uint8)
        save_png(run_dir / "samples" / f"{(i + 1) * 1000:09d}.png", images)
    save_png(run_dir / "samples" / "real.png", np.zeros((4, channels, 12, 10), np.uint8))
    return run_dir


def frames(path: Path) -> int:
    with Image.open(path) as film:
        return int(getattr(film, "n_frames", 1))


def test_a_run_gets_all_its_figures(tmp_path: Path) -> None:
    made = plot_run(make_run(tmp_path, 4, samples=4))
    assert made == [tmp_path / "figures" / name for name in ALL]
    for path in made:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 3


@pytest.mark.parametrize("channels", [1, 3])
def test_the_film_has_a_frame_for_every_grid_and_none_for_the_real_images(tmp_path: Path, channels: int) -> None:
    path = draw_film(read_history(make_run(tmp_path, 1, samples=7, channels=channels)))
    assert path is not None
    assert frames(path) == 7


def test_images_that_were_sampled_into_the_folder_of_the_grids_are_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3, samples=3)
    for number in range(64):  # as `scalegan sample` names them
        save_png(run / "samples" / f"{number:06d}.png", np.zeros((1, 3, 12, 10), np.uint8))
    assert [seen for seen, _ in read_history(run).samples] == [1000, 2000, 3000]
    film = draw_film(read_history(run))
    assert film is not None
    assert frames(film) == 3


def test_a_long_run_makes_a_film_of_bounded_length(tmp_path: Path) -> None:
    path = draw_film(read_history(make_run(tmp_path, 1, samples=plots.MOST_FRAMES + 40)))
    assert path is not None
    assert frames(path) == plots.MOST_FRAMES


def test_a_run_that_was_not_evaluated_yet_lacks_that_figure_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the film, which takes two grids: that is said."""
    made = plot_run(make_run(tmp_path, 1, evaluated=False, samples=1))
    assert [path.name for path in made] == ["losses.png", "accuracy.png", "schedule.png"]
    assert capsys.readouterr().err.startswith("scalegan: no film: it takes two grids")


def test_a_line_that_is_still_being_written_does_not_disturb(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    for name, torn in (("metrics.jsonl", '{"images_seen": 30'), ("losses.csv", "2500,1.2"), ("evaluations.jsonl", "{")):
        with open(run / name, "a") as file:
            file.write(torn)
    assert [path.name for path in plot_run(run)] == ["losses.png", "accuracy.png", "quality.png", "schedule.png"]


@pytest.mark.parametrize(
    ("loss", "label", "guesses"),
    [("name: non_saturating", "loss (nats)", 2), ("name: relativistic", "loss (nats)", 0), ("name: hinge", "loss", 0),
     ("own: mine.LOSS, name: non_saturating", "loss", 0)],
)  # fmt: skip
def test_only_logarithms_of_probabilities_are_in_nats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, label: str, guesses: int
) -> None:
    make_run(tmp_path, 2)
    (tmp_path / "config.yaml").write_text(f"loss: {{{loss}}}\n")
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *_, **__: drawn.append(self.axes[0]))
    plots.draw_losses(read_history(tmp_path))
    (axes,) = drawn
    assert axes.get_ylabel() == label
    assert len([line for line in axes.lines if "while D only guesses" in str(line.get_label())]) == guesses


def test_nan_is_a_gap_in_the_curve(tmp_path: Path) -> None:
    kimg, values = series(read_history(make_run(tmp_path, 3)).metrics, "loss/G")
    assert kimg.tolist() == [1, 2, 3]
    assert np.isnan(values).tolist() == [False, True, False]


def test_a_run_of_100_epochs_shows_the_5th_25th_50th_75th_and_100th() -> None:
    every_fifth = [60_000 * epoch for epoch in range(5, 101, 5)]
    assert [every_fifth[i] // 60_000 for i in nearest(every_fifth, 5)] == [5, 25, 50, 75, 100]
    assert nearest([1000, 2000, 3000], 5) == [0, 1, 2]


def test_captions_name_the_epoch_where_the_data_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, 1)
    assert read_history(tmp_path).caption(300_000) == "300 kimg"
    (tmp_path / "config.yaml").write_text("data: {path: data/mnist}\nloss: {name: non_saturating}\n")
    assert read_history(tmp_path).caption(300_000) == "300 kimg"  # the folder is not there
    monkeypatch.setattr(plots, "read_index", lambda path: SimpleNamespace(samples=60_000))
    history = read_history(tmp_path)
    assert history.caption(300_000) == "epoch 5, 300 kimg"
    assert history.caption(4_000) == "epoch 0.1, 4.0 kimg"
    assert plot_run(tmp_path)[0].name == "losses.png"


def test_the_command_prints_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, 2, samples=2)
    assert main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "figures" / name) for name in ALL]


@pytest.mark.parametrize(("folder", "said"), [("nowhere", "no run folder"), (".", "nothing to plot in")])
def test_nothing_to_plot_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, said: str) -> None:
    assert main(["plot", str(tmp_path / folder)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"scalegan: error: {said}")


def test_a_grid_that_is_no_picture_is_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = make_run(tmp_path, 1, samples=4) / "samples"
    whole = (samples / "000001000.png").read_bytes()
    changed = bytearray(whole)
    changed[-20] ^= 1
    broken = {"000007000.png": b"no picture", "000005000.png": whole[: len(whole) // 2], "000006000.png": bytes(changed)}
    for name, content in broken.items():
        (samples / name).write_bytes(content)
    path = plot_run(tmp_path)[-1]
    assert frames(path) == 4
    told = capsys.readouterr().err.splitlines()
    assert sorted(told) == sorted(f"scalegan: {samples / name} is no picture: it is left out" for name in broken)


def test_grids_of_more_pixels_than_pillow_opens_do_not_cost_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As 64 images of 2048x2048 have."""
    run = make_run(tmp_path, 4, samples=2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert [path.name for path in plot_run(run)] == ["losses.png", "accuracy.png", "quality.png", "schedule.png"]
    assert capsys.readouterr().err.count("0.png has too many pixels to be drawn from: it is left out\n") == 2


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"data: [\n", b"data: 5\n", b"\x89PNG\r\n"])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    make_run(tmp_path, 2)
    (tmp_path / "config.yaml").write_bytes(content)
    assert main(["plot", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"scalegan: error: {tmp_path / 'config.yaml'} cannot be read as a run's configuration")
    assert error.count("\n") == 1


def test_help_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import argparse, sys, scalegan.plots as p; p.add_arguments(argparse.ArgumentParser());"
        "print([m for m in ('torch', 'matplotlib', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_samples_nearest_to_training_images_are_shown_above_these(tmp_path: Path, channels: int) -> None:
    """The last two samples of four are copies."""
    images, _ = make_images(20, 16, 16, channels)
    make_shards(tmp_path / "shards", 20, channels=channels)
    real = np.random.default_rng(0).integers(0, 256, (4, channels, 16, 16), np.uint8)
    real[2:] = images[[3, 7]].transpose(0, 3, 1, 2)
    run = tmp_path / "run"
    tracker = Tracker(run, replace(CONFIG, data=DataConfig(path=str(tmp_path / "shards"))), 0)
    tracker.likeness(1000, {"nearest_images": [0, 1, 3, 7], "nearest_distances": [60.0, 50.0, 0.5, 0.0]})
    tracker.close()
    save_png(run / "samples" / "000001000.png", real)
    (run / "config.yaml").write_text(f"data: {{path: {tmp_path / 'shards'}}}\n")
    path = plots.draw_nearest(read_history(run), count=2)
    assert path == run / "figures" / "nearest.png"
    with Image.open(path) as picture:
        times = picture.width // (2 * 16 + GAP)
        small = np.asarray(picture)[-times * (2 * 16 + GAP) :][times // 2 :: times, times // 2 :: times]
    assert np.array_equal(small[:16, :16], small[-16:, :16])  # the nearest first
    assert np.array_equal(small[:16, :16].reshape(16, 16, -1), images[7])
    assert np.array_equal(small[-16:, -16:].reshape(16, 16, -1), images[3])
    path = plots.draw_random(read_history(run))
    assert path == run / "figures" / "random.png"
    with Image.open(path) as picture:
        times = picture.width // (4 * 16 + 3 * GAP)
        small = np.asarray(picture)[-times * (2 * 16 + GAP) :][times // 2 :: times, times // 2 :: times]
    assert np.array_equal(small[:16, :16].reshape(16, 16, -1), real[0].transpose(1, 2, 0))
    assert np.array_equal(small[-16:, :16].reshape(16, 16, -1), images[0])


def test_training_images_are_read_through_the_cache_of_the_run(tmp_path: Path) -> None:
    """Not fetched once more, into a home that may have no room for shards."""
    run, cache = make_run(tmp_path / "run", 1, samples=1), tmp_path / "cache"
    index = make_shards(tmp_path / "shards", 20)
    claim(run, replace(CONFIG, data=DataConfig(path=index.root, cache=str(cache))), index.sha256)
    line = {"images_seen": 1000, "nearest_images": [7] * 4, "nearest_distances": [1.0] * 4}
    (run / "samples.jsonl").write_text(json.dumps(line) + "\n")
    save_png(run / "samples" / "000001000.png", np.zeros((4, 3, 16, 16), np.uint8))
    assert plots.draw_random(read_history(run))
    assert (cache / "checked" / index.sha256).read_text()


def test_training_images_that_cannot_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, index = make_run(tmp_path / "run", 1, samples=1), make_shards(tmp_path / "shards", 20)
    claim(run, replace(CONFIG, data=DataConfig(path=index.root)), index.sha256)
    (run / "samples.jsonl").write_text('{"images_seen": 1000, "nearest_images": [7], "nearest_distances": [1.0]}\n')
    save_png(run / "samples" / "000001000.png", np.zeros((4, 3, 16, 16), np.uint8))
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert plots.draw_random(read_history(run)) is None
    assert capsys.readouterr().err.startswith("scalegan: no random.png of nearest training images: ")


def test_without_the_data_at_hand_that_picture_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1, samples=1)
    with open(run / "samples.jsonl", "w") as file:
        file.write('{"images_seen": 1000, "nearest_images": [0], "nearest_distances": [1.0]}\n')
    assert plots.draw_nearest(read_history(run)) is None


@pytest.mark.parametrize("count", [3, 30])
def test_data_that_has_changed_since_is_told_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    """Image 7 of other data is not the one that the sample was compared with, where there is one at all."""
    data = tmp_path / "shards"
    index = make_shards(data, 20)
    run = make_run(tmp_path / "run", 1)
    claim(run, replace(CONFIG, data=DataConfig(path=str(data))), index.sha256)
    line = {"images_seen": 1000, "nearest_images": [7] * 4, "nearest_distances": [1.0] * 4}
    (run / "samples.jsonl").write_text(json.dumps(line) + "\n")
    for seen in (1000, 2000):
        save_png(run / "samples" / f"{seen:09d}.png", np.zeros((4, 3, 16, 16), np.uint8))
    assert [path.name for path in plot_run(run)][-3:] == ["nearest.png", "random.png", "training.gif"]
    assert capsys.readouterr().err == ""
    shutil.rmtree(data)
    make_shards(data, count)
    assert [path.name for path in plot_run(run)][-2:] == ["epochs.png", "training.gif"]
    told = f"scalegan: {data} has changed since the training: no epochs and no nearest training images\n"
    assert capsys.readouterr().err == told
