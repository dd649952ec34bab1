"""`--pack`, typed: what is measured, said, kept, and taken up again; measuring itself is replaced here."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pretune import sweep as sweeps
from pretune.analysis import measurements, packing, plan
from pretune.cli import packing as cli
from pretune.cli import resume as resuming
from pretune.cli import sweep as sweeping
from pretune.core import journal as journals
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import History
from pretune.core.journal import Journal
from pretune.core.packing import Packing, Together
from pretune.core.records import Opened, Resumed
from pretune.core.results import read
from pretune.display import live
from pretune.execution import mps
from pretune.execution.measuring import Measurement, NotMeasuredError
from search_spaces import RECIPES
from tests import fake_mps, toys
from tests.pretune.cli.command import pretune, synthetic_sweep
from tests.pretune.found import MEASURED

RATES = {1: 100.0, 2: 190.0, 4: 192.0}
FOUND = Packing(
    count=2,
    on="gpu",
    gpus_per_worker=0.5,
    tried=tuple(Together(copies=count, images_per_s=rate, bytes=2e9) for count, rate in RATES.items()),
    why="4 at once are +1 % faster than 2; without MPS: nvidia-cuda-mps-control is not installed",
)
SAID = "2 trials per card, 1.9 times one alone"


@pytest.fixture(autouse=True)
def _machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processors, no GPU, and rates as above."""
    monkeypatch.setenv("PRETUNE_CACHE", str(here / "cache"))
    monkeypatch.setattr(measurements, "gpus", list)
    monkeypatch.setattr("os.cpu_count", lambda: 4)

    def measure(*_: object, copies: int, **__: object) -> Measurement:
        return MEASURED.model_copy(update={"images_per_s": RATES[copies]})

    monkeypatch.setattr(packing, "measure", measure)
    monkeypatch.setattr(plan, "measure", measure)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a sweep was run with, and which experiment; none is."""
    found: dict[str, Any] = {}

    def run(experiment: Any, **given: Any) -> None:
        found.update(given, experiment=experiment)

    monkeypatch.setattr(sweeps, "run", run)
    monkeypatch.setattr(sweeps, "resume", run)

    def run_sweep(console: object, experiment: object, run: Any, **_: object) -> None:
        run(None)

    monkeypatch.setattr(sweeping, "run_sweep", run_sweep)
    monkeypatch.setattr(sweeping, "learned", lambda *_: None)
    monkeypatch.setattr(resuming, "run_sweep", run_sweep)
    return found


SMALL = ("kernels", "--trials", "8", "--epochs", "3")


def test_auto_is_measured_said_and_kept(asked: dict[str, Any]) -> None:
    done = pretune("sweep", *SMALL, "--pack", "auto")
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "2 trials per machine, 1.9 times one alone (4 at once are +1 % faster than 2)" in told
    assert "2 190 1.90 1.5 GB chosen" in told
    assert asked["packing"].count == 2
    assert (asked["experiment"].slots, asked["auto_gpus"]) == (2, False)
    assert "in 2 slots" in told, "the forecast knows it, too"


def test_a_number_is_taken_as_it_is(asked: dict[str, Any]) -> None:
    done = pretune("ablate", "sfrik_tiny", "--factor", "objective.mmd.weight=0,1", "--epochs", "2", "--pack", "8")
    assert done.exit_code == 0, done.output
    assert "8 trials per machine" in done.output
    assert (asked["experiment"].slots, asked["experiment"].cpus_per_worker) == (8, 0.5)
    assert asked["packing"].tried == ()


def test_on_a_machine_with_gpus_it_is_a_share_of_each(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "gpus", lambda: ["NVIDIA H200"])
    done = pretune("sweep", *SMALL, "--pack", "3")
    assert done.exit_code == 0, done.output
    assert (asked["experiment"].gpus_per_worker, asked["experiment"].slots) == (0.3333, None)
    assert "3 trials per card" in done.output


def test_without_it_nothing_is_packed(asked: dict[str, Any]) -> None:
    assert pretune("sweep", *SMALL).exit_code == 0
    assert (asked["packing"], asked["auto_gpus"], asked["experiment"].slots) == (None, True, None)


def test_a_plan_measures_it_and_tells_it_as_json() -> None:
    told = json.loads(pretune("plan", *SMALL, "--pack", "auto", "--json").output)
    assert (told["packing"]["count"], told["slots"]) == (2, 2)
    assert [one["copies"] for one in told["packing"]["tried"]] == [1, 2, 4]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--pack 0", "--pack must be auto, or a whole number from 1 to 64, but is '0'"),
        ("--pack -3", "whole number from 1 to 64, but is '-3'"),
        ("--pack 100000", "whole number from 1 to 64"),
        ("--pack some", "whole number from 1 to 64"),
        ("--pack auto --gpus-per-worker 0.5", "--gpus-per-worker 0.5 both say"),
        ("--pack auto --workers-per-trial 2", "--workers-per-trial is 2"),
        ("--pack 2 --slots 2", "so is --slots 2; keep one"),
        ("--pack auto --address auto", "measures on this machine"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(typed: str, said: str, here: Path) -> None:
    done = pretune("sweep", "kernels", *typed.split())
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert not (here / "sweeps").exists()


@pytest.mark.parametrize("command", ["plan kernels", "ablate sfrik_tiny --factor objective.mmd.weight=0", "resume s"])
def test_each_command_that_takes_it_checks_it(command: str, here: Path) -> None:
    interrupted(here, None)
    done = pretune(*command.split(), "--pack", "0")
    assert done.exit_code == 2
    assert "whole number from 1 to 64, but is '0'" in " ".join(done.stderr.split())


def test_a_trial_that_cannot_be_measured_ends_the_command(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def no(*_: object, **__: object) -> Measurement:
        raise NotMeasuredError("rank 0 raised KeyError: 'x'")

    monkeypatch.setattr(packing, "measure", no)
    done = pretune("sweep", *SMALL, "--pack", "auto")
    assert done.exit_code == 2
    assert "rank 0 raised KeyError: 'x'; give a number" in " ".join(done.stderr.split())
    assert not (here / "sweeps").exists()


# ---- a sweep that goes on --------------------------------------------------------------------------------------------


def interrupted(here: Path, packed: Packing | None, **changes: Any) -> None:
    settings = {"space": "kernels", "base": RECIPES["sfrik_tiny"](), "trials": 8} | changes
    made = toys.experiment(here / "sweeps", **settings)
    with Journal(made.folder, new=True) as journal:
        journal.append(Opened(experiment=made if packed is None else packed.applied(made), packing=packed))


def resumed(*typed: str) -> Any:
    return pretune("resume", "s", "--accept-changes", *typed)


def test_what_was_found_is_not_measured_again(here: Path, asked: dict[str, Any]) -> None:
    interrupted(here, FOUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "measured", lambda *_, **__: pytest.fail("measured again"))
        done = resumed()
    assert done.exit_code == 0, done.output
    assert asked["packing"] is None, "as before"
    assert read(here / "sweeps" / "s").placed.gpus_per_worker == 0.5


def test_it_may_be_measured_anew_or_given(here: Path, asked: dict[str, Any]) -> None:
    interrupted(here, None, slots=1)
    assert resumed("--pack", "4").exit_code == 0
    assert (asked["packing"].count, asked["packing"].slots) == (4, 4)
    done = resumed("--pack", "auto")
    assert done.exit_code == 0, done.output
    assert asked["packing"].count == 2
    assert "2 trials per machine, 1.9 times one alone" in " ".join(done.output.split())


def test_a_sweep_stays_on_what_it_trains(here: Path) -> None:
    interrupted(here, FOUND)
    done = resumed("--pack", "4")
    assert done.exit_code == 2
    assert "trains, but this machine has none" in " ".join(done.stderr.split())


def test_a_sweep_on_cpus_is_not_packed_on_a_cluster(here: Path) -> None:
    interrupted(here, None)
    done = resumed("--pack", "4", "--address", "auto")
    assert done.exit_code == 2
    assert "trains on CPUs; say with --slots" in " ".join(done.stderr.split())


def test_the_newest_choice_counts(here: Path) -> None:
    made = toys.experiment(here)
    newer = Packing(count=4, on="gpu", gpus_per_worker=0.25, mps=True)
    history = History([Opened(experiment=FOUND.applied(made), packing=FOUND)])
    assert history.placed.gpus_per_worker == 0.5
    history.apply(Resumed(trials=10))
    assert history.packing == FOUND
    history.apply(Resumed(trials=10, packing=newer))
    history.apply(Resumed(trials=10))
    assert (history.packing, history.placed.gpus_per_worker) == (newer, 0.25)


def test_a_driver_keeps_it_and_counts_slots_by_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[float, int | None]] = []
    made = toys.experiment(here / "sweeps")
    folder = made.folder

    def slots(experiment: Experiment, address: str | None) -> int:
        placed.append((experiment.gpus_per_worker, experiment.slots))
        return 1

    def conduct(conductor: Conductor, *_: object) -> Any:
        placed.append((conductor.history.placed.gpus_per_worker, conductor.history.placed.slots))
        return read(folder)

    monkeypatch.setattr(sweeps, "_cluster", lambda *_: nullcontext())
    monkeypatch.setattr(sweeps, "_slots", slots)
    monkeypatch.setattr(sweeps, "_conduct", conduct)
    sweeps.run(FOUND.applied(made), space=toys.space, packing=FOUND)
    sweeps.resume(folder, space=toys.space)
    sweeps.resume(folder, space=toys.space, packing=Packing(count=4, on="gpu", slots=3, gpus_per_worker=0.25))
    sweeps.resume(folder, space=toys.space, slots=2)
    assert placed == [(0.5, None)] * 4 + [(0.25, 3), (0.25, 3), (0.25, 2), (0.25, 3)]
    assert [record.packing for record in journals.read(folder) if isinstance(record, Opened | Resumed)] == [
        FOUND,
        None,
        Packing(count=4, on="gpu", slots=3, gpus_per_worker=0.25),
        None,
    ]


# ---- what is seen of it ----------------------------------------------------------------------------------------------


def test_the_live_view_says_it(tmp_path: Path) -> None:
    made = FOUND.applied(toys.experiment(tmp_path))
    progress = live.Progress(made)
    opened = Opened(experiment=made, packing=FOUND)
    progress.apply(opened)
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(live.picture(progress))
    assert SAID in screen.export_text()
    told = progress.event(opened)
    assert told is not None
    assert told[0].endswith(f"0.5 GPU per worker, {SAID}")
    told = progress.event(Resumed(trials=12))
    assert told is not None
    assert told[0].endswith(f"to 12 trials, {SAID}")


def test_show_and_the_report_have_it(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "s")
    interrupted(here, FOUND, name="p")
    shown = " ".join(pretune("show", "p").output.split())
    assert SAID in shown
    assert "4 192 1.92" in shown
    assert json.loads(pretune("show", "p", "--json").output)["packing"]["count"] == 2
    assert "packing" not in json.loads(pretune("show", "s", "--json").output)
    assert pretune("report", "p", "--out", "p.html").exit_code == 0
    assert f"{SAID} (4 at once are +1 % faster than 2" in (here / "p.md").read_text()


# ---- MPS while it runs -----------------------------------------------------------------------------------------------


def test_mps_serves_a_sweep_that_was_found_faster_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []

    @contextmanager
    def serving() -> Iterator[None]:
        states.append("begun")
        yield
        states.append("ended")

    monkeypatch.setattr(mps, "serving", serving)
    console = Console(record=True, file=io.StringIO())
    with cli.serving(console, FOUND), cli.serving(console, None):
        assert states == []
    with cli.serving(console, FOUND.model_copy(update={"mps": True})):
        assert states == ["begun"]
    assert states == ["begun", "ended"]


def test_a_sweep_is_measured_and_run_under_mps_where_that_is_faster(
    here: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons = fake_mps.installed(here, monkeypatch)
    served: list[bool] = []

    def measure(*_: object, copies: int, **__: object) -> Measurement:
        under = mps.PIPES in os.environ
        if under:  # as the daemon does for its first client
            Path(os.environ[mps.PIPES], "servers").write_text("4711\n")
        rate = RATES[copies] * (2.0 if under else 1.0)
        return MEASURED.model_copy(update={"images_per_s": rate, "gpu_bytes": 1e9, "gpu_room_bytes": 80e9})

    def run_sweep(*_: object, **__: object) -> None:
        served.append(fake_mps.lives(daemons()[-1]) and mps.PIPES in os.environ)

    monkeypatch.setattr(packing, "measure", measure)
    monkeypatch.setattr(measurements, "gpus", lambda: ["NVIDIA H200"])
    monkeypatch.setattr(sweeping, "run_sweep", run_sweep)
    done = pretune("sweep", *SMALL, "--pack", "auto")
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "2 trials per card, 3.8 times one alone, with MPS" in told
    assert "2 380 3.80 1 GB MPS, chosen" in told
    assert served == [True]
    assert len(daemons()) == 2, "one to measure, one to run"
    assert not any(map(fake_mps.lives, daemons()))


def test_a_sweep_goes_on_without_mps_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    console = Console(record=True, file=io.StringIO(), width=200)
    ran = False
    with cli.serving(console, FOUND.model_copy(update={"mps": True})):
        ran = True
    assert ran
    assert "take turns on a GPU, without MPS: nvidia-cuda-mps-control is not installed" in console.export_text()


def test_in_python_it_is_a_number(here: Path) -> None:
    import pretune as interface

    with pytest.raises(RequestError, match="pack must be a number here"):
        interface.run("kernels", pack="auto")  # type: ignore[arg-type]
