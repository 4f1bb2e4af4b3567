"""Seconds that `scalegan --help` takes, and what else a user waits for before anything happens.

    python benchmarks/startup.py

Each figure is the median over fresh processes, after one that warms the file cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import common

TARGET = 0.7
SCRIPT = str(Path(sys.executable).with_name("scalegan"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import scalegan": [sys.executable, "-c", "import scalegan"],
    "scalegan --help": [SCRIPT, "--help"],
    "scalegan train --help": [SCRIPT, "train", "--help"],
    "scalegan shards --help": [SCRIPT, "shards", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="fresh processes of each (default: 5)")
    repeat = parser.parse_args().repeat
    print(common.headline())
    medians = {}
    for name, command in COMMANDS.items():
        common.run(command)
        seconds = [common.run(command).seconds for _ in range(repeat)]
        medians[name] = statistics.median(seconds)
        print(f"{name:<24} {medians[name]:6.3f} s   (from {min(seconds):.3f} to {max(seconds):.3f})", flush=True)
    return 0 if common.verdict("scalegan --help, seconds", medians["scalegan --help"], TARGET, at_least=False) else 1


if __name__ == "__main__":
    sys.exit(main())
