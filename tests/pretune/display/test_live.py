"""The live view is drawn from a stream of journal records; the tests look at its key words, not at its layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pretune.core import within
from pretune.core.experiment import Experiment
from pretune.core.records import Asked, Attempt, Closed, Condemned, Ended, Epoch, Opened, Record, Resumed, Started
from pretune.display.live import LiveView, PlainLines, Progress, picture, view
from trainers.config import TrialConfig


class Clock:
    """Seconds that pass when we say so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def experiment(**changes: Any) -> Experiment:
    base = TrialConfig.model_validate({"objective": {"alignment": {}}, "epochs": 4})
    settings = {"name": "demo", "space": "kernels", "recipe": "sfrik_tiny", "base": base, "data": "digits", "trials": 6}
    return Experiment.model_validate({**settings, **changes})


def trial(number: int, accuracies: Sequence[float], *, end: str | None = None, reason: str = "") -> list[Record]:
    params = {"objective.mmd.kernel": "rbf", "objective.mmd.bandwidth": 0.31234, "objective.mmd.weight": 10.0 + number}
    records: list[Record] = [
        Asked(number=number, params=params, distributions={}, config={"epochs": 4}),
        Started(number=number, attempt=0, epoch=0),
    ]
    for epoch, accuracy in enumerate(accuracies, start=1):
        metrics = {"probe/linear": accuracy, "probe/linear_stderr": 0.0123, "time/images_per_s": 1200.0}
        records.append(Epoch(number=number, epoch=epoch, metrics=metrics))
    if end is not None:
        value = accuracies[-1] if accuracies else None
        records.append(Ended.model_validate({"number": number, "state": end, "value": value, "reason": reason}))
    return records


