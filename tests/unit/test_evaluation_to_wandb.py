"""`scalegan evaluate RUN` sends its records to the W&B run of the training: each once, and none beside a training."""

import json
import os
from pathlib import Path

import pytest
from test_wandb_run import rows, train
from tiny import make_config, make_shards

from scalegan import cli
from scalegan.checkpoint import save
from scalegan.evaluation import report, to_wandb
from scalegan.run import Lock
from scalegan.wandb_run import LOCK

Record = dict[str, object]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    index = make_shards(tmp_path / "shards", samples=8)
    config = make_config(Path(index.root), tmp_path / "run")
    save(tmp_path / "run", 640, {}, {"config": config.to_dict(), "wandb_id": None, "data": {}})
    return tmp_path / "run"


def record(run: Path, images_seen: int, **more: object) -> Record:
    return {
        "images_seen": images_seen, "extractor": "lite0", "resize": "bilinear", "generated": 9, "real": 9, "seed": 0,
        "fd_lite0": images_seen / 7, "index_sha256": "data", "fd_lite0_per_class": {"Kiwi": 3.0}, "note": "no number",
        "checkpoint": str(run / "checkpoints" / "000000640"),
    } | more  # fmt: skip


def test_each_comparison_is_a_curve_and_no_row_is_sent_twice(run: Path) -> None:
    said: list[str] = []
    first, last, more = record(run, 320), record(run, 640), record(run, 640, generated=18)
    to_wandb.send(run, [last], "offline", said.append)
    wandb_id = json.loads((run / "wandb_evaluations.json").read_text())["id"]
    to_wandb.send(run, [first, last], "offline", said.append)
    to_wandb.send(run, [more], "offline", said.append)
    assert said == []
    assert {path.name.split("-")[3] for path in run.glob("wandb/offline-run-*")} == {wandb_id}
    name, other = f"evaluate/{report.comparison(last)}", f"evaluate/{report.comparison(more)}"
    assert name != other
    sent = [(row["images_seen"], row[f"{name}/fd_lite0"]) for row in rows(run) if f"{name}/fd_lite0" in row]
    assert sent == [(640, 640 / 7), (320, 320 / 7)]
    assert [row["images_seen"] for row in rows(run) if f"{other}/fd_lite0_per_class/Kiwi" in row] == [640]
    assert not any(key.endswith("note") for row in rows(run) for key in row)


def test_a_training_that_follows_is_the_same_run_and_sends_all_of_its_own(run: Path) -> None:
    to_wandb.send(run, [record(run, 640)], "offline", pytest.fail)
    train(run, "offline", 0, 2000)
    assert len({path.name.split("-")[3] for path in run.glob("wandb/offline-run-*")}) == 1
    assert [row["images_seen"] for row in rows(run) if "loss/D" in row] == [1000, 2000]


def test_after_a_training_its_rows_are_not_sent_again(run: Path) -> None:
    train(run, "offline", 0, 2000)
    before = (run / "wandb.json").read_bytes()
    to_wandb.send(run, [record(run, 640)], "offline", pytest.fail)
    assert (run / "wandb.json").read_bytes() == before
    assert len({path.name.split("-")[3] for path in run.glob("wandb/offline-run-*")}) == 1
    train(run, "offline", 2000, 3000)
    assert [row["images_seen"] for row in rows(run) if "loss/D" in row] == [1000, 2000, 3000]


def test_a_record_of_a_checkpoint_that_a_training_deleted_meanwhile_is_sent(run: Path) -> None:
    last = record(run, 320, checkpoint=str(run / "checkpoints" / "000000320"))
    to_wandb.send(run, [last], "offline", pytest.fail)
    name = f"evaluate/{report.comparison(last)}"
    assert [row["images_seen"] for row in rows(run) if f"{name}/fd_lite0" in row] == [320]


def test_nothing_is_sent_where_the_run_has_it_off(run: Path) -> None:
    to_wandb.send(run, [record(run, 640)], None, pytest.fail)
    assert not (run / "wandb_evaluations.json").exists()


def test_beside_a_training_nothing_is_sent_and_a_line_says_so(run: Path) -> None:
    said: list[str] = []
    of_a_training = Lock(run, LOCK)
    to_wandb.send(run, [record(run, 640)], "offline", said.append)
    of_a_training.close()
    assert len(said) == 1
    assert said[0].startswith(f"W&B does not start (process {os.getpid()} on ")
    assert said[0].endswith(" is sending to it); the files in the run folder have it all")
    assert not any("evaluate" in key for row in rows(run) for key in row)


def test_a_checkpoint_that_lies_by_itself_has_no_run(run: Path) -> None:
    alone = run / "checkpoints" / "000000640"
    to_wandb.send(alone, [record(run, 640)], "offline", pytest.fail)
    assert sorted(path.name for path in alone.iterdir()) == ["manifest.json"]


def test_images_of_no_run_have_no_wandb_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").mkdir()
    assert cli.main(["evaluate", str(tmp_path / "made"), "--wandb", "offline"]) == 2
    assert f"--wandb means nothing for {tmp_path / 'made'}, which is no run: leave it out" in capsys.readouterr().err
