"""The monitor mode: features in bfloat16, labelled wherever they stand, kept apart from those in float32, and near them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_evaluation_command import index, records, run  # noqa: F401 (fixtures)
from tiny import make_config, make_shards
from torch import Tensor

from scalegan import checkpoint, cli
from scalegan.data.index import Index
from scalegan.distributed import make_accelerator
from scalegan.errors import UserError
from scalegan.evaluation import evaluator, features, sides, statistics_file
from scalegan.evaluation.evaluator import evaluate
from scalegan.evaluation.features import Extractor, load_extractor
from scalegan.evaluation.network import FeatureNetwork
from scalegan.evaluation.resize import RESIZES
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.status import record_line
from scalegan.trainer import Trainer
from scalegan.watchdog import Watchdog

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")


class Filters(FeatureNetwork):
    """12 features: means of what random filters find."""

    num_features = 12
    cpu_batch = 4
    resize = "none"

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.nn.Conv2d(3, 12, 3).requires_grad_(False)
        draw = np.random.default_rng(0)
        for parameter in self.filters.parameters():
            parameter.copy_(torch.from_numpy(draw.normal(0, 0.2, parameter.shape)))

    def forward(self, images: Tensor) -> Tensor:
        return self.filters(images.float() / 255).relu().mean((2, 3))


def extractor(precision: str) -> Extractor:
    return Extractor("lite0", Filters(), "no weights", CPU, 4, precision)


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    for module in (evaluator, sides, features):
        monkeypatch.setattr(module, "load_extractor", lambda config, device, team: extractor(config.precision))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(count: int, height: int = 16, width: int = 12, channels: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=draw)


def errors(found: Tensor, exact: Tensor) -> Tensor:
    """Relative error of each image's features."""
    return (found - exact).norm(dim=1) / exact.norm(dim=1)


def test_features_are_near_those_in_float32_and_are_float32_again():
    images = pictures(20)
    exact, near = extractor("float32")(images), extractor("bfloat16")(images)
    assert near.dtype == exact.dtype == torch.float32
    assert 0 < errors(near, exact).max() < 2**-7


def test_features_of_lite0_are_near_too():
    image = pictures(1, 48, 40)
    made = [load_extractor(EvaluationConfig(precision=precision), CPU, Team()) for precision in PRECISIONS]
    exact, near = (replace(found, batch=1)(image) for found in made)
    assert near.dtype == torch.float32
    assert 1e-4 < errors(near, exact).max() < 0.1


def test_the_training_around_them_decides_neither_and_notices_neither():
    images = pictures(9)
    for precision in PRECISIONS:
        made = extractor(precision)
        alone, state = made(images), torch.get_rng_state()
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(made(images), alone)
            assert torch.get_autocast_dtype("cpu") == torch.float16
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.is_autocast_enabled("cpu")
        assert made.network.filters.weight.dtype == torch.float32


@pytest.mark.parametrize("name", RESIZES)
def test_images_are_resized_in_float32_all_the_same(name):
    images = pictures(2, 20, 30)
    with torch.autocast("cpu", torch.bfloat16):
        inside = RESIZES[name](images, 47)
    assert torch.equal(inside, RESIZES[name](images, 47))


def measured(index: Index, cache: Path, precision: str, **options) -> dict:  # noqa: F811
    images = pictures(40, channels=index.channels)
    config = EvaluationConfig(samples=40, batch=8, precision=precision, **options)
    return evaluate(
        lambda first, count: images[first : first + count], index, config, seed=0, images_seen=640, ema=True, rank=0,
        processes=1, device=CPU, cache=cache,
    )  # fmt: skip


def test_a_record_of_the_monitor_mode_cannot_pass_for_another(index, tmp_path):  # noqa: F811
    metrics = "ssim,kid,prdc,interval"
    exact, near = (measured(index, tmp_path, precision, metrics=metrics) for precision in PRECISIONS)
    assert near["monitor"] is True
    assert "monitor" not in exact
    assert (exact["dtype"][:8], near["dtype"][:9]) == ("float32 ", "bfloat16 ")
    of_features = {"fd_lite0", "fd_lite0_floor", "fd_lite0_se", "kd_lite0", "kd_lite0_se", "precision", "coverage"}
    assert of_features <= exact.keys()
    assert not of_features & near.keys()
    assert {"fd_lite0_bf16", "fd_lite0_bf16_floor", "kd_lite0_bf16_se", "precision_bf16"} <= near.keys()
    assert len(near) == len(exact) + 1
    assert near["ssim_max"] == exact["ssim_max"]
    assert 0 < abs(near["fd_lite0_bf16"] / exact["fd_lite0"] - 1) < 0.05
    assert "fd_lite0_bf16 " in record_line(640, near)
    assert "(floor " in record_line(640, near)


