"""`--log-to`: a sweep told to trackers, and no sweep that suffers from one."""

from __future__ import annotations

import builtins
import csv
import math
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.records import Asked, Ended, Epoch, Opened, Record, Started
from pretune.display import trackers
from pretune.display.trackers import Logged, Tracker
from tests.pretune.cli.command import pretune, synthetic_sweep
from tests.toys import experiment

CONFIG = {"seed": 1, "optimizer": {"learning_rate": 0.5}}


def first_session(made: Experiment) -> list[Record]:
    """One trial to its end, another up to its second epoch."""
    records: list[Record] = [Opened(experiment=made, time=100.0)]
    for number in (0, 1):
        records += [
            Asked(number=number, params={"rate": 0.5, "widths": [1, 2]}, distributions={}, config=CONFIG, time=101.0),
            Started(number=number, attempt=0, epoch=0, time=102.0),
        ]
        for epoch in (1, 2):
            metrics = {"probe/linear": 0.4 + 0.1 * epoch + number, "loss/total": math.nan}
            records.append(Epoch(number=number, epoch=epoch, metrics=metrics, time=102.0 + epoch))
    return [*records, Ended(number=0, state="PRUNED", reason="not among the best", time=110.0)]


def second_session() -> list[Record]:
    return [
        Started(number=1, attempt=1, epoch=2, time=202.0),
        Epoch(number=1, epoch=3, metrics={"probe/linear": 1.9}, time=203.0),
        Ended(number=1, state="COMPLETE", value=1.9, time=204.0),
        Asked(number=2, params={}, distributions={}, config=None, time=205.0),
        Ended(number=2, state="INFEASIBLE", reason="the space refused it", time=205.0),
    ]


def tell(made: Experiment, tracker: Tracker, records: Sequence[Record], *, since: float = 0.0) -> list[str]:
    complaints: list[str] = []
    listener = Logged(tracker, made, complaints.append, since=since)
    for record in records:
        listener.on_event(record)
    listener.close()
    return complaints


def both_sessions(made: Experiment, text: str) -> None:
    """As a driver, and another one that resumes, tell them."""
    [tracker] = trackers.checked([text])
    assert tell(made, tracker, first_session(made)) == []
    [again] = trackers.checked([text])
    assert tell(made, again, [*first_session(made), *second_session()], since=200.0) == []


