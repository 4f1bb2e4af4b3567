"""What `quality.py` measures, and its figures as tables: every run, recipes over their seeds, and which goals were reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common

Figure = Mapping[str, Any]
"""One training and what was said of it: a line of benchmarks/out/quality.jsonl."""


@dataclass(frozen=True)
class Task:
    """A data set, its small preset, how long it is trained, and what is compared."""

    preset: str
    reference: str
    """The preset of recipe `dcgan`: the one that people train on such images."""
    minutes: float
    generated: int
    real: int
    """0 is all of the training set."""
    dry_images: int
    """Images that tell the speed, some ten seconds of them."""
    goal: float | None = None
    """fd_lite0 that the best recipe is to reach; None: at most 0.25 of DCGAN's and 0.7 of the small recipe's."""
    options: tuple[str, ...] = ()
    held_out: str = ""
    """Shards of the test split, to tell copies by."""
    classifier: bool = False
    """Whether a classifier of real images is asked for the class of generated ones."""
    data: str = ""
    """Shards to train on, where their name in `common.DATA` is not that of the task."""
    ssim: bool = False
    """Whether SSIM has a goal: above 0.6 and the mean image's, with at least half the diversity of real images."""


CONDITIONAL = ("--model.conditional=true",)
TASKS = {
    "kiwi64": Task("kiwi_small", "dcgan", 5, generated=512, real=0, dry_images=768, goal=30, held_out="kiwi64-test"),
    "kiwi100": Task("kiwi_small", "dcgan", 5, generated=512, real=0, dry_images=768),
    "fruits12": Task(
        "fruits_small", "dcgan", 10, generated=2000, real=2000, dry_images=768, options=CONDITIONAL, held_out="fruits12-test",
        classifier=True,
    ),
    "brain": Task(
        "brain_small", "oasis", 10, generated=2000, real=2000, dry_images=768, held_out="brain-test", ssim=True,
    ),
    "fashion": Task(
        "fashion_small", "mnist", 5, generated=2000, real=2000, dry_images=8192, options=CONDITIONAL, held_out="fashion-test",
        classifier=True,
    ),
}  # fmt: skip
ON_GPU = {
    "kiwi100-gpu": Task("kiwi", "dcgan", 20, generated=2000, real=0, dry_images=16384, held_out="kiwi100-test", data="kiwi100"),
    "fruits100-gpu": Task(
        "fruits360", "dcgan", 20, generated=5000, real=5000, dry_images=16384, options=CONDITIONAL, held_out="fruits100-test",
        data="fruits100", classifier=True,
    ),
    "brain208-gpu": Task(
        "brain", "oasis", 20, generated=5000, real=5000, dry_images=8192, held_out="brain208-test", data="brain208", ssim=True,
    ),
}  # fmt: skip
"""The presets at native sizes, for `--device cuda`; no goals but those that the second look has."""
RECOGNISED, SSIM, OF_DCGAN, OF_SMALL = 0.9, 0.6, 0.25, 0.7
"""Goals: share of samples recognised as their class, similarity, and the shares of the references' distances."""
TAUGHT_BY_LITE0 = ("projected", "refined")
"""Recipes whose critic sees the features of the network that judges them: fd_lite0 flatters them."""

