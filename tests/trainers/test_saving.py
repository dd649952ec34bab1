"""Checkpoints that a thread writes: the state as it was when it was copied, whole or absent, told of once whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainers import test_train as harness
from trainers import checkpoint, saving
from trainers.checkpoint import DiskFullError
from trainers.evaluation import health, probe
from trainers.report import EpochReport
from trainers.saving import Saver

BOUND_S = 60.0
"""A test that waits longer has failed."""


def learning() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small network after one step: weights in channels last, two names of one tensor, counts, momenta."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm).to(memory_format=torch.channels_last)
    network.register_buffer("again", norm.running_mean)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    step(network, optimizer)
    return network, optimizer


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.randn(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()


def state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"config": {"views": [{"size": 3}]}, "model": network.state_dict(), "optimizer": optimizer.state_dict()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def held_until(go_on: Event, write: Callable[..., Any]) -> Callable[..., Any]:
    def held(*arguments: Any, **keywords: Any) -> Any:
        assert go_on.wait(BOUND_S)
        return write(*arguments, **keywords)

    return held


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_thread_writes_the_bytes_that_a_direct_write_does(tmp_path: Path) -> None:
    now = state(*learning())
    direct = checkpoint.save(tmp_path / "direct", now, epoch=1)
    with Saver(tmp_path / "thread") as saver:
        saver.begin(now, epoch=1)
        saved = saver.finish()
    assert saved is not None
    assert (saved.sha256, saved.epoch) == (direct.sha256, 1)
    assert Path(saved.path).read_bytes() == Path(direct.path).read_bytes()
    assert names(tmp_path / "thread") == ["epoch-0001.pt", "epoch-0001.pt.json"]


def test_what_the_run_does_meanwhile_is_not_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, optimizer = learning()
    direct = checkpoint.save(tmp_path / "direct", state(network, optimizer), epoch=1)
    go_on = Event()
    monkeypatch.setattr(torch, "save", held_until(go_on, torch.save))
    with Saver(tmp_path / "thread") as saver:
        saver.begin(state(network, optimizer), epoch=1)
        step(network, optimizer)
        go_on.set()
        saved = saver.finish()
    assert saved is not None
    assert saved.sha256 == direct.sha256
    assert not torch.equal(checkpoint.load(saved)["model"]["0.weight"], network.state_dict()["0.weight"])


def test_the_score_comes_after_the_bytes_and_stays_beside_them(tmp_path: Path) -> None:
    for place in (tmp_path / "folder", f"file://{tmp_path}/remote"):
        with Saver(place) as saver:
            saver.begin({"x": 1}, epoch=1)
            judged = saver.finish(0.75)
            saver.begin({"x": 2}, epoch=2)
            unjudged = saver.finish()
        assert judged is not None
        assert unjudged is not None
        assert (checkpoint.score(judged), checkpoint.score(unjudged)) == (0.75, None)
        assert checkpoint.find(judged.path) == judged


@pytest.mark.parametrize("remote", [False, True])
def test_a_checkpoint_that_is_not_finished_gets_no_name(tmp_path: Path, remote: bool) -> None:
    place = f"file://{tmp_path}" if remote else tmp_path
    with Saver(place) as saver:
        saver.begin({"x": 1}, epoch=1)
    assert names(tmp_path) == []


def test_one_from_within_an_epoch_is_whole_when_the_run_ends_or_begins_the_next(tmp_path: Path) -> None:
    with Saver(tmp_path) as saver:
        for at in (1, 2, 3):
            saver.begin({"x": at}, epoch=0, step=at)
            assert len(list(tmp_path.glob("*.pt"))) <= 2
    newest = checkpoint.newest_within(tmp_path, epoch=0)
    assert newest is not None
    assert checkpoint.load(newest)["x"] == 3
    assert names(tmp_path) == ["epoch-0000-step-0000003.pt", "epoch-0000-step-0000003.pt.json"]


# --- how writing fails ------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from trainers import checkpoint
from trainers.saving import Saver

folder, when = sys.argv[1:]
flush = os.fsync

def announce(handle):
    if os.readlink(f"/proc/self/fd/{handle}").endswith(".part"):
        print("writing", flush=True)
        sys.stdin.read()
    flush(handle)

with Saver(__import__("pathlib").Path(folder)) as saver:
    saver.begin({"x": 1}, epoch=1)
    saver.finish(0.5)
    os.fsync = announce
    saver.begin({"x": 2}, epoch=int(when))
    saver.finish()
"""


