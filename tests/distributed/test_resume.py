"""A run that was stopped or killed, and started again by the same command, ends as if nothing had happened."""

import itertools
import json
import platform
import shutil
import signal

import accelerate
import pytest
import torch

import scalegan
from helpers.daily import one_a_day
from helpers.runs import FULL, configured, contents, metrics, newest, stopped_training, training
from helpers.worlds import run_world
from scalegan import settings
from scalegan.data.index import read_index

pytestmark = pytest.mark.distributed

IMAGES = 32 * 14
SAVED = {"log__checkpoint": 128, "log__samples": 192, "log__snapshots": 96, "log__keep": 1}
CHANGES = {name.replace(".", "__"): value for name, value in FULL.items()} | SAVED


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    """Run folders of undisturbed runs, by the number of processes."""
    made = {}

    def run(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp(f"unbroken{processes}")
            ended = run_world(folder, processes, training, configured(shards, folder / "run", IMAGES, **CHANGES))
            assert [e.value for e in ended] == [True] * processes, ended
            made[processes] = folder / "run"
        return made[processes]

    return run


def assert_same(run, reference):
    ours, theirs = contents(run), contents(reference)
    assert ours.keys() == theirs.keys()
    changed = [name for name in ours if ours[name] != theirs[name]]
    assert changed == []


@pytest.mark.parametrize(
    ("processes", "rank", "number"),
    one_a_day(
        [(1, 0, signal.SIGTERM), (2, 1, signal.SIGUSR1), (2, 0, signal.SIGTERM), (1, 0, signal.SIGINT), (4, 1, signal.SIGTERM)]
    ),
)
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_bytes(shards, tmp_path, unbroken, processes, rank, number):
    reference = unbroken(processes)
    command = configured(shards, tmp_path / "run", IMAGES, **CHANGES)
    stopped = run_world(tmp_path, processes, stopped_training, command, rank, number, 32 * 5)
    assert [e.value for e in stopped] == [False] * processes, stopped
    assert [e.exitcode for e in stopped] == [0] * processes
    # One process stops at once; several have to tell each other first.
    expected = 32 * 6 if processes == 1 else 32 * 7
    assert int(newest(tmp_path / "run").name) == expected
    assert (tmp_path / "run" / "requeue").read_text() == f"{expected}\n"
    said = f"stopped at {expected} images on request, checkpoint saved: run the same command to go on"
    assert said in (tmp_path / "run" / "log.txt").read_text()
    again = run_world(tmp_path, processes, training, command)
    assert [e.value for e in again] == [True] * processes, again
    assert not (tmp_path / "run" / "requeue").exists()
    assert_same(tmp_path / "run", reference)


@pytest.mark.parametrize("family", one_a_day([
    {"model__family": "stylegan2", "model__map_layers": 2, "loss__path_weight": 2.0, "loss__path_every": 2},
    {"model__family": "biggan", "model__attention": 8, "model__class_ramp": 256},
    {"model__family": "fastgan"},
    {"model__family": "r3gan", "model__group_width": 4, "loss__name": "relativistic"},
]), ids=lambda changes: changes["model__family"])  # fmt: skip
def test_a_family_whose_state_is_more_than_weights_goes_on_to_the_same_bytes(shards, tmp_path, family):
    """Running means, hashed noise and path lengths; vectors of spectral norms and classes that come in."""
    changes = {name: value for name, value in CHANGES.items() if name not in ("model__critic_norm", "model__init")} | family
    reference = configured(shards, tmp_path / "reference", IMAGES, **changes)
    command = configured(shards, tmp_path / "run", IMAGES, **changes)
    assert [e.value for e in run_world(tmp_path, 2, training, reference)] == [True] * 2
    assert [e.value for e in run_world(tmp_path, 2, stopped_training, command, 1, signal.SIGTERM, 32 * 5)] == [False] * 2
    assert [e.value for e in run_world(tmp_path, 2, training, command)] == [True] * 2
    assert_same(tmp_path / "run", tmp_path / "reference")


def test_a_run_in_bfloat16_goes_on_to_the_same_bytes(shards, tmp_path):
    changes = CHANGES | {"train__precision": "bf16"}
    reference, command = (configured(shards, tmp_path / name, 32 * 8, **changes) for name in ("reference", "run"))
    assert [e.value for e in run_world(tmp_path, 1, training, reference)] == [True]
    assert [e.value for e in run_world(tmp_path, 1, stopped_training, command, 0, signal.SIGTERM, 32 * 4)] == [False]
    assert [e.value for e in run_world(tmp_path, 1, training, command)] == [True]
    assert_same(tmp_path / "run", tmp_path / "reference")


def state_of(run):
    """What the newest manifest says beside its files."""
    return json.loads((newest(run) / "manifest.json").read_text())["state"]


def scaled(function, *arguments):
    """With a loss scale that grows, as under fp16, which itself needs a GPU."""
    import torch

    from scalegan import distributed

    make = distributed.make_accelerator

    def with_scaler(config):
        accelerator = make(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=5)
        return accelerator

    distributed.make_accelerator = with_scaler
    return function(*arguments)


def test_the_loss_scale_of_fp16_goes_on_where_it_was(shards, tmp_path):
    config = configured(shards, tmp_path / "run", IMAGES)
    reference = configured(shards, tmp_path / "reference", IMAGES)
    run_world(tmp_path, 1, scaled, training, reference)
    run_world(tmp_path, 1, scaled, stopped_training, config, 0, signal.SIGTERM, 32 * 5)
    run_world(tmp_path, 1, scaled, training, config)
    assert_same(tmp_path / "run", tmp_path / "reference")
    scales = [state_of(tmp_path / name)["scaler"] for name in ("run", "reference")]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] == 4.0 * 2 ** (2 * IMAGES // 32 // 5)


def test_a_run_goes_on_in_fp16_that_had_no_loss_scale(shards, tmp_path):
    config = configured(shards, tmp_path / "run", IMAGES)
    assert [e.value for e in run_world(tmp_path, 1, stopped_training, config, 0, signal.SIGTERM, 32 * 5)] == [False]
    assert state_of(tmp_path / "run")["scaler"] is None
    again = run_world(tmp_path, 1, scaled, training, config)
    assert [e.value for e in again] == [True], again
    assert state_of(tmp_path / "run")["scaler"]["scale"] == 4.0 * 2 ** (2 * (IMAGES // 32 - 6) // 5)


@pytest.mark.parametrize(("damage", "processes"), one_a_day(itertools.product(["flipped", "cut"], [1, 2])))
def test_from_the_checkpoint_before_a_damaged_one_it_goes_on_to_the_same_bytes(shards, unbroken, tmp_path, damage, processes):
    command = configured(shards, tmp_path / "run", IMAGES, **CHANGES | {"log__keep": 3})
    stopped = run_world(tmp_path, processes, stopped_training, command, None, signal.SIGTERM, 32 * 9)
    assert [e.value for e in stopped] == [False] * processes, stopped
    hurt, before = newest(tmp_path / "run") / "opt_d.safetensors", newest(tmp_path / "run").with_name(f"{256:09d}")
    whole = hurt.read_bytes()
    assert before.is_dir()
    assert hurt.parent != before
    middle = len(whole) // 2
    hurt.write_bytes(whole[:middle] if damage == "cut" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    again = run_world(tmp_path, processes, training, command)
    assert [e.value for e in again] == [True] * processes, again
    (told,) = [line for line in again[0].stderr.splitlines() if "going on with the one before" in line]
    assert "opt_d.safetensors is damaged" in told
    assert_same(tmp_path / "run", unbroken(processes))


def test_a_finished_run_started_again_changes_nothing(shards, unbroken, tmp_path):
    shutil.copytree(unbroken(1), tmp_path / "run")
    before = contents(tmp_path / "run")
    again = run_world(tmp_path, 1, training, configured(shards, tmp_path / "run", IMAGES, **CHANGES))
    assert [e.value for e in again] == [True], again
    assert contents(tmp_path / "run") == before


def test_every_line_of_metrics_is_there_once(unbroken):
    seen = [line["images_seen"] for line in metrics(unbroken(2))]
    assert seen == [*range(64, IMAGES, 64), IMAGES]
    steps = (unbroken(2) / "losses.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in steps] == list(range(32, IMAGES + 1, 32))


def test_a_manifest_says_whose_checkpoint_it_is_and_what_it_was_made_with(shards, unbroken):
    config, state = configured(shards, unbroken(2), IMAGES, **CHANGES), state_of(unbroken(2))
    assert state["processes"] == 2
    assert settings.to_config(state["config"]).identity() == config.identity()
    assert state["data"]["sha256"] == read_index(shards).sha256
    assert state["versions"] == {
        "scalegan": scalegan.__version__,
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }


def test_snapshots_are_left_on_the_way_and_all_are_kept(unbroken):
    assert sorted(path.name for path in (unbroken(2) / "snapshots").iterdir()) == [
        f"{images:09d}" for images in (*range(96, IMAGES, 96), IMAGES)
    ]


def test_snapshots_of_a_later_time_are_made_again(shards, unbroken, tmp_path):
    """As they are by a run that was killed: what another one did after the checkpoint is no part of it."""
    command = configured(shards, tmp_path / "run", IMAGES, **CHANGES)
    run_world(tmp_path, 1, stopped_training, command, 0, signal.SIGTERM, 32 * 5)
    left = tmp_path / "run" / "snapshots" / f"{32 * 9:09d}"
    shutil.copytree(left.with_name(f"{96:09d}"), left)
    shutil.copytree(left, left.with_name(f"{32 * 9 + 1:09d}"))
    again = run_world(tmp_path, 1, training, command)
    assert [e.value for e in again] == [True], again
    assert_same(tmp_path / "run", unbroken(1))


def test_a_longer_run_goes_on_from_a_finished_one(shards, unbroken, tmp_path):
    """With a schedule, the length belongs to the run's identity and another one is refused."""
    shutil.copytree(unbroken(1), tmp_path / "run")
    longer = configured(shards, tmp_path / "run", 2 * IMAGES, **CHANGES)
    (ended,) = run_world(tmp_path, 1, training, longer)
    assert f"train.images: {IMAGES} -> {2 * IMAGES}" in str(ended.value)


@pytest.mark.parametrize(("before", "after"), one_a_day([(1, 2), (2, 1), (4, 2)]))
def test_a_run_goes_on_with_another_number_of_processes(shards, tmp_path, before, after):
    """As close as float32 allows. One round a step, as batch norm sees other images together in rounds of another length."""
    changes = CHANGES | {"train__accumulate": 1, "optim__warmup": 0}
    reference = configured(shards, tmp_path / "reference", IMAGES, **changes)
    command = configured(shards, tmp_path / "run", IMAGES, **changes)
    run_world(tmp_path, before, training, reference)
    run_world(tmp_path, before, stopped_training, command, 0, signal.SIGTERM, 32 * 5)
    again = run_world(tmp_path, after, training, command)
    assert [e.value for e in again] == [True] * after, again
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(tmp_path / "reference"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
