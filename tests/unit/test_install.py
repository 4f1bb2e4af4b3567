"""`make install`: what was installed is not installed again, what was cut off is begun anew.

pip is a stand-in that keeps a record of what it was asked for.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install "*) echo "$*" >> "$RECORD"; test ! -e "$RECORD.cut" ;;
esac
"""
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def install(tmp_path):
    """Runs `make install` in a copy: its exit code, and the commands of pip so far."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python, record = tmp_path / "python", tmp_path / "record"
    python.write_text(PYTHON)
    python.chmod(0o755)
    record.touch()

    def run(*variables: str) -> tuple[int, list[str]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        command = ["make", "install", f"PYTHON={python}", *variables]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | {"RECORD": str(record)}, capture_output=True, check=False
        )
        return done.returncode, record.read_text().splitlines()

    return run


def test_a_second_install_does_nothing_until_something_has_changed(install, tmp_path):
    code, commands = install("TORCH=torch==2.13.0+cpu", "PIP_FLAGS=--no-index --find-links wheelhouse")
    assert (code, commands) == (
        0, ["-m pip install --no-index --find-links wheelhouse torch==2.13.0+cpu -e .[quickstart,dev]"],
    )  # fmt: skip
    assert install() == install("TORCH=torch==2.13.0+cpu") == (0, commands)
    assert len(install("TORCH=torch==2.12.0+cpu")[1]) == 2
    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write("# another dependency\n")
    assert len(install()[1]) == 3
    assert len(install()[1]) == 3


def test_an_install_that_was_cut_off_is_begun_anew(install, tmp_path):
    (tmp_path / "record.cut").touch()
    half = tmp_path / ".venv" / "half"
    assert install()[0] != 0
    half.touch()
    (tmp_path / "record.cut").unlink()
    code, commands = install()
    assert (code, len(commands)) == (0, 2)
    assert not half.exists(), "what the first one left is used"
    half.touch()
    assert len(install()[1]) == 2
    assert half.exists()