def drawn(progress: Progress, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(picture(progress))
    return console.export_text()


def fed(records: Sequence[Record], clock: Clock | None = None, **changes: Any) -> Progress:
    progress = Progress(experiment(**changes), clock=clock or Clock())
    for record in records:
        progress.apply(record)
    return progress


def test_the_picture_names_the_sweep_the_counts_the_best_and_each_running_trial() -> None:
    asked = experiment()
    text = drawn(
        fed(
            [
                Opened(experiment=asked),
                *trial(0, [0.5, 0.6, 0.7, 0.81], end="COMPLETE"),
                *trial(1, [0.4], end="PRUNED", reason="rung 0"),
                *trial(2, [0.61, 0.62]),
                *trial(3, []),
            ]
        )
    )
    assert "kernels from sfrik_tiny on digits, sweep demo" in text
    assert "2 of 6 done, 2 running, 1 stopped early" in text
    lines = text.splitlines()
    best = next(line for line in lines if line.lstrip().startswith("best 0"))
    assert "4 of 4" in best
    assert "0.810 ± 0.012" in best
    assert "kernel=rbf bandwidth=0.312 mmd.weight=10" in best
    second = next(line for line in lines if line.lstrip().startswith("2 "))
    assert "2 of 4" in second
    assert "0.620 ± 0.012" in second
    third = next(line for line in lines if line.lstrip().startswith("3 "))
    assert "0 of 4" in third
    assert "–" in third
    assert "1,200 img/s" in text


def test_a_trial_that_ended_whole_beats_a_better_one_that_still_runs() -> None:
    progress = fed([*trial(0, [0.5, 0.6, 0.6, 0.6], end="COMPLETE"), *trial(1, [0.9])])
    assert progress.best is not None
    assert progress.best.number == 0


def test_a_running_trial_shows_how_far_it_is_within_its_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "trials" / "0001"
    folder.mkdir(parents=True)
    records = [*trial(0, [0.5] * 4, end="COMPLETE"), *trial(1, [0.6, 0.62])]
    progress = fed(records, storage=str(tmp_path))
    assert "2 of 4 " in drawn(progress)
    (folder / within.FILE).write_text('{"epoch": 2, "step": 25, "steps": 10}')
    assert "2 of 4, 50 %" in drawn(progress)
    (folder / within.FILE).write_text('{"epoch": 1, "step": 15, "steps": 10}')
    assert "%" not in drawn(progress)


def test_the_pace_says_whether_running_trials_wait_for_their_loader() -> None:
    def epoch(number: int, epoch: int, share: float) -> Record:
        return Epoch(number=number, epoch=epoch, metrics={"time/images_per_s": 600.0, "time/wait_share": share})

    running = [*trial(0, []), *trial(1, [])]
    assert "limited" not in drawn(fed([*running, *trial(2, [0.5])])), "journals of other versions do not say"
    text = drawn(fed([*running, epoch(0, 1, 0.9), epoch(0, 2, 0.4), epoch(1, 1, 0.22)]))
    assert "1,200 img/s, loader-limited, waits 31 %, about" in text
    ended = Ended(number=0, state="COMPLETE", value=0.5)
    assert "compute-limited, waits 2 %" in drawn(fed([*running, epoch(0, 1, 0.9), epoch(1, 1, 0.02), ended]))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_picture_keeps_to_the_width_of_the_terminal(width: int) -> None:
    progress = fed([*trial(0, [0.5, 0.6, 0.7, 0.81], end="COMPLETE"), *trial(1, [0.4])])
    assert max(len(line.rstrip()) for line in drawn(progress, width).splitlines()) <= width


def test_time_left_follows_from_the_epochs_that_were_watched() -> None:
    clock = Clock()
    progress = Progress(experiment(trials=3), clock=clock)
    assert progress.remaining() is None
    clock.now = 100.0  # starting workers is not training
    for record in trial(0, [0.5, 0.6, 0.7, 0.8], end="COMPLETE"):
        if isinstance(record, Epoch):
            clock.now += 2.0
        progress.apply(record)
    # Two trials of four epochs are left, at two seconds each.
    assert progress.remaining() == pytest.approx(16.0)
    assert "about 16 s left" in drawn(progress)


def test_trials_to_come_are_expected_to_be_as_short_as_the_stopped_ones_were() -> None:
    clock = Clock()
    progress = Progress(experiment(trials=5), clock=clock)
    for number in range(4):
        for record in trial(number, [0.5], end="PRUNED"):
            clock.now += 1.0 if isinstance(record, Epoch) else 0.0
            progress.apply(record)
    assert progress.remaining() == pytest.approx(1.0)


def test_a_resumed_sweep_counts_what_was_done_before_but_not_as_running_or_as_speed() -> None:
    clock = Clock()
    old = [*trial(0, [0.5] * 4, end="COMPLETE"), *trial(1, [0.5, 0.6])]
    progress = Progress(experiment(), since=50.0, clock=clock)
    for record in old:
        progress.apply(record.model_copy(update={"time": 10.0}))
    progress.apply(Resumed(trials=3, time=60.0))
    assert progress.counts() == "1 of 3 done, 0 running, 0 stopped early"
    progress.apply(Started(number=1, attempt=1, epoch=2, time=61.0))
    clock.now = 5.0
    progress.apply(Epoch(number=1, epoch=3, metrics={}, time=62.0))
    clock.now = 10.0
    progress.apply(Epoch(number=1, epoch=4, metrics={}, time=63.0))
    assert progress.counts() == "1 of 3 done, 1 running, 0 stopped early"
    # Four epochs of trial 2 are left, at the five seconds between the two that were seen here.
    assert progress.remaining() == pytest.approx(20.0)


def test_plain_lines_tell_every_end_but_epochs_only_now_and_then() -> None:
    clock = Clock()
    console = Console(width=80, file=io.StringIO(), record=True)
    lines = PlainLines(Progress(experiment(trials=2), clock=clock), console, interval=5.0)
    records = [*trial(0, [0.5, 0.6, 0.7, 0.8], end="COMPLETE"), *trial(1, [0.3], end="PRUNED", reason="0.3 is low")]
    for record in records:
        clock.now += 2.0
        lines.on_event(record)
    lines.on_event(Closed(reason="finished"))
    text = console.export_text()
    assert text.count("trial 0 COMPLETE: probe/linear 0.800 ± 0.012") == 1
    assert "trial 1 PRUNED: probe/linear 0.300 ± 0.012 (0.3 is low)" in text
    assert 0 < text.count("epoch") < 4, "epochs every 2 s, lines every 5 s"
    assert "2 of 2 done, 0 running, 1 stopped early" in text
    assert all(line.count("trial ") <= 2 for line in text.splitlines())


def test_what_the_start_cost_is_told_once_and_in_parts() -> None:
    clock = Clock()
    console = Console(width=120, file=io.StringIO(), record=True)
    lines = PlainLines(Progress(experiment(), clock=clock, before_s=2.0), console, interval=0.0)
    clock.now = 7.0
    for record in (Opened(experiment=experiment(), versions={}, host={}), *trial(0, [])):
        lines.on_event(record)
    clock.now = 45.0
    spent = {"time/group_start_s": 20.0, "time/first_step_s": 9.0, "time/epoch_s": 3.0, "time/probe_s": 2.0}
    for epoch in (1, 2):
        lines.on_event(Epoch(number=0, epoch=epoch, metrics=spent))
    # The epoch began at 40 s, in workers that were up by then.
    told = "after about 51 s: checks 2 s, Ray 7 s, slots 13 s, workers 20 s, data, model and compilers 9 s"
    assert console.export_text().count(f"first optimizer step {told}") == 1


def test_a_failure_that_is_tried_again_is_told_at_once() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    lines = PlainLines(Progress(experiment(), clock=Clock()), console)
    for record in (*trial(0, [0.5]), Attempt(number=0, failures=1, reason="worker 1 was lost")):
        lines.on_event(record)
    lines.on_event(Started(number=0, attempt=1, epoch=1))
    assert "trial 0 failed (1): worker 1 was lost" in console.export_text()


def test_a_terminal_gets_the_picture_and_a_pipe_gets_lines() -> None:
    progress = Progress(experiment(), clock=Clock())
    assert isinstance(view(progress, Console(file=io.StringIO(), force_terminal=True)), LiveView)
    assert isinstance(view(progress, Console(file=io.StringIO(), force_terminal=False)), PlainLines)


def test_the_live_view_draws_while_records_arrive_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # on a dumb terminal it prints lines
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=True, width=80)
    with LiveView(Progress(experiment(), clock=Clock()), console) as live:
        for record in trial(0, [0.5, 0.6]):
            live.on_event(record)
        live._live.refresh()
        assert "0.600 ± 0.012" in buffer.getvalue()
    assert buffer.getvalue().rstrip().endswith("\x1b[2K") or "\x1b[2K" in buffer.getvalue()[-200:]


