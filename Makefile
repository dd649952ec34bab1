# `make sweep` and `make test` do everything on a fresh Debian or Ubuntu machine, system packages included. Both are safe to repeat.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# FFCV is compiled when it is installed: against OpenCV and TurboJPEG, with a C++ compiler and Python's headers.
SYSTEM_PACKAGES := pkg-config g++ libopencv-dev libturbojpeg0-dev python3.11 python3.11-venv python3.11-dev

.PHONY: help env sweep sweep-seeds test test-fast test-slow chaos lint docs benchmarks clean

help:
	@cat <<-'END'
	make sweep        set up, then sweep SFRIK's kernels on the built-in digits (a few minutes on 2 cores)
	make sweep-seeds  the same for seeds 0, 1 and 2
	make test         set up, then ruff, mypy and all quick tests (what continuous integration runs)
	make test-fast    tests without Ray and FFCV, two or three minutes
	make test-slow    trainings that tests need minutes for: tiny recipes, and collapses that are provoked
	make chaos        drivers, workers and nodes are killed at random; prints what was lost (PART=nodes SEED=3 for one part)
	make docs         guides and reference as pages in site/; a dead link fails
	make benchmarks   every script in benchmarks/, printing ratios
	make env          only the set-up: system packages, .venv, pinned versions, this package
	make clean        remove .venv and caches (never data/, sweeps/ or runs/)
	END

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@missing=""
	has() { command -v "$$1" >/dev/null 2>&1; }
	if ! { has pkg-config && has g++ && pkg-config --exists opencv4 libturbojpeg; }; then missing=yes; fi
	if ! has $(PYTHON); then missing=yes
	elif ! $(PYTHON) -c 'import ensurepip, sysconfig, os; assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null; then missing=yes; fi
	if [ -n "$$missing" ]; then
	  as_root=""
	  if [ "$$(id -u)" != 0 ]; then as_root="sudo -n"; fi
	  if has apt-get && { [ -z "$$as_root" ] || $$as_root true 2>/dev/null; }; then
	    echo "Installing system packages: $(SYSTEM_PACKAGES)"
	    $$as_root apt-get update -qq
	    if ! has $(PYTHON) && ! apt-cache show python3.11 >/dev/null 2>&1; then
	      echo "error: this system has no Python 3.11 package; install Python 3.11 with its headers (pyenv, uv or conda can) and run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2
	    fi
	    packages="pkg-config g++ libopencv-dev libturbojpeg0-dev"
	    if ! has $(PYTHON) || [ "$$(readlink -f "$$(command -v $(PYTHON))")" = /usr/bin/python3.11 ]; then packages="$(SYSTEM_PACKAGES)"; fi
	    DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -qq --no-install-recommends $$packages >/dev/null
	  else
	    echo "error: FFCV needs system packages that are missing, and this user can not install them. Ask for:" >&2
	    echo "  apt-get install $(SYSTEM_PACKAGES)" >&2
	    echo "(Debian and Ubuntu names; a Python 3.11 of your own works too: make PYTHON=/path/to/python3.11), then run make again." >&2
	    exit 2
	  fi
	fi
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	echo "Installing the pinned versions into $(VENV) (about 6.5 GB, some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

sweep: env
	@$(BIN)/pretune sweep kernels --recipe sfrik_tiny

sweep-seeds: env
	@for seed in 0 1 2; do $(BIN)/pretune sweep kernels --recipe sfrik_tiny --seed $$seed; done

lint: env
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Whatever starts no Ray cluster runs on two cores at once. Coverage is of that part: Ray's workers would not be counted.
test: lint
	@$(BIN)/pytest -n 2 --dist loadfile --cov -m "not gpu and not slow and not ray"
	$(BIN)/pytest -m "ray and not gpu and not slow"

test-fast: env
	@$(BIN)/pytest -m "not gpu and not ray and not ffcv and not slow"

test-slow: env
	@$(BIN)/pytest -n 2 -m slow

PART ?= points kills plain_tune workers nodes autoscaler crowd training
SEED ?= 0

docs: env
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet --site-dir site
	echo "written to site/index.html"

chaos: env
	@for part in $(PART); do $(BIN)/python -m tests.chaos $$part --seed $(SEED); done

benchmarks: env
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	@rm -rf $(VENV) build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*
