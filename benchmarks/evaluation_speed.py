"""Images per second and memory of `scalegan evaluate FOLDER --against FOLDER` beside torch-fidelity and pytorch-fid.

    make test-parity  # once: .venv-parity has the two other programs
    python benchmarks/evaluation_speed.py

Each program is a process of its own, by its own command line at its defaults, timed from its start to the distance: the same
Fruits-360 photographs, half of them on each side, the same Inception network with weights made from a seed, the same threads.
They take turns; of each the median speed and the largest memory count, that of the process or of the largest of its
workers.
The monitor mode takes part where the CPU computes in bfloat16; elsewhere that is emulated, and slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
from scalegan.evaluation.names import distances

TARGET, MONITOR_TARGET = 1.4, 2.5
"""Times the images per second of the others, in float32 and in the monitor mode."""
EXTRACTOR = "benchmarks.random_inception:RandomInception"


@dataclass(frozen=True)
class Program:
    command: list[str]
    value: Callable[[str], float]
    """From what it printed to its distance."""


@dataclass(frozen=True)
class Round:
    images_per_s: float
    memory_mb: float
    value: float


def photographs(count: int, place: Path) -> list[Path]:
    """Two folders with `count` photographs between them, from all classes alike."""
    every = sorted((common.real_data() / "fruits360" / "Training").glob("*/*.jpg"))
    if len(every) < count:
        sys.exit(f"--images {count} is more than the {len(every)} photographs of fruits360/Training")
    sides = [place / "generated", place / "real"]
    for side in sides:
        side.mkdir()
    for number in range(count):
        shutil.copyfile(every[number * len(every) // count], sides[number % 2] / f"{number:06d}.jpg")
    return sides


def ours(sides: list[Path], weights: str, place: Path, precision: str) -> Program:
    record = place / "record.json"

    def value(printed: str) -> float:
        found = json.loads(record.read_text())
        shutil.rmtree(place / "cache")  # with the statistics of the real images, which the next round is to measure again
        return float(found[distances(found)[0]])

    sides_given = [str(sides[0]), "--against", str(sides[1]), "--metrics", "", "--json", str(record)]
    network = ["--extractor", EXTRACTOR, "--weights", weights, "--precision", precision, "--device", "cpu"]
    return Program(["env", f"XDG_CACHE_HOME={place / 'cache'}", *common.scalegan("evaluate"), *sides_given, *network], value)


def others(sides: list[Path], peers: str, home: Path) -> dict[str, Program]:
    start = ["env", "PYTHONPATH=", f"TORCH_HOME={home}", peers, str(common.REPO / "benchmarks" / "evaluation_peer.py")]
    first, second = map(str, sides)
    fidelity = ["torch_fidelity.fidelity", "--cpu", "--fid", "--json", "--silent", "--no-cache"]
    return {
        "torch-fidelity": Program(
            [*start, *fidelity, "--input1", first, "--input2", second],
            lambda printed: float(json.loads(printed[printed.index("{") :])["frechet_inception_distance"]),
        ),
        "pytorch-fid": Program(
            [*start, "pytorch_fid", first, second, "--device", "cpu"],
            lambda printed: float(printed.split("FID:")[1].split()[0]),
        ),
    }


def take_turns(programs: dict[str, Program], images: int, rounds: int, threads: int) -> dict[str, Round]:
    """Of each program the median speed and the largest memory of its rounds."""
    found: dict[str, list[Round]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            done = common.run(program.command, threads)
            found[name].append(Round(images / done.seconds, done.memory_mb, program.value(done.text)))
            last = found[name][-1]
            print(f"{name:<20}{last.images_per_s:>10.2f}{last.memory_mb:>12.0f}   {last.value:.6g}", flush=True)
    return {
        name: Round(statistics.median(r.images_per_s for r in taken), max(r.memory_mb for r in taken), taken[0].value)
        for name, taken in found.items()
    }


def verdicts(found: dict[str, Round]) -> bool:
    """Print each goal beside what was reached; returns whether all were."""
    theirs = {name: taken for name, taken in found.items() if not name.startswith("scalegan")}
    reached = []
    for own, target in (("scalegan", TARGET), ("scalegan, monitor", MONITOR_TARGET)):
        if own not in found:
            print(f"{own}: not measured, as this CPU has no bfloat16")
            continue
        for name, taken in theirs.items():
            ratio = found[own].images_per_s / taken.images_per_s
            reached.append(common.verdict(f"images/s of {own} to those of {name}", ratio, target))
            ratio = found[own].memory_mb / taken.memory_mb
            reached.append(common.verdict(f"peak memory of {own} to that of {name}", ratio, 1.0, at_least=False))
    return all(reached)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = os.environ.get("SCALEGAN_PARITY_PYTHON", str(common.REPO / ".venv-parity" / "bin" / "python"))
    parser.add_argument("--peers", default=found, metavar="PYTHON", help="interpreter that has the others (.venv-parity's)")
    parser.add_argument("--images", type=int, default=2000, help="of both sides together (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (default: 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: the cores)")
    parser.add_argument("--monitor", action="store_true", help="measure the monitor mode on a CPU without bfloat16 too")
    options = parser.parse_args()
    if not Path(options.peers).is_file():
        sys.exit(f"{options.peers} is not there: `make test-parity` makes it, or name an interpreter by --peers")
    with tempfile.TemporaryDirectory() as temporary:
        place, home = Path(temporary), Path(temporary) / "torch"
        sides = photographs(options.images, place)
        made = common.run([sys.executable, str(common.REPO / "benchmarks" / "random_inception.py"), str(home)])
        facts = json.loads(made.text.splitlines()[-1])
        programs = {"scalegan": ours(sides, facts["weights"], place, "float32")}
        if options.monitor or facts["dtype"] == "bfloat16":
            programs["scalegan, monitor"] = ours(sides, facts["weights"], place, "bfloat16")
        programs |= others(sides, options.peers, home)
        print(common.headline(threads=options.threads, images=options.images))
        print(f"{'':<20}{'images/s':>10}{'peak MB':>12}   distance", flush=True)
        return 0 if verdicts(take_turns(programs, options.images, options.rounds, options.threads)) else 1


if __name__ == "__main__":
    sys.exit(main())
