"""`pretune plan`, and what a sweep says of itself at its start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command

from pretune.analysis import plan
from pretune.cli import running, sweep
from pretune.cli.app import app
from pretune.cli.sweep import sweep_request
from pretune.core.forecast import Forecast
from pretune.core.journal import Journal
from pretune.core.records import Opened
from pretune.display import forecast as display
from pretune.execution.measuring import Measurement, NotMeasuredError
from search_spaces import RECIPES
from tests import toys
from tests.pretune.cli.command import pretune
from tests.pretune.found import MEASURED

FOUND = MEASURED.model_copy(update={"step_s": 0.02, "epoch_s": 0.1, "probe_s": 0.5, "full_probe_s": 1.0})
SMALL = ("kernels", "--trials", "4", "--epochs", "3", "--slots", "1", "--gpus-per-worker", "0")


@pytest.fixture(autouse=True)
def _measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", str(here / "cache"))
    monkeypatch.setattr(plan, "measure", lambda *_, **__: FOUND)


def foretold(**given: Any) -> Forecast:
    arguments: dict[str, Any] = {
        "space": "kernels",
        "trials": 4,
        "epochs": 3,
        "slots": 1,
        "gpus_per_worker": 0.0,
        "storage": "sweeps",
    }
    asked = sweep_request(**(arguments | given))
    return running.foretold(Console(quiet=True), asked.experiment, asked.space, auto_gpus=False, local=True)


def test_a_plan_refuses_a_tracker_that_a_sweep_would_refuse_and_logs_nothing(here: Path) -> None:
    refused = pretune("plan", *SMALL, "--log-to", "nothing")
    assert refused.exit_code == 2
    assert "--log-to must be mlflow" in refused.stderr
    assert pretune("plan", *SMALL, "--log-to", "csv:log.csv").exit_code == 0
    assert not (here / "log.csv").exists()


def test_a_plan_says_what_a_sweep_would_take_and_starts_nothing(here: Path) -> None:
    found = pretune("plan", *SMALL)
    assert found.exit_code == 0, found.output
    for said in ("4 at most", "12 at most, about", "in 1 slot", "until the first step", "1.5 GB a worker", "are free"):
        assert said in found.output
    assert sorted(os.listdir()) == ["cache", "data"]


def test_a_plan_as_json_is_one_object(here: Path) -> None:
    told = json.loads(pretune("plan", *SMALL, "--json").output)
    assert (told["trials"], told["epochs"], told["slots"], told["host_bytes"]) == (4, 12, 1, 1.5e9)
    assert told["shapes"][0]["measured"]["step_s"] == 0.02
    assert told["seconds"] > 25.0


def test_a_plan_takes_the_arguments_of_a_sweep_and_of_an_ablation() -> None:
    plan, *others = (
        {option for parameter in get_command(app).commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]
        for name in ("plan", "sweep", "ablate")
    )
    assert plan == set().union({"--json"}, *others) - {"recipe"}


def test_a_plan_says_what_an_ablation_would_take(here: Path) -> None:
    typed = "plan sfrik_tiny --factor objective.mmd.weight=0,1,10 --seeds 4 --epochs 3 --slots 1 --gpus-per-worker 0"
    found = pretune(*typed.split(), "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.output)
    assert (told["trials"], told["epochs"], told["expected_epochs"]) == (12, 36, None), (
        "the recipe's own weight is one of the three"
    )
    assert told["seconds"] > 36 * FOUND.epoch_s
    assert sorted(os.listdir()) == ["cache", "data"]
    more = pretune(*typed.split(), "--until", "decided", "--max-seeds", "9")
    assert "12 at first, 27 at most" in " ".join(more.output.split())


def test_an_ablation_knows_its_hours_from_its_plan(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ("sfrik_tiny", "--factor", "objective.mmd.weight=0,1", "--epochs", "3", "--slots", "1")
    pretune("plan", *typed, "--gpus-per-worker", "0")
    monkeypatch.setattr(sweep, "run_sweep", lambda *_, **__: None)
    told = pretune("ablate", *typed, "--gpus-per-worker", "0").output
    assert "at most 6 trials and 18 epochs; about" in " ".join(told.split())
    assert "in 1 slot" in told


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("sfrik_tiny --factor epochs=1 --trials 9", "--trials is of a search"),
        ("sfrik_tiny --factor epochs=1 --sampler grid", "--sampler is of a search"),
        ("kernels --seeds 4", "--seeds is of an ablation"),
        ("kernels --grid", "--grid is of an ablation"),
        ("sfrik_tiny --factor epochs=1 --recipe byol_tiny", "pretune plan byol_tiny"),
        ("sfrik_tiny --factor epochs=1 --metric probe/knn --metric loss/mmd", "judged by one metric"),
        ("sfrik_tiny --factor objective.mmd.wait=1", "did you mean 'objective.mmd.weight'?"),
        ("kernels --epochs 0", "--epochs"),
        ("kernels --data nowhere", "data 'nowhere' must be a folder"),
        ("masking --recipe sfrik_tiny", "all of 64 random draws were refused"),
        ("nothing", "nothing"),
        ("kernels --set batch_size=100000", "batch_size must be at most"),
        ("kernels --address auto", "--slots must say how many trials run at once"),
    ],
)
def test_what_cannot_be_planned_is_refused(typed: str, said: str) -> None:
    found = pretune("plan", *typed.split())
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


def test_what_does_not_fit_is_refused_by_plan_and_then_at_once_by_sweep(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "measure", lambda *_, **__: FOUND.model_copy(update={"host_bytes": 1e15}))
    for command in ("plan", "sweep"):
        found = pretune(command, *SMALL)
        assert found.exit_code == 2, found.output
        assert "do not fit into memory" in found.output
    assert not (here / "sweeps").exists()


def test_a_shape_that_could_not_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object, **__: object) -> Measurement:
        raise NotMeasuredError("rank 0 raised KeyError: 'x'")

    monkeypatch.setattr(plan, "measure", no)
    found = pretune("plan", *SMALL)
    assert found.exit_code == 0
    assert "rank 0 raised KeyError: 'x'" in found.output
    assert "no hours and no memory are known" in found.output


def test_a_sweep_knows_its_hours_once_they_were_measured() -> None:
    before = foretold()
    assert (before.trials, before.epochs, before.seconds, before.disk_bytes) == (4, 12, None, None)
    assert before.expected_epochs is not None
    pretune("plan", *SMALL)
    after = foretold()
    assert after.seconds is not None
    assert after.host_bytes == 1.5e9
    assert after.disk_bytes is not None


def test_the_line_at_a_sweeps_start_says_what_is_known(tmp_path: Path) -> None:
    experiment = toys.experiment(tmp_path)
    unknown = display.short(Forecast(trials=4, epochs=12), experiment).plain
    assert unknown.startswith("at most 4 trials and 12 epochs; disk: 3 checkpoints a trial")
    known = Forecast(trials=4, epochs=12, slots=2, seconds=100.0, host_bytes=1e9, disk_bytes=1e6, most_disk_bytes=2e6)
    told = display.short(known, experiment).plain
    assert "about 1 min 40 s in 2 slots; 1 GB of memory a worker; disk: about 1 MB, at most 2 MB" in told
    bucket = experiment.model_copy(update={"storage": "s3://bucket/sweeps"})
    assert display.short(known, bucket).plain.endswith("nearly all of it in s3://bucket/sweeps")


def test_show_sets_the_forecast_beside_the_fact(here: Path) -> None:
    made = toys.experiment(here / "sweeps", base=RECIPES["sfrik_tiny"](), trials=2)
    with Journal(here / "sweeps" / "s", new=True) as journal:
        journal.append(Opened(experiment=made, forecast=Forecast(trials=2, epochs=6, seconds=90.0)))
    shown = pretune("show", "s")
    assert shown.exit_code == 0, shown.output
    assert "forecast 1 min 30 s" in shown.output
    told = json.loads(pretune("show", "s", "--json").output)
    assert told["forecast"]["epochs"] == {"unit": "epochs", "forecast": 6.0, "fact": 0.0}
    assert told["forecast"]["over"] is False
