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


def test_metrics_need_no_scipy():
    """It changes what the others' FID takes of it from release to release."""
    code = """
import importlib.metadata, sys
version = importlib.metadata.version
def without_scipy(name):
    if name == "scipy":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without_scipy
sys.modules["scipy"] = None  # both as where it is not installed
import torch
import scalegan.evaluation.evaluator, scalegan.evaluation.sides
from scalegan.evaluation import frechet, frechet_spread, kid, memorisation, prdc
rows = dict(zip(("real", "held_out", "fake"), torch.randn(3, 60, 4, generator=torch.Generator().manual_seed(0))))
distance = frechet.FrechetDistance(4)
distance.update(rows["real"], real=True)
distance.update(rows["fake"], real=False)
print(float(distance.compute()))
spread = frechet_spread.FrechetSpread(4)
spread.update(rows["real"], real=True)
for metric in (spread, kid.KernelDistance(), prdc.PrecisionRecall(), memorisation.Memorisation()):
    for side in metric.sides:
        metric.feed(side, rows[side], torch.arange(60), None)
    print(metric.compute())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tests_that_the_documentation_names_are_there():
    table = (ROOT / "docs" / "evaluation.md").read_text().partition("## What is tested")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "::" in line]
    assert rows
    for row in rows:
        file = Path()
        for name in re.findall(r"`((?:[\w/.]+::)?test_\w+)`", row):  # one without a file is in that of the one before
            where, _, test = name.rpartition("::")
            if where:
                file = ROOT / "tests" / (where if where.endswith(".py") else f"unit/test_evaluation_{where}.py")
            assert f"def {test}(" in file.read_text(), name


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
