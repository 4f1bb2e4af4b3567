"""The benchmarks compare like with like, and start."""

from __future__ import annotations

import importlib
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scalegan import no_effect, settings
from scalegan.data.index import Index
from scalegan.data.loader import Batch
from scalegan.draws import DataFacts
from scalegan.models import build_generator
from scalegan.steps import Game

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = (
    "throughput", "processes", "quality", "startup", "reliability", "scale", "evaluation", "evaluation_speed", "monitor",
    "real", "compiled",
)  # fmt: skip


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bare")


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("common")


def weights(network: nn.Module) -> list[Tensor]:
    """Parameters, layer after layer in the order of the computation, whatever the layers are called."""
    kinds: dict[str, list[Tensor]] = {"linear": [], "norm": [], "conv": []}
    for module in network.modules():
        kind = "linear" if isinstance(module, nn.Linear) else "norm" if "Norm" in type(module).__name__ else "conv"
        kinds[kind] += module.parameters(recurse=False)
    return kinds["linear"] + kinds["norm"] + kinds["conv"]


@pytest.mark.parametrize("form", ["plain", "optimised"])
@pytest.mark.parametrize("images_seen", [0, 8], ids=["penalised", "unpenalised"])
def test_the_bare_loops_step_is_the_same_mathematics_as_ours(
    bare: Any, monkeypatch: pytest.MonkeyPatch, form: str, images_seen: int
) -> None:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(BENCHMARKS)
    from throughput import preset_recipe

    small = ["--train.batch=8", "--model.norm_group=0", "--model.width=4", "--model.critic_width=4"]
    config = settings.parse(["--config=kiwi_small", "--train.precision=fp32", *small]).config
    game = Game(config, Accelerator(cpu=True), DataFacts((3, 64, 64), ()))
    recipe = bare.Recipe(**{**vars(preset_recipe()), "batch": 8, "width": 4, "critic_width": 4})
    loop = bare.BareLoop(recipe, form)
    monkeypatch.setattr(loop, "autocast", lambda: torch.autocast("cpu", enabled=False))  # the same precision on both sides
    for own, other in ((game.bare_generator, loop.generator), (game.bare_critic, loop.discriminator)):
        for ours, theirs in zip(weights(own), weights(other), strict=True):
            theirs.data.copy_(ours)

    real = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    first = game.draws.first(images_seen, 0)

    def draws(purpose: str) -> Tensor:
        views = game.draws.views(purpose, first, 1.0)
        assert views is not None
        return views[:, [0, 3, 4, 5]]

    penalised = images_seen // 8 % recipe.penalty_every == 0
    reals = [Batch(real, torch.full((8,), -1))]
    ours = game.discriminator_step(reals, images_seen).means()
    theirs = loop.discriminator_step(real, game.draws.latents("d", first), draws("real"), draws("fake"), penalised)
    assert ("r1" in ours) == penalised
    assert theirs.item() == pytest.approx(ours["loss/D"].item(), rel=1e-5)
    assert_same_gradients(game.bare_critic, loop.discriminator)

    # Adam's first step is the sign of the gradient, which rounding may turn: start the generator's step alike.
    for own, other in zip(weights(game.bare_critic), weights(loop.discriminator), strict=True):
        other.data.copy_(own)
    ours = game.generator_step(reals, images_seen).means()
    theirs = loop.generator_step(game.draws.latents("g", first), draws("g"))
    assert theirs.item() == pytest.approx(ours["loss/G"].item(), rel=1e-5)
    assert_same_gradients(game.bare_generator, loop.generator)