def test_real_statistics_of_the_two_are_kept_apart(index, tmp_path):  # noqa: F811
    alone = [measured(index, tmp_path / precision, precision) for precision in PRECISIONS]
    together = [measured(index, tmp_path / "both", precision) for precision in PRECISIONS]
    again = [measured(index, tmp_path / "both", precision) for precision in PRECISIONS]
    assert [r | {"seconds": 0} for r in alone] == [r | {"seconds": 0} for r in together] == [r | {"seconds": 0} for r in again]
    assert len(list((tmp_path / "both").iterdir())) == 2


def test_files_of_statistics_are_refused_for_the_other_precision(index, tmp_path, capsys):  # noqa: F811
    for precision in PRECISIONS:
        out = tmp_path / f"{precision}.npz"
        assert cli.main(["stats", index.root, str(out), "--precision", precision]) == 0
        assert ("monitor mode alone" in capsys.readouterr().out) == (precision == "bfloat16")
        statistics_file.read(out).check(extractor(precision))
    for made, asked in (PRECISIONS, PRECISIONS[::-1]):
        with pytest.raises(UserError, match=rf"made with dtype '{made} .*, not '{asked} .* by --precision"):
            statistics_file.read(tmp_path / f"{made}.npz").check(extractor(asked))
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(12), sigma=np.eye(12))
    statistics_file.read(tmp_path / "theirs.npz").check(extractor("float32"))
    with pytest.raises(UserError, match="other programs make float32: leave --precision out"):
        statistics_file.read(tmp_path / "theirs.npz").check(extractor("bfloat16"))


def test_the_command_says_what_it_prints(run, index, tmp_path, capsys):  # noqa: F811
    assert cli.main(["evaluate", str(run), "--metrics", "prdc"]) == 0
    assert "monitor" not in capsys.readouterr().out
    monitor = ["evaluate", str(run), "--metrics", "prdc", "--precision", "bfloat16"]
    assert cli.main(monitor) == 0
    printed = capsys.readouterr().out
    for shown in ("monitor mode: features in bfloat16, not the published figures", " fd_lite0_bf16 ", " precision_bf16 "):
        assert shown in printed
    assert cli.main([*monitor, "--checkpoint", "all"]) == 0
    assert "monitor mode" in capsys.readouterr().out
    names = sorted(path.name for path in (run / "evaluations").glob("*.json"))
    assert [name.split("-")[1] for name in names] == ["fd_lite0_bf16", "fd_lite0", "fd_lite0_bf16"]
    assert cli.main(["stats", index.root, str(tmp_path / "real.npz"), "--precision", "bfloat16"]) == 0
    assert cli.main([*monitor[:2], "--against", str(tmp_path / "real.npz"), "--precision", "bfloat16"]) == 0
    assert cli.main([*monitor[:2], "--against", str(tmp_path / "real.npz")]) == 2


def test_it_changes_nothing_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr("scalegan.plots.plot_run", lambda run_dir: [])
    data = make_shards(tmp_path / "data")
    best, tensors, lines = [], [], []
    for precision in PRECISIONS:
        AcceleratorState._reset_state(True)
        config = make_config(
            Path(data.root), tmp_path / precision, train={"images": 24}, evaluation={"every": 8, "precision": precision}
        )
        trainer = Trainer(config, make_accelerator(config.train), data, None, Watchdog(0, Path(), 0))
        assert trainer.train()
        best.append(trainer.best["metric"])
        newest, _ = checkpoint.latest(tmp_path / precision)
        assert newest is not None
        tensors.append(newest.files)
        lines.append((tmp_path / precision / "metrics.jsonl").read_text())
    assert tensors[0] == tensors[1]
    assert lines[0] == lines[1]
    assert best == ["fd_lite0", "fd_lite0_bf16"]
    told = [json.loads(line) for line in (tmp_path / "bfloat16" / "evaluations.jsonl").read_text().splitlines()]
    assert len(told) == 3
    assert all(line["monitor"] and "fd_lite0" not in line for line in told)
