"""Which metrics there are, what each of them needs, and how its figures are called. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scalegan.errors import UserError

SPREAD_GROUPS = 20
"""Groups that the generated images are dealt into for an interval, and steps of the extrapolation."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
SUBSET = 1000
"""Images on each side of one subset of the Kernel distance's older form."""
INCEPTION_SPLITS = 10
"""Parts of the samples that the Inception Score is taken of."""
FEWEST_REAL = 4
"""Real images whose halves still have a covariance."""
WIDTHS = {"lite0": 1280, "inception": 2048}
"""Features of the extractors of which that is known before their weights are read."""
WITH_PROBABILITIES = ("inception", "lite0")
"""Extractors that say which class of ImageNet an image is of."""
CELL_MINIMUM = 20
"""Images of each side that a cell of C_T needs."""


@dataclass(frozen=True)
class Metric:
    """Fewest images it can be taken of, and what else it needs."""

    generated: int = 2
    real: int = 2
    features: bool = True
    """Needs the features themselves, so that the real images are looked at in every evaluation, not once a run."""
    classes: int = 0
    """Goes by class: needs as many classes at least, and 2 real and 2 generated images of each."""
    held_out: bool = False
    """Looks at held-out images too."""
    statistics: bool = False
    """Asks no more of the real images than their mean and covariance."""


METRICS = {
    "ssim": Metric(features=False),
    "ms_ssim": Metric(4, 4, features=False),
    "lpips": Metric(4, 4, features=False),
    "ppl": Metric(features=False),
    "interval": Metric(generated=2 * SPREAD_GROUPS, features=False, statistics=True),
    "infinity": Metric(features=False, statistics=True),
    "kid": Metric(3, 3),
    "kid_subsets": Metric(SUBSET, SUBSET),
    "prdc": Metric(NEIGHBOURS + 1, NEIGHBOURS + 1),
    "per_class": Metric(classes=1),
    "accuracy": Metric(classes=2, held_out=True),
    "inception_score": Metric(generated=2 * INCEPTION_SPLITS, features=False, statistics=True),
    "memorisation": Metric(generated=CELL_MINIMUM, held_out=True),
}
"""By the name that `evaluation.metrics` knows. The Frechet distance is not among them, as it is always taken."""
BY_LPIPS = {"lpips", "ppl"}
"""Those of them that need the network of LPIPS."""


@dataclass(frozen=True)
class Figure:
    """What it takes for a figure to say which of two checkpoints is better."""

    metric: str = ""
    """The one that gives it; empty for what is always measured."""
    higher: bool = False
    """Whether more is better."""
    side: int = 1
    """Pixels that the shorter side of images needs."""


FIGURES = {
    "fid": Figure(),
    "fid_high": Figure("interval"),
    "fid_infinity": Figure("infinity"),
    "fid_per_class_mean": Figure("per_class"),
    "accuracy": Figure("accuracy", higher=True),
    "kid": Figure("kid"),
    "kid_subsets": Figure("kid_subsets"),
    "mifid": Figure("memorisation"),
    "precision": Figure("prdc", higher=True),
    "recall": Figure("prdc", higher=True),
    "density": Figure("prdc", higher=True),
    "coverage": Figure("prdc", higher=True),
    "inception_score": Figure("inception_score", higher=True),
    "ssim_max": Figure("ssim", higher=True, side=6),
    "ms_ssim_max": Figure("ms_ssim", higher=True, side=11),
}
"""What `evaluation.best` may be, under the names that a record of Inception has. Left out is what ought to be near a control,
as diversity and the share of near copies: noise, or copies, would win."""
ALIKE = ("generated", "real", "resize", "weights_sha256")
"""Facts of a record without which two values cannot be held against each other: fewer images alone make a distance larger."""


