# make quickstart    install, then brain slices from data to picture in one go
# make test          what CI runs: lint, types, units and one of each kind of slow test
# make test-slurm    jobs on a real two-node Slurm (root on Debian; apt install slurm-wlm munge)
# make test-parity  values against torch-fidelity, pytorch-fid, clean-fid and prdc, in an environment of their own
# make test-all      every test that this machine can run
# make install       .venv with the package, its tools and its quickstart data
# make wheelhouse    every wheel that an install needs, for a machine without network
# make clean         forget .venv and caches; runs, shards and data stay
#
# TORCH      the torch to install: make install TORCH="torch==2.13.0+cpu"
# PIP_FLAGS  where to find it:     make install PIP_FLAGS="--no-index --find-links wheelhouse"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# What is imported in hundreds of processes is to be compiled once, also where Python is told not to write that down.
TESTED = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# Two files of tests at a time, the long ones first, one thread each: threads of both wait for each other's cores.
IN_PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

EXTRAS := quickstart,dev
BIN := $(VENV)/bin
# What an install was made from. Another folder counts, as scripts in $(VENV) hold its path.
KEY = $(CURDIR) $$(cksum < pyproject.toml)
# Empty unless TORCH was given now: a later `make test` without it keeps the torch that is installed.
ASKED_TORCH := $(if $(filter file,$(origin TORCH)),,$(TORCH))
MNI = $$($(BIN)/python -c "from importlib.util import find_spec; print(find_spec('nilearn').submodule_search_locations[0])")/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz
MNI_LICENCE := Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University

.PHONY: help venv install wheelhouse quickstart lint test test-parity test-slurm test-all clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# A venv whose install was cut off, or whose Python has gone, is made anew: cheaper than finding out what is missing.
venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scalegan needs Python 3.11 or newer: make PYTHON=python3.12 (found $$($(PYTHON) --version 2>&1))" >&2; exit 1; }
	@if [ -e $(VENV)/.installing ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		rm -rf $(VENV); \
		$(PYTHON) -m venv $(VENV) || { echo "no venv module: install it (Debian: apt install python3-venv)" >&2; exit 1; }; \
	fi

# The stamp is written last, so that only a finished install counts.
install: venv
	@if [ "$$(sed -n 1p $(VENV)/.installed 2>/dev/null)" = "$(KEY)" ] && \
		{ [ -z "$(ASKED_TORCH)" ] || [ "$$(sed -n 2p $(VENV)/.installed)" = "$(ASKED_TORCH)" ]; } && \
		$(BIN)/python -c 'import scalegan' 2>/dev/null; then exit 0; fi; \
	rm -f $(VENV)/.installed && touch $(VENV)/.installing && \
	$(BIN)/python -m pip install $(PIP_FLAGS) "$(TORCH)" -e ".[$(EXTRAS)]" && \
	printf '%s\n' "$(KEY)" "$(TORCH)" > $(VENV)/.installing && mv $(VENV)/.installing $(VENV)/.installed

# setuptools is what builds the package itself.
wheelhouse: venv
	$(BIN)/python -m pip wheel $(PIP_FLAGS) --wheel-dir wheelhouse "$(TORCH)" ".[$(EXTRAS)]" "setuptools>=77"
	@echo 'next, on the machine without network: make install PIP_FLAGS="--no-index --find-links wheelhouse"'

# Slices of the MNI152 T1 volume that nilearn brings, so nothing is downloaded but packages.
quickstart: install
	@test -f data/quickstart/index.json || \
		$(BIN)/scalegan shards "$(MNI)" data/quickstart --axis axial --slices 25%:78% --size 64x56 --licence "$(MNI_LICENCE)"
	@$(BIN)/scalegan train --config configs/quickstart.yaml
	@$(BIN)/scalegan evaluate runs/quickstart
	@echo
	@echo "real slices:       runs/quickstart/samples/real.png"
	@echo "generated slices:  $$(ls runs/quickstart/samples/[0-9]*.png | tail -1)"
	@echo "figures:           runs/quickstart/evaluations.jsonl, runs/quickstart/metrics.jsonl"
	@echo "next:              $(BIN)/scalegan plot runs/quickstart"
	@echo "                   $(BIN)/scalegan sample runs/quickstart --n 64 --format grid --out runs/quickstart/sampled"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TESTED) -m "not slow and not gpu and not slurm and not parity" \
		$(IN_PARALLEL) $(PYTEST_FLAGS) tests/faults tests/distributed tests/unit

# The other programs see the packages of $(VENV) and bring their own beside them, where nothing of ours can import them.
PEERS := prdc torch-fidelity pytorch-fid clean-fid "scipy<1.18" scikit-learn joblib threadpoolctl narwhals
# torchvision 0.28 goes with torch 2.13, and so on.
TORCHVISION = torchvision==0.$$($(BIN)/python -c 'import importlib.metadata as m; print(int(m.version("torch").split(".")[1]) + 15)').*
test-parity: install
	@test -e .venv-parity/.installed || { \
		rm -rf .venv-parity && $(PYTHON) -m venv .venv-parity && \
		.venv-parity/bin/python -m pip install --quiet --no-deps $(PIP_FLAGS) $(PEERS) "$(TORCHVISION)" && \
		realpath $(VENV)/lib/python*/site-packages > "$$(echo .venv-parity/lib/python*/site-packages)/peers.pth" && \
		touch .venv-parity/.installed; }
	$(BIN)/python -m pytest -m parity $(PYTEST_FLAGS) tests/parity

# Two jobs and an accident, another one each day, on a real two-node Slurm; skipped with its reason where there is none. All of them are in `make test-all`.
test-slurm: install
	$(BIN)/python -m pytest -m "slurm and not slow" -rs $(PYTEST_FLAGS) tests/slurm

# A Slurm and a GPU are there once: their tests run one at a time.
test-all: lint test-parity
	$(TESTED) -m "not gpu and not slurm and not parity" \
		$(IN_PARALLEL) $(PYTEST_FLAGS) tests/faults tests/distributed tests/unit
	$(BIN)/python -m pytest -m "gpu or slurm" -rs $(PYTEST_FLAGS) tests

clean:
	rm -rf $(VENV) .venv-parity build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
