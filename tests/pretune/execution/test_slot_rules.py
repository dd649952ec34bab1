"""Who is blamed and what is retried, decided on scripted events: no Ray cluster, no processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pretune.execution.slot
from pretune.core.rows import Handout, Row
from pretune.execution.mailbox import Command, Event, Failed, Lost, Ready, Reported, Returned, Worker
from pretune.execution.processes import kill_process, process_started
from pretune.execution.slot import Slot, SlotSettings
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome

WORKERS = 2


class ScriptedGroup:
    """Stands in for `Group`: its events are given, and every command and replacement is kept in `said`."""

    def __init__(self, settings: SlotSettings, make_train: object = None) -> None:
        self.name = "slot-scripted"
        self.generation = 0
        self.workers: tuple[Worker, ...] = ()
        self.longest_silence_s = 0.0
        self.script: deque[Event | None] = deque()
        self.said: list[str] = []
        self.runs: list[int] = []
        self.resumes: list[int] = []
        self.deaf = False
        self.start_s: float | None = None
        self.dead: list[int] = []
        self.preempted = False

    def memory_bytes(self) -> int:
        return 700_000_000

    def ready(self) -> int:
        if not self.workers:
            self.restart()
        return self.generation

    def restart(self) -> Ready:
        self.generation += 1
        self.workers = tuple(Worker(rank, 1, 0.0, "here", None, "") for rank in range(WORKERS))
        self.start_s = 20.0
        return Ready(self.generation, self.workers)

    def take_start_s(self) -> float | None:
        start_s, self.start_s = self.start_s, None
        return start_s

    def send(self, command: Command) -> bool:
        if self.deaf:
            self.deaf = False
            return False
        if command.order:
            self.runs.append(command.order.run)
            self.resumes.append(command.order.resume.epoch if command.order.resume else 0)
        self.said.append(command.kind)
        return True

    def event(self) -> Event | None:
        event = self.script.popleft()
        if isinstance(event, Ready):
            self.restart()
        return event

    def replace(self, reason: str) -> None:
        self.workers = ()
        self.said.append("replace")

    def dead_ranks(self) -> list[int]:
        return self.dead

    def close(self) -> None: ...


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    slot = make_slot(tmp_path, monkeypatch)
    yield slot
    slot.cleanup()


def make_slot(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Slot:
    monkeypatch.setattr(pretune.execution.slot, "Group", ScriptedGroup)
    slot: Slot = Slot.__new__(Slot)
    slot.setup(trial(0), SlotSettings(sweep_folder=str(folder), workers=WORKERS, **{"max_failures": 1, **settings}))
    return slot


def trial(number: int) -> dict[str, Any]:
    config = TrialConfig.model_validate({"objective": {"alignment": {}}, "epochs": 3})
    return Handout(number, config.model_dump(mode="json"), {}, f"{number:04d}").to_config()


def group(slot: Slot) -> ScriptedGroup:
    scripted = slot._group
    assert isinstance(scripted, ScriptedGroup)
    return scripted


def report(epoch: int, run: int = 1, kept: bool = True) -> Reported:
    checkpoint = Checkpoint(path=f"/epoch-{epoch}", sha256="", epoch=epoch) if kept else None
    return Reported(1, run, EpochReport(epoch=epoch, metrics={"probe/linear": epoch / 10}, checkpoint=checkpoint))


def ends(state: Any, run: int = 1, reason: str = "") -> list[Event]:
    return [Returned(1, run, rank, Outcome(state=state, reason=reason, epochs=3)) for rank in range(WORKERS)]


def failed(run: int = 1) -> Failed:
    return Failed(1, run, 1, "KeyError: 'layer'", "Traceback ...")


def step(slot: Slot, *events: Event | None) -> Row:
    """The last row, once all events are taken in."""
    group(slot).script.extend(events)
    row = next_row(slot)
    while group(slot).script:
        assert not row.done
        row = next_row(slot)
    return row


def next_row(slot: Slot) -> Row:
    result = slot.step()
    return Row.from_result(result["number"], result)


def test_a_trial_is_over_when_all_ranks_have_said_so(slot: Slot) -> None:
    assert step(slot, report(1)).outcome == "running"
    row = step(slot, *ends("complete"))
    assert (row.done, row.outcome, row.epoch, row.metrics["probe/linear"]) == (True, "complete", 1, 0.1)
    assert group(slot).said == ["start", "continue"]


def test_epochs_that_a_retry_runs_again_are_not_reported_again(slot: Slot) -> None:
    step(slot, report(1))
    step(slot, report(2, kept=False))
    told = step(slot, failed())
    assert (told.epoch, told.failures, told.traceback) == (2, 1, "Traceback ...")
    assert "KeyError: 'layer'" in told.reason
    row = step(slot, report(2, run=2), report(3, run=2))
    assert group(slot).resumes == [0, 1]
    assert (row.epoch, row.failures, row.reason, row.traceback) == (3, 1, "", "")
    assert group(slot).said == ["start", "continue", "continue", "replace", "start", "continue"]
    assert step(slot, *ends("complete", run=2)).reason == "", "told once"


def test_what_is_given_up_names_what_was_raised_and_the_log_with_its_traceback(slot: Slot) -> None:
    row = step(slot, failed(), failed(run=2))
    log = Path(slot._settings.sweep_folder) / "trials" / "0000" / "log.txt"
    raised = f"rank 1 raised KeyError: 'layer'; its traceback is in {log}"
    assert (row.outcome, row.reason) == ("failed", f"failure 2, given up: {raised}")
    assert log.read_text().count("Traceback ...") == 2


BUG = "KeyError at mine.py:7 in forward"


def test_a_bug_before_the_first_step_is_not_tried_again(slot: Slot) -> None:
    row = step(slot, replace(failed(), bug=BUG, begun=False))
    assert (row.outcome, row.failures) == ("failed", 1)
    log = Path(slot._settings.sweep_folder) / "trials" / "0000" / "log.txt"
    assert row.reason == (f"rank 1 raised KeyError: 'layer', before its first step ({BUG}); its traceback is in {log}")
    assert "Traceback ..." in log.read_text()
    assert group(slot).runs == [1]


def test_a_bug_that_comes_a_second_time_at_the_same_place_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = make_slot(tmp_path, monkeypatch, max_failures=9)
    assert not step(slot, replace(failed(), bug=BUG)).done
    assert not step(slot, replace(failed(run=2), bug="KeyError at mine.py:9 in forward")).done, "another one"
    assert not step(slot, replace(failed(run=3), bug=BUG)).done
    row = step(slot, replace(failed(run=4), bug=BUG))
    assert (row.outcome, row.failures) == ("failed", 4)
    assert "a second time at the same place" in row.reason
    slot.cleanup()


def test_what_comes_from_outside_is_tried_again_however_alike(slot: Slot) -> None:
    assert not step(slot, replace(failed(), begun=False)).done
    group(slot).dead = [0]
    assert "rank 0 was lost" in step(slot, replace(failed(run=2), bug=BUG, begun=False)).reason


def test_a_trial_that_fails_too_often_is_failed_and_the_next_one_starts_clean(slot: Slot) -> None:
    row = step(slot, failed(), failed(run=2))
    assert (row.done, row.outcome, row.failures, row.epoch) == (True, "failed", 2, 0)
    slot.reset_config(trial(1))
    row = step(slot, report(1, run=3))
    assert (row.failures, row.group_starts) == (0, 3)


def test_a_lost_worker_is_named_as_the_cause_of_what_the_others_raised(slot: Slot) -> None:
    group(slot).dead = [0]
    assert "rank 0 was lost; rank 1 raised" in step(slot, failed()).reason


def test_a_group_that_restarts_under_a_trial_costs_it_one_failure(slot: Slot) -> None:
    step(slot, report(1))
    row = step(slot, Ready(2, ()), report(2, run=2))
    assert (row.failures, row.group_starts) == (1, 2)
    assert group(slot).resumes == [0, 1]


def test_a_group_that_was_lost_between_two_epochs_is_noticed_at_the_next(slot: Slot) -> None:
    step(slot, report(1))
    group(slot).deaf = True
    assert step(slot, report(2, run=2)).failures == 1


def test_a_group_that_was_lost_while_it_was_idle_costs_the_next_trial_nothing(slot: Slot) -> None:
    step(slot, *ends("complete"))
    slot.reset_config(trial(1))
    group(slot).deaf = True
    row = step(slot, report(1, run=3))
    assert (row.failures, row.group_starts) == (0, 2)


def test_a_stopped_trial_that_breaks_on_its_way_out_is_not_the_next_ones_failure(slot: Slot) -> None:
    step(slot, report(1))
    slot.reset_config(trial(1))
    row = step(slot, failed(run=1), report(1, run=3))
    assert (row.failures, row.group_starts) == (0, 2)
    assert group(slot).said == ["start", "stop", "start", "replace", "start"]


def test_what_an_older_run_still_says_is_void(slot: Slot) -> None:
    step(slot, report(1))
    slot.reset_config(trial(1))
    row = step(slot, report(2, run=1), *ends("stopped", run=1), report(1, run=2))
    assert (row.number, row.epoch, row.outcome) == (1, 1, "running")


def test_silence_beyond_the_bound_is_a_hang(slot: Slot) -> None:
    step(slot, report(1))
    group(slot).longest_silence_s = 599.0
    assert step(slot, None, report(2)).failures == 0
    group(slot).longest_silence_s = 601.0
    row = step(slot, None)
    assert row.failures == 1
    assert "hung" in row.reason
    assert "replace" in group(slot).said


def test_silence_of_a_group_whose_machine_was_taken_away_is_no_failure(slot: Slot) -> None:
    step(slot, report(1))
    group(slot).preempted, group(slot).longest_silence_s = True, 601.0
    assert step(slot, None, report(2, run=2)).failures == 1, "all its processes live: it hangs"
    group(slot).preempted, group(slot).longest_silence_s, group(slot).dead = True, 601.0, [1]
    row = step(slot, None, report(3, run=3))
    assert row.failures == 1
    assert row.reason.startswith("its machine was taken away: ")


def test_a_group_that_ray_train_gives_up_costs_its_trial_a_failure_and_no_wait(slot: Slot) -> None:
    step(slot, report(1))
    row = step(slot, Lost(1))
    assert (row.failures, row.reason) == (1, "failure 1, retried: a worker of group 1 was lost")
    step(slot, report(2, run=2))
    assert group(slot).resumes == [0, 1]


def test_out_of_memory_on_one_of_several_ranks_replaces_the_group_at_once(slot: Slot) -> None:
    row = step(slot, ends("out_of_memory", reason="20 GiB")[1])
    assert (row.outcome, row.failures) == ("out_of_memory", 0)
    assert "20 GiB" in row.reason
    assert group(slot).said == ["start", "replace"]


@pytest.mark.parametrize("state", ["diverged", "collapsed"])
def test_a_configurations_own_fault_is_no_failure(state: str, slot: Slot) -> None:
    row = step(slot, *ends(state, reason="loss/total"))
    assert (row.outcome, row.reason, row.failures) == (state, "loss/total", 0)
    assert "replace" not in group(slot).said


def test_ranks_that_disagree_are_a_failure(slot: Slot) -> None:
    row = step(slot, ends("complete")[0], ends("diverged")[1])
    assert row.failures == 1
    assert "complete, diverged" in row.reason


def test_the_group_is_replaced_after_so_many_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = make_slot(tmp_path, monkeypatch, recycle_after_trials=2)
    starts = []
    for number in range(5):
        slot.reset_config(trial(number))
        starts.append(step(slot, *ends("complete", run=number + 1)).group_starts)
    slot.cleanup()
    assert starts == [1, 1, 2, 2, 3]


def test_a_process_is_killed_only_if_it_still_is_the_one_that_was_meant() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = process_started(child.pid)
        assert started is not None
        assert not kill_process(child.pid, started - 1)
        assert child.poll() is None
        assert kill_process(child.pid, started)
        assert child.wait(10) == -9
        assert process_started(child.pid) is None
    assert process_started(os.getpid()) is not None


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"gpus_per_worker": 0.25, "workers": 2}, "NCCL refuses two ranks of one group on the same GPU"),
        ({"gpus_per_worker": 1.5}, "whole number or below 1"),
        ({"sweep_folder": "sweeps/mine"}, "absolute path"),
        ({"cpus_per_worker": 0}, "must ask for something"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_rule(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        SlotSettings.model_validate({"sweep_folder": "/sweeps/mine", **values})
    assert SlotSettings(sweep_folder="/sweeps/mine", gpus_per_worker=0.25).resources_per_worker == {
        "CPU": 1,
        "GPU": 0.25,
    }


def test_the_seconds_of_a_groups_start_are_told_once(slot: Slot) -> None:
    assert step(slot, report(1)).metrics["time/group_start_s"] == 20.0
    assert "time/group_start_s" not in step(slot, report(2)).metrics


def test_a_machine_that_is_taken_away_is_no_failure_and_the_trial_goes_on(slot: Slot) -> None:
    group(slot).preempted = True
    group(slot).script.extend([report(1), report(2), Ready(2, ()), report(3, run=2)])
    assert [next_row(slot).epoch for _ in range(2)] == [1, 2]
    row = next_row(slot)
    assert (row.epoch, row.failures) == (3, 0)
    assert row.reason == "its machine was taken away: a worker of group 1 was lost"
    assert group(slot).resumes == [0, 2]


def test_a_notice_that_comes_with_the_loss_is_heeded(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    step(slot, report(1))
    waiting = group(slot)
    answer = waiting.event

    def noticing() -> Event | None:
        waiting.preempted = True
        return answer()

    monkeypatch.setattr(waiting, "event", noticing)
    row = step(slot, Ready(2, ()), report(2, run=2))
    assert (row.epoch, row.failures) == (2, 0)


def test_what_others_notice_of_a_machine_that_is_taken_away_is_no_failure_either(slot: Slot) -> None:
    group(slot).preempted = True
    row = step(slot, failed(), report(1, run=2))
    assert (row.failures, row.epoch) == (0, 1)
    group(slot).preempted = True
    row = step(slot, replace(failed(run=2), bug=BUG, begun=True))
    assert row.failures == 1, "a bug is one, wherever it runs"


def test_a_full_disk_ends_the_row_and_not_the_trial(slot: Slot) -> None:
    failed = Failed(1, 1, 0, "DiskFullError: the disk is full: needs 4 MB", "Traceback …", disk_full=True)
    group(slot).script.extend([report(1), failed])
    assert next_row(slot).epoch == 1
    row = next_row(slot)
    assert (row.done, row.outcome, row.failures) == (True, "disk_full", 0)
    assert "needs 4 MB" in row.reason
