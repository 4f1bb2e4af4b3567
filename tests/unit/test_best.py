"""The best checkpoint goes by the figure that is chosen: kept, named, drawn, and still known after a resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_evaluation_command import records, refused, small_extractor  # noqa: F401 (an automatic fixture)
from tiny import make_config, make_shards

from scalegan import best, checkpoint, cli, outputs
from scalegan.config import Config
from scalegan.cut_down import cut_config
from scalegan.data.index import Index
from scalegan.distributed import make_accelerator
from scalegan.errors import UserError
from scalegan.evaluation import report
from scalegan.evaluation.ms_ssim import scales
from scalegan.evaluation.names import FIGURES, METRICS, key
from scalegan.evaluation.ssim import measurable
from scalegan.evaluation_config import EvaluationConfig
from scalegan.panels import Panel, panels
from scalegan.plots import draw_quality, read_history
from scalegan.run import config_text
from scalegan.status import record_line
from scalegan.tracking import json_line
from scalegan.train import check_data
from scalegan.trainer import Trainer
from scalegan.watchdog import Watchdog

PRECISION = EvaluationConfig(metrics="prdc,ssim", best="precision")


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return make_shards(tmp_path_factory.mktemp("best") / "data")


@pytest.mark.parametrize(
    ("figure", "values", "at"),
    [
        ("fid", [3.0, 1.0, 2.0, 1.0], 1),
        ("kid", [0.01, -0.02, 0.0, -0.01], 1),
        ("precision", [0.5, 0.7, 0.7, 0.6], 1),
        ("coverage", [0.1, 0.2, 0.3, 0.4], 3),
        ("inception_score", [2.0, 1.0, 1.5, 1.7], 0),
    ],
)
def test_more_or_less_is_better_and_of_equals_the_first(figure, values, at):
    metrics = FIGURES[figure].metric
    config = EvaluationConfig(metrics=metrics, best=figure)
    found: best.Best = {}
    for number, value in enumerate(values):
        found = best.better(config, {config.judged_by: value, "images_seen": number}, found)
    assert found == {"metric": key(figure, "lite0"), "value": values[at], "images_seen": at}


def test_what_the_metrics_do_not_give_is_refused():
    for name, figure in FIGURES.items():
        EvaluationConfig(metrics=figure.metric, best=name)
        assert figure.metric in ("", *METRICS)
        if figure.metric:
            with pytest.raises(
                UserError, match=rf"best {name} is measured by the metric {figure.metric}, .*: add {figure.metric}"
            ):
                EvaluationConfig(metrics=",".join(set(METRICS) - {figure.metric}), best=name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kd_lite0", "did you mean kid?"),
        ("recal", "did you mean recall?"),
        ("seed", "there are fid, "),
        ("near_copies", "there are"),
    ],
)
def test_what_has_no_direction_is_refused_with_what_has(name, said):
    with pytest.raises(UserError, match=f"evaluation.best: '{name}' is no figure of which less or more is better: .*") as error:
        EvaluationConfig(metrics="kid,prdc", best=name)
    assert said in str(error.value)


@pytest.mark.parametrize("metric", ["per_class", "accuracy"])
def test_metrics_by_class_of_a_generator_without_classes_are_refused_before_training(tmp_path, metric):
    labelled = make_shards(tmp_path / "shards", classes=("a", "b"))
    config = make_config(Path(labelled.root), tmp_path / "run", evaluation={"metrics": f"ssim,{metric}"})
    with pytest.raises(UserError, match=f"metric {metric} needs a generator that is told the class"):
        check_data(config, labelled)


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [
        (
            {"metrics": "infinity", "samples": 5119},
            "metric infinity needs 5120 generated images and evaluation.samples is 5119",
        ),
        ({"metrics": "kid", "real": 2}, "metric kid needs 3 real images and 2 are compared"),
        ({"real": 3}, r"evaluation.real is 3, and each half of the real images needs 2: give at least 4"),
        ({"metrics": "kid_subsets", "samples": 1000}, "metric kid_subsets needs 1000 real images and 48 are compared"),
        (
            {"metrics": "inception_score", "extractor": "dinov2", "samples": 99},
            "class probabilities, which extractor dinov2 has",
        ),
    ],
)
def test_what_an_evaluation_lacks_is_told_before_training(tmp_path, evaluation, told):
    index = make_shards(tmp_path / "shards")
    config = make_config(Path(index.root), tmp_path / "run", evaluation=evaluation)
    with pytest.raises(UserError, match=told):
        check_data(config, index)


def test_too_few_images_for_an_evaluation_are_told_before_training(tmp_path):
    index = make_shards(tmp_path / "shards", samples=3)
    config = make_config(Path(index.root), tmp_path / "run", train={"batch": 2})
    with pytest.raises(UserError, match=r"a comparison needs 4 real images and .* holds 3: use more data"):
        check_data(config, index)


def test_a_class_of_one_image_is_told_before_training(tmp_path):
    index = make_shards(tmp_path / "shards", samples=11, classes=("a", "b", "c", "d", "e", "f"))  # of f there is one
    config = make_config(Path(index.root), tmp_path / "run", model={"conditional": True}, evaluation={"metrics": "per_class"})
    with pytest.raises(UserError, match=r"metric per_class needs 2 real images of each class, and .* has 1 of f: write shards"):
        check_data(config, index)
    check_data(replace(config, evaluation=replace(config.evaluation, metrics="ssim")), index)


def test_accuracy_among_one_class_is_told_before_training(tmp_path):
    index = make_shards(tmp_path / "shards", classes=("a",))
    config = make_config(Path(index.root), tmp_path / "run", model={"conditional": True}, evaluation={"metrics": "accuracy"})
    with pytest.raises(UserError, match="metric accuracy needs 2 classes and there are 1: take it out of"):
        check_data(config, index)
    check_data(replace(config, evaluation=replace(config.evaluation, metrics="per_class")), index)


def test_the_smallest_sides_are_those_of_the_metrics_themselves():
    for figure, fits in (("ssim_max", measurable), ("ms_ssim_max", scales)):
        side = FIGURES[figure].side
        assert (bool(fits(side, side)), bool(fits(side - 1, side - 1))) == (True, False), figure


def test_images_too_small_for_the_figure_are_refused_before_training(tmp_path):
    small = make_shards(tmp_path / "small", height=8, width=8)
    config = make_config(Path(small.root), tmp_path, evaluation={"metrics": "ms_ssim", "best": "ms_ssim_max"})
    with pytest.raises(UserError, match=r"ms_ssim_max needs images of 11 pixels a side, and those of .* have 8x8"):
        check_data(config, small)
    check_data(replace(config, evaluation=replace(config.evaluation, metrics="ssim", best="ssim_max")), small)


@pytest.mark.parametrize("changed", [{"generated": 500}, {"real": 400}, {"resize": "clean"}, {"weights_sha256": "b"}])
def test_another_comparison_begins_a_new_best(changed):
    config, facts = EvaluationConfig(), {"generated": 2000, "real": 466, "resize": "tf1", "weights_sha256": "a"}

    def after(before: best.Best, images_seen: int, value: float, **other) -> best.Best:
        return best.better(config, facts | other | {"fd_lite0": value, "images_seen": images_seen}, before)

    first = after({}, 8, 3.0)
    assert after(first, 16, 4.0) is first
    other = after(first, 24, 9.0, **changed)
    assert (other["images_seen"], other["value"]) == (24, 9.0)
    assert after(other, 32, 9.5, **changed) is other
    assert after(other, 32, 8.0, **changed)["images_seen"] == 32
    older = {"metric": "fd_lite0", "value": 3.0, "images_seen": 8}  # of a checkpoint that does not say what was compared
    assert after(older, 16, 4.0) is older


def make_trainer(config: Config, index: Index, monkeypatch, values: list[tuple[float, float]]) -> Trainer:
    """Whose evaluations find these (distance, precision), one after the other, and leave them in the run folder."""
    remaining = iter(values)

    def evaluate(self, ema, images_seen):
        distance, precision = next(remaining)
        record = {"fd_lite0": distance, "precision": precision, "images_seen": images_seen}
        self.tracker.record(images_seen, record)
        return record

    monkeypatch.setattr(outputs.Outputs, "evaluate", evaluate)
    monkeypatch.setattr("scalegan.plots.plot_run", lambda run_dir: [])
    torch.set_num_threads(1)
    return Trainer(config, make_accelerator(config.train), index, None, Watchdog(0, Path(), 0))


def run_config(index: Index, run: Path, images: int, **evaluation) -> Config:
    rare = {"samples": 10_000, "checkpoint": 10_000, "keep": 1}
    asked = {"every": 8, "metrics": "prdc"} | evaluation
    return make_config(Path(index.root), run, train={"images": images}, log=rare, evaluation=asked)


def kept(run: Path) -> list[int]:
    return sorted(checkpoint.number(path) for path in checkpoint.folders(run))


def test_the_checkpoint_of_the_best_figure_is_kept_and_a_resume_knows_it(index, tmp_path, monkeypatch):
    config = run_config(index, tmp_path, 40, best="precision")
    values = [(1.0, 0.2), (5.0, 0.8), (2.0, 0.5), (0.5, 0.4), (4.0, 0.3)]
    trainer = make_trainer(config, index, monkeypatch, values)
    assert trainer.train()
    assert trainer.best == {"metric": "precision", "value": 0.8, "images_seen": 16}
    assert kept(tmp_path) == [16, 40]

    trainer = make_trainer(run_config(index, tmp_path, 56, best="precision"), index, monkeypatch, [(0.1, 0.7), (0.3, 0.9)])
    assert trainer.best["images_seen"] == 16
    assert trainer.train()
    assert trainer.best == {"metric": "precision", "value": 0.9, "images_seen": 56}
    assert kept(tmp_path) == [56]


def fail_at(monkeypatch, images_seen: int) -> None:
    """Of the checkpoints, the one at `images_seen` cannot be written."""
    write = checkpoint.save

    def save(run_dir, seen, *rest):
        if seen == images_seen:
            raise OSError("No space left on device")
        return write(run_dir, seen, *rest)

    monkeypatch.setattr(checkpoint, "save", save)


def test_a_best_that_could_not_be_saved_does_not_cost_the_one_before(index, tmp_path, monkeypatch, capsys):
    values = [(1.0, 0.2), (5.0, 0.7), (2.0, 0.9), (0.5, 0.4), (4.0, 0.3)]
    fail_at(monkeypatch, 24)
    trainer = make_trainer(run_config(index, tmp_path, 40, best="precision"), index, monkeypatch, values)
    assert trainer.train()
    out, err = capsys.readouterr()
    assert "checkpoint at 24 images was NOT saved: No space left" in out
    assert "the best by precision is now the checkpoint at 16 images" in err
    assert kept(tmp_path) == [16, 40]
    newest, _ = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.state["best"] == {"metric": "precision", "value": 0.7, "images_seen": 16}


def test_after_a_best_that_could_not_be_saved_a_lesser_one_counts(index, tmp_path, monkeypatch):
    values = [(1.0, 0.2), (5.0, 0.7), (2.0, 0.9), (0.5, 0.8), (4.0, 0.3)]
    fail_at(monkeypatch, 24)
    trainer = make_trainer(run_config(index, tmp_path, 40, best="precision"), index, monkeypatch, values)
    assert trainer.train()
    assert trainer.best == {"metric": "precision", "value": 0.8, "images_seen": 32}
    assert kept(tmp_path) == [32, 40]


def test_another_figure_at_a_resume_takes_the_best_of_what_is_left(index, tmp_path, monkeypatch, capsys):
    values = [(1.0, 0.2), (0.5, 0.1), (2.0, 0.5), (3.0, 0.4)]
    assert make_trainer(run_config(index, tmp_path, 32), index, monkeypatch, values).train()
    assert kept(tmp_path) == [16, 32]  # the one with the highest precision, 24, is no longer there
    capsys.readouterr()
    trainer = make_trainer(run_config(index, tmp_path, 40, best="precision"), index, monkeypatch, [(9.0, 0.3)])
    assert "the best by precision is now the checkpoint at 32 images" in capsys.readouterr().err
    assert trainer.best == {"metric": "precision", "value": 0.4, "images_seen": 32}
    assert trainer.train()
    assert kept(tmp_path) == [32, 40]


def test_a_figure_that_was_never_measured_begins_anew(tmp_path):
    (tmp_path / "checkpoints" / "000000008").mkdir(parents=True)
    (tmp_path / "evaluations.jsonl").write_text(json_line(8, {"fd_lite0": 1.0}) + json_line(16, {"precision": 0.5}))
    before = {"metric": "fd_lite0", "value": 1.0, "images_seen": 8}
    assert best.saved(PRECISION, before, tmp_path, 16) == {}
    assert best.saved(EvaluationConfig(), before, tmp_path, 16) is before
    assert best.saved(PRECISION, {}, tmp_path, 16) == {}


def test_debug_tries_without_a_figure_that_it_does_not_measure(index, tmp_path):
    config = run_config(index, tmp_path, 40, metrics="per_class,prdc", best="fid_per_class_mean")
    assert cut_config(config, index, tmp_path).evaluation.best == "fid"
    config = run_config(index, tmp_path, 40, metrics="per_class,prdc", best="recall")
    assert cut_config(config, index, tmp_path).evaluation.best == "recall"


LINES = [
    {"images_seen": 8000, "fd_lite0": 4.0, "fd_lite0_floor": 1.0, "precision": 0.9, "ssim_max": 0.5, "extractor": "lite0"},
    {"images_seen": 16000, "fd_lite0": 2.0, "fd_lite0_floor": 1.0, "precision": 0.4, "ssim_max": 0.6, "extractor": "lite0"},
]


def test_plots_call_best_what_the_best_checkpoint_goes_by(tmp_path):
    (tmp_path / "config.yaml").write_text(config_text(Config(evaluation=PRECISION)))
    (tmp_path / "evaluations.jsonl").write_text("".join(json_line(line["images_seen"], line) for line in LINES))
    history = read_history(tmp_path)
    drawn = {panel.name: panel for panel in panels(history.evaluations, history.evaluation)}
    assert set(drawn) == {"fd_lite0", "precision", "ssim_max"}

    def title(name: str) -> str:
        return drawn[name].title([8, 16], [line[name] for line in LINES])

    assert title("precision") == "Precision, higher is better; best 0.9 at 8.0 kimg"
    assert title("fd_lite0") == "Fréchet distance, lower is better; lowest 2 at 16 kimg"
    assert title("ssim_max") == "Largest SSIM to a real image"
    assert draw_quality(history) is not None
    (plain,) = [panel for panel in panels(LINES, {}) if panel.name == "fd_lite0"]
    assert plain.title([8, 16], [4.0, 2.0]) == "Fréchet distance, lower is better; best 2 at 16 kimg"


def test_the_best_in_the_title_is_among_those_that_compare_alike(tmp_path, monkeypatch):
    """More images make a Frechet distance smaller, whatever the generator."""
    lines = [
        line | {"generated": generated} for line, generated in zip([*LINES[::-1], LINES[0]], (50_000, 500, 500), strict=True)
    ]
    (tmp_path / "evaluations.jsonl").write_text("".join(json_line(line["images_seen"], line) for line in lines))
    titled = {}
    monkeypatch.setattr(Panel, "title", lambda panel, kimg, values: titled.update({panel.name: list(values)}))
    assert draw_quality(read_history(tmp_path)) is not None
    assert titled["fd_lite0"] == [4.0, 4.0]


def printed(best: str, capsys) -> str:
    Console(width=160).print(report.curve(LINES, best))
    return capsys.readouterr().out


def test_a_curve_marks_the_best_by_its_figure(capsys):
    (marked,) = [line for line in printed("precision", capsys).splitlines() if "highest" in line]
    assert marked.split()[1] == "8000"
    (marked,) = [line for line in printed("fid", capsys).splitlines() if "lowest" in line]
    assert marked.split()[1] == "16000"


def test_the_line_of_an_evaluation_shows_the_figure():
    assert "  precision 0.9  " in record_line(8000, LINES[0], "precision")
    assert record_line(8000, LINES[0], "fd_lite0") == record_line(8000, LINES[0])


def test_a_command_that_measures_less_falls_back_to_the_distance(index, tmp_path, monkeypatch, capsys):
    config = run_config(index, tmp_path / "run", 16, best="precision")
    assert make_trainer(config, index, monkeypatch, [(1.0, 0.8), (5.0, 0.2)]).train()
    assert cli.main(["evaluate", config.run, "--checkpoint", "all", "--metrics", "kid"]) == 0
    assert "lowest" in capsys.readouterr().out
    assert all("precision" not in record for record in records(Path(config.run)))
    assert cli.main(["evaluate", config.run, "--checkpoint", "all"]) == 0
    assert "highest" in capsys.readouterr().out
