"""What a page is told of a sweep that is followed agrees with what `pretune show` reads, however it came."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import following, gpus
from pretune.analysis.following import DRAWN, POINTS, STATES, Followed, thinned
from pretune.analysis.log_tail import READ_BYTES, last_lines
from pretune.analysis.watched import Folder, OneSweep, listing, remote
from pretune.core import journal_remote, lease, results
from pretune.core.journal import FILE, Journal
from pretune.core.records import (
    Asked,
    Closed,
    Condemned,
    Ended,
    Enqueued,
    Epoch,
    Extended,
    Opened,
    Resumed,
    Started,
    StopRequested,
)
from tests.toys import BASE, Executor, begin, branching, experiment, row, space
from trainers.report import Checkpoint

STORED = Path(__file__).parents[2] / "stored" / "sweeps"


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Page:
    """What a page knows, from all that it was told."""

    def __init__(self, followed: Followed) -> None:
        self.followed, self.mark = followed, ""
        self.rows: dict[int, list[Any]] = {}
        self.curves: dict[int, Any] = {}
        self.drawn: list[int] = []
        self.names: list[str] = []
        self.told = 0

    def look(self) -> None:
        self.followed.poll()
        told = self.followed.since_mark(self.mark)
        if told is None:
            return
        json.dumps(told, allow_nan=False)
        self.mark = self.followed.mark
        if told["reset"]:
            self.rows, self.curves, self.drawn = {}, {}, []
        self.names = told["names"]
        self.rows |= {row[0]: row for row in told["trials"]}
        self.curves |= told["curves"]
        self.drawn = self.drawn if told["drawn"] is None else told["drawn"]
        self.told += len(told["trials"])

    def agrees(self, folder: Path) -> None:
        found = results.read(folder)
        assert sorted(self.rows) == [trial.id for trial in found.trials]
        for trial in found.trials:
            row = self.rows[trial.id]
            state = STATES[row[1]]
            assert state == trial.state or (state, trial.state) == ("UNFINISHED", "RUNNING")
            assert row[2] == trial.epochs
            assert row[4] == (trial.last_metrics.get(found.metric) if trial.value is None else trial.value)
            assert row[9] == trial.reason
            params = dict(zip(self.names, row[10:], strict=False))
            assert {name: params[name] for name in trial.params} == trial.params
            assert trial.id not in self.drawn or self.curves[trial.id][0][-1:] == (
                [trial.epochs] if trial.epochs else []
            )
        counts = self.followed.summary()["counts"]
        assert sum(counts.values()) == len(found.trials)
        best = self.followed.summary()["best"]
        assert (None if best is None else best[0]) == found.best


@pytest.mark.parametrize("maximize", [True, False])
def test_what_was_told_bit_by_bit_is_what_show_reads(tmp_path: Path, maximize: bool) -> None:
    folder = tmp_path / "s"
    conductor = begin(folder, experiment(tmp_path, trials=12, maximize=maximize), branching)
    executor, followed = Executor(conductor, slots=3, seed=0), Followed(folder)
    often, once = Page(followed), Page(followed)
    executor.fill()
    while executor.running:
        executor.advance()
        often.look()
        running = {one["trial"]: one for one in followed.slots()["slots"]}
        assert sorted(running) == sorted(executor.running)
        assert sorted(one["slot"] for one in running.values()) == list(range(len(running))) or len(running) < 3
    often.agrees(folder)
    assert often.told > 12
    once.look()
    once.agrees(folder)
    assert once.told == 12
    assert once.rows == often.rows
    assert once.curves == often.curves
    conductor._journal.close()
    followed.close()


def test_a_page_is_told_what_limits_the_trials_that_run(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    followed = Followed(tmp_path / "s")
    handout = conductor.next()
    assert handout is not None
    conductor.started(handout.number)
    followed.poll()
    assert followed.summary()["limit"] is None, "no epoch has ended"
    conductor.reported(row(handout, 1, metrics={"time/wait_share": 0.31}))
    followed.poll()
    assert followed.summary()["limit"] == "loader-limited, waits 31 %"
    conductor._journal.close()
    followed.close()


@pytest.mark.parametrize("name", ["complete", "interrupted", "ablation"])
def test_sweeps_of_older_versions_are_shown(name: str) -> None:
    followed = Followed(STORED / name)
    page = Page(followed)
    page.look()
    page.agrees(STORED / name)
    assert followed.problem == ""
    assert followed.summary()["ablation"] == (name == "ablation")
    for number in page.rows:
        told = followed.trial(number)
        assert told is not None
        json.dumps(told, allow_nan=False)
        assert told["changes"] or told["refused"] or name == "ablation"
    assert followed.trial(len(page.rows)) is None
    assert followed.trial(-1) is None
    followed.close()


def test_what_runs_under_a_driver_that_is_gone_is_unfinished(tmp_path: Path) -> None:
    folder, config = tmp_path / "s", BASE.model_dump(mode="json")
    followed = Followed(folder)
    page = Page(followed)
    page.look()
    assert followed.status() == "waiting"
    with Journal(folder, new=True) as book:
        for record in (
            Opened(experiment=experiment(tmp_path)),
            Asked(number=0, params={}, distributions={}, config=config),
            Started(number=0, attempt=0, epoch=0),
            Epoch(number=0, epoch=1, metrics={"probe/linear": float("nan"), "loss/total": float("inf")}),
        ):
            book.append(record)
        followed._asked_live = float("-inf")
        page.look()
        assert (followed.status(), STATES[page.rows[0][1]]) == ("running", "RUNNING")
        assert page.rows[0][4] == "nan"
        told = followed.trial(0)
        assert told is not None
        assert told["metrics"] == {"probe/linear": "nan", "loss/total": "inf"}
    followed._asked_live = float("-inf")
    page.look()
    assert (followed.status(), STATES[page.rows[0][1]]) == ("killed", "UNFINISHED")
    assert followed.slots() == {"slots": [], "logs": []}
    with Journal(folder, new=False) as book:
        book.append(Resumed(trials=4))
        followed._asked_live = float("-inf")
        page.look()
        assert STATES[page.rows[0][1]] == "UNFINISHED", "nobody has taken it yet"
        book.append(Started(number=0, attempt=1, epoch=1))
        page.look()
        assert STATES[page.rows[0][1]] == "RUNNING"
        book.append(Epoch(number=0, epoch=2, metrics={"probe/linear": 0.5}))
        book.append(Ended(number=0, state="COMPLETE", value=0.5))
        book.append(Closed(reason="interrupted", detail="SIGTERM"))
    page.look()
    assert (followed.status(), followed.summary()["detail"]) == ("interrupted", "SIGTERM")
    shutil.rmtree(folder)
    page.look()
    assert followed.status() == "gone"
    assert followed.summary()["best"] == [0, 0.5, None]
    followed.close()


def test_a_driver_whose_lock_is_not_seen_lives_as_long_as_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path / "s", new=True) as book:
        book.append(Opened(experiment=experiment(tmp_path)))
        followed = Followed(tmp_path / "s", is_live=lambda: False)
        followed.poll()
        assert followed.status() == "killed"
        book.append(Asked(number=0, params={}, distributions={}, config=None))
        followed.poll()
        assert followed.status() == "running"
        monkeypatch.setattr(following, "WITHOUT_LOCK_S", 0.0)
        followed._asked_live = float("-inf")
        followed.poll()
        assert followed.status() == "killed"
    followed.close()


def test_a_trial_that_is_made_longer_loses_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    folder, config = tmp_path / "s", BASE.model_dump(mode="json")
    followed = Followed(folder)
    page = Page(followed)
    with Journal(folder, new=True) as book:
        book.append(Opened(experiment=experiment(tmp_path)))
        book.append(Asked(number=0, params={}, distributions={}, config=config))
        for epoch in range(1, 7):
            book.append(Epoch(number=0, epoch=epoch, metrics={"probe/linear": epoch / 10}))
        book.append(Ended(number=0, state="COMPLETE", value=0.6))
        page.look()
        assert page.curves[0][0] == [1, 2, 3, 4, 5, 6]
        kept = Checkpoint(path="/kept", sha256="x", epoch=4)
        book.append(Extended(number=0, config=config | {"epochs": 9}, checkpoint=kept))
        page.look()
    assert page.curves[0][0] == [1, 2, 3, 4]
    assert page.rows[0][2:4] == [4, 9]
    followed.close()


def test_what_people_ask_and_what_is_audited_is_told_of_trials_that_run(tmp_path: Path) -> None:
    made = experiment(tmp_path, trials=5)
    conductor = begin(tmp_path / "s", made, space)
    Executor(conductor, slots=3, seed=0).fill()
    followed = Followed(tmp_path / "s")
    followed.poll()
    mark = followed.mark
    config = BASE.completed().model_dump(mode="json")
    conductor.request(StopRequested(request="1", number=0, reason="no hope"))
    conductor.record(Condemned(number=1, epoch=1, rung=0, reason="weak"))
    conductor.request(Enqueued(request="2", config=config))
    followed.poll()
    told = followed.since_mark(mark)
    assert told is not None
    assert {row[0]: row[9] for row in told["trials"]} == {
        0: "is to end at its next report: no hope",
        1: "would be stopped, but lives on for the audit: weak",
    }
    assert (followed.summary()["enqueued"], followed.summary()["asked"]) == (1, 6)
    conductor.next()
    followed.poll()
    assert followed.trial(3)["row"][9] == "handed in"  # type: ignore[index]
    assert followed.summary()["enqueued"] == 0
    assert followed.problem == ""
    conductor.close("out_of_time")
    followed.poll()
    assert followed.status() == "finished, out of time"
    followed.close()


def test_of_many_trials_few_curves_are_drawn_and_few_of_them_change(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    followed = Followed(folder)
    page = Page(followed)
    sizes = []
    with Journal(folder, new=True) as book:
        book.append(Opened(experiment=experiment(tmp_path)))
        for number in range(900):
            book.append(Asked(number=number, params={}, distributions={}, config=None))
            book.append(Epoch(number=number, epoch=1, metrics={"probe/linear": number % 97}))
            book.append(Ended(number=number, state="COMPLETE", value=number % 97))
            if number % 100 == 99:
                before = set(page.drawn)
                page.look()
                assert len(page.drawn) <= DRAWN
                assert {trial.number for trial in followed.ranked()[:10]} <= set(page.drawn)
                sizes.append(len(before - set(page.drawn)))
    assert max(sizes) <= DRAWN
    assert all(page.curves[number] == [[1], [number % 97]] for number in page.drawn)
    followed.close()


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    xs, ys = thinned([(epoch, epoch / 2) for epoch in range(1, 1001)], POINTS)
    assert len(xs) <= POINTS
    assert (xs[-1], ys[-1]) == (1000, 500.0)
    assert len({after - before for before, after in itertools.pairwise(xs)}) == 1
    assert thinned([], POINTS) == [[], []]


def test_a_journal_that_is_corrupt_or_contradicts_itself_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    shutil.copytree(STORED / "complete", tmp_path / "s")
    followed = Followed(tmp_path / "s")
    followed.poll()
    before = followed.summary()
    path = tmp_path / "s" / FILE
    content = path.read_bytes()
    path.write_bytes(content[:-20] + b"x" + content[-19:])
    followed.poll()
    assert "is corrupt" in followed.problem
    assert followed.summary()["best"] == before["best"]
    assert followed.trial(0) is not None
    path.write_bytes(content)
    followed.poll()
    assert followed.problem == ""
    followed.close()
    fresh = Followed(tmp_path / "s")
    path.write_bytes(b"nonsense\n")
    fresh.poll()
    assert fresh.status() == "unreadable"
    fresh.close()


def test_a_folder_is_watched_as_sweeps_come_and_go(tmp_path: Path) -> None:
    watched = Folder(tmp_path / "sweeps")
    assert listing(watched)["sweeps"] == []
    shutil.copytree(STORED / "complete", tmp_path / "sweeps" / "one")
    watched._looked = float("-inf")
    assert [one["key"] for one in listing(watched)["sweeps"]] == ["one"]
    (tmp_path / "sweeps" / "one").rename(tmp_path / "sweeps" / "two")
    watched._looked = float("-inf")
    assert [one["key"] for one in listing(watched)["sweeps"]] == ["two"]
    for followed in watched.sweeps().values():
        followed.close()


def test_a_sweep_behind_a_uri_is_followed_and_its_working_copy_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lease.take, "__kwdefaults__", {**(lease.take.__kwdefaults__ or {}), "settle_s": 0.02})
    uri = f"file://{tmp_path}/bucket/s"
    with journal_remote.opened(tmp_path / "head" / "s", uri, new=True) as book:
        book.append(Opened(experiment=experiment(tmp_path).model_copy(update={"storage": f"file://{tmp_path}/bucket"})))
        book.append(Asked(number=0, params={"rate": 0.1}, distributions={}, config=BASE.model_dump(mode="json")))
        book.append(Started(number=0, attempt=0, epoch=0))
        with remote(uri) as watched:
            (followed,) = watched.sweeps().values()
            page = Page(followed)
            deadline = time.monotonic() + 20.0
            while followed.status() != "running" and time.monotonic() < deadline:  # a thread of its own brings it
                time.sleep(0.01)
                page.look()
            assert followed.status() == "running", followed.problem
            log = tmp_path / "sweeps" / "s" / "trials" / "0000" / "log.txt"
            log.parent.mkdir(parents=True)
            log.write_text("here\n")
            assert followed.slots()["slots"][0]["log"] == ["here"]
            told = followed.trial(0)
            assert told is not None
            assert told["replay"] == f"pretune replay {uri} 0"
            assert followed.summary()["name"] == "s"
            followed.close()
    assert not (tmp_path / "sweeps" / "s" / FILE).exists()


def test_the_problem_of_a_storage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with remote(f"file://{tmp_path}/file/s") as watched:
        watched._ended.set()
        watched._thread.join(10)
        (followed,) = watched.sweeps().values()
        assert listing(watched)["sweeps"][0]["status"] == "waiting"
        assert watched.place.startswith("file://")
        followed.close()


# ---- logs and GPUs ---------------------------------------------------------------------------------------------------


def test_the_last_lines_of_a_log_are_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert last_lines(path, 3) == []
    path.write_bytes(b"one\n\x1b[1;31mtwo\x1b[0m\r\n 10%|#\r 99%|###\nbad \xff\x00 byte\n\n\n")
    assert last_lines(path, 3) == ["two", " 99%|###", "bad \ufffd byte"]
    assert last_lines(path, 2) == [" 99%|###", "bad \ufffd byte"]
    path.write_text("x" * 3 * READ_BYTES + "\nlast")
    found = last_lines(path, 5)
    assert found == ["last"]
    path.write_text("y" * 3 * READ_BYTES)
    assert len(last_lines(path, 5)[0]) == 500
    os.mkfifo(tmp_path / "fifo")
    assert last_lines(tmp_path / "fifo", 3) == []
    assert last_lines(tmp_path, 3) == []


def _program(folder: Path, text: str) -> None:
    path = folder / gpus.PROGRAM
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_gpus_are_those_that_nvidias_program_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "is not installed" in gpus.look()["absent"]
    _program(tmp_path, "echo '0, NVIDIA H100, 97, 40960, 81559, 61'; echo '1, \"odd, name\", [N/A], 0, 81559, [N/A]'")
    first, second = gpus.look()["gpus"]
    assert first == {
        "index": "0",
        "name": "NVIDIA H100",
        "percent": 97.0,
        "used": 40960 * 2**20,
        "total": 81559 * 2**20,
        "celsius": 61.0,
    }
    assert (second["percent"], second["celsius"]) == (None, None)
    _program(tmp_path, "echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9")
    assert gpus.look()["absent"].endswith("could not talk to the driver.")
    monkeypatch.setattr(gpus, "TIMEOUT_S", 0.2)
    _program(tmp_path, "exec /bin/sleep 5")
    assert "does not answer" in gpus.look()["absent"]


def test_one_sweep_is_there_before_it_begins(tmp_path: Path) -> None:
    watched = OneSweep(tmp_path / "s")
    assert listing(watched)["sweeps"][0]["status"] == "waiting"
    assert watched.alone
