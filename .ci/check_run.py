"""Whether a run left what it should: check_run.py RUN IMAGES. Says what is missing and exits with 1."""

import json
import math
import sys
from pathlib import Path


def problems(run: Path, images: int) -> list[str]:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    distance, floor = record["fd_lite0_half"], record["fd_lite0_floor"]
    print(f"{run}: fd_lite0_half {distance:.1f} (floor {floor:.1f}) after {record['images_seen']} images")
    found = [f"metrics.jsonl ends at {metrics[-1]['images_seen']}"] if metrics[-1]["images_seen"] != images else []
    found += [f"{name} is {value}" for line in metrics for name, value in line.items() if not math.isfinite(value)]
    if record["images_seen"] != images:
        found.append(f"the last evaluation is at {record['images_seen']}")
    if not (math.isfinite(distance) and distance > floor > 0):
        found.append("the distance is not finite or not above its floor")
    made = (
        f"samples/{images:09d}.png",
        "samples/real.png",
        f"checkpoints/{images:09d}/manifest.json",
        "sampled/*",
        "figures/*.png",
    )
    found += [f"{pattern} is missing" for pattern in made if not any(path.stat().st_size for path in run.glob(pattern))]
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(f"{sys.argv[1]}, {sys.argv[2]} images: {'; '.join(wrong)}" if wrong else 0)