def facts_compared(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation compared: the values of two can be held against each other where it is the same."""
    return {fact: record[fact] for fact in ALIKE if fact in record}


def chosen(names: str) -> tuple[str, ...]:
    """`kid,prdc` -> their names. Raises `UserError` for one that is unknown."""
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in wanted:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
            raise UserError(f"evaluation.metrics: {name!r} is unknown: {hint}")
    return wanted


def check_counts(names: Iterable[str], generated: int, real: int, width: int | None) -> None:
    """Raises `UserError` where a metric needs more images than are compared; `width` is the number of features, if known."""
    for name in names:
        needs = METRICS[name]
        least = 4 * width if width and name == "infinity" else needs.generated
        if generated < least:
            raise UserError(
                f"metric {name} needs {least} generated images and evaluation.samples is {generated}: "
                f"raise it, or take {name} out of evaluation.metrics"
            )
        if real < needs.real:
            raise UserError(
                f"metric {name} needs {needs.real} real images and {real} are compared: "
                f"compare more, or take {name} out of evaluation.metrics"
            )


def compared(wanted: int, samples: int) -> int:
    """Real images that are compared, where `wanted` at most of `samples` are asked for, or 0 for all."""
    return min(wanted or samples, samples)


def check_real(wanted: int, samples: int, root: str) -> None:
    """Raises `UserError` where too few of the `samples` images of `root` are compared."""
    if 0 < wanted < FEWEST_REAL:
        raise UserError(
            f"evaluation.real is {wanted}, and each half of the real images needs 2: give at least {FEWEST_REAL}, or "
            "0 to take all"
        )
    if samples < FEWEST_REAL:
        raise UserError(f"a comparison needs {FEWEST_REAL} real images and {root} holds {samples}: use more data")


def check_class_count(names: Iterable[str], classes: int) -> None:
    """Raises `UserError` where a metric needs more classes than there are."""
    for name in names:
        least = METRICS[name].classes
        if classes < least:
            raise UserError(f"metric {name} needs {least} classes and there are {classes}: take it out of evaluation.metrics")


def check_probabilities(names: Iterable[str], extractor: str) -> None:
    """Raises `UserError` where a metric needs class probabilities and the extractor has none."""
    if "inception_score" in names and extractor not in WITH_PROBABILITIES:
        raise UserError(
            f"metric inception_score needs class probabilities, which extractor {extractor} has not: "
            f"use {' or '.join(WITH_PROBABILITIES)}, or take inception_score out of evaluation.metrics"
        )


OTHERS = {"fid": "fd", "kid": "kd", "mifid": "mifd", "inception_score": "class_score"}
PIXELS = ("ssim", "ms_ssim", "diversity", "lpips", "ppl")
"""How figures begin that are not of the extractor's features, but of pixels or of LPIPS in float32."""
MARKS = {"float32": "", "bfloat16": "_bf16"}
"""What stands in the name of every figure of features, by `evaluation.precision`."""


def key(name: str, extractor: str, precision: str = "float32") -> str:
    """The name of a figure in a record: `fid`, `kid`, `mifid` and `inception_score` are those of Inception in float32 alone.

    >>> key("kid_se", "lite0"), key("kid_se", "inception"), key("precision", "lite0")
    ('kd_lite0_se', 'kid_se', 'precision')
    >>> key("fid_floor", "inception", "bfloat16"), key("precision", "lite0", "bfloat16"), key("ssim_max", "lite0", "bfloat16")
    ('fid_bf16_floor', 'precision_bf16', 'ssim_max')
    """
    if name.startswith(PIXELS):
        return name
    ours = next((family for family in OTHERS if name == family or name.startswith(f"{family}_")), name)
    theirs = ours
    if extractor != "inception" and ours in OTHERS:
        theirs = f"{OTHERS[ours]}_{extractor.rpartition(':')[2].lower()}"
    return f"{theirs}{MARKS[precision]}{name.removeprefix(ours)}"


def key_in(record: Mapping[str, Any], name: str) -> str:
    """The name of a figure in this record."""
    return key(name, record["extractor"], "bfloat16" if record.get("monitor") else "float32")


def check_best(name: str, wanted: Iterable[str], extractor: str) -> None:
    """Raises `UserError` for a figure without a direction, or one that the metrics `wanted` do not give."""
    if name not in FIGURES:
        near = [figure for figure in FIGURES if key(figure, extractor) == name] or difflib.get_close_matches(name, FIGURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIGURES)}"
        raise UserError(f"evaluation.best: {name!r} is no figure of which less or more is better: {hint}")
    metric = FIGURES[name].metric
    if metric and metric not in wanted:
        raise UserError(
            f"evaluation.best {name} is measured by the metric {metric}, which evaluation.metrics does not name: "
            f"add {metric} there, or choose another"
        )


def best_among(name: str, wanted: Iterable[str]) -> str:
    """The same figure, or the Frechet distance where the metrics `wanted` do not give it."""
    return name if FIGURES[name].metric in ("", *wanted) else "fid"


def distances(names: Iterable[str]) -> list[str]:
    """The Frechet distances among the names of a record, without their floors, errors and other forms."""
    found = sorted(name for name in set(names) if name.startswith(("fid", "fd_")))
    return [name for name in found if not any(name.startswith(f"{o}_") and name != f"{o}{MARKS['bfloat16']}" for o in found)]
