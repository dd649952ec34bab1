"""`--compile`: checked before anything starts, and what is measured is part of the config that runs."""

from __future__ import annotations

import io
import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pretune as python
from pretune import sweep
from pretune.analysis import fastest, packing, plan
from pretune.core import corners
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.fastest import Fastest, Network
from pretune.core.journal import Journal
from pretune.core.records import Opened
from pretune.display import live
from pretune.execution.measuring import Measurement
from search_spaces import RECIPES
from tests import toys
from tests.pretune.cli.command import pretune
from tests.pretune.found import MEASURED
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.profiling.compiled import Compiled, Way

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


# ---- --compile auto of a sweep ---------------------------------------------------------------------------------------

SIZED = """
def space(trial, base):
    return base.model_copy(update={"batch_size": trial.suggest_categorical("batch_size", [32, 64])})

space.default_recipe = "sfrik_tiny"
"""
OWN = SIZED.replace('{"batch_size"', '{"compile": "on", "batch_size"')
RECIPE = "recipe.json"
"""One that says that it is compiled: whatever is fastest counts."""
AUTO = {
    "sweep": "sweep sized.py:space --recipe recipe.json --trials 4 --compile auto",
    "ablate": "ablate recipe.json --factor batch_size=32,64 --seeds 1 --compile auto",
}