def assert_same_gradients(own: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(weights(own), weights(other), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-5 * float(ours.grad.abs().max()))


def test_the_bare_average_is_ours(bare: Any) -> None:
    from scalegan import schedules
    from scalegan.config import EmaConfig
    from scalegan.ema import make_ema, update_ema

    recipe = bare.Recipe(8, 4, 4, 4, 0.1, 8, 0.5, 0.125, 1e-3, (0.5, 0.99), (0.0, 0.99), 5000, 0.05)
    for form in bare.FORMS:
        loop = bare.BareLoop(recipe, form)
        ema = make_ema(loop.ema)
        nn.init.normal_(loop.generator[0].weight)
        update_ema(ema, loop.generator, schedules.ema_decay(schedules.half_life(EmaConfig(half_life=5000, ramp=0.05), 800), 8))
        loop.average(800)
        torch.testing.assert_close(loop.ema[0].weight, ema[0].weight)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_tells_its_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has imported already what they need."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out


def test_a_figure_names_machine_threads_and_commit(common: Any) -> None:
    line = common.headline(threads=2)
    for name in ("cpu ", "cores ", "torch ", "commit ", "threads 2"):
        assert name in line


def test_speed_leaves_out_the_warm_up(common: Any) -> None:
    lines = [{"images_seen": n, "seconds": seconds} for n, seconds in ((100, 50.0), (200, 51.0), (400, 52.0))]
    assert common.speed(lines, after=100) == 150.0
    assert common.speed(lines, after=101) == 200.0


def test_a_training_that_was_stopped_gives_no_figure(common: Any, tmp_path: Path) -> None:
    common.append_jsonl(tmp_path / "timing.jsonl", {"images_seen": 100, "seconds": 50.0})
    assert common.timing(tmp_path, images=100)
    with pytest.raises(SystemExit, match="stopped before its end"):
        common.timing(tmp_path, images=200)


def test_a_child_that_fails_ends_the_benchmark_with_what_it_said(common: Any) -> None:
    with pytest.raises(SystemExit, match="no such luck"):
        common.run([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_a_benchmark_that_is_ended_takes_its_process_along(common: Any) -> None:
    program = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import common; common.run(['sleep', '60.25'])"
    process = subprocess.Popen([sys.executable, "-c", program])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (started := children.read_text().split()):
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert not Path(f"/proc/{started[0]}").exists()


def test_two_runs_are_compared_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    processes = importlib.import_module("processes")
    found = processes.differences([(64, 1.0, 2.0), (128, 1.0, 2.0)], [(64, 1.0, 2.0), (128, 1.01, 2.1)])
    assert found == pytest.approx([0.0, 0.05])


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("quality")


@pytest.mark.parametrize(
    "recipe", ["small", "half", "dcgan", "diffaugment", "resnet", "biggan", "fastgan", "projected", "stylegan2", "r3gan"]
)
def test_every_recipe_fits_every_data_set(quality: Any, recipe: str) -> None:
    assert recipe in quality.RECIPES
    for task in (quality.TASKS | quality.ON_GPU).values():
        preset = task.reference if recipe in quality.REFERENCES else task.preset
        config = settings.parse([f"--config={preset}", *task.options, *quality.RECIPES[recipe]]).config
        config.check(1)
        no_effect.check(config, Index(preset, (), 64, 64, 1, (), (), "", "", {}, ""))


def test_a_refined_generator_has_the_layers_of_the_small_one(quality: Any) -> None:
    """Found out before the first of two trainings, and not after it."""
    for task in quality.TASKS.values():
        models = [
            settings.parse([f"--config={task.preset}", *task.options, *quality.RECIPES[recipe]]).config.model
            for recipe in ("small", "refined")
        ]
        first, second = (build_generator(model, (3, 32, 32), 4).state_dict() for model in models)
        assert {name: tensor.shape for name, tensor in first.items()} == {name: tensor.shape for name, tensor in second.items()}


def test_the_tasks_for_a_gpu_have_shards_and_held_out_ones(quality: Any) -> None:
    for name, task in quality.ON_GPU.items():
        assert {quality.shards_of(name), task.held_out, f"{quality.shards_of(name)}-test"} <= quality.common.DATA.keys()


def test_a_task_that_asks_a_classifier_has_one(quality: Any) -> None:
    names = importlib.import_module("classifier").NAMES
    asking = {quality.shards_of(name) for name, task in (quality.TASKS | quality.ON_GPU).items() if task.classifier}
    assert asking == set(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_measured(quality: Any) -> None:
    assert quality.device_name("cpu") == "cpu"
    with pytest.raises(SystemExit, match="--device is cuda but torch sees no GPU here"):
        quality.device_name("cuda")


def test_a_row_of_the_table_of_real_images_has_a_cell_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    real = importlib.import_module("real")
    found = dict.fromkeys(
        ("fd_lite0", "fd_lite0_half", "fd_lite0_floor", "fd_lite0_low", "fd_lite0_high", "kd_lite0", "kd_lite0_se"), 1.25
    )
    found |= dict.fromkeys(("precision", "recall", "density", "coverage", "accuracy", "accuracy_real", "seconds"), 0.5)
    found |= {"generated": 156, "real": 466, "fd_lite0_per_class": {"a": 1.0, "b": 3.5}}
    found |= {"fd_lite0_per_class_half_mean": 4.0, "fd_lite0_per_class_floor_mean": 3.0}
    row = real.row({"name": "fruits12", "commit": "abc1234", "evaluation": found})
    assert row.startswith("| fruits12 64x64 | 156 / 466 | 1.2 (1.2 to 1.2) | 1.2 (1.2) | 1.2500 ± 1.2500 | 0.50 / 0.50 |")
    assert "| 1.0, 2.2, 3.5 | 4.0 (3.0) | 0.500 (0.500) |" in row
    assert row.count("|") == len(real.COLUMNS) + 1
    found |= {"accuracy_per_class": {"a": 1.0, "b": 0.5}, "accuracy_real_per_class": {"a": 0.9, "b": 0.5}}
    found |= {f"fd_lite0_per_class_{part}": {"a": 2.0} for part in ("low", "high", "half", "floor")}
    by_class = real.rows_by_class({"name": "fruits12", "evaluation": found})
    assert by_class == [
        "| fruits12 | a | 1.0 (2.0 to 2.0) | 2.0 | 2.0 | 1.000 (0.900) |", "| fruits12 | b | 3.5 |  |  | 0.500 (0.500) |",
    ]  # fmt: skip
    assert all(line.count("|") == len(real.BY_CLASS) + 1 for line in by_class)
    del found["fd_lite0_per_class"], found["accuracy"]
    assert real.row({"name": "kiwi100", "commit": "abc1234", "evaluation": found}).count("|") == len(real.COLUMNS) + 1


@pytest.fixture
def reliability(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("reliability")


def test_a_step_without_its_checks_is_otherwise_the_same(reliability: Any) -> None:
    torch.set_num_threads(1)
    small = ["--train.batch=8", "--model.norm_group=0", "--model.width=4", "--model.critic_width=4"]
    config = settings.parse(["--config=kiwi_small", "--train.precision=fp32", *small]).config
    checked, unchecked = (Game(config, Accelerator(cpu=True), DataFacts((3, 64, 64), ())) for _ in range(2))
    nothing = reliability.Nothing()
    unchecked._step = lambda *args: nothing.optimise(unchecked, *args)  # type: ignore[method-assign]
    real = Batch(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), torch.full((8,), -1))
    for images_seen in (0, 8):
        for game in (checked, unchecked):
            game.discriminator_step([real], images_seen)
            game.generator_step([real], images_seen)
    assert nothing.calls == {"optimise": 4}
    for name in ("bare_critic", "bare_generator"):
        for ours, theirs in zip(getattr(checked, name).parameters(), getattr(unchecked, name).parameters(), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    assert checked.opt_d.optimizer.found_inf is not None  # what `nothing` has to leave out
    assert unchecked.opt_d.optimizer.found_inf is None


def test_checks_are_on_off_off_on_after_the_warm_up(reliability: Any) -> None:
    assert [reliability.is_off(turn) for turn in range(-2, 6)] == [False, False, False, True, True, False, False, True]
    assert reliability.with_to_without([2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]) == [0.5, 1.0]


def test_a_checkpoint_costs_what_its_line_takes_longer_than_those_around_it(reliability: Any) -> None:
    ends = [(0, 0.9), (10, 0.0), (23, 0.2), (33, 0.0), (45, 0.25), (57, 0.0)]  # lines of 10, 13, 10, 12 and 12 seconds
    lines = [{"seconds": float(seconds), "save_share": share} for seconds, share in ends]
    stalls, costs, line = reliability.costs_of_checkpoints(lines)
    assert stalls == pytest.approx([2.6, 3.0])
    assert costs == pytest.approx([3.0, 1.0])
    assert line == 10.0


def test_resumes_are_spread_over_an_epoch_and_far_beyond(reliability: Any) -> None:
    start, middle, end, late = reliability.resume_points(466).values()
    assert (start % 466, middle % 466, late % 466) == (0, middle % 466, middle % 466)
    assert abs(middle % 466 - 233) < 2
    assert end % 466 >= 464
    assert late // 466 > 100_000
    turn = reliability.TURN * reliability.BATCH
    assert not any(seen % turn for seen in (start, middle, end, late))  # so that the next step has the penalty


@pytest.fixture
def evaluation_speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("evaluation_speed")


def test_programs_that_evaluate_take_turns_at_the_same_photographs(
    evaluation_speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        path = tmp_path / "data" / "fruits360" / "Training" / f"class{number // 6}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
    monkeypatch.setenv("SCALEGAN_DATA", str(tmp_path / "data"))
    sides = evaluation_speed.photographs(6, tmp_path)
    shown = [[path.read_bytes()[0] for path in sorted(side.iterdir())] for side in sides]
    assert [len(side) for side in shown] == [3, 3]
    assert len({number for side in shown for number in side}) == 6
    assert all({number // 6 for number in side} == {0, 1} for side in shown)

    own = evaluation_speed.ours(sides, "weights.pth", tmp_path, "bfloat16")
    programs = {"scalegan, monitor": own} | evaluation_speed.others(sides, "python", tmp_path)
    for program in programs.values():
        assert {str(side) for side in sides} <= set(program.command)
    fidelity = 'note\n{"frechet_inception_distance": 4.5}'
    said = {"scalegan": "", "torch_fidelity.fidelity": fidelity, "pytorch_fid": "FID:  4.25\n"}
    order = []

    def run(command: list[str], threads: int) -> Any:
        (name,) = said.keys() & set(command)
        order.append(name)
        if name == "scalegan":
            (tmp_path / "cache").mkdir()  # the statistics of the real images, gone by the next round
            (tmp_path / "record.json").write_text('{"fd_randominception_bf16": 4.0, "fd_randominception_bf16_floor": 1.0}')
        return evaluation_speed.common.Done(said[name], 2.0 * len(order), 100.0 + len(order))

    monkeypatch.setattr(evaluation_speed.common, "run", run)
    found = evaluation_speed.take_turns(programs, images=6, rounds=3, threads=1)
    assert order == list(said) * 3
    assert [taken.value for taken in found.values()] == [4.0, 4.5, 4.25]
    assert found["scalegan, monitor"] == evaluation_speed.Round(6 / 8, 107.0, 4.0)


@pytest.mark.parametrize(("speed", "memory", "reached"), [(1.41, 99.0, True), (1.39, 99.0, False), (1.41, 101.0, False)])
def test_speed_and_memory_of_an_evaluation_are_held_against_both_others(
    evaluation_speed: Any, capsys: pytest.CaptureFixture[str], speed: float, memory: float, reached: bool
) -> None:
    made = evaluation_speed.Round
    others = {"torch-fidelity": made(1.0, 100.0, 0.0), "pytorch-fid": made(0.9, 300.0, 0.0)}
    assert evaluation_speed.verdicts({"scalegan": made(speed, memory, 0.0)} | others) is reached
    printed = capsys.readouterr().out
    assert ("MISSED" in printed) is not reached
    assert "scalegan, monitor: not measured" in printed
    fast = {"scalegan": made(1.5, 50.0, 0.0), "scalegan, monitor": made(2.4, 50.0, 0.0)}
    assert not evaluation_speed.verdicts(fast | others)
