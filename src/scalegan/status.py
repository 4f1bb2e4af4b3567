"""What a run says while it runs: one line a tick on standard output and in RUN/log.txt, and a bar on a terminal.

The line speaks StyleGAN's dialect, which people and their log scrapers know:
`kimg 48.0  time 3m 12s  sec/kimg 3.42  img/s 292  D 1.23  G 0.87  acc real 61% fake 58%  mem 812MB  eta 4m 10s`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from scalegan.evaluation.names import distances
from scalegan.files import Lines, no_room

if TYPE_CHECKING:
    from rich.progress import Progress


GONE = (errno.EPIPE, errno.EIO)
"""What writing ends in where the reader of a pipe has gone, or the terminal was closed."""


def human_time(seconds: float) -> str:
    """`48s`, `3m 12s`, `2h 05m`, `3d 04h`."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    if minutes:
        return f"{minutes}m {whole % 60:02d}s"
    return f"{whole}s"


def tick_line(images_seen: int, metrics: Mapping[str, float], timing: Mapping[str, float], eta: float | None) -> str:
    """The status line of one tick; what is not in `metrics` and `timing` is left out. `eta` is in seconds."""
    parts = [f"kimg {images_seen / 1000:.1f}"]
    if "seconds" in timing:
        parts.append(f"time {human_time(timing['seconds'])}")
    pace = timing.get("images_per_s", 0.0)
    if pace > 0:
        parts += [f"sec/kimg {1000 / pace:.2f}", f"img/s {pace:.0f}" if pace >= 10 else f"img/s {pace:.2g}"]
    parts += [f"{name} {metrics[key]:.3g}" for name, key in (("D", "loss/D"), ("G", "loss/G")) if key in metrics]
    if "accuracy/real" in metrics:
        parts.append(f"acc real {metrics['accuracy/real']:.0%} fake {metrics['accuracy/fake']:.0%}")
    if metrics.get("skipped_steps"):
        parts.append(f"skipped {metrics['skipped_steps']:.0f}")
    if timing.get("data_wait_share", 0.0) >= 0.1:
        parts.append(f"waits for data {timing['data_wait_share']:.0%}")
    if "memory_mb" in timing:
        parts.append(f"mem {timing['memory_mb']:.0f}MB")
    if eta is not None:
        parts.append(f"eta {human_time(eta)}")
    return "  ".join(parts)


def record_line(images_seen: int, record: Mapping[str, Any], best: str = "") -> str:
    """The line of one evaluation: each figure beside what it has to be compared with, and the one that `best` names."""
    parts = [f"kimg {images_seen / 1000:.1f}"]
    parts += [_distance(record, name) for name in distances(record)]
    if best in record and best not in (*distances(record), "ssim_max"):
        parts.append(f"{best} {record[best]:.4g}")
    if "ssim_max" in record:
        parts.append(f"SSIM {_beside(record, 'ssim_max', 'ssim_mean_image', 'mean image', '.3f')}")
    if "diversity" in record:
        parts.append(f"diversity {_beside(record, 'diversity', 'diversity_real', 'real', '.3g')}")
    if "seconds" in record:
        parts.append(f"took {human_time(record['seconds'])}")
    return "  ".join(parts)


def _distance(record: Mapping[str, Any], name: str) -> str:
    """A Frechet distance, then that at the counts of the floor with the floor beside it."""
    plain, half = f"{name} {record[name]:.4g}", f"{name}_half"
    return f"{plain}, half {_beside(record, half, f'{name}_floor', 'floor', '.4g')}" if half in record else plain


def _beside(record: Mapping[str, Any], name: str, control: str, word: str, form: str) -> str:
    value = f"{record[name]:{form}}"
    return f"{value} ({word} {record[control]:{form}})" if control in record else value


class Status:
    """Lines to standard output and RUN/log.txt; on a terminal also a progress bar under them. Made on rank 0 only."""

    def __init__(self, total_images: int, run_dir: Path, images_seen: int = 0) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._log = Lines(run_dir / "log.txt", sync=False)
        self._total = total_images
        self._first = images_seen
        self._started = time.monotonic()
        self._progress = _progress_bar(Output(sys.stdout)) if sys.stdout.isatty() else None
        if self._progress:
            self._task = self._progress.add_task("training", total=total_images, completed=images_seen, pace="")
            self._progress.start()

    def advance(self, images_seen: int) -> None:
        """Move the bar; cheap enough for every step."""
        if self._progress:
            self._progress.update(self._task, completed=images_seen)

    def tick(self, images_seen: int, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """One status line from a line of metrics.jsonl and one of timing.jsonl."""
        # Over all that this process did, so that evaluations and checkpoints count and one slow tick does not alarm.
        done = images_seen - self._first
        eta = (time.monotonic() - self._started) / done * (self._total - images_seen) if done else None
        self.say(tick_line(images_seen, metrics, timing, eta))
        if self._progress:
            self._progress.update(self._task, completed=images_seen)

    def looking(self, what: str, done: int, count: int) -> None:
        """How far an evaluation is, beside the bar: `done` of `count` images or pairs."""
        if self._progress:
            self._progress.update(self._task, description=f"evaluation: {what} {done:,}/{count:,}")

    def record(self, images_seen: int, record: Mapping[str, Any], best: str = "") -> None:
        """One line from an evaluation record."""
        self.say(record_line(images_seen, record, best))
        if self._progress:
            self._progress.update(self._task, description="training")

    def say(self, text: str) -> None:
        self._log.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        if self._progress:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=Output(sys.stdout), flush=True)  # that of now, as --debug gives each part a file of its own

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
        self._log.close()

    def __enter__(self) -> Status:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Output(io.TextIOBase):
    """Standard output that ends no run, whoever writes: a line, or the bar as it begins, is drawn by its thread, or ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiven():
            self._stream.flush()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in GONE:  # no reason to stop: the log goes on
                self._be_silent()
            elif not no_room(error):  # else output goes to a file, as of a batch job: the line waits for the next to be printed
                raise

    def _be_silent(self) -> None:
        """What is printed from now on goes nowhere, and so does standard error where it leads to the same pipe or terminal."""
        lost, nowhere = os.fstat(self.fileno()), os.open(os.devnull, os.O_WRONLY)
        for descriptor in (self.fileno(), sys.stderr.fileno()):
            if os.path.samestat(os.fstat(descriptor), lost):
                os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _progress_bar(output: Output) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=cast("IO[str]", output)),
        refresh_per_second=2,
    )
