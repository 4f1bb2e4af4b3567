"""`--debug` tries every part of a run in little, and says which one is broken."""

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from test_stream import with_bad_images
from tiny import cut_copy, make_config, make_shards

from scalegan import checkpoint, settings, steps
from scalegan.config import Config
from scalegan.cut_down import IMAGES, cut_config, cut_index
from scalegan.data.index import Index, read_index
from scalegan.data.resident import Resident
from scalegan.debug import Outcome, debug, show, try_all
from scalegan.errors import UserError
from scalegan.model_config import ModelConfig
from scalegan.random import normal
from scalegan.trial import Fault, Part, Trial

PARTS = ["shards", "networks", "critic step", "generator step", "average", "sample grid", "evaluation", "checkpoint", "resume"]


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)  # one process has one precision, but for tests
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("scalegan.plots.plot_run", lambda run_dir: [])  # seconds of no interest here


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("debug") / "data"
    make_shards(folder, samples=110, classes=("a", "b"))
    return folder


@pytest.fixture
def config(data, tmp_path) -> Config:
    """What has a state or a branch of its own: classes, penalty, augmentation, rounds, a schedule."""
    return make_config(
        data,
        tmp_path / "run",
        model={"conditional": True},
        loss={"r1_gamma": 0.1, "penalty_every": 8},
        augment={"brightness": 0.2, "mirror": True, "target": 0.6},
        train={"images": 10_000, "batch": 32, "accumulate": 2},
        optim={"schedule": "cosine", "warmup": 1000},
    )


@pytest.fixture
def trial(config, tmp_path):
    made = Trial(config, tmp_path / "trial")
    (tmp_path / "trial").mkdir()
    made.shards()
    made.networks()
    yield made
    made.close()


# --- as a whole


def test_everything_passes_and_nothing_is_left_behind(config, tmp_path, capsys):
    assert debug(config) == 0
    printed = capsys.readouterr().out
    assert printed.count("passed") == len(PARTS) + 1
    assert all(part in printed for part in PARTS)
    assert "9 of 9 parts passed" in printed
    assert list(tmp_path.iterdir()) == [], "no run folder, and none beside it"


def test_a_broken_part_is_named_the_others_are_tried_and_the_table_comes(config, tmp_path, capsys, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no features\ntoday")

    monkeypatch.setattr(importlib.import_module("scalegan.evaluation.evaluator"), "evaluate", fails)
    monkeypatch.setattr("scalegan.sampling.images_of", fails)
    assert debug(config) == 1
    lines = capsys.readouterr().out.splitlines()
    results = {name: next(line for line in lines if f"│ {name}" in line) for name in PARTS}
    assert {name for name, line in results.items() if "failed" in line} == {"sample grid", "evaluation", "checkpoint"}
    assert "not tried" in results["resume"]
    assert "needs checkpoint" in results["resume"]
    assert "failed: evaluation: RuntimeError: no features today" in lines
    (kept,) = (tmp_path / "run-debug").iterdir()
    assert f"5 of 9 parts passed in {lines[-1].split()[6]} s" in lines[-1]
    assert lines[-1].endswith(f"{kept / 'log.txt'}")
    assert "Traceback" in (kept / "log.txt").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("data", "path", "nowhere", "index.json is missing"),
        ("train", "batch", 128, "110 images, fewer than"),
        ("train", "device", "cuda", "torch sees no GPU here"),
    ],
)
def test_what_a_training_would_refuse_is_refused_before_anything_is_tried(config, tmp_path, section, field, value, message):
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        debug(replace(config, **{section: replace(getattr(config, section), **{field: value})}))
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_read_is_the_first_part_that_fails(config, data, capsys, tmp_path):
    shutil.copytree(data, tmp_path / "damaged")
    for shard in (tmp_path / "damaged").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert debug(replace(config, data=replace(config.data, path=str(tmp_path / "damaged")))) == 1
    printed = capsys.readouterr().out
    assert "failed: shards: " in printed
    assert printed.count("not tried") == 8


