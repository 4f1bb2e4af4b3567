"""Which figures of a run's evaluations are drawn: each beside its control, and the best where there is a better and a worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalegan.evaluation.names import FIGURES, distances, key

DISTANCE = "Fréchet distance"
OF_FLOOR = "real against half of the real images"


@dataclass(frozen=True)
class Panel:
    name: str
    """In the record."""
    control: str
    """The figure beside it; empty for none."""
    words: str
    """What that is of."""
    what: str
    extreme: str = ""
    """What the best value is called in the title; empty for a figure that is not judged by itself."""
    higher: bool = False
    """Whether more is better."""
    from_zero: bool = False

    def title(self, kimg: NDArray[np.float64], values: NDArray[np.float64]) -> str:
        what = self.what[0].upper() + self.what[1:]
        if not self.extreme or not np.isfinite(values).any():
            return what
        at = int(np.nanargmax(values) if self.higher else np.nanargmin(values))
        return f"{what}; {self.extreme} {values[at]:.4g} at {kimg_of(1000 * kimg[at])}"


def kimg_of(images_seen: float) -> str:
    return f"{images_seen / 1000:,.0f} kimg" if images_seen >= 10_000 else f"{images_seen / 1000:.1f} kimg"


def panels(lines: Iterable[Mapping[str, Any]], evaluation: Mapping[str, Any]) -> list[Panel]:
    """Of the evaluations of a run, whose configuration has `evaluation`, that of the best checkpoint's figure among them."""
    there = {name for line in lines for name in line}
    best = evaluation.get("best", "fid")
    judged_by = key(best, evaluation.get("extractor", "lite0"), evaluation.get("precision", "float32"))
    higher = FIGURES[best].higher
    made = [
        Panel(name, f"{name}_floor", OF_FLOOR, f"{DISTANCE}, lower is better", "lowest", from_zero=True)
        for name in distances(there)
    ]
    if judged_by not in [panel.name for panel in made] and best != "ssim_max":
        made.append(Panel(judged_by, "", "", f"{judged_by}, {'higher' if higher else 'lower'} is better"))
    made += [
        Panel("ssim_max", "ssim_mean_image", "mean training image", "largest SSIM to a real image"),
        Panel("diversity", "diversity_real", "real images", "diversity of the samples"),
        Panel("diversity_in_class", "diversity_in_class_real", "real images", "diversity of the samples of one class"),
    ]
    made = [replace(panel, extreme="best", higher=higher) if panel.name == judged_by else panel for panel in made]
    return [panel for panel in made if panel.name in there]
