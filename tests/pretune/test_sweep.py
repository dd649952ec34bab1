"""Whole sweeps on a local Ray cluster: warm slots, a slot that dies, Ctrl-C and resume; all CPUs free afterwards."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import ray
from ray import tune

from pretune import results, sweep
from pretune.cluster import connected
from pretune.experiment import Experiment
from pretune.journal import Attempt, Closed, Opened, Record, Resumed, Started, read
from pretune.messages import RequestError
from pretune.search import PROBES
from pretune.slot import Slot, SlotSettings
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome
from trainers.terms import Alignment

if TYPE_CHECKING:
    import torch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # slots cannot import a test module

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=6, batch_size=64)


def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    rate = trial.suggest_float("rate", 1e-3, 10.0, log=True)
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


def score(config: TrialConfig, epoch: int) -> float:
    return (1.0 - abs(math.log10(config.optimizer.learning_rate) + 1.0) / 3.0) * (1.0 - 0.5**epoch)


class Training:
    """What the slots' workers run: no data, no network; a very high rate diverges; a state on disk after each epoch."""

    def __call__(
        self,
        config: TrialConfig,
        *,
        folder: Path,
        report: Callable[[EpochReport], bool],
        resume: Checkpoint | None,
        progress: Callable[[int, int], None],
        device: torch.device,
    ) -> Outcome:
        epoch = json.loads(Path(resume.path).read_text())["epoch"] if resume else 0
        with (folder.parent / "processes.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while epoch < config.epochs:
            progress(epoch, 0)
            if config.optimizer.learning_rate > 5.0 and epoch == 1:
                return Outcome(state="diverged", reason="loss/total is nan", epochs=epoch)
            epoch += 1
            text = json.dumps({"epoch": epoch})
            path = folder / f"epoch-{epoch}.json"
            path.write_text(text)
            checkpoint = Checkpoint(path=str(path), sha256=hashlib.sha256(text.encode()).hexdigest(), epoch=epoch)
            metrics = {"probe/linear": score(config, epoch), "loss/total": 1.0 / epoch}
            if not report(EpochReport(epoch=epoch, metrics=metrics, checkpoint=checkpoint)):
                return Outcome(state="stopped", epochs=epoch)
        return Outcome(state="complete", epochs=epoch)


def warm_slots(experiment: Experiment, folder: Path) -> type[tune.Trainable]:
    settings = SlotSettings(sweep_folder=str(folder), max_failures=experiment.max_failures)
    slot: type[tune.Trainable] = tune.with_parameters(Slot, settings=settings, make_train=Training)
    return slot


class Plain(tune.Trainable):
    """A slot without workers. With `mark`, a file that is not there yet, its process dies once: in trial 1, epoch 3."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": 1}])

    def setup(self, config: dict[str, Any], mark: str = "") -> None:
        self._mark = Path(mark)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = new_config
        self._epoch = new_config["resume"]["epoch"] if new_config["resume"] else 0
        return True

    def step(self) -> dict[str, Any]:
        config = TrialConfig.model_validate(self._trial["config"])
        over = self._epoch == config.epochs
        self._epoch += not over
        if self._mark.name and self._trial["number"] == 1 and self._epoch == 3 and not self._mark.exists():
            self._mark.touch()
            os._exit(1)
        return {
            "number": self._trial["number"],
            "epoch": self._epoch,
            "probe/linear": score(config, self._epoch),
            "checkpoint": {"path": "/x", "sha256": "y", "epoch": self._epoch},
            "outcome": "complete" if over else "running",
            "reason": "",
            "failures": 0,
            "group_starts": 1,
            "done": over,
        }


def plain(experiment: Experiment, folder: Path) -> type[tune.Trainable]:
    return Plain


def fragile(experiment: Experiment, folder: Path) -> type[tune.Trainable]:
    slot: type[tune.Trainable] = tune.with_parameters(Plain, mark=str(folder / "died"))
    return slot


class Ear:
    def __init__(self) -> None:
        self.heard: list[Record] = []

    def on_event(self, record: Record) -> None:
        self.heard.append(record)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with connected(None, cpus=2, logs=tmp_path_factory.mktemp("logs")):
        yield


def cpus_free() -> float:
    """Free CPUs, once Ray has counted what it got back."""
    deadline = time.monotonic() + 10.0
    while ray.available_resources().get("CPU", 0.0) < 2.0 and time.monotonic() < deadline:  # type: ignore[no-untyped-call]
        time.sleep(0.1)
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def experiment(storage: Path, **changes: Any) -> Experiment:
    settings = {"name": "s", "space": "mine", "base": BASE, "trials": 10, "storage": str(storage), "startup_trials": 4}
    return Experiment(**(settings | changes))


def test_a_sweep_on_warm_slots_ends_with_every_trial_told_honestly(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ear = Ear()
    asked = experiment(tmp_path)
    result = sweep.run(asked, space=space, listener=ear, trainable=warm_slots)
    assert result.closed == "finished"
    assert len(result.trials) == 10
    states = {trial.id: trial.state for trial in result.trials}
    assert set(states.values()) <= {"COMPLETE", "PRUNED", "INFEASIBLE"}
    assert "PRUNED" in states.values()
    for trial in result.trials:
        config = TrialConfig.model_validate(trial.config)
        if config.optimizer.learning_rate > 5.0 and trial.state != "PRUNED":
            assert (trial.state, trial.reason) == ("INFEASIBLE", "diverged: loss/total is nan")
        elif trial.state == "COMPLETE":
            assert trial.epochs == 6
            assert trial.value == score(config, 6)
        else:
            assert trial.epochs < 6
            assert "is not among the best" in trial.reason
    # The listener saw what the journal holds, in its order.
    records = read(asked.folder)
    assert ear.heard == records
    assert isinstance(records[0], Opened)
    assert records[0].versions["optuna"] == "5.0.0"
    # Two slots: two worker processes served all trials.
    processes = (asked.folder / "trials" / "processes.txt").read_text().split()
    assert len(processes) == 10
    assert len(set(processes)) == 2
    assert cpus_free() == 2.0
    best = TrialConfig.model_validate_json(results.best_config_path(asked.folder).read_text())
    assert result.best_trial is not None
    assert best.optimizer.learning_rate == result.best_trial.params["rate"]
    # Ray and Tune say nothing on the terminal.
    told = capfd.readouterr()
    assert told.out == ""
    assert "tune" not in told.err.lower()


def test_a_trial_whose_slot_dies_goes_on_in_another_from_its_last_checkpoint(cluster: None, tmp_path: Path) -> None:
    asked = experiment(tmp_path, trials=3, stopping={"enabled": False})
    result = sweep.run(asked, space=space, trainable=fragile)
    assert [(trial.state, trial.epochs, trial.failures) for trial in result.trials] == [
        ("COMPLETE", 6, 0),
        ("COMPLETE", 6, 1),
        ("COMPLETE", 6, 0),
    ]
    starts = [
        (record.number, record.attempt, record.epoch) for record in read(asked.folder) if isinstance(record, Started)
    ]
    assert (1, 1, 2) in starts
    failure = next(record for record in read(asked.folder) if isinstance(record, Attempt))
    assert failure.reason.startswith("its slot was lost: ")
    assert cpus_free() == 2.0
    # More trials on top: nothing finished is run again.
    more = sweep.resume(asked.folder, space=space, trials=5, trainable=fragile)
    assert [trial.state for trial in more.trials] == ["COMPLETE"] * 5
    assert [trial.value for trial in more.trials[:3]] == [trial.value for trial in result.trials]
    assert [trial.attempts for trial in more.trials] == [1, 2, 1, 1, 1]
    with pytest.raises(RequestError, match="--trials must be at least 5, the number of trials asked so far, but is 4"):
        sweep.resume(asked.folder, space=space, trials=4)


def test_a_space_that_breaks_late_ends_the_sweep_with_its_own_error_and_frees_everything(
    cluster: None, tmp_path: Path
) -> None:
    calls = 0

    def late(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        nonlocal calls
        calls += 1
        if calls == PROBES + 3:
            raise KeyError("late")
        return space(trial, base)

    asked = experiment(tmp_path, trials=6, stopping={"enabled": False})
    with pytest.raises(sweep.SweepFailedError, match=r"space 'mine' raised KeyError for {}: 'late'; correct it"):
        sweep.run(asked, space=late, trainable=plain)
    left = results.read(asked.folder)
    assert (left.closed, len(left.trials)) == ("failed", 2)
    assert "KeyError" in left.detail
    assert cpus_free() == 2.0
    # Corrected, it goes on.
    result = sweep.resume(asked.folder, space=space, trainable=plain)
    assert [trial.state for trial in result.trials] == ["COMPLETE"] * 6


DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.pretune.test_sweep import Ear, experiment, space, plain, sweep

    class Slow(Ear):
        def on_event(self, record):
            print(record.kind, flush=True)
            if record.kind == "epoch":
                import time
                time.sleep(0.2)

    if __name__ == "__main__":
        asked = experiment(Path({storage!r}), trials=6)
        result = sweep.run(asked, space=space, listener=Slow(), cpus=2, trainable=plain)
        print("closed", result.closed, flush=True)
"""


def test_ctrl_c_and_then_resume_ends_with_the_asked_number_of_trials(cluster: None, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER.format(root=root, storage=str(tmp_path))))
    folder = tmp_path / "s"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        epochs = 0
        for line in driver.stdout:
            epochs += line == "epoch\n"
            if epochs == 7:
                break
        session = Path((folder / "logs" / "ray-session.txt").read_text())
        assert session.is_dir()
        driver.send_signal(signal.SIGINT)
        rest = driver.stdout.read()
        assert driver.wait(60) == 0
    assert "closed interrupted" in rest
    interrupted = results.read(folder)
    assert interrupted.closed == "interrupted"
    assert not interrupted.live
    running = [trial for trial in interrupted.trials if trial.state == "RUNNING"]
    assert running
    # Nothing is left of the cluster but its logs, which are in the sweep's folder.
    assert not session.exists()
    assert list((folder / "logs" / "ray").glob("raylet*"))

    result = sweep.resume(folder, space=space, trainable=plain)
    assert cpus_free() == 2.0
    assert (result.closed, len(result.trials)) == ("finished", 6)
    assert {trial.state for trial in result.trials} <= {"COMPLETE", "PRUNED", "INFEASIBLE"}
    records = read(folder)
    position = next(index for index, record in enumerate(records) if isinstance(record, Resumed))
    assert isinstance(records[position - 1], Closed)
    again = {record.number: record.epoch for record in records[position:] if isinstance(record, Started)}
    for trial in running:
        # From where it was, and to the same numbers as without the interruption.
        assert again[trial.id] == trial.epochs
        after = result.trials[trial.id]
        if after.state == "COMPLETE":
            assert after.value == score(TrialConfig.model_validate(after.config), 6)
    for trial in interrupted.trials:
        if trial.state not in ("RUNNING", "WAITING"):
            assert result.trials[trial.id] == trial
            assert trial.id not in again
