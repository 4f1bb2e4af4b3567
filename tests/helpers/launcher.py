"""Runs started as a user starts them, by `accelerate launch` and the files in launch/."""

import os
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = [*ACCELERATE, "--config_file", str(LAUNCH / "cpu.yaml"), "-m"]
TRAIN = [*TWO, "scalegan.train"]


def start(arguments: list[str], **options) -> subprocess.Popen:
    """`accelerate launch` on two processes, in a process group of its own, as a shell would start it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TRAIN, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