def test_infeasible_failed_and_reused_trials_are_counted_apart_from_those_stopped_early() -> None:
    records = [
        *trial(0, [0.5], end="PRUNED"),
        *trial(1, [], end="INFEASIBLE"),
        *trial(2, [0.4, 0.6], end="COMPLETE"),
        Asked(number=3, params={}, distributions={}, config={}),
        Ended(number=3, state="COMPLETE", value=0.6, reason="same config as trial 2, not run again", result_of=2),
        *trial(4, [], end="FAIL"),
    ]
    progress = fed([Opened(experiment=experiment()), *records])
    counts = progress.counts()
    assert "5 of 6 done, 0 running, 1 stopped early, 1 infeasible, 1 failed, 1 reused" in counts
    told = progress.event(Ended(number=3, state="COMPLETE", reason="same config as trial 2, not run again"))
    assert told is not None
    assert "not run again" in told[0]


def test_a_condemned_trial_that_lives_on_and_the_end_of_the_hours_are_told() -> None:
    progress = fed(trial(0, [0.5]))
    condemned = Condemned(number=0, epoch=1, rung=0, reason="0.5 is low")
    progress.apply(condemned)
    assert progress.event(condemned) == ("trial 0 would be stopped, but lives on for the audit: 0.5 is low", False)
    assert "1 running" in progress.counts()
    closed = Closed(reason="out_of_time", detail="no trial would finish in what is left of 1 h")
    assert progress.event(closed) == ("sweep out of time: no trial would finish in what is left of 1 h", True)
