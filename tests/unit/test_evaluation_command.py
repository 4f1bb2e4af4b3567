"""`scalegan evaluate RUN` prints what was measured beside what to hold it against, and leaves a record in the run folder."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation_evaluator import Areas
from tiny import make_config, make_shards

from helpers.shards import make_images
from scalegan import checkpoint, cli, sampling
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.evaluation import evaluator, features, real, report, sides
from scalegan.evaluation.features import Extractor
from scalegan.models import build_generator
from scalegan.pixels import to_uint8


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch, tmp_path):
    """No real network, and no cache but one of the test's own."""
    torch.set_num_threads(1)
    made = Extractor("areas", Areas(), "no weights", torch.device("cpu"), 4)
    for module in (evaluator, sides, features):
        monkeypatch.setattr(module, "load_extractor", lambda config, device, team: made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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
    weights = hashlib.sha256((run / "checkpoints" / "000000640" / "ema.safetensors").read_bytes()).hexdigest()
    assert record["generator_weights"] == weights
    assert (record["scalegan"], record["pillow"]) == (version("scalegan"), version("pillow"))
    printed = capsys.readouterr().out
    for shown in (
        f"{record['fd_areas']:.2f}",
        f"{record['fd_areas_half']:.2f}",
        f"{record['fd_areas_floor']:.2f}",
        "the mean training image",
        "15 and 15 images",
    ):
        assert shown in printed
    (path,) = (run / "evaluations").iterdir()
    assert path.name.startswith("000000640-fd_areas-16-30-seed0-")
    assert str(path) in printed.replace("\n", "")


def test_a_run_folder_with_brackets_in_its_name_is_printed_whole(run, tmp_path, capsys):
    run = run.rename(tmp_path / "run[lr=2]")
    assert cli.main(["evaluate", str(run)]) == 0
    assert f"{run}/checkpoints/000000640 (640 images seen" in capsys.readouterr().out


def test_options_change_what_is_compared(run, tmp_path):
    out = tmp_path / "elsewhere" / "record.json"
    options = ["--samples", "10", "--real", "20", "--seed", "4", "--batch", "5", "--json", str(out)]
    assert cli.main(["evaluate", str(run), *options]) == 0
    record = json.loads(out.read_text())
    assert [record] == records(run)
    assert (record["generated"], record["real"], record["seed"]) == (10, 20, 4)


@pytest.mark.parametrize("batch", [8, 50, 64, 100])
def test_a_batch_of_the_extractor_costs_no_pass_of_the_generator(run, tmp_path, monkeypatch, batch):
    passes = []
    monkeypatch.setattr(sampling, "to_uint8", lambda images: passes.append(len(images)) or to_uint8(images))
    options = ["--samples", "300", "--metrics", "", "--batch", str(batch)]
    assert cli.main(["evaluate", str(run), *options]) == 0
    assert passes == [64] * 5
    assert cli.main(["stats", str(run), str(tmp_path / "real.npz")]) == 0
    assert cli.main(["evaluate", str(run), "--against", str(tmp_path / "real.npz"), *options]) == 0
    assert passes == [64] * 10


@pytest.mark.parametrize(("which", "images_seen"), [("latest", 640), ("best", 320), ("checkpoints/000000320", 320)])
def test_the_checkpoint_can_be_chosen(run, which, images_seen):
    given = which if "/" not in which else str(run / which)
    assert cli.main(["evaluate", str(run), "--checkpoint", given]) == 0
    assert records(run)[0]["images_seen"] == images_seen


def test_a_checkpoint_of_another_run_is_refused(run, index, tmp_path, capsys):
    other = save(make_config(Path(index.root), tmp_path / "other"), index, 320, best=None)
    for given in (other, tmp_path / "other"):
        said = refused(capsys, str(run), "--checkpoint", str(given))
        assert f"--checkpoint {other} is none of {run}: give it alone, `scalegan evaluate {other}`" in said
    assert not (run / "evaluations").exists()
    shutil.copytree(run / "checkpoints" / "000000320", tmp_path / "early")  # as `scalegan ema --out` makes them
    assert cli.main(["evaluate", str(run), "--checkpoint", str(tmp_path / "early")]) == 0
    (run / "checkpoints").rename(tmp_path / "moved")
    (run / "checkpoints").symlink_to(tmp_path / "moved")
    assert cli.main(["evaluate", str(run), "--checkpoint", str(run / "checkpoints" / "000000320")]) == 0


def test_a_checkpoint_folder_stands_for_its_run(run):
    assert cli.main(["evaluate", str(run / "checkpoints" / "000000320")]) == 0
    assert records(run)[0]["images_seen"] == 320


def test_the_same_command_gives_the_same_values(run):
    cli.main(["evaluate", str(run)])
    (first,) = records(run)
    cli.main(["evaluate", str(run)])
    (again,) = records(run)
    assert first | {"seconds": 0} == again | {"seconds": 0}


def test_other_metrics_are_another_record(run):
    for metrics in ("", "prdc", "kid"):
        assert cli.main(["evaluate", str(run), "--metrics", metrics]) == 0
    assert [{"precision", "kd_areas"} & record.keys() for record in sorted(records(run), key=len)] == [
        set(), {"kd_areas"}, {"precision"}
    ]  # fmt: skip


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
    wide = make_shards(tmp_path / "wide ones", samples=12, width=24)
    assert "does not exist" in refused(capsys, str(tmp_path / "nowhere"))
    assert "makes 1x16x12 images" in (said := refused(capsys, str(run), "--against", wide.root))
    assert f"`scalegan shards '{wide.root}' DIR --size 16x12`" in said
    assert "index.json is missing" in refused(capsys, str(run), "--against", str(tmp_path))
    assert "evaluation.samples is 1" in refused(capsys, str(run), "--samples", "1")
    assert "evaluation.real is 3, and each half" in refused(capsys, str(run), "--real", "3")
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
    assert f"give --against {gone.root} to" in refused(capsys, config.run)
    assert cli.main(["stats", config.run, str(tmp_path / "real.npz")]) == 2
    assert f"give {gone.root} to" in capsys.readouterr().err, "an option that it has not"
    assert "has no best checkpoint" in refused(capsys, config.run, "--checkpoint", "best")


def test_all_checkpoints_are_a_curve_and_a_record_each(run, tmp_path, capsys):
    assert cli.main(["evaluate", str(run), "--checkpoint", "all", "--json", str(tmp_path / "all.json")]) == 0
    assert [record["images_seen"] for record in records(run)] == [320, 640]
    assert json.loads((tmp_path / "all.json").read_text()) == records(run)
    first, second = (path.name.partition("-")[2] for path in sorted((run / "evaluations").iterdir()))
    assert first == second  # of one comparison, though their weights differ
    printed = capsys.readouterr().out
    for record in records(run):
        assert f"{record['fd_areas']:.2f}" in printed
    assert printed.count("lowest") == 1


def test_a_curve_is_of_one_comparison_where_the_run_has_changed_its_own_or_its_data_were_moved(
    index, tmp_path, capsys, monkeypatch
):
    by_precision = lambda config, device, team: Extractor("areas", Areas(), "", torch.device("cpu"), 4, config.precision)  # noqa: E731
    for module in (evaluator, sides):
        monkeypatch.setattr(module, "load_extractor", by_precision)
    moved = Path(shutil.copytree(index.root, tmp_path / "moved"))
    before = make_config(tmp_path / "gone", tmp_path / "run", evaluation={"precision": "bfloat16", "samples": 8})
    save(before, replace(index, root=str(tmp_path / "gone")), 320, best=None)
    save(make_config(moved, tmp_path / "run"), replace(index, root=str(moved)), 640, best=None)
    assert cli.main(["evaluate", str(tmp_path / "run"), "--checkpoint", "all"]) == 0
    assert [(record["generated"], "fd_areas" in record) for record in records(tmp_path / "run")] == [(16, True)] * 2
    assert capsys.readouterr().out.count("lowest") == 1


def test_a_checkpoint_that_a_training_deletes_meanwhile_is_left_out_of_the_curve(run, capsys, monkeypatch):
    measure = sides.Comparison.measure

    def beside_a_training(self, made, progress):
        shutil.rmtree(run / "checkpoints" / "000000640", ignore_errors=True)
        return measure(self, made, progress)

    monkeypatch.setattr(sides.Comparison, "measure", beside_a_training)
    assert cli.main(["evaluate", str(run), "--checkpoint", "all"]) == 0
    assert "left out of the curve: " in capsys.readouterr().err
    assert [record["images_seen"] for record in records(run)] == [320]


def test_a_checkpoint_that_a_training_deletes_between_two_looks_at_its_file_is_left_out_too(run, capsys, monkeypatch):
    sha256, looks = checkpoint.sha256, []

    def beside_a_training(path):
        found = sha256(path)
        looks.append(path)
        if len(looks) == 3:  # the first two are of those that there are
            shutil.rmtree(path.parent)
        return found

    monkeypatch.setattr(checkpoint, "sha256", beside_a_training)
    assert cli.main(["evaluate", str(run), "--checkpoint", "all"]) == 0
    assert "left out of the curve: " in capsys.readouterr().err
    assert [record["images_seen"] for record in records(run)] == [640]


def fill(folder: Path, count: int, seed: int, channels: int = 3, height: int = 16, width: int = 12) -> Path:
    folder.mkdir()
    for number, image in enumerate(make_images(count, height, width, channels, seed)[0]):
        Image.fromarray(image.squeeze()).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return fill(tmp_path / "made", 12, seed=1), fill(tmp_path / "real", 15, seed=2)


def evaluated(out: Path, *arguments: str) -> dict:
    assert cli.main(["evaluate", *arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_two_folders_are_compared_as_they_are(folders, tmp_path):
    made, real = folders
    record = evaluated(tmp_path / "r.json", str(made), "--against", str(real))
    assert (record["generated"], record["real"], record["against"], record["images"]) == (12, 15, str(real), str(made))
    assert {"index_sha256", "images_sha256", "weights_sha256", "resize", "fd_areas_floor"} <= record.keys()
    assert not {"seed", "ema", "images_seen", "checkpoint"} & record.keys()
    same = evaluated(tmp_path / "r.json", str(real), "--against", str(real))
    assert same["fd_areas"] == pytest.approx(0, abs=1e-9) != record["fd_areas"]


def test_a_window_that_one_side_needs_leaves_the_other_as_it_is(folders, run, tmp_path, capsys):
    made, real = folders
    (tmp_path / "deep").mkdir()
    for path in real.iterdir():
        grey = np.asarray(Image.open(path).convert("L"), np.uint16)
        Image.fromarray(grey * 257).save(tmp_path / "deep" / path.name)
    window = "--window", "0,65535"
    record = evaluated(tmp_path / "r.json", str(made), "--against", str(tmp_path / "deep"), *window)
    assert record["diversity"] == pytest.approx(evaluated(tmp_path / "r.json", str(made), "--against", str(real))["diversity"])
    capsys.readouterr()
    for source in (made, run):
        said = refused(capsys, str(source), "--against", str(real), *window)
        assert "--window 0,65535 means nothing for folders without images of more than 8 bits" in said
    assert cli.main(["stats", str(real), str(tmp_path / "out.npz"), *window]) == 2


def test_what_cannot_be_kept_costs_no_figures(folders, run, tmp_path, capsys, monkeypatch):
    sides = [str(folders[0]), "--against", str(folders[1])]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    record = evaluated(tmp_path / "r.json", *sides)
    printed = capsys.readouterr()
    assert f"{record['fd_areas']:.2f}" in printed.out
    assert printed.err.startswith(f"scalegan: {tmp_path / 'file' / 'scalegan' / 'statistics' / 'real-'}")
    assert printed.err.endswith("the statistics of the real images, could not be written (Not a directory): going on without\n")

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "write_atomically", full)
    assert cli.main(["evaluate", str(run), "--checkpoint", "all", "--json", str(tmp_path / "all.json")]) == 2
    printed = capsys.readouterr()
    assert "lowest" in printed.out
    assert "; records: " not in printed.out
    assert "-16-30-seed0-" in printed.err.splitlines()[-1]
    assert "(No space left on device); the figures are above: give --json FILE" in printed.err.splitlines()[-1]


def test_where_results_are_to_go_is_tried_before_any_work(folders, tmp_path, capsys, monkeypatch):
    made, real = map(str, folders)
    monkeypatch.setattr(sides, "images_of", None)
    (tmp_path / "folder.npz").mkdir()
    said = refused(capsys, made, "--against", real, "--json", str(tmp_path / "folder.npz"))
    assert said == f"scalegan: error: --json {tmp_path / 'folder.npz'} cannot be written (Is a directory): name another file\n"
    assert "r.json cannot be written (No such" in refused(capsys, made, "--against", real, "--json", "/proc/none/r.json")
    assert cli.main(["stats", real, str(tmp_path / "folder.npz")]) == 2
    assert "OUT.npz" in capsys.readouterr().err


def test_a_pipe_or_a_device_is_not_replaced_by_the_record(folders, tmp_path, capsys):
    made, real = map(str, folders)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stdout").symlink_to("/dev/null")  # as /dev/stdout leads to where output goes
    for name in ("pipe", "stdout"):
        path = tmp_path / name
        assert f"--json {path} is a pipe or a device" in refused(capsys, made, "--against", real, "--json", str(path))
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "stdout").is_symlink()


def test_a_changed_folder_is_measured_again(folders, tmp_path):
    made, real = folders
    first = evaluated(tmp_path / "r.json", str(made), "--against", str(real))
    Image.new("RGB", (12, 16)).save(real / "3.png")
    again = evaluated(tmp_path / "r.json", str(made), "--against", str(real))
    assert again["index_sha256"] != first["index_sha256"]
    assert again["fd_areas"] != first["fd_areas"]


def test_grey_samples_are_compared_with_coloured_images(folders, tmp_path):
    grey = fill(tmp_path / "grey", 12, seed=1, channels=1)
    record = evaluated(tmp_path / "r.json", str(grey), "--against", str(folders[1]))
    assert record["real"] == 15
    assert evaluated(tmp_path / "r.json", str(folders[1]), "--against", str(grey))["real"] == 12


def test_a_part_of_a_folder_is_a_fixed_choice(folders, tmp_path):
    options = [str(folders[0]), "--against", str(folders[1]), "--samples", "7"]
    one, two = (evaluated(tmp_path / "r.json", *options) for _ in range(2))
    assert one | {"seconds": 0} == two | {"seconds": 0}
    assert one["generated"] == 7


def test_a_folder_is_compared_with_the_data_of_a_run_and_with_shards(run, index, tmp_path):
    grey = fill(tmp_path / "grey", 12, seed=1, channels=1)
    by_run = evaluated(tmp_path / "r.json", str(grey), "--against", str(run))
    by_shards = evaluated(tmp_path / "r.json", str(grey), "--against", index.root)
    assert by_run["index_sha256"] == index.sha256
    assert by_run | {"seconds": 0} == by_shards | {"seconds": 0}
    shards = evaluated(tmp_path / "r.json", index.root, "--against", index.root)
    assert shards["fd_areas"] == pytest.approx(0, abs=1e-9)


def test_statistics_stand_for_the_images_that_they_are_of(folders, run, index, tmp_path, capsys):
    made, real = folders
    out = tmp_path / "real.npz"
    assert cli.main(["stats", str(real), str(out)]) == 0
    assert "15 images of" in capsys.readouterr().out
    by_file = evaluated(tmp_path / "r.json", str(made), "--against", str(out))
    by_images = evaluated(tmp_path / "r.json", str(made), "--against", str(real))
    assert by_file["fd_areas"] == pytest.approx(by_images["fd_areas"], rel=1e-9)
    assert (by_file["real"], by_file["statistics"]["source_sha256"]) == (15, by_images["index_sha256"])
    assert cli.main(["stats", str(run), str(tmp_path / "trained.npz")]) == 0
    by_file = evaluated(tmp_path / "r.json", str(run), "--against", str(tmp_path / "trained.npz"))
    assert (by_file["real"], by_file["images_seen"], by_file["ema"]) == (30, 640, True)
    assert by_file in records(run)
    (run / "evaluations").rename(tmp_path / "old")
    assert by_file["fd_areas"] == pytest.approx(evaluated(tmp_path / "r.json", str(run))["fd_areas"], rel=1e-9)


def test_statistics_of_a_run_are_made_through_its_cache_of_shards(index, tmp_path):
    config = make_config(Path(index.root), tmp_path / "run")
    save(replace(config, data=replace(config.data, cache=str(tmp_path / "shards"))), index, 640, best=None)
    assert cli.main(["stats", config.run, str(tmp_path / "real.npz")]) == 0
    assert (tmp_path / "shards" / "checked" / index.sha256).read_text()


def test_statistics_of_another_program_do_not_say_how_many(folders, tmp_path, capsys):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(48), sigma=np.eye(48))
    record = evaluated(tmp_path / "r.json", str(folders[0]), "--against", str(tmp_path / "theirs.npz"))
    assert (record["real"], record["statistics"]) == (None, {})
    assert "an unknown number of real images" in capsys.readouterr().out


