# Two commands do everything on a fresh machine: `make sweep` and `make test`. Both are safe to repeat.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SYSTEM_PACKAGES := pkg-config g++ libopencv-dev libturbojpeg0-dev
READY := $(VENV)/.ready

.PHONY: env sweep sweep-seeds test test-fast test-slow lint benchmarks clean

env: $(READY)

# FFCV is compiled on installation; OpenCV and TurboJPEG are what it compiles against.
$(READY): pyproject.toml constraints.txt scripts
	@echo unreachable

sweep: env
	$(BIN)/pretune sweep kernels --recipe sfrik_tiny

test: env lint
	$(BIN)/pytest -m "not slow and not gpu"
