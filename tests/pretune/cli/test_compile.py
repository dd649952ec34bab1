"""`--compile`: checked before anything starts, and what is measured is part of the config that runs."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pretune import sweep
from pretune.analysis import fastest
from pretune.core.experiment import Experiment
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune
from trainers.config import TrialConfig

COMMANDS = ("train sfrik_tiny", "sweep kernels --trials 2", "ablate sfrik_tiny --factor batch_size=32,64")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_compiler_it_is_refused(command: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = pretune(*command.split(), "--compile", "on")
    assert found.exit_code == 2, found.output
    assert "compile=on needs a C++ compiler, but there is no no-such-compiler; install g++" in found.stderr
    assert not (here / "sweeps").exists()
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train sfrik_tiny --compile on --set compile=off", "say the same thing twice"),
        ("train sfrik_tiny --compile auto --set compile=off", "say the same thing twice"),
        ("train sfrik_tiny --compile auto --resume --out run", "goes on as the run began"),
        (f"{COMMANDS[1]} --compile auto --address auto", "with --address trials run on others"),
        (f"{COMMANDS[2]} --compile auto --address auto", "with --address trials run on others"),
    ],
)
def test_what_contradicts_is_refused(arguments: str, message: str, here: Path) -> None:
    found = pretune(*arguments.split())
    assert found.exit_code == 2, found.output
    assert message in found.stderr


def test_a_level_that_needs_a_compiler_is_left_out_where_there_is_none(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked: list[Experiment] = []

    def run(experiment: Experiment, **_: Any) -> Any:
        asked.append(experiment)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run", run)
    found = pretune("ablate", "sfrik_tiny", "--factor", "compile=off,on", "--factor", "batch_size=32,64")
    assert "compile=on cannot be built and is left out" in found.stdout + found.stderr
    assert asked


def test_a_sweep_of_cuda_graphs_without_gpus_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_cluster", lambda *_: nullcontext())
    found = pretune("sweep", "kernels", "--compile", "cuda_graphs", "--gpus-per-worker", "0")
    assert found.exit_code == 2, found.output
    assert "compile=cuda_graphs needs a GPU for each worker" in found.stderr


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_what_is_measured_is_in_the_experiment(command: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Experiment] = []

    def chosen(config: TrialConfig, *, workers: int, tell: Any, **_: object) -> TrialConfig:
        assert config.compile == "off", "whatever the recipe says"
        tell("compile: on; measured")
        return config.model_copy(update={"compile": "on"})

    def run(experiment: Experiment, **_: Any) -> Any:
        asked.append(experiment)
        raise KeyboardInterrupt

    monkeypatch.setattr(fastest, "chosen", chosen)
    monkeypatch.setattr(sweep, "run", run)
    Path("recipe.json").write_text(json.dumps({**RECIPES["sfrik_tiny"]().model_dump(mode="json"), "compile": "on"}))
    asked_for = command.replace("kernels", "kernels --recipe recipe.json").replace("sfrik_tiny", "recipe.json")
    found = pretune(*asked_for.split(), "--compile", "auto")
    assert "compile: on; measured" in found.stdout + found.stderr
    assert [one.base.compile for one in asked] == ["on"]


@pytest.mark.ffcv
def test_a_runs_folder_has_what_was_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(config: TrialConfig, **_: object) -> TrialConfig:
        return config.model_copy(update={"threads": 1, "compile": "off"})

    monkeypatch.setattr(fastest, "chosen", chosen)
    small = "--subset 128 --epochs 1 --set model.backbone.width=8 --set views.*.size=8"
    found = pretune("train", "sfrik_tiny", *small.split(), "--compile", "auto", "--out", "run")
    assert found.exit_code == 0, found.output
    assert json.loads(Path("run/config.json").read_text())["compile"] == "off"
    assert "run" in os.listdir()
