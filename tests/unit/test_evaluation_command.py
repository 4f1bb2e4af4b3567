"""`scalegan evaluate RUN` prints what was measured beside what to hold it against, and leaves a record in the run folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_evaluation_evaluator import small_extractor  # noqa: F401, an automatic fixture: no real network here
from tiny import make_config, make_shards

from scalegan import checkpoint, cli
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.models import build_generator


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", samples=30)


def save(config: Config, index: Index, images_seen: int, best: int | None) -> Path:
    torch.manual_seed(images_seen)
    shape = (index.channels, index.height, index.width)
    state = {
        "config": config.to_dict(),
        "data": {"shape": shape, "classes": [], "class_counts": [], "path": index.root, "sha256": index.sha256},
        "best": {"metric": "fd_areas", "value": 1.0, "images_seen": best} if best else {},
    }
    generator = build_generator(config.model, shape, 0).state_dict()
    return checkpoint.save(Path(config.run), images_seen, {"ema": generator}, state)


@pytest.fixture
def run(index, tmp_path) -> Path:
    config = make_config(Path(index.root), tmp_path / "run")
    save(config, index, 320, best=None)
    save(config, index, 640, best=320)
    return tmp_path / "run"


def records(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]


def test_a_run_is_measured_against_its_own_data(run, index, capsys):
    assert cli.main(["evaluate", str(run)]) == 0
    (record,) = records(run)
    assert (record["images_seen"], record["real"], record["generated"], record["seed"]) == (640, 30, 16, 0)
    assert (record["against"], record["index_sha256"]) == (index.root, index.sha256)
    assert record["checkpoint"].endswith("checkpoints/000000640")
    printed = capsys.readouterr().out
    for shown in (
        f"{record['fd_areas']:.2f}",
        f"{record['fd_areas_floor']:.2f}",
        "the mean training image",
        "15 and 15 images",
    ):
        assert shown in printed
    (path,) = (run / "evaluations").iterdir()
    assert path.name == f"000000640-fd_areas-16-30-seed0-{index.sha256[:8]}.json"
    assert str(path) in printed.replace("\n", "")


def test_options_change_what_is_compared(run, tmp_path):
    out = tmp_path / "elsewhere" / "record.json"
    options = ["--samples", "10", "--real", "20", "--seed", "4", "--batch", "5", "--json", str(out)]
    assert cli.main(["evaluate", str(run), *options]) == 0
    record = json.loads(out.read_text())
    assert [record] == records(run)
    assert (record["generated"], record["real"], record["seed"]) == (10, 20, 4)


@pytest.mark.parametrize(("which", "images_seen"), [("latest", 640), ("best", 320), ("checkpoints/000000320", 320)])
def test_the_checkpoint_can_be_chosen(run, which, images_seen):
    given = which if "/" not in which else str(run / which)
    assert cli.main(["evaluate", str(run), "--checkpoint", given]) == 0
    assert records(run)[0]["images_seen"] == images_seen


def test_a_checkpoint_folder_stands_for_its_run(run):
    assert cli.main(["evaluate", str(run / "checkpoints" / "000000320")]) == 0
    assert records(run)[0]["images_seen"] == 320


def test_the_same_command_gives_the_same_values(run):
    cli.main(["evaluate", str(run)])
    (first,) = records(run)
    cli.main(["evaluate", str(run)])
    (again,) = records(run)
    assert first | {"seconds": 0} == again | {"seconds": 0}


def test_other_data_can_be_compared_with(run, tmp_path):
    other = make_shards(tmp_path / "other", samples=12)
    assert cli.main(["evaluate", str(run), "--against", other.root]) == 0
    assert (records(run)[0]["real"], records(run)[0]["index_sha256"]) == (12, other.sha256)


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("scalegan: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_bad_input_is_one_line(run, index, tmp_path, capsys):
    wide = make_shards(tmp_path / "wide", samples=12, width=24)
    assert "does not exist" in refused(capsys, str(tmp_path / "nowhere"))
    assert "makes 1x16x12 images" in refused(capsys, str(run), "--against", wide.root)
    assert "index.json is missing" in refused(capsys, str(run), "--against", str(tmp_path))
    assert "evaluation.samples is 1" in refused(capsys, str(run), "--samples", "1")
    assert "31 real images" in refused(capsys, str(run), "--real", "31")
    assert "did you mean --samples?" in refused(capsys, str(run), "--sample", "3")
    assert not (run / "evaluations").exists()


def test_data_that_is_gone_or_has_changed_is_told(index, tmp_path, capsys):
    gone = make_shards(tmp_path / "gone", samples=12)
    config = make_config(Path(gone.root), tmp_path / "run")
    save(config, gone, 640, best=None)
    make_shards(tmp_path / "new", samples=13)
    (tmp_path / "gone").rename(tmp_path / "moved")
    assert "the data of the training: " in refused(capsys, config.run)
    (tmp_path / "new").rename(tmp_path / "gone")
    assert f"give --against {gone.root}" in refused(capsys, config.run)
    assert "has no best checkpoint" in refused(capsys, config.run, "--checkpoint", "best")


def test_help_needs_no_torch():
    code = (
        "import argparse, sys, scalegan.evaluation.command as c\n"
        "parser = argparse.ArgumentParser(); c.add_arguments(parser); print(parser.format_help())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--against" in done.stdout