def test_what_needs_no_real_images_is_measured_against_statistics_too(tmp_path, run, capsys):
    made, real = fill(tmp_path / "made", 200, seed=1), fill(tmp_path / "real", 15, seed=2)
    statistics = str(tmp_path / "real.npz")
    assert cli.main(["stats", str(real), statistics]) == 0
    options = str(made), "--metrics", "interval,infinity"
    by_file = evaluated(tmp_path / "r.json", *options, "--against", statistics)
    by_images = evaluated(tmp_path / "r.json", *options, "--against", str(real))
    names = {f"fd_areas_{name}" for name in ("se", "low", "high", "infinity", "infinity_slope", "infinity_r2")}
    assert names == {name for name in by_file if name.startswith("fd_areas_")}
    for name in names | {"fd_areas"}:
        assert by_file[name] == pytest.approx(by_images[name], rel=1e-6), name
    capsys.readouterr()
    said = refused(capsys, str(made), "--against", statistics, "--metrics", "interval,kid")
    assert f"metric kid needs real images and {statistics} holds their mean and covariance alone" in said
    said = refused(capsys, str(made), "--against", statistics, "--metrics", "interval", "--samples", "39")
    assert "metric interval needs 40 generated images" in said


def test_metrics_of_a_run_that_statistics_cannot_give_are_named_and_left_out(run, tmp_path, capsys):
    assert cli.main(["stats", str(run), str(tmp_path / "real.npz")]) == 0
    assert cli.main(["evaluate", str(run), "--against", str(tmp_path / "real.npz"), "--checkpoint", "all"]) == 0
    said = capsys.readouterr().err
    assert said.count("real.npz has no real images to look at: without ssim\n") == 1
    assert all("fd_areas" in record and "ssim_max" not in record for record in records(run))


