# `make sweep` and `make test` do everything on a fresh Debian or Ubuntu machine, system packages included. Both are safe to repeat.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

VENV := .venv
BIN := $(VENV)/bin

.PHONY: help env env-dev sweep sweep-seeds test test-fast test-slow coverage chaos lint docs benchmarks simulations bench-gpu wheel test-wheel clean

help:
	@cat <<-'END'
	make sweep        set up, then sweep SFRIK's kernels on the built-in digits (a few minutes on 2 cores)
	make sweep-seeds  the same for seeds 0, 1 and 2
	make test         set up, then ruff, mypy and all quick tests (what continuous integration runs)
	make test-fast    tests without Ray and FFCV, two or three minutes
	make test-slow    trainings and sweeps that tests need minutes for; collapses that are provoked
	make coverage     the quick tests without Ray once more, and which lines they reach
	make chaos        drivers, workers and nodes are killed at random; prints what was lost (PART=nodes SEED=3 for one part)
	make docs         guides and reference as pages in site/; a dead link fails
	make benchmarks   this against what a user would pick instead, as one table; 19 minutes on two quiet cores
	make simulations  are the intervals, error rates and rankings true that the program tells?
	make bench-gpu    what a GPU is kept busy with, in at most eight minutes on one card
	make wheel        dist/pretune-VERSION-py3-none-any.whl
	make test-wheel   install that wheel into an empty environment elsewhere and sweep there (6.5 GB for some minutes)
	make env          only the set-up: system packages, .venv, pinned versions, this package
	make env-dev      the same, and what the tests need
	make clean        remove .venv and caches (never data/, sweeps/ or runs/)

	The set-up takes the newest of Python 3.11 to 3.13 that is there, or installs the system's own; PYTHON=COMMAND names another one.
	END

env:
	@PYTHON='$(PYTHON)' ./environment.sh

env-dev:
	@PYTHON='$(PYTHON)' ./environment.sh dev

sweep: env
	@$(BIN)/pretune sweep kernels --recipe sfrik_tiny

sweep-seeds: env
	@for seed in 0 1 2; do $(BIN)/pretune sweep kernels --recipe sfrik_tiny --seed $$seed; done

lint: env-dev
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Whatever starts no Ray cluster runs on two cores at once, where torch's threads on top of that would double the time.
# Ray warns of itself, in our process; trainers and spaces know nothing of it.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not gpu and not slow and not ray"
	$(BIN)/pytest -W default -m "ray and not gpu and not slow" --ignore tests/trainers --ignore tests/search_spaces

# Apart from `make test`, as it takes half as long again. Not of Ray's tests: its workers would not be counted.
coverage: env-dev
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov -m "not gpu and not slow and not ray"

test-fast: env-dev
	@$(BIN)/pytest -m "not gpu and not ray and not ffcv and not slow"

test-slow: env-dev
	@$(BIN)/pytest -n 2 -m "slow and not ray"
	$(BIN)/pytest -W default -m "slow and ray"

PART ?= points kills plain_tune workers nodes autoscaler crowd training
SEED ?= 0

docs: env-dev
	@PYTHON='$(PYTHON)' ./environment.sh docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site
	echo "written to site/index.html"

chaos: env-dev
	@for part in $(PART); do $(BIN)/python -m tests.chaos $$part --seed $(SEED); done

benchmarks: env
	@$(BIN)/python -m benchmarks

simulations: env
	@$(BIN)/python benchmarks/simulations.py

bench-gpu: env
	@$(BIN)/python -m benchmarks.gpu

# `python -m build` makes the wheel from the source distribution, so that one is tried as well.
wheel: env-dev
	@rm -rf build dist
	$(BIN)/python -m build --quiet --outdir dist .

test-wheel: wheel
	@$(BIN)/python -m tests.wheel dist/*.whl

clean:
	@rm -rf $(VENV) build dist site ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*