def test_a_csv_has_a_line_for_each_number_and_is_appended_to_on_a_resume(tmp_path: Path) -> None:
    both_sessions(experiment(tmp_path), "csv")
    with (tmp_path / "s" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    curve = [(row["trial"], row["epoch"], row["value"]) for row in rows if row["name"] == "probe/linear"]
    assert curve == [
        ("0", "1", "0.5"),
        ("0", "2", "0.6000000000000001"),
        ("1", "1", "1.5"),
        ("1", "2", "1.6"),
        ("1", "3", "1.9"),
    ]
    assert [row["value"] for row in rows if row["name"] == "widths"] == ["[1, 2]", "[1, 2]"]
    ends = {row["trial"]: row["value"] for row in rows if row["kind"] == "end" and row["name"] == "state"}
    assert ends == {"0": "PRUNED", "1": "COMPLETE", "2": "INFEASIBLE"}
    assert not [row for row in rows if row["name"] == "loss/total"], "what is not finite is left out"


def test_mlflow_has_a_run_for_each_trial_that_goes_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    both_sessions(experiment(tmp_path), f"mlflow:{tmp_path}/store")
    client: Any = MlflowClient(tracking_uri=f"{tmp_path}/store")
    found = client.get_experiment_by_name("s")
    runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
    assert set(runs) == {"0000-trial", "0001-trial"}, "the third never ran"
    stopped, whole = runs["0000-trial"], runs["0001-trial"]
    assert (stopped.info.status, whole.info.status) == ("KILLED", "FINISHED")
    assert stopped.data.params == {"rate": "0.5", "widths": "[1, 2]"}
    assert stopped.data.tags["state"] == "PRUNED"
    assert stopped.data.tags["reason"] == "not among the best"
    curve = client.get_metric_history(whole.info.run_id, "probe/linear")
    assert [(point.step, point.value) for point in curve] == [(1, 1.5), (2, 1.6), (3, 1.9)]
    assert curve[0].timestamp == 103_000
    assert [file.path for file in client.list_artifacts(whole.info.run_id)] == ["config.json"]


def test_wandb_offline_has_a_run_for_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    made = experiment(tmp_path)
    made.folder.mkdir()
    [tracker] = trackers.checked(["wandb:mine"])
    assert tell(made, tracker, first_session(made)) == []
    runs = sorted((made.folder / "wandb").glob("offline-run-*-*"))
    assert [path.name[-4:] for path in runs] == ["0000", "0001"]
    assert len({path.name.rsplit("-", 2)[1] for path in runs}) == 1, "ids are the sweep's and the trial's"
    written = b"".join(path.read_bytes() for path in runs[0].glob("*.wandb"))
    assert b"probe/linear" in written
    assert b"not among the best" in written


class Broken:
    """Fails, or hangs, at its first epoch."""

    def __init__(self, *, hang: threading.Event | None = None) -> None:
        self.calls: list[str] = []
        self._hang = hang

    def begin(self, sweep: trackers.Sweep) -> None:
        self.calls.append("begin")

    def start(self, trial: int, params: Any, config: Any, *, again: bool) -> None:
        self.calls.append("start")

    def epoch(self, trial: int, epoch: int, metrics: Any, time_s: float) -> None:
        self.calls.append("epoch")
        if self._hang is not None:
            self._hang.wait(60.0)
        raise ConnectionError("no route to host")

    def end(self, trial: int, state: Any, reason: str, value: float | None) -> None:
        self.calls.append("end")

    def close(self) -> None:
        self.calls.append("close")


def test_a_tracker_that_fails_is_named_once_and_dropped(tmp_path: Path) -> None:
    made, broken = experiment(tmp_path), Broken()
    complaints = tell(made, broken, first_session(made))
    assert complaints == [
        "Broken is told nothing more, the sweep goes on without it: ConnectionError: no route to host"
    ]
    assert broken.calls[-1] == "epoch"
    assert broken.calls.count("epoch") == 1


def test_a_tracker_that_hangs_delays_no_event_and_the_end_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    released = threading.Event()
    began = time.monotonic()
    complaints = tell(experiment(tmp_path), Broken(hang=released), first_session(experiment(tmp_path)))
    assert time.monotonic() - began < 5.0
    assert complaints == ["Broken is told nothing more, the sweep goes on without it: it has not answered for 0 s"]
    released.set()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["tensorboard"], r"must be mlflow\[:URI\], wandb\[:PROJECT\] or csv\[:FILE\], but is 'tensorboard'"),
        (["csv", "csv"], "--log-to csv is given twice"),
        (["csv:there/is/none/../log.csv", "csv:."], "is a folder"),
        (["csv:mine.csv"], "is a file that is no such log"),
        (["mlflow:gopher://x"], "--log-to mlflow:gopher://x cannot be used"),
        (["wandb"], "needs a login"),
    ],
)
def test_a_wrong_request_is_refused(
    tmp_path: Path, texts: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match=said):
        trackers.checked(texts)
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(("kind", "package"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **named)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"pip install 'pretune\[trackers\]'"):
        trackers.checked([kind])


def test_a_command_refuses_before_anything_starts(here: Path) -> None:
    for arguments in (["sweep", "kernels"], ["ablate", "sfrik_tiny", "--factor", "objective.mmd.weight=1,2"]):
        result = pretune(*arguments, "--name", "new", "--log-to", "nothing")
        assert result.exit_code == 2, result.output
        assert "--log-to must be mlflow" in result.stderr
    assert not (here / "sweeps").exists()
    synthetic_sweep(here / "sweeps" / "known", closed="interrupted")
    result = pretune("resume", "known", "--trials", "5", "--accept-changes", "--log-to", "nothing")
    assert result.exit_code == 2
    assert "--log-to must be mlflow" in result.stderr
