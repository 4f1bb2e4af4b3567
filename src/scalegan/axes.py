"""Axes of a run's curves over the images seen, in one style."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalegan.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 120,
}


@contextmanager
def figure(run_dir: Path, name: str, epoch: int | None) -> Iterator[Any]:
    """Gives a function that makes so many axes, one above the other; writes RUN/figures/`name` at the end.

    With `epoch`, the images of one, epochs are counted along the top.

    Without pyplot, which keeps state: this runs at the end of a training, perhaps inside another program.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = Figure(layout="constrained")

    def axes_of(rows: int) -> list[Axes]:
        drawn.set_size_inches(8, 1.2 + 2.8 * rows)
        axes = list(drawn.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
        axes[-1].set_xlabel("images seen (kimg)")
        return axes

    with mpl.rc_context(STYLE):
        yield axes_of
        if epoch:
            length = epoch / 1000
            top = drawn.axes[0].secondary_xaxis("top", functions=(_times(1 / length), _times(length)))
            top.set_xlabel("epochs")
        drawn.axes[0].set_xlim(left=0)
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png")
    path = run_dir / "figures" / name
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, buffer.getvalue())


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: values * factor


def marker(kimg: NDArray[np.float64]) -> str:
    """A dot where a line of one or two points would not be seen."""
    return "o" if len(kimg) < 3 else ""


def limit(axes: Axes, curves: Sequence[NDArray[np.float64]]) -> None:
    """Let the few highest values, mostly of the first steps, leave the picture rather than flatten all others."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, usual, high = float(values.min()), float(np.quantile(values, 0.99)), float(values.max())
    if high > 2 * usual > 0:
        axes.set_ylim(min(0.0, low), 1.2 * usual)
