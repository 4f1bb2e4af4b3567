"""The jobs of the DCGAN projects that this one grew from, by their presets: what they left is there, when it was due."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from test_evaluation_evaluator import Areas
from tiny import make_shards

from scalegan import settings
from scalegan.config import Config
from scalegan.evaluation import evaluator
from scalegan.evaluation.features import Extractor
from scalegan.train import train

EPOCH = 64
"""Images of the data set that stands for theirs; intervals of the presets are cut in the same proportion."""


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)  # one process has one precision, but for tests
    made = Extractor("lite0", Areas(), "no weights", torch.device("cpu"), 16)
    monkeypatch.setattr(evaluator, "load_extractor", lambda config, device, team: made)


def cut(preset: str, epoch: int, epochs: int, data: Path, run: Path) -> Config:
    """The preset on a data set of `EPOCH` images in place of `epoch`, for as many epochs, with narrow networks."""
    config = settings.parse([f"--config={preset}", f"--data.path={data}", f"--run={run}", "--train.device=cpu"]).config

    def scaled(images: int) -> int:
        assert images % epoch == 0
        return images // epoch * EPOCH

    assert scaled(config.train.images) == 100 * EPOCH
    log = config.log
    return replace(
        config,
        model=replace(config.model, width=4, critic_width=4),
        train=replace(config.train, images=epochs * EPOCH, batch=16, precision="fp32"),
        log=replace(log, every=scaled(log.every), samples=scaled(log.samples), checkpoint=scaled(log.checkpoint), wandb="off"),
        evaluation=replace(config.evaluation, every=scaled(config.evaluation.every), samples=16, real=0, batch=16),
    )


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_mnist(tmp_path):
    make_shards(tmp_path / "data", EPOCH, 28, 28)
    run = tmp_path / "run"
    assert train(cut("mnist", 60_000, 100, tmp_path / "data", run))
    assert [line["images_seen"] for line in lines(run / "metrics.jsonl")] == [EPOCH * n for n in range(1, 101)]
    assert all({"loss/D", "loss/G", "accuracy/real", "accuracy/fake"} <= line.keys() for line in lines(run / "metrics.jsonl"))
    head, *batches = (run / "losses.csv").read_text().splitlines()
    assert head == "images_seen,loss/D,loss/G"
    assert [int(row.split(",")[0]) for row in batches] == list(range(16, 100 * EPOCH + 1, 16))
    for epoch in (5, 25, 50, 75, 100, *range(15, 100, 15)):
        with Image.open(run / "samples" / f"{EPOCH * epoch:09d}.png") as grid:
            assert grid.width == grid.height > 8 * 28, "64 fixed examples"
    for name in ("losses.png", "epochs.png"):
        assert (run / "figures" / name).stat().st_size
    with Image.open(run / "figures" / "training.gif") as film:
        assert film.n_frames >= 20


def test_oasis(tmp_path):
    make_shards(tmp_path / "data", EPOCH, 32, 32)
    run = tmp_path / "run"
    assert train(cut("oasis", 9_664, 20, tmp_path / "data", run))
    records = lines(run / "evaluations.jsonl")
    assert [record["images_seen"] for record in records] == [EPOCH * n for n in range(1, 21)]
    for record in records:
        assert -1 < record["ssim_max"] < 1
        assert {"ssim_mean_image", "diversity", "diversity_real"} <= record.keys()
        assert record["real"] == EPOCH, "the whole real set"
    assert all({"accuracy/real", "accuracy/fake"} <= line.keys() for line in lines(run / "metrics.jsonl"))
    for name in ("losses.png", "accuracy.png", "quality.png", "training.gif"):
        assert (run / "figures" / name).stat().st_size