COLUMNS = (
    "data set", "recipe", "seed", "fd_lite0", "floor", "kd_lite0", "fd_pixels", "precision / recall",
    "SSIM / mean image", "spread", "in class", "near copies", "recognised", "generated / real", "images seen", "images/s",
    "seconds", "train MB", "dtype", "device", "commit",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def report(figures: Sequence[Figure]) -> list[str]:
    """Lines: every recipe that was tried, also those that lost; those with several seeds; the goals."""
    ordered = sorted(figures, key=lambda figure: (figure["name"], figure["minutes"], figure["evaluation"]["fd_lite0"]))
    lines = [HEAD, *map(row, ordered), ""]
    for (name, minutes, recipe), runs in recipes(figures).items():
        if len(runs) > 1:
            values = [distance(run) for run in runs]
            seeds = ", ".join(str(run["seed"]) for run in runs)
            lines.append(
                f"{name}, {minutes:g} minutes, {recipe}: fd_lite0 {statistics.mean(values):.1f} on the average, "
                f"{min(values):.1f} to {max(values):.1f} (seeds {seeds})"
            )
    return [*lines, *goals(figures)]


def recipes(figures: Sequence[Figure]) -> dict[tuple[str, float, str], list[Figure]]:
    """The newest run of each seed, by data set, minutes, and recipe with its options."""
    newest = {(f["name"], f["minutes"], title(f), f["seed"]): f for f in figures}
    groups: dict[tuple[str, float, str], list[Figure]] = {}
    for (name, minutes, recipe, _), figure in sorted(newest.items()):
        groups.setdefault((name, minutes, recipe), []).append(figure)
    return groups


def goals(figures: Sequence[Figure]) -> list[str]:
    """One line a goal that can be told: the recipe with the least mean distance beside what it is to reach."""
    lines = []
    for name, task in (TASKS | ON_GPU).items():
        ours = {recipe: runs for (n, m, recipe), runs in recipes(figures).items() if (n, m) == (name, task.minutes)}
        if not ours:
            continue
        means = {recipe: statistics.mean(map(distance, runs)) for recipe, runs in ours.items()}
        best = min(means, key=means.__getitem__)
        goal, words = task.goal, "the goal"
        if goal is None and {"dcgan", "small"} <= means.keys():
            goal = min(OF_DCGAN * means["dcgan"], OF_SMALL * means["small"])
            words = f"{OF_DCGAN} of dcgan's {means['dcgan']:.1f} and {OF_SMALL} of small's {means['small']:.1f}"
        if name in ON_GPU:
            lines.append(f"{name}: {means[best]:.1f} by {best}")
        elif goal is None:
            lines.append(f"{name}: {means[best]:.1f} by {best}; no goal without runs of dcgan and small")
        else:
            lines.append(f"{name}: {means[best]:.1f} by {best}; at most {goal:.1f} ({words}): {verdict(means[best] <= goal)}")
        if ours[best][0]["recipe"] in TAUGHT_BY_LITE0:
            lines.append(f"{name}: {by_colours(ours, best)}")
        lines += [f"{name}, {best}, seed {run['seed']}: {line}" for run in ours[best] for line in second_goals(task, run)]
    return lines


def by_colours(ours: Mapping[str, Sequence[Figure]], best: str) -> str:
    """What the best recipe is worth to a judge that it was not taught by."""
    told = [
        f"{statistics.mean(float(run['evaluation']['fd_pixels']) for run in ours[recipe]):.2f} by {recipe}"
        for recipe in (best, "small")
        if recipe in ours
    ]
    return f"by mean colours (fd_pixels) {', '.join(told)}: the critic of {best} is taught by the features that fd_lite0 is of"


def second_goals(task: Task, figure: Figure) -> list[str]:
    """What else the best recipe of a data set is to show."""
    found, lines = figure["evaluation"], []
    if task.classifier:
        share = found["recognised"]
        lines.append(f"{share:.1%} recognised as their class; at least {RECOGNISED:.0%}: {verdict(share >= RECOGNISED)}")
        lines.append(half_as_varied(found, "diversity_in_class", "diversity within classes"))
    if task.ssim:
        value, of_mean = found["ssim_max"], found["ssim_mean_image"]
        least = max(SSIM, of_mean)
        lines.append(f"SSIM {value:.3f}; above {least:.3f} (the mean image: {of_mean:.3f}): {verdict(value > least)}")
        lines.append(half_as_varied(found, "diversity", "diversity"))
    return lines


def half_as_varied(found: Mapping[str, Any], name: str, words: str) -> str:
    spread, half = found[name], found[f"{name}_real"] / 2
    return f"{words} {spread:.1f}; at least {half:.1f}, half of real images': {verdict(spread >= half)}"


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def distance(figure: Figure) -> float:
    return float(figure["evaluation"]["fd_lite0"])


def title(figure: Figure) -> str:
    return " ".join([figure["recipe"], *figure["options"]])


def row(figure: Figure) -> str:
    """A line of the Markdown table."""
    record = figure["evaluation"]
    size = "x".join(str(n) for n in image_size(shards_of(figure["name"])))
    cells = (
        f"{figure['name']} {size}", title(figure), figure["seed"],
        f"{record['fd_lite0']:.1f}", f"{record['fd_lite0_floor']:.1f}", f"{record['kd_lite0']:.3f}",
        f"{record['fd_pixels']:.2f}", f"{record['precision']:.2f} / {record['recall']:.2f}",
        f"{record['ssim_max']:.3f} / {record['ssim_mean_image']:.3f}",
        beside(record, "diversity", ".0f"), beside(record, "diversity_in_class", ".0f"),
        beside(record, "near_copies", ".1%", "near_copies_held_out"),
        beside(record, "recognised", ".1%"), f"{record['generated']} / {record['real']}", figure["images_seen"],
        f"{figure['images_per_s']:.0f}", f"{figure['seconds']:.0f}", figure["training_memory_mb"], figure["precision"],
        figure.get("device", "cpu"), figure["commit"],
    )  # fmt: skip
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def beside(record: Mapping[str, Any], name: str, form: str, control: str = "") -> str:
    """A figure beside that of real images."""
    return f"{record[name]:{form}} (real {record[control or f'{name}_real']:{form}})" if name in record else ""


def shards_of(name: str) -> str:
    """The shards of a task, by their name in `common.DATA`."""
    return (TASKS | ON_GPU)[name].data or name


def image_size(name: str) -> tuple[int, int]:
    from scalegan.data.index import read_index

    index = read_index(str(common.shards(name)))
    return index.height, index.width
