"""Whole sweeps on a local Ray cluster: warm slots, a slot that dies, SIGTERM and resume; all CPUs free afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
import pytest
import ray

from pretune import sweep
from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.journal import read
from pretune.core.records import Attempt, Closed, Opened, Resumed, Started
from pretune.core.search import PROBES
from pretune.execution.cluster import connected
from tests.chaos import clusters
from tests.toys import Ear, experiment, fragile, plain, score, space, warm_slots
from trainers.config import TrialConfig

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


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
    files = asked.folder.glob("trials/*/processes.rank-0.txt")
    processes = [pid for file in files for pid in file.read_text().split()]
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
    with pytest.raises(
        sweep.SweepFailedError, match=r"raised KeyError in line \d+ of .*test_sweep\.py .* for {}: 'late'; corr"
    ):
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
    from pretune import sweep
    from tests.toys import Ear, experiment, plain, space

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


def listening(session: Path) -> dict[str, set[str]]:
    """By command, the addresses on which processes of the Ray session in this folder and their children listen."""
    children = {int(pid) for pid in clusters.processes_with(str(session))}
    found: dict[str, set[str]] = {}
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if children & {one.pid, *(parent.pid for parent in one.parents())}:
                for connection in one.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.setdefault(one.name(), set()).add(connection.laddr.ip)
    return found


def test_sigterm_to_the_process_group_and_then_resume_ends_with_the_asked_number_of_trials(
    cluster: None, tmp_path: Path
) -> None:
    root = str(Path(__file__).parents[2])
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER.format(root=root, storage=str(tmp_path))))
    folder = tmp_path / "s"
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        assert driver.stdout is not None
        epochs = 0
        for line in driver.stdout:
            epochs += line == "epoch\n"
            if epochs == 7:
                break
        session = clusters.session_of(folder)
        assert session is not None
        assert session.stat().st_mode & 0o777 == 0o700
        sockets = listening(session)
        assert {"gcs_server", "raylet"} <= set(sockets)
        assert {address.removeprefix("::ffff:") for found in sockets.values() for address in found} == {"127.0.0.1"}
        os.killpg(driver.pid, signal.SIGTERM)
        rest = driver.stdout.read()
        assert driver.wait(60) == 0
    assert "closed interrupted" in rest
    interrupted = results.read(folder)
    assert (interrupted.closed, interrupted.detail) == ("interrupted", "SIGTERM")
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