def test_readers_that_give_different_images_are_noticed(trial, monkeypatch):
    taken = Resident.take
    monkeypatch.setattr(Resident, "take", lambda self, samples: (taken(self, samples)[0] // 2, taken(self, samples)[1]))
    with pytest.raises(Fault, match="the readers `resident` and `stream` give different images"):
        trial.shards()


def test_a_shard_that_a_training_would_do_without_is_done_without(config, data, tmp_path):
    damaged = replace(config.data, path=str(cut_copy(data, tmp_path / "cut")))
    with pytest.raises(UserError, match="bytes"):
        Trial(replace(config, data=damaged), tmp_path).shards()
    Trial(replace(config, data=replace(damaged, on_error="skip", skip_budget=1.0)), tmp_path).shards()


@pytest.mark.filterwarnings("ignore:left out")
def test_images_that_a_training_would_replace_are_no_difference_of_the_readers(config, tmp_path):
    index = with_bad_images(tmp_path / "bad", dict.fromkeys(range(0, 40, 3), b"nothing"))
    data = replace(config.data, path=index.root, on_error="skip", skip_budget=1.0)
    plain = replace(config, data=data, model=ModelConfig(), train=replace(config.train, batch=8, accumulate=1))
    Trial(plain, tmp_path).shards()


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("train", "batch", 128, "110 images, fewer than"),
        ("train", "accumulate", 3, "train.batch 32 is not divisible"),
        ("data", "memory_gb", 1e-6, "data.memory_gb allows"),
    ],
)
def test_what_is_wrong_with_the_whole_configuration_is_not_cut_away(config, tmp_path, section, field, value, message):
    changed = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    changed = replace(changed, data=replace(changed.data, reader="resident", workers=2))
    with pytest.raises(UserError, match=message):
        Trial(changed, tmp_path).shards()


