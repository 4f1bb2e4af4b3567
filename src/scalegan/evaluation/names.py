"""Which metrics there are, what each of them needs, and how its figures are called. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from scalegan.errors import UserError

SPREAD_GROUPS = 20
"""Groups that the generated images are dealt into for an interval, and steps of the extrapolation."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
SUBSET = 1000
"""Images on each side of one subset of the Kernel distance's older form."""
INCEPTION_SPLITS = 10
"""Parts of the samples that the Inception Score is taken of."""
CELL_MINIMUM = 20
"""Images of each side that a cell of C_T needs."""


@dataclass(frozen=True)
class Metric:
    """Fewest images it can be taken of, and what else it needs."""

    generated: int = 2
    real: int = 2
    features: bool = True
    """Needs the features themselves, so that the real images are looked at in every evaluation, not once a run."""


METRICS = {
    "ssim": Metric(features=False),
    "ms_ssim": Metric(features=False),
    "lpips": Metric(4, 4, features=False),
    "ppl": Metric(features=False),
    "interval": Metric(generated=2 * SPREAD_GROUPS, features=False),
    "infinity": Metric(features=False),
    "kid": Metric(3, 3),
    "kid_subsets": Metric(SUBSET, SUBSET),
    "prdc": Metric(NEIGHBOURS + 1, NEIGHBOURS + 1),
    "per_class": Metric(),
    "inception_score": Metric(generated=2 * INCEPTION_SPLITS, features=False),
    "memorisation": Metric(generated=CELL_MINIMUM),
}
"""By the name that `evaluation.metrics` knows. The Frechet distance is not among them, as it is always taken."""
BY_LPIPS = {"lpips", "ppl"}
"""Those of them that need the network of LPIPS."""


def chosen(names: str) -> tuple[str, ...]:
    """`kid,prdc` -> their names. Raises `UserError` for one that is unknown."""
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in wanted:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
            raise UserError(f"evaluation.metrics: {name!r} is unknown: {hint}")
    return wanted


def check_counts(names: Iterable[str], generated: int, real: int, width: int) -> None:
    """Raises `UserError` where a metric needs more images than are compared; `width` is the number of features."""
    for name in names:
        needs = METRICS[name]
        least = 4 * width if name == "infinity" else needs.generated
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


OTHERS = {"fid": "fd", "kid": "kd", "mifid": "mifd", "inception_score": "class_score"}


def key(name: str, extractor: str) -> str:
    """The name of a figure in a record: `fid`, `kid`, `mifid` and `inception_score` are those of Inception alone.

    >>> key("kid_se", "lite0"), key("kid_se", "inception"), key("precision", "lite0")
    ('kd_lite0_se', 'kid_se', 'precision')
    """
    if extractor == "inception":
        return name
    for ours, theirs in OTHERS.items():
        if name == ours or name.startswith(f"{ours}_"):
            return f"{theirs}_{extractor.rpartition(':')[2].lower()}{name.removeprefix(ours)}"
    return name


def distances(names: Iterable[str]) -> list[str]:
    """The Frechet distances among the names of a record, without their floors, errors and other forms."""
    found = sorted(name for name in set(names) if name == "fid" or name.startswith("fd_"))
    return [name for name in found if not any(name.startswith(f"{other}_") for other in found)]
