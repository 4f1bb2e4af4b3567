"""Real images against other real images of the same source: what the metrics say of a generator that could not be better.

    python benchmarks/real.py                  every data set: its test split against its training split
    python benchmarks/real.py --only kiwi100   one of them
    python benchmarks/real.py --table          measure nothing: print what was measured at this commit
    python benchmarks/real.py --by-class       ... and class by class

Each is one `scalegan evaluate shards/NAME-test --against shards/NAME`, with at most 2,000 images on either side, a fixed random
choice. What has been measured before at the same commit is skipped unless --again. Records are appended to
benchmarks/out/real.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import common

RECORDS = common.OUT / "real.jsonl"
MOST = 2000
"""Images of a side: an evaluation is to be done in three minutes of two cores."""
METRICS = "interval,kid,prdc"


@dataclass(frozen=True)
class Pair:
    """The splits of a data set."""

    height: int
    width: int
    classes: bool = True
    """Whether there are classes to tell apart."""


PAIRS = {"kiwi100": Pair(100, 100, classes=False), "fruits12": Pair(64, 64), "brain": Pair(104, 88), "fashion": Pair(28, 28)}
COLUMNS = (
    "data set", "test / training images", "fd_lite0 (95 % interval)", "against half of the training images (floor)", "KID",
    "precision / recall", "density / coverage", "fd_lite0 of a class: least, mean, most", "mean against halves (floor)",
    "accuracy (of training images)", "seconds", "commit",
)  # fmt: skip
BY_CLASS = (
    "data set", "class", "fd_lite0 (95 % interval)", "against half of the training images", "floor",
    "accuracy (of training images)",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PAIRS, action="append", help="this data set alone (may be given several times)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured already")
    parser.add_argument("--table", action="store_true", help="measure nothing: print what was measured at this commit")
    parser.add_argument("--by-class", action="store_true", help="measure nothing: print what was measured class by class")
    args = parser.parse_args()
    print(common.headline(threads=args.threads))
    columns = BY_CLASS if args.by_class else COLUMNS
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in args.only or PAIRS:
        identity = {"name": name, "threads": args.threads, "commit": common.commit()}
        known = [record for record in common.read_jsonl(RECORDS) if identity.items() <= record.items()]
        if args.table or args.by_class or (known and not args.again):
            for record in known[-1:]:
                print("\n".join(rows_by_class(record)) if args.by_class else row(record), flush=True)
            continue
        record = identity | {"evaluation": measure(name, args.threads)}
        common.append_jsonl(RECORDS, record)
        print(row(record), flush=True)
    return 0


def measure(name: str, threads: int) -> dict[str, Any]:
    """The record of the test split against the training split."""
    from scalegan.data.index import read_index

    training, test = common.shards(name), common.shards(f"{name}-test")
    metrics = f"{METRICS},per_class,accuracy" if PAIRS[name].classes else METRICS
    out = common.OUT / "real" / f"{name}.json"
    command = [
        *common.scalegan("evaluate"), str(test), f"--against={training}", f"--metrics={metrics}", "--extractor=lite0",
        f"--samples={min(MOST, read_index(test).samples)}", f"--real={min(MOST, read_index(training).samples)}",
        "--device=cpu", f"--json={out}",
    ]  # fmt: skip
    common.run(command, threads)
    values: dict[str, Any] = json.loads(out.read_text())
    return values


def row(record: dict[str, Any]) -> str:
    """A line of the Markdown table."""
    pair, found = PAIRS[record["name"]], record["evaluation"]
    by_class = halves = accuracy = ""
    if pair.classes:
        distances = found["fd_lite0_per_class"].values()
        by_class = f"{min(distances):.1f}, {statistics.mean(distances):.1f}, {max(distances):.1f}"
        halves = f"{found['fd_lite0_per_class_half_mean']:.1f} ({found['fd_lite0_per_class_floor_mean']:.1f})"
        accuracy = f"{found['accuracy']:.3f} ({found['accuracy_real']:.3f})"
    cells = (
        f"{record['name']} {pair.height}x{pair.width}", f"{found['generated']} / {found['real']}",
        f"{found['fd_lite0']:.1f} ({found['fd_lite0_low']:.1f} to {found['fd_lite0_high']:.1f})",
        f"{found['fd_lite0_half']:.1f} ({found['fd_lite0_floor']:.1f})",
        f"{found['kd_lite0']:.4f} ± {found['kd_lite0_se']:.4f}",
        f"{found['precision']:.2f} / {found['recall']:.2f}", f"{found['density']:.2f} / {found['coverage']:.2f}",
        by_class, halves, accuracy, f"{found['seconds']:.0f}", record["commit"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def rows_by_class(record: dict[str, Any]) -> list[str]:
    """A line of the Markdown table for each class; one with too few images for a figure has a blank there."""
    if not PAIRS[record["name"]].classes:
        return []
    found = record["evaluation"]
    by = {part: found.get(f"fd_lite0_per_class{part}", {}) for part in ("_low", "_high", "_half", "_floor")}
    lines = []
    for name, distance in found["fd_lite0_per_class"].items():
        interval = f" ({by['_low'][name]:.1f} to {by['_high'][name]:.1f})" if name in by["_low"] else ""
        half, floor = (f"{by[part][name]:.1f}" if name in by[part] else "" for part in ("_half", "_floor"))
        accuracy = f"{found['accuracy_per_class'][name]:.3f} ({found['accuracy_real_per_class'][name]:.3f})"
        lines.append(f"| {record['name']} | {name} | {distance:.1f}{interval} | {half} | {floor} | {accuracy} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