@pytest.fixture
def measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that were measured; compiled steps are faster with a batch of 64 alone. No slot, no cluster."""
    sizes: list[int] = []

    def measure(config: TrialConfig, *_: object) -> Compiled:
        sizes.append(config.batch_size)
        on = 0.1 if config.batch_size == 64 else 0.3
        return Compiled(step_s={"off": 0.2, "on": on}, begin_s={"off": 0.2, "on": 1.0})

    monkeypatch.setenv("PRETUNE_CACHE", str(here / "cache"))
    monkeypatch.setattr(fastest, "_measured", measure)
    monkeypatch.setattr(corners, "random_draws", partial(corners.random_draws, count=20))
    monkeypatch.setattr(corners, "draws", partial(corners.draws, count=10))
    Path("sized.py").write_text(SIZED)
    Path("own.py").write_text(OWN)
    Path(RECIPE).write_text(json.dumps({**RECIPES["sfrik_tiny"]().model_dump(mode="json"), "compile": "on"}))
    return sizes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """What was to be run."""
    found: list[Experiment] = []

    def run(experiment: Experiment, **_: Any) -> Any:
        found.append(experiment)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run", run)
    return found


@pytest.mark.parametrize("command", ["sweep", "ablate"])
def test_what_is_fastest_for_each_network_is_in_the_experiment_and_said(
    command: str, measured: list[int], asked: list[Experiment]
) -> None:
    found = pretune(*AUTO[command].split())
    told = " ".join(found.output.split())
    assert "compile: measuring batch_size=64, once for a network" in told + found.stderr
    assert "batch_size=64" in told
    assert "200 ms 100 ms 1 s on" in told
    assert "200 ms 300 ms 1 s off" in told
    [experiment] = asked
    assert experiment.base.compile == "off"
    assert experiment.fastest is not None
    assert sorted(measured) == [32, 64]
    by_size = {64: "on", 32: "off", 48: "off"}
    configs = [with_changes(experiment.base, {"batch_size": size}) for size in by_size]
    assert [experiment.fastest.applied(config).compile for config in configs] == list(by_size.values())


@pytest.mark.parametrize("command", ["sweep", "ablate"])
def test_a_plan_measures_them_too_and_plans_with_what_was_found(
    command: str, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: dict[int, str] = {}

    def measure(config: TrialConfig, **_: object) -> Measurement:
        planned[config.batch_size] = config.compile
        return MEASURED

    monkeypatch.setattr(plan, "measure", measure)
    typed = AUTO[command].removeprefix(command).split()
    told = json.loads(pretune("plan", *typed, "--json").stdout)
    assert planned == {32: "off", 64: "on"}
    assert {(one["words"], one["compile"]) for one in told["fastest"]["networks"]} == {
        ("batch_size=32", "off"),
        ("batch_size=64", "on"),
    }
    assert not Path("sweeps").exists()


def test_packing_is_measured_with_trials_as_they_will_be(
    measured: list[int], asked: list[Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: set[tuple[int, str]] = set()

    def measure(config: TrialConfig, *, copies: int, **_: object) -> Measurement:
        packed.add((config.batch_size, config.compile))
        return MEASURED.model_copy(update={"images_per_s": 100.0})

    monkeypatch.setattr(packing, "measure", measure)
    found = pretune(*AUTO["sweep"].split(), "--pack", "auto")
    assert "1 trial per machine" in found.output
    assert (64, "on") in packed, "the largest"
    assert packed <= {(32, "off"), (64, "on")}
    [experiment] = asked
    assert experiment.fastest is not None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sweep own.py:space --compile auto", "the space sets it itself; leave --compile out"),
        ("plan own.py:space --compile auto", "the space sets it itself; leave --compile out"),
        (f"{COMMANDS[2]} --factor compile=off,on --compile auto", "a level of the ablation sets it"),
        (f"{COMMANDS[2]} --level both:compile=on,threads=2 --compile auto", "a level of the ablation sets it"),
        (
            "ablate sfrik_tiny --leave-out objective --level x:compile=on --grid --compile auto",
            "a level of the ablation",
        ),
    ],
)
def test_trials_whose_compile_is_varied_have_no_fastest(command: str, message: str, measured: list[int]) -> None:
    found = pretune(*command.split())
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.stderr.split())
    assert measured == []
    assert not Path("sweeps").exists()


def test_python_measures_as_the_command_does(measured: list[int], asked: list[Experiment]) -> None:
    with pytest.raises(KeyboardInterrupt):
        python.run("sized.py:space", trials=4, compile="auto", quiet=True)
    assert sorted(measured) == [32, 64]
    [experiment] = asked
    assert experiment.fastest is not None
    with pytest.raises(RequestError, match="the space sets it itself"):
        python.run("own.py:space", compile="auto")


# ---- a sweep that has it ---------------------------------------------------------------------------------------------


def kept(here: Path, *networks: Network, left_out: int = 0) -> Experiment:
    """A sweep that has begun."""
    told = Fastest(networks=networks, left_out=left_out, why=f"{left_out} that rather no trial will have")
    made = toys.experiment(here / "sweeps", space="kernels", base=RECIPES["sfrik_tiny"](), trials=8, fastest=told)
    with Journal(made.folder, new=True) as journal:
        journal.append(Opened(experiment=made))
    return made


def network(size: int, compile: Way) -> Network:
    return Network(
        config=with_changes(RECIPES["sfrik_tiny"](), {"batch_size": size}),
        words=f"batch_size={size}",
        share=0.5,
        compile=compile,
        found=Compiled(step_s={"off": 0.2, "on": 0.1}, begin_s={"off": 0.2, "on": 1.0}) if size < 100 else None,
        problem="" if size < 100 else "out of memory: 1 GB of 1 GB",
    )


def test_show_the_report_and_the_live_view_say_what_was_chosen(here: Path) -> None:
    made = kept(here, network(64, "on"), network(32, "off"), network(128, "off"), left_out=2)
    said = "compile of networks: on for 1, off for 2, off for 2 that were not measured"
    shown = " ".join(pretune("show", "s").output.split())
    assert f"{said} (2 that rather no trial will have); each `pretune plan`" in shown
    assert "batch_size=64 50 % 200 ms 100 ms 1 s on" in shown
    assert "batch_size=128 50 % – – – off could not be measured: out of memory: 1 GB of 1 GB" in shown
    told = json.loads(pretune("show", "s", "--json").stdout)["fastest"]
    assert [one["compile"] for one in told["networks"]] == ["on", "off", "off"]
    assert "config" not in told["networks"][0]
    assert pretune("report", "s", "--out", "s.html").exit_code == 0
    assert said in (here / "s.md").read_text()
    progress = live.Progress(made)
    progress.apply(Opened(experiment=made))
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(live.picture(progress))
    assert said in " ".join(screen.export_text().split())
    event = progress.event(Opened(experiment=made))
    assert event is not None
    assert event[0].endswith(f"on CPUs, {said}")


def test_of_a_single_network_a_line_says_all(here: Path) -> None:
    kept(here, network(64, "on"))
    shown = " ".join(pretune("show", "s").output.split())
    assert "compile: on; a step takes 200 ms as it is, 100 ms with compile=on (the first one 1 s)" in shown


def test_it_goes_on_only_where_its_networks_can_be_compiled(
    here: Path, asked: list[Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(here, network(64, "on"), network(32, "off"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = pretune("resume", "s", "--accept-changes")
    assert found.exit_code == 2
    assert "trials of sweep 's' have compile=on, which needs a C++ compiler" in " ".join(found.stderr.split())


# ---- pretune train ---------------------------------------------------------------------------------------------------


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
