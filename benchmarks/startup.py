"""Seconds that a user waits before anything happens: for `scalegan --help`, and for `--debug` of a preset on real images.

    python benchmarks/startup.py

Each figure is the median over fresh processes, after one that warms the file cache; that of `--debug` is of one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import common

HELP_TARGET, DEBUG_TARGET = 0.7, 60.0
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
    print(common.headline(dtype=common.dtype()))
    medians = {}
    for name, command in COMMANDS.items():
        common.run(command)
        seconds = [common.run(command).seconds for _ in range(repeat)]
        medians[name] = statistics.median(seconds)
        print(f"{name:<24} {medians[name]:6.3f} s   (from {min(seconds):.3f} to {max(seconds):.3f})", flush=True)
    debug = common.run(debug_command()).seconds
    print(f"{'scalegan train --debug':<24} {debug:6.3f} s   (configs/kiwi_small.yaml)")
    reached = [
        common.verdict("scalegan --help, seconds", medians["scalegan --help"], HELP_TARGET, at_least=False),
        common.verdict("scalegan train --debug, seconds", debug, DEBUG_TARGET, at_least=False),
    ]
    return 0 if all(reached) else 1


def debug_command() -> list[str]:
    run = str(common.OUT / "startup")  # a try that passes leaves nothing there
    options = ["--config", "configs/kiwi_small.yaml", "--data.path", str(common.shards("kiwi64")), "--run", run, "--debug"]
    return [SCRIPT, "train", *options]


if __name__ == "__main__":
    sys.exit(main())
