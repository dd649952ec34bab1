"""What came out of a sweep, read from its journal alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import FILE, Journal
from pretune.core.records import Asked, Attempt, Closed, Ended, Epoch, Opened, Record, Resumed, Started
from trainers.config import TrialConfig
from trainers.report import Checkpoint
from trainers.terms import Alignment

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=3)


def config(rate: float) -> dict[str, Any]:
    changed = BASE.model_copy(update={"optimizer": BASE.optimizer.model_copy(update={"learning_rate": rate})})
    return changed.model_dump(mode="json")


def asked(number: int, rate: float, **params: Any) -> Asked:
    return Asked(number=number, params={"rate": rate, **params}, distributions={}, config=config(rate))


def epoch(number: int, of: int, value: float, **changes: Any) -> Epoch:
    return Epoch(number=number, epoch=of, metrics={"probe/linear": value, "loss/total": 2.0}, **changes)


def write(folder: Path, *records: Record, **changes: Any) -> Journal:
    settings = {"name": folder.name, "space": "kernels", "base": BASE, "trials": 6, "storage": str(folder.parent)}
    journal = Journal(folder, new=True)
    journal.append(Opened(experiment=Experiment(**(settings | changes))))
    for record in records:
        journal.append(record)
    return journal


STORY: list[Record] = [
    asked(0, 0.1, kernel="rbf"),
    asked(1, 0.2),
    Started(number=0, attempt=0, epoch=0),
    epoch(0, 1, 0.9),
    Started(number=1, attempt=0, epoch=0),
    epoch(1, 1, 0.3),
    Ended(number=1, state="PRUNED", reason="weak", rung=0),
    epoch(0, 2, 0.7),
    epoch(0, 3, 0.8, checkpoint=Checkpoint(path="/c", sha256="h", epoch=3)),
    Ended(number=0, state="COMPLETE", value=0.8),
    asked(2, 0.4),
    Started(number=2, attempt=0, epoch=0),
    Ended(number=2, state="INFEASIBLE", reason="diverged: loss/total is nan"),
    asked(3, 0.5),
    Started(number=3, attempt=0, epoch=0),
    epoch(3, 1, 0.95),
    Attempt(number=3, failures=1, reason="node gone"),
    asked(4, 0.6),
]


def test_every_state_a_trial_can_be_in_is_told(tmp_path: Path) -> None:
    with write(tmp_path / "a", *STORY, Asked(number=5, params={}, distributions={}, config=None)) as journal:
        journal.append(Ended(number=5, state="FAIL", reason="gone"))
        result = results.read(tmp_path / "a")
        assert result.live
    states = [trial.state for trial in result.trials]
    assert states == ["COMPLETE", "PRUNED", "INFEASIBLE", "RUNNING", "WAITING", "FAIL"]
    assert [trial.epochs for trial in result.trials] == [3, 1, 0, 1, 0, 0]
    assert [trial.value for trial in result.trials] == [0.8, None, None, None, None, None]
    assert (result.trials[3].attempts, result.trials[3].failures) == (1, 1)
    assert result.trials[0].checkpoint == Checkpoint(path="/c", sha256="h", epoch=3)
    assert not results.read(tmp_path / "a").live


def test_the_best_is_the_best_complete_trial_not_one_that_was_stopped_or_runs(tmp_path: Path) -> None:
    write(tmp_path / "a", *STORY).close()
    result = results.read(tmp_path / "a")
    assert result.best == 0
    assert result.best_trial is not None
    assert result.best_trial.params == {"rate": 0.1, "kernel": "rbf"}


def test_of_two_equal_trials_the_earlier_is_the_best_and_a_loss_is_minimized(tmp_path: Path) -> None:
    ends = [Ended(number=number, state="COMPLETE", value=value) for number, value in enumerate([0.5, 0.9, 0.9, 0.2])]
    asks = [asked(number, 0.1) for number in range(4)]
    write(tmp_path / "up", *asks, *ends).close()
    write(tmp_path / "down", *asks, *ends, maximize=False).close()
    assert results.read(tmp_path / "up").best == 1
    assert results.read(tmp_path / "down").best == 3


def test_the_json_has_the_agreed_keys_and_nothing_of_times_or_machines(tmp_path: Path) -> None:
    write(tmp_path / "a", *STORY).close()
    told = results.read(tmp_path / "a").to_json()
    assert list(told) == ["name", "space", "metric", "best", "trials"]
    assert (told["name"], told["space"], told["metric"], told["best"]) == ("a", "kernels", "probe/linear", 0)
    assert told["trials"][1] == {
        "id": 1,
        "state": "PRUNED",
        "epochs": 1,
        "value": None,
        "params": {"rate": 0.2},
        "reason": "weak",
    }
    assert json.loads(json.dumps(told)) == told


def test_the_best_config_is_written_as_a_config_that_validates(tmp_path: Path) -> None:
    write(tmp_path / "a", *STORY).close()
    result = results.read(tmp_path / "a")
    path = results.write_best(result)
    assert path == results.best_config_path(tmp_path / "a")
    assert TrialConfig.model_validate_json(path.read_text()).optimizer.learning_rate == 0.1
    write(tmp_path / "b", asked(0, 0.1)).close()
    assert results.write_best(results.read(tmp_path / "b")) is None


def test_an_ablation_has_a_best_trial_but_no_winner(tmp_path: Path) -> None:
    write(tmp_path / "a", *STORY, points=({"seed": 0}, {"seed": 1})).close()
    result = results.read(tmp_path / "a")
    assert (result.best, result.winner) == (0, None)
    assert results.write_best(result) is None
    assert not results.best_config_path(tmp_path / "a").exists()
    write(tmp_path / "b", *STORY).close()
    assert results.read(tmp_path / "b").winner == result.best_trial


def test_the_table_has_the_best_first_and_a_column_for_each_parameter(tmp_path: Path) -> None:
    write(tmp_path / "a", *STORY).close()
    head, rows = results.read(tmp_path / "a").table()
    assert head == ["trial", "state", "epochs", "probe/linear", "rate", "kernel", "reason"]
    assert [row[0] for row in rows] == ["0", "3", "1", "2", "4"]
    assert rows[0] == ["0", "COMPLETE", "3", "0.8000", "0.1", "rbf", ""]
    assert rows[2][3] == "0.3000"


def test_how_the_last_driver_left_is_told(tmp_path: Path) -> None:
    with write(tmp_path / "a", *STORY) as journal:
        assert (results.read(tmp_path / "a").closed, results.read(tmp_path / "a").asked) == (None, 6)
        journal.append(Closed(reason="interrupted"))
        assert results.read(tmp_path / "a").closed == "interrupted"
        journal.append(Resumed(trials=9))
        assert (results.read(tmp_path / "a").closed, results.read(tmp_path / "a").asked) == (None, 9)


def test_sweeps_are_listed_newest_first_and_one_that_never_started_says_so(tmp_path: Path) -> None:
    for position, name in enumerate(["old", "new", "never"]):
        write(tmp_path / name, *STORY).close()
        os.utime(tmp_path / name / FILE, (position, position))
    (tmp_path / "never" / FILE).write_bytes(b"")
    (tmp_path / "other").mkdir()
    found, unreadable = results.sweeps(tmp_path)
    assert [sweep.name for sweep in found] == ["new", "old"]
    assert [one.name for one in unreadable] == ["never"]
    assert "never was never started: its driver ended before the first record; run" in unreadable[0].problem
    assert results.sweeps(tmp_path / "missing") == ([], [])
    with pytest.raises(RequestError, match="was never started"):
        results.read(tmp_path / "never")


def test_a_sweep_without_a_record_says_what_there_is_and_what_to_type(tmp_path: Path) -> None:
    with Journal(tmp_path / "n", new=True), pytest.raises(RequestError, match="n is just starting and has no record"):
        results.read(tmp_path / "n")
    (tmp_path / "n" / "logs").mkdir()
    with pytest.raises(RequestError, match=r"what it said is in .*/n/logs; run its `pretune sweep` .* with --name n$"):
        results.read(tmp_path / "n")
    write(tmp_path / "n", *STORY).close()
    assert results.read(tmp_path / "n").name == "n", "the same command begins it"


def test_a_journal_that_cannot_be_read_hides_no_other_sweep(tmp_path: Path) -> None:
    for name in ("flipped", "good", "contradicts", "folder", "text", "torn"):
        write(tmp_path / name, *STORY).close()
    content = (tmp_path / "flipped" / FILE).read_bytes()
    middle = len(content) // 2
    (tmp_path / "flipped" / FILE).write_bytes(content[:middle] + b"#" + content[middle + 1 :])
    with Journal(tmp_path / "contradicts", new=False) as journal:
        journal.append(Started(number=99, attempt=0, epoch=0))
    (tmp_path / "folder" / FILE).unlink()
    (tmp_path / "folder" / FILE).mkdir()
    (tmp_path / "text" / FILE).write_text("hello\n")
    (tmp_path / "torn" / FILE).write_text('{"crc32')
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / FILE).symlink_to("journal.jsonl")
    found, unreadable = results.sweeps(tmp_path)
    assert [sweep.name for sweep in found] == ["good"]
    problems = {one.name: one.problem for one in unreadable}
    assert set(problems) == {"flipped", "contradicts", "folder", "text", "torn"} | ({"link"} & set(problems))
    assert "is corrupt" in problems["flipped"]
    assert "is corrupt" in problems["text"]
    assert "trial 99, which was never asked" in problems["contradicts"]
    assert "cannot be read" in problems["folder"]
    assert "was never started" in problems["torn"]
