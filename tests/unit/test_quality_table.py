"""Which goals a table of figures reaches."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("quality_table")


def figure(name: str, recipe: str, distance: float, seed: int = 0, minutes: float = 5, **evaluation: float) -> dict[str, Any]:
    found = {"fd_lite0": distance, **evaluation}
    return {"name": name, "recipe": recipe, "options": [], "seed": seed, "minutes": minutes, "evaluation": found}


def test_the_best_recipe_is_the_one_with_the_least_mean_over_its_seeds(quality: Any) -> None:
    figures = [figure("kiwi64", "small", v, seed) for seed, v in enumerate((20, 60))]  # one lucky seed
    figures += [figure("kiwi64", "resnet", v, seed) for seed, v in enumerate((28, 30))]
    assert quality.goals(figures) == ["kiwi64: 29.0 by resnet; at most 30.0 (the goal): reached"]
    assert quality.goals(figures[:2]) == ["kiwi64: 40.0 by small; at most 30.0 (the goal): MISSED"]


@pytest.mark.parametrize(("recipe", "options"), [("refined", []), ("projected", []), ("refined", ["--optim.lr_g=6e-4"])])
def test_a_winner_that_was_taught_by_its_judge_is_shown_by_mean_colours_too(
    quality: Any, recipe: str, options: list[str]
) -> None:
    title = " ".join([recipe, *options])
    best = [figure("kiwi64", recipe, 20, seed, fd_pixels=v) | {"options": options} for seed, v in enumerate((2.0, 3.0))]
    small = [figure("kiwi64", "small", 40, fd_pixels=1.5)]
    told = f"the critic of {title} is taught by the features that fd_lite0 is of"
    assert quality.goals(best + small) == [
        f"kiwi64: 20.0 by {title}; at most 30.0 (the goal): reached",
        f"kiwi64: by mean colours (fd_pixels) 2.50 by {title}, 1.50 by small: {told}",
    ]
    assert quality.goals(best)[1] == f"kiwi64: by mean colours (fd_pixels) 2.50 by {title}: {told}"


def test_a_seed_counts_once_by_its_newest_run(quality: Any) -> None:
    figures = [figure("kiwi64", "small", 90), figure("kiwi64", "small", 50), figure("kiwi64", "small", 20, minutes=60)]
    assert quality.goals(figures)[0].startswith("kiwi64: 50.0 by small;")


@pytest.mark.parametrize(("distance", "outcome"), [(25, "reached"), (26, "MISSED")])
def test_a_goal_of_two_references_is_the_stricter_of_both(quality: Any, distance: float, outcome: str) -> None:
    share = {"recognised": 0.95, "diversity_in_class": 20.0, "diversity_in_class_real": 30.0}
    figures = [
        figure("fashion", "dcgan", 100, **share), figure("fashion", "small", 50, **share),
        figure("fashion", "resnet", distance, **share),
    ]  # fmt: skip
    line = quality.goals(figures)[0]
    assert line == f"fashion: {distance}.0 by resnet; at most 25.0 (0.25 of dcgan's 100.0 and 0.7 of small's 50.0): {outcome}"
    others = [*figures[1:], figures[0] | {"options": ["--optim.lr_g=5e-4"]}, figures[0] | {"minutes": 60}]
    assert "no goal without" in quality.goals(others)[0]  # neither is the reference


@pytest.mark.parametrize(("share", "outcome"), [(0.9, "reached"), (0.899, "MISSED")])
def test_generated_images_are_to_be_recognised(quality: Any, share: float, outcome: str) -> None:
    found = {"recognised": share, "diversity_in_class": 20.0, "diversity_in_class_real": 30.0}
    line = quality.goals([figure("fruits12", "small", 50, minutes=10, **found)])[1]
    assert line == f"fruits12, small, seed 0: {share:.1%} recognised as their class; at least 90%: {outcome}"


@pytest.mark.parametrize(("spread", "outcome"), [(15.0, "reached"), (14.9, "MISSED")])
def test_images_of_a_class_are_to_be_varied(quality: Any, spread: float, outcome: str) -> None:
    """One good image a class, again and again, is recognised too."""
    found = {"recognised": 1.0, "diversity_in_class": spread, "diversity_in_class_real": 30.0}
    line = quality.goals([figure("fruits12", "small", 50, minutes=10, **found)])[2]
    assert line.endswith(f"diversity within classes {spread}; at least 15.0, half of real images': {outcome}")


@pytest.mark.parametrize(
    ("ssim", "of_mean", "diversity", "outcomes"),
    [
        (0.75, 0.7, 20, ["reached", "reached"]),
        (0.65, 0.7, 20, ["MISSED", "reached"]),  # a blur does as well
        (0.59, 0.4, 20, ["MISSED", "reached"]),
        (0.75, 0.7, 19, ["reached", "MISSED"]),  # one good slice again and again
    ],
)
def test_brains_are_to_be_alike_and_varied(
    quality: Any, ssim: float, of_mean: float, diversity: float, outcomes: list[str]
) -> None:
    found = {"ssim_max": ssim, "ssim_mean_image": of_mean, "diversity": diversity, "diversity_real": 40.0}
    lines = quality.goals([figure("brain", "small", 50, minutes=10, **found)])[1:]
    assert [line.rsplit(": ")[-1] for line in lines] == outcomes


def test_a_row_has_a_cell_a_column(quality: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "image_size", lambda name: (104, 88))
    record = {
        "fd_lite0_floor": 4.3, "kd_lite0": 0.0657, "fd_pixels": 1.234, "precision": 0.7, "recall": 0.4,
        "ssim_max": 0.684, "ssim_mean_image": 0.738,
        "diversity": 29.4, "diversity_real": 47.6, "near_copies": 0.06,
        "near_copies_held_out": 0.05, "generated": 512, "real": 466,
    }  # fmt: skip
    run = figure("brain", "small", 61.04, seed=1, minutes=10, **record) | {
        "options": ["--optim.lr_g=5e-4"], "images_seen": 64000, "images_per_s": 292.2, "seconds": 299.1,
        "training_memory_mb": 495, "precision": "bf16", "commit": "abc1234",
    }  # fmt: skip
    row = quality.row(run)
    assert row.startswith(
        "| brain 104x88 | small --optim.lr_g=5e-4 | 1 | 61.0 | 4.3 | 0.066 | 1.23 | 0.70 / 0.40 "
        "| 0.684 / 0.738 | 29 (real 48) |  | 6.0% (real 5.0%) |  |"
    )
    assert row.count("|") == len(quality.COLUMNS) + 1