@pytest.mark.parametrize("epoch", [1, 2], ids=["over the former", "beside it"])
def test_a_kill_while_it_is_written_leaves_the_former_whole(tmp_path: Path, epoch: int) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(epoch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
    assert [name for name in names(tmp_path) if not name.endswith(".part")] == ["epoch-0001.pt", "epoch-0001.pt.json"]
    former = checkpoint.find(tmp_path / "epoch-0001.pt")
    assert checkpoint.load(former)["x"] == 1
    assert checkpoint.score(former) == 0.5
    checkpoint.save(tmp_path, {"x": 3}, epoch=epoch)
    assert not list(tmp_path.glob(".*.part"))


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_as_by_a_direct_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with Saver(tmp_path) as saver:
        saver.begin({"model": {"w": torch.zeros(1_000_000)}}, epoch=1)
        with pytest.raises(DiskFullError, match=r"a checkpoint in .* needs 4\.0 MB, .* are free"):
            saver.finish()
    assert names(tmp_path) == []


@pytest.mark.parametrize("changes", [{}, {"checkpoint_every_steps": 1}], ids=["at an epoch's end", "within an epoch"])
def test_a_full_disk_ends_the_run_before_the_epoch_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    recorder = harness.Recorder()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        harness.run(tmp_path, recorder, harness.config(**changes))
    assert recorder.reports == []
    assert not list(tmp_path.rglob("*epoch-*"))


def test_a_failure_that_nobody_waits_for_any_more_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with Saver(tmp_path) as saver:
        saver.begin({"x": 1}, epoch=0, step=1)
    assert "the run ends without its newest checkpoint: [Errno 28] the disk is full" in caplog.text


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_slow_disk_is_waited_for_beside_the_probe_and_before_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probing, told = Event(), []
    flush = os.fsync

    def slow(handle: int) -> None:
        assert probing.wait(BOUND_S), "the probe has to begin while the disk still writes"
        flush(handle)

    def judge(*_: Any, **__: Any) -> dict[str, float]:
        probing.set()
        return {"probe/linear": 0.5}

    def report(epoch_report: EpochReport) -> bool:
        probing.clear()
        assert epoch_report.checkpoint is not None
        checkpoint.load(epoch_report.checkpoint)
        told.append(checkpoint.score(epoch_report.checkpoint))
        return True

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(probe, "evaluate", judge)
    monkeypatch.setattr(health, "evaluate", lambda *_, **__: {})
    harness.run(tmp_path, report, harness.config())  # type: ignore[arg-type]
    assert told == [0.5] * 3


def test_steps_go_on_while_a_checkpoint_from_within_the_epoch_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, often = harness.Recorder(), harness.Recorder()
    harness.run(tmp_path / "straight", straight, harness.config())
    go_on = Event()
    monkeypatch.setattr(torch, "save", held_until(go_on, torch.save))

    def progress(epoch: int, done: int) -> None:
        if done == 2:  # that of the first step is being written
            go_on.set()

    harness.run(tmp_path / "often", often, harness.config(checkpoint_every_steps=1), progress=progress)
    assert harness.fingerprint(often.checkpoint) == harness.fingerprint(straight.checkpoint)


def test_a_run_that_goes_on_knows_how_good_its_checkpoints_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.3, 0.4, 0.5, 0.6])
    monkeypatch.setattr(probe, "evaluate", lambda *_, **__: {"probe/linear": next(scores)})
    begun = harness.Recorder(stop_at=2)
    harness.run(tmp_path, begun, harness.config(epochs=6))
    harness.run(tmp_path, harness.Recorder(), harness.config(epochs=6), resume=begun.checkpoint)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt")) == [
        "epoch-0002.pt",
        "epoch-0004.pt",  # the last before the decay
        "epoch-0006.pt",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_from_a_gpu_is_of_the_moment_it_was_asked_for() -> None:
    weights = torch.ones(1 << 24, device="cuda")
    copied, over = saving.on_host({"w": weights, "view": weights[:4]})
    weights.zero_()
    assert over is not None
    over.synchronize()
    assert copied["w"].is_pinned()
    assert bool(copied["w"].eq(1.0).all())
    assert copied["view"].untyped_storage().data_ptr() == copied["w"].untyped_storage().data_ptr()
