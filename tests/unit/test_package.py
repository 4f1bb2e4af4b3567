"""The package as a whole: what it is made of, what it loads, and the commands around it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scalegan
from scalegan.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "accelerate", "webdataset", "torchmetrics", "wandb", "matplotlib")


def loaded_by(code: str) -> list[str]:
    """Which of `HEAVY` a fresh interpreter has loaded after `code`."""
    code += f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_one_version():
    assert PROJECT["version"] == scalegan.__version__
    assert f"## {scalegan.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_import_loads_no_torch():
    assert loaded_by("import scalegan, scalegan.config, scalegan.cli") == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_loads_no_torch(name):
    code = f"""
from scalegan import cli
try:
    cli.main([{name!r}, "--help"])
except SystemExit as end:
    assert not end.code
"""
    assert loaded_by(code) == []


def test_the_whole_licence_is_there():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_ordinary_install_has_no_torch_fidelity_and_no_torchvision():
    names = {re.split(r"[^\w-]", need)[0] for need in PROJECT["dependencies"]}
    assert not names & {"torch-fidelity", "torchvision"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_lints_checks_types_and_leaves_out_what_this_machine_may_lack():
    done = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("ruff check .", "ruff format --check .", "/mypy", '-m "not slow and not gpu and not slurm and not parity"'):
        assert command in done.stdout


@pytest.mark.parametrize("script", [".ci/run", ".ci/real_run.sh"])
def test_ci_scripts_are_valid_shell(script):
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0
