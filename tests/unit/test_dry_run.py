"""`--dry_run` says what a run would be and take, and writes nothing."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tiny import cut_copy, make_config, make_shards

from scalegan import checkpoint, cli, dry_run, run, settings
from scalegan.config import Config
from scalegan.data.index import read_index
from scalegan.distributed import make_accelerator
from scalegan.draws import DataFacts
from scalegan.errors import UserError
from scalegan.evaluation import real_cache
from scalegan.evaluation.real_cache import RealStatistics
from scalegan.models import build_generator
from scalegan.probe import Probe
from scalegan.steps import Game
from scalegan.trainer import Clock, Trainer
from scalegan.watchdog import Watchdog


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)  # one process has one precision, but for tests
    monkeypatch.setattr(dry_run, "SECONDS", 0.05)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dry") / "data"
    make_shards(folder, samples=50, channels=3, classes=("a", "b"))
    return folder


@pytest.fixture
def config(data, tmp_path) -> Config:
    return make_config(
        data, tmp_path / "run", train={"images": 1000}, loss={"r1_gamma": 0.1, "penalty_every": 3}, model={"conditional": True}
    )


def files(*folders: Path) -> set[tuple[str, int]]:
    return {(str(p), p.stat().st_mtime_ns) for folder in folders for p in [folder, *folder.rglob("*")]}


def rows(printed: str) -> dict[str, str]:
    """The summary below the YAML."""
    lines = printed.split("\n\n", 1)[1].splitlines()
    return {line.split("  ", 1)[0]: line.split("  ", 1)[1].strip() for line in lines}


def test_weights_that_are_not_here_are_named_and_not_fetched(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    for name in ("TORCH_HOME", "SCALEGAN_INCEPTION_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("scalegan.evaluation.weights.download", lambda *_: pytest.fail("it downloads"))
    assert dry_run.dry_run(replace(config, evaluation=replace(config.evaluation, extractor="inception"))) == 0
    assert "without their features (the start of the run downloads pt_inception-2015-12-05-6726825d.pth)" in (
        printed := capsys.readouterr().out
    )
    assert " beside figures and lines of metrics and the statistics of the real images" in printed
    assert not (tmp_path / "empty").exists()


def test_nothing_is_written(config, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(config, data=replace(config.data, cache=str(tmp_path / "cache"), reader="stream", workers=0))
    before = files(tmp_path, data.parent)
    assert dry_run.dry_run(config) == 0
    assert files(tmp_path, data.parent) == before
    assert not (tmp_path / "run").exists()


def test_it_says_all_that_it_is_to_say(config, capsys):
    dry_run.dry_run(config)
    printed = capsys.readouterr().out
    assert settings.to_config(yaml.safe_load(printed.split("\n\n", 1)[0])) == config
    said = rows(printed)
    assert list(said) == ["generator", "critic", "data", "start", "steps", "time", "memory", "leaves"]
    assert said["data"].startswith("50 images of 2 classes, 16x12 RGB, in 3 shards (")
    assert said["data"].endswith("20.0 epochs in 1,000 images")
    assert "of 8 images in" in said["steps"]
    assert "images/s (cpu, 1 thread, fp32)" in said["steps"]
    assert "for 125 steps" in said["time"]
    assert "for 1 evaluation" in said["time"]
    assert "MB a process" in said["memory"]
    assert said["leaves"].startswith("32 sample grids of about ")
    assert "the newest 2 checkpoints and the best" in said["leaves"]
    assert ", statistics of the real images, 26.3 MB, in " in said["leaves"]
    assert said["leaves"].endswith(" free there, beside figures and lines of metrics")


def test_parameters_are_counted_module_by_module(config, capsys):
    dry_run.dry_run(config)
    line = rows(capsys.readouterr().out)["generator"]
    total, parts = line.split(" parameters: ")
    numbers = [int(part.split()[1].replace(",", "")) for part in parts.split(", ")]
    network = build_generator(config.model, (3, 16, 12), 2)
    assert int(total.replace(",", "")) == sum(numbers) == sum(p.numel() for p in network.parameters())
    assert parts.startswith("embed 8, project ")


def test_a_run_that_has_begun_is_told_from_where_it_goes_on_and_left_alone(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scalegan.plots.plot_run", lambda run_dir: [])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: False)
    index = read_index(config.data.path)
    begun = replace(config, train=replace(config.train, images=80))
    Path(config.run).mkdir()
    run.claim(Path(config.run), begun, index.sha256)
    assert Trainer(begun, make_accelerator(begun.train), index, None, Watchdog(0, Path(), 0)).train()
    before = files(tmp_path)
    capsys.readouterr()
    dry_run.dry_run(config)
    said = rows(capsys.readouterr().out)
    assert said["goes on"] == f"at 80 images, from {Path(config.run) / 'checkpoints' / '000000080'}"
    assert "for 115 steps" in said["time"]
    assert files(tmp_path) == before
    dry_run.dry_run(begun)
    assert "0s for 0 steps, 0s for 0 evaluations" in rows(capsys.readouterr().out)["time"]  # the end has been evaluated
    newest = Path(config.run) / "checkpoints" / "000000080"
    os.truncate(newest / "ema.safetensors", 100)
    dry_run.dry_run(config)
    printed = capsys.readouterr()
    assert rows(printed.out)["goes on"].startswith("at 64 images, from ")
    assert printed.err.startswith(f"scalegan: checkpoint {newest}: ema.safetensors is damaged")
    os.truncate(newest.with_name("000000064") / "ema.safetensors", 100)
    with pytest.raises(UserError, match=r"000000080: ema\.safetensors is damaged .* and no other is whole"):
        dry_run.dry_run(config)


def test_another_run_folder_is_refused_as_the_run_itself_would(config, tmp_path):
    index = read_index(config.data.path)
    Path(config.run).mkdir()
    run.claim(Path(config.run), config, index.sha256)
    with pytest.raises(UserError, match=r"model.width: 8 -> 4"):
        dry_run.dry_run(replace(config, model=replace(config.model, width=4)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--train.batch=64", "50 images, fewer than one batch: try --train.batch 50"),
        ("--evaluation.real=3", "evaluation.real is 3, and each half of the real images needs 2: give at least 4"),
        ("--evaluation.extractor=lite", "'lite' is unknown: did you mean lite0?"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_bad_input_is_one_line_before_anything_is_written(data, tmp_path, capsys, monkeypatch, option, message, dry):
    monkeypatch.chdir(tmp_path)
    options = [f"--data.path={data}", "--train.batch=8", "--train.device=cpu", option]
    assert cli.main(["train", *options, *(["--dry_run"] if dry else [])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_shard_that_the_run_would_do_without_is_done_without(config, data, tmp_path):
    damaged = replace(config.data, path=str(cut_copy(data, tmp_path / "cut")))
    with pytest.raises(UserError, match="bytes"):
        dry_run.dry_run(replace(config, data=damaged))
    assert dry_run.dry_run(replace(config, data=replace(damaged, on_error="skip", skip_budget=1.0))) == 0


def test_a_checkpoint_has_the_size_that_was_told(config, tmp_path):
    index = read_index(config.data.path)
    game = Game(config, make_accelerator(config.train), DataFacts((3, 16, 12), index.class_counts))
    measured = dry_run.measure(config, index, game.accelerator, game)
    parts = {"generator": game.bare_generator.state_dict(), "critic": game.bare_critic.state_dict()}
    parts |= {"ema": game.ema.state_dict()}
    parts |= {f"opt_{n}": checkpoint.optimizer_tensors(o.optimizer) for n, o in (("g", game.opt_g), ("d", game.opt_d))}
    folder = checkpoint.save(tmp_path, 1, parts, {})
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    headers = 100 * sum(map(len, parts.values()))
    assert measured.checkpoint <= size <= measured.checkpoint + headers
    assert measured.steps % 3 == 0, "as many steps with the penalty as a run has"


def test_statistics_of_real_images_have_the_size_that_was_told(config, tmp_path):
    index, width = read_index(config.data.path), 100
    sums, squares, thumbnails = np.zeros(width), np.zeros((width, width)), np.zeros((index.samples, 32, 32), np.uint8)
    kept = RealStatistics(sums, squares, sums, squares, index.samples, (25, 25), 0.0, thumbnails, 0.0)
    real_cache.save(tmp_path / "real.npz", kept)
    told = dry_run.real_bytes(config, index, width)
    assert told <= (tmp_path / "real.npz").stat().st_size <= told + 4000


def test_real_images_are_counted_once_unless_a_metric_wants_their_features(tmp_path):
    index = make_shards(tmp_path / "shards", samples=48)
    measured = dry_run.Measured(features=1.0)

    def seconds(metrics):
        config = make_config(Path(index.root), tmp_path / "run", evaluation={"metrics": metrics, "samples": 10})
        return dry_run.evaluation_seconds(config, index, 3, measured)

    assert seconds("ssim,interval") == 48 + 3 * 10
    assert seconds("ssim,kid") == 3 * (48 + 10)


def test_held_out_images_are_counted_where_a_metric_looks_at_them(config, tmp_path):
    index, held_out = read_index(config.data.path), make_shards(tmp_path / "held_out", samples=24, channels=3)
    watched = replace(config, data=replace(config.data, held_out=str(held_out.root)))
    measured = dry_run.Measured(features=1.0)
    for metrics, more in (("ssim", 0), ("accuracy", 3 * 24)):
        asked = [replace(c, evaluation=replace(c.evaluation, metrics=metrics)) for c in (config, watched)]
        without, with_ = (dry_run.evaluation_seconds(c, index, 3, measured) for c in asked)
        assert with_ - without == more


def test_looking_at_held_out_images_is_timed(config, tmp_path, capsys):
    assert dry_run.dry_run(config) == 0
    held_out = make_shards(tmp_path / "held_out", samples=13, channels=3, classes=("a", "b"))
    watched = replace(config, data=replace(config.data, held_out=str(held_out.root)))
    seen = []

    def measured(*arguments):
        seen.append(measure(*arguments))
        return seen[-1]

    measure, scored = dry_run.measure, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "measure", measured)
        patch.setattr(dry_run, "steepness", lambda *_: time.sleep(0.1))
        patch.setattr(Probe, "measure", lambda self: scored.append(time.sleep(0.1)))
        assert dry_run.dry_run(config) == dry_run.dry_run(watched) == 0
    assert [found.probe >= least for found, least in zip(seen, (0.1, 0.2), strict=True)] == [True, True]
    assert len(scored) == 1


@pytest.mark.parametrize("done", [0, 160])
@pytest.mark.parametrize("every", [0, 1, 7, 8, 9, 16, 30, 100, 640, 641, 10_000])
def test_how_often_something_comes_is_what_the_clock_does(every, done):
    """In a run of 640 images in steps of 8, as the trainer counts: when crossed, and in the last pass."""
    clock, made = Clock(done, 8), 0
    while clock.images_seen < 640:
        clock.advance()
        made += clock.images_seen >= 640 or clock.crossed(every)
    assert dry_run.times(every, 640 - done, 8, done) == made


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (26_534_000, "26.5 MB"), (8.03e10, "80.3 GB"), (2e15, "2e+03 TB")],
)
def test_sizes_are_readable(size, text):
    assert dry_run.human_bytes(size) == text


def test_snapshots_are_counted_and_take_room(config, capsys):
    config = replace(config, ema=replace(config.ema, power=(0.05, 0.1)), log=replace(config.log, snapshots=250))
    assert dry_run.dry_run(config) == 0
    leaves = rows(capsys.readouterr().out)["leaves"]
    assert "4 snapshots of " in leaves


def test_a_file_in_the_place_of_the_run_folder_is_told(config, tmp_path):
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match=f"--run {tmp_path / 'a_file'} is a file: give a folder"):
        dry_run.dry_run(replace(config, run=str(tmp_path / "a_file")))