def test_held_out_images_may_lie_in_a_folder(folders, tmp_path, capsys):
    made, real = fill(tmp_path / "more", 24, seed=1), str(folders[1])
    Image.open(Path(real) / "3.png").save(made / "7.png")  # a copy among the samples
    kept_out = fill(tmp_path / "kept_out", 22, seed=9, channels=1)
    options = str(made), "--against", real, "--metrics", "memorisation", "--held-out"
    record = evaluated(tmp_path / "out" / "r.json", *options, str(kept_out))
    assert record["held_out"] == 22
    assert record["closest"][0]["distance"] == 0
    assert record["closest_picture"] == "r-closest.png"
    with Image.open(tmp_path / "out" / "r-closest.png") as picture:
        assert picture.size == (8 * 12 + 7 * 2, 2 * 16 + 2)
    capsys.readouterr()
    assert "share 1 shards with" in refused(capsys, *options, real)
    assert "nowhere is no folder of images or shards: give one that is, or none" in refused(capsys, *options, "nowhere")
    assert "and there are none: name them by --held-out" in refused(capsys, *options, "none")


def test_a_class_of_the_users_own_measures(folders, tmp_path, monkeypatch):
    (tmp_path / "halves.py").write_text(
        "import torch\n"
        "class Halves(torch.nn.Module):\n"
        "    num_features = 6\n"
        "    def forward(self, images):\n"
        "        return torch.nn.functional.adaptive_avg_pool2d(images.float(), (1, 2)).flatten(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    record = evaluated(tmp_path / "r.json", str(folders[0]), "--against", str(folders[1]), "--extractor", "halves:Halves")
    assert record["extractor"] == "halves:Halves"
    assert record["fd_halves"] > 0
    assert record["resize"] == "its own"


def test_what_a_class_of_the_users_own_depends_on_may_change_between_two_commands(folders, run, tmp_path, monkeypatch):
    """Its statistics of the real images are kept for one command: no hash covers all that its code reads."""
    (tmp_path / "means.py").write_text(
        "import pathlib, torch\n"
        "class Means(torch.nn.Module):\n"
        "    num_features = 3\n"
        "    def forward(self, images):\n"
        f"        return images.float().mean((2, 3)) * float(pathlib.Path({str(tmp_path / 'scale')!r}).read_text())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = str(folders[0]), "--against", str(folders[1]), "--extractor", "means:Means"
    distances = []
    for scale in (1, 10):
        (tmp_path / "scale").write_text(str(scale))
        distances.append(evaluated(tmp_path / "r.json", *options)["fd_means"])
    assert distances[1] == pytest.approx(100 * distances[0], rel=1e-6)
    looks, measure = [], real.measure
    monkeypatch.setattr(real, "measure", lambda *args: (looks.append(1), measure(*args))[1])
    assert cli.main(["evaluate", str(run), "--extractor", "means:Means", "--checkpoint", "all"]) == 0
    assert (len(records(run)), len(looks)) == (2, 1)


def test_a_run_may_not_name_code(index, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    config = make_config(Path(index.root), tmp_path / "run", evaluation={"extractor": "halves:Halves"})
    save(config, index, 640, best=None)
    assert "names code, which no configuration may have run" in refused(capsys, config.run)


def test_a_generator_that_diverged_is_not_measured(run, capsys, index):
    config = make_config(Path(index.root), run)
    broken = build_generator(config.model, (1, 16, 12), 0)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    state = checkpoint.read(run / "checkpoints" / "000000640").state
    checkpoint.save(run, 960, {"ema": broken.state_dict()}, state)
    assert "has NaN or infinite weights" in refused(capsys, str(run))
    assert cli.main(["evaluate", str(run), "--checkpoint", "all"]) == 0
    assert "left out of the curve: " in capsys.readouterr().err
    assert [record["images_seen"] for record in records(run)] == [320, 640]


def test_bad_sides_are_one_line(folders, run, index, tmp_path, capsys):
    made, real = map(str, folders)
    small = str(fill(tmp_path / "small", 12, seed=1, height=8))
    (tmp_path / "few").mkdir()
    Image.new("RGB", (12, 16)).save(tmp_path / "few" / "a.png")
    (tmp_path / "edm2.pkl").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    assert "by --against" in refused(capsys, made)
    assert "made holds 3x16x12 images and" in refused(capsys, made, "--against", small)
    assert "--samples 13 is more than the 12 images" in refused(capsys, made, "--against", real, "--samples", "13")
    assert "a comparison needs 4 real images" in refused(capsys, made, "--against", str(tmp_path / "few"))
    assert "few holds 1 image, and a Frechet distance needs 2" in refused(capsys, str(tmp_path / "few"), "--against", real)
    assert "is a pickle" in refused(capsys, made, "--against", str(tmp_path / "edm2.pkl"))
    assert "are damaged" in refused(capsys, made, "--against", str(tmp_path / "cut.npz"))
    assert "does not exist" in refused(capsys, made, "--against", str(tmp_path / "nowhere"))
    assert "of which statistics alone are read" in refused(capsys, str(tmp_path / "cut.npz"), "--against", made)
    assert "--resize means nothing" in refused(capsys, made, "--against", real, "--resize", "clean", "--extractor", "a:B")
    assert "is one of extractor inception" in refused(capsys, made, "--against", real, "--resize", "clean")
    for option in (["--seed", "3"], ["--checkpoint", "all"]):
        assert f"{option[0]} means nothing for {made}, which is no run" in refused(capsys, made, "--against", real, *option)
    assert "--window means nothing for shards" in refused(capsys, str(run), "--window", "0,9")
    assert "--real means nothing" in refused(capsys, made, "--against", str(tmp_path / "cut.npz"), "--real", "9")
    assert cli.main(["stats", made, str(tmp_path / "out.npy")]) == 2
    assert "statistics are an .npz file" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import argparse, sys, scalegan.evaluation.command as c\n"
        "parser = argparse.ArgumentParser(); c.add_arguments(parser); print(parser.format_help())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--against" in done.stdout
