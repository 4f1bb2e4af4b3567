"""Real images against other real images of the same source: what the metrics say of a generator that could not be better.

    python benchmarks/real.py                  every data set: its test split against its training split
    python benchmarks/real.py --only kiwi100   one of them
    python benchmarks/real.py --table          measure nothing: print what was measured at this commit

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
    "data set", "test / training images", "fd_lite0 (95 % interval)", "floor", "KID", "precision / recall",
    "density / coverage", "fd_lite0 of a class: least, mean, most", "accuracy (of training images)", "seconds", "commit",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PAIRS, action="append", help="this data set alone (may be given several times)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured already")
    parser.add_argument("--table", action="store_true", help="measure nothing: print what was measured at this commit")
    args = parser.parse_args()
    print(common.headline(threads=args.threads))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for name in args.only or PAIRS:
        identity = {"name": name, "threads": args.threads, "commit": common.commit()}
        known = [record for record in common.read_jsonl(RECORDS) if identity.items() <= record.items()]
        if args.table or (known and not args.again):
            for record in known[-1:]:
                print(row(record), flush=True)
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
    by_class = accuracy = ""
    if pair.classes:
        distances = found["fd_lite0_per_class"].values()
        by_class = f"{min(distances):.1f}, {statistics.mean(distances):.1f}, {max(distances):.1f}"
        accuracy = f"{found['accuracy']:.3f} ({found['accuracy_real']:.3f})"
    cells = (
        f"{record['name']} {pair.height}x{pair.width}", f"{found['generated']} / {found['real']}",
        f"{found['fd_lite0']:.1f} ({found['fd_lite0_low']:.1f} to {found['fd_lite0_high']:.1f})",
        f"{found['fd_lite0_floor']:.1f}", f"{found['kd_lite0']:.4f} ± {found['kd_lite0_se']:.4f}",
        f"{found['precision']:.2f} / {found['recall']:.2f}", f"{found['density']:.2f} / {found['coverage']:.2f}",
        by_class, accuracy, f"{found['seconds']:.0f}", record["commit"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