def test_more_processes_are_refused(config, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without the launcher"):
        debug(config)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_one_image_is_not_a_batch_of_like_ones(config, tmp_path):
    trial = Trial(replace(config, train=replace(config.train, batch=1, accumulate=1)), tmp_path)
    assert trial.shards().endswith("; 1 decoded")


def test_a_part_is_not_tried_without_what_it_needs(tmp_path):
    def fails() -> str:
        raise Fault("no [red]")

    parts = [Part("a", (), fails), Part("b", ("a",), str), Part("c", ("b",), str), Part("d", (), lambda: "fine")]
    console = pytest.importorskip("rich.console").Console()
    outcomes = [(o.name, o.result, o.seen) for o in try_all(parts, tmp_path / "log.txt", console)]
    assert outcomes == [
        ("a", "failed", "no [red]"),
        ("b", "not tried", "needs a"),
        ("c", "not tried", "needs b"),
        ("d", "passed", "fine"),
    ]


def test_a_run_is_named_as_it_is_called(capsys):
    show([], "runs/a[/b]", pytest.importorskip("rich.console").Console(width=200))
    assert "parts of runs/a[/b], cut down" in " ".join(capsys.readouterr().out.split())


def test_with_a_slash_at_its_end_it_is_the_same_run(config, tmp_path, monkeypatch):
    """As a shell completes the name of a folder."""
    monkeypatch.setattr("scalegan.debug.try_all", lambda *_: [Outcome("a", "failed", 0.0, "")])
    assert debug(replace(config, run=f"{config.run}/")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run-debug"]


# --- cut down


@pytest.fixture(scope="module")
def index(data) -> Index:
    return read_index(data)


def test_the_index_is_cut_to_whole_shards_that_are_enough(index):
    cut = cut_index(index, IMAGES)
    assert (index.samples, cut.samples) == (110, 80)
    assert (sum(cut.class_counts), cut.class_counts) == (80, (40, 40))
    assert cut.sha256 != index.sha256
    assert cut_index(index, 1000).shards == index.shards


@pytest.mark.parametrize("preset", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("order", ["full", "blocks"])
def test_every_preset_is_cut_to_one_that_can_run(preset, order, index, tmp_path):
    full = settings.parse(["--config", str(preset), f"--data.order={order}"]).config
    cut = cut_config(full, index, tmp_path)
    cut.check(1)
    assert cut.train.images == 8 * cut.train.batch <= 8 * 16
    assert cut.model.width <= 8
    assert cut.loss.name == full.loss.name
    assert replace(cut.augment, speed=full.augment.speed, every=full.augment.every) == full.augment
    assert (cut.loss.r1_gamma, cut.train.precision, cut.data.order) == (full.loss.r1_gamma, full.train.precision, order)


def test_rounds_and_streams_still_divide_the_batch(config, index, tmp_path):
    odd = replace(
        config,
        train=replace(config.train, batch=36, accumulate=6),
        data=replace(config.data, order="blocks", streams=9),
    )
    odd.check(1)
    cut = cut_config(odd, index, tmp_path)
    cut.check(1)
    assert (cut.train.batch, cut.train.accumulate, cut.data.streams) == (12, 2, 3)


def test_groups_of_images_still_fit(config, index, tmp_path):
    model = ModelConfig(family="stylegan2", std_group=16)
    cut = cut_config(replace(config, model=model, train=replace(config.train, batch=32)), index, tmp_path)
    cut.check(1)
    assert cut.model.std_group == cut.train.batch // cut.train.accumulate == 8


@pytest.mark.parametrize(("group_width", "expected"), [(4, 4), (6, 2), (12, 4), (16, 16), (24, 8), (32, 16)])
@pytest.mark.parametrize("critic_family", ["same", "dcgan"])
def test_groups_of_channels_still_fit(config, index, tmp_path, group_width, expected, critic_family):
    widths = {"width": 48, "max_width": 384, "critic_width": 48, "critic_max_width": 384}
    model = ModelConfig(family="r3gan", critic_family=critic_family, group_width=group_width, **widths)
    cut = cut_config(replace(config, model=model), index, tmp_path)
    cut.check(1)
    assert (cut.model.width, cut.model.max_width, cut.model.group_width) == (8, 32, expected)


# --- what each part would notice


def critic_loss(trial, loss):
    game = trial.trainer.game
    game.loss = replace(game.loss, critic=loss)


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_a_loss_that_is_not_a_number_is_noticed(trial):
    critic_loss(trial, lambda real, fake: (real.mean() - fake.mean()) * float("nan"))
    with pytest.raises((Fault, RuntimeError), match=r"nan|finite"):
        trial.critic_step()


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_a_root_of_zero_is_named_by_its_operation(trial):
    critic_loss(trial, lambda real, fake: ((real - real).sqrt() * 0).sum() + fake.mean())
    with pytest.raises(RuntimeError, match="SqrtBackward"):
        trial.critic_step()


def test_a_generator_step_that_also_teaches_the_critic_is_noticed(trial, monkeypatch):
    real = steps.Game.generator_step

    def teaches(self, reals, images_seen):
        values = real(self, reals, images_seen)
        with torch.no_grad():
            next(self.bare_critic.parameters()).mul_(1.01)
        return values

    monkeypatch.setattr(steps.Game, "generator_step", teaches)
    with pytest.raises(Fault, match="of the other network has changed"):
        trial.generator_step()


def test_an_optimizer_that_does_not_step_is_noticed(trial, monkeypatch):
    real = steps.Game._step

    def stands_still(self, optimizer, network, rate, betas):
        return real(self, optimizer, network, 0.0, betas)

    monkeypatch.setattr(steps.Game, "_step", stands_still)
    with pytest.raises(Fault, match="no weight has changed"):
        trial.generator_step()


def test_an_average_of_something_else_is_noticed(trial, monkeypatch):
    def update(ema, generator, decay):
        with torch.no_grad():
            for parameter in ema.parameters():
                parameter.sub_(0.01)

    monkeypatch.setattr(steps, "update_ema", update)
    with pytest.raises(Fault, match="moves away"):
        trial.average()


def test_an_optimizer_that_is_not_restored_is_noticed(trial, monkeypatch):
    monkeypatch.setattr(checkpoint, "restore_optimizer", lambda optimizer, tensors: None)
    with pytest.raises(Fault, match=r"ends otherwise than unbroken: .*generator.safetensors"):
        trial.resume()


def test_random_numbers_that_depend_on_more_than_the_clock_are_noticed(trial, monkeypatch):
    calls = []

    def drifting(seed, purpose, first, count, width):
        calls.append(purpose)
        return normal(seed, purpose, first, count, width) + len(calls) * 1e-3

    monkeypatch.setattr("scalegan.random.normal", drifting)
    with pytest.raises(Fault, match="ends otherwise than unbroken"):
        trial.resume()


def test_a_checkpoint_that_changes_a_weight_is_noticed(trial, monkeypatch):
    real = checkpoint.save_file

    def rounds(part, path):
        real({name: value.half().to(value.dtype) for name, value in part.items()}, path)

    monkeypatch.setattr(checkpoint, "save_file", rounds)
    with pytest.raises(Fault, match="comes back changed"):
        trial.checkpoint()


def test_a_full_disk_is_told(trial, monkeypatch):
    def full(part, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(Fault, match="not saved"):
        trial.checkpoint()


def test_a_frozen_stage_is_tried_too(config, index, tmp_path):
    full = replace(config, init_from="runs/other", optim=replace(config.optim, freeze_critic=5))
    cut = cut_config(full, index, tmp_path)
    cut.check(1)
    assert cut.optim.freeze_critic == 1


def test_metrics_that_want_more_images_than_a_trial_has_are_left_out(config, tmp_path):
    asked = replace(config, evaluation=replace(config.evaluation, metrics="kid,infinity,kid_subsets,memorisation,ssim"))
    cut = cut_config(asked, read_index(config.data.path), tmp_path)
    assert cut.evaluation.wanted == ("kid", "ssim")
