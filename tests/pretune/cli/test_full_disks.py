"""A disk that is full, read-only or somebody else's: one message and the documented code, never a traceback."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import Result

from pretune.analysis import contract, finalize
from pretune.cli import kinds
from pretune.core import journal
from pretune.execution import launch, run_folder
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune, synthetic_sweep
from trainers.checkpoint import DiskFullError
from trainers.report import EpochReport, Outcome

NUMBERS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT]
ENDED = [
    *(("sweep kernels", number) for number in NUMBERS),
    ("ablate sfrik_tiny --factor objective.mmd.weight=1,2", errno.ENOSPC),
    ("resume known --trials 9", errno.EACCES),
]
"""What starts a sweep, and what a disk says."""


def refusing(number: int, name: str | None = "/there/file") -> Callable[..., Any]:
    def act(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), name)

    return act


def check(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None), "no other exception leaves"
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    for text in texts:
        assert text in result.stderr, result.stderr


# ---- known before anything runs: 2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        "train sfrik_tiny --out there/run",
        "train sfrik_tiny --out run --resume",
        "train sfrik_tiny",
        "sweep kernels --storage there",
        "sweep kernels",
        "ablate sfrik_tiny --factor objective.mmd.weight=1,2 --seeds 1",
        "resume known --trials 9 --accept-changes",
        "finalize known",
    ],
)
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_runs(
    typed: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    with run_folder.RunLog(here / "run", RECIPES["sfrik_tiny"](), resume=None):
        pass
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    before = sorted(here.rglob("*"))
    check(pretune(*typed.split()), 2, "that can be written to", "is not writable for this user")
    assert sorted(here.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("typed", ["train sfrik_tiny --out there/run", "sweep kernels --storage there/sweeps"])
def test_a_folder_without_permission_is_refused(typed: str, here: Path) -> None:
    (here / "there").mkdir(mode=0o500)
    check(pretune(*typed.split()), 2, f"{here}/there is not writable for this user")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_whose_folder_cannot_be_begun_is_refused_and_leaves_nothing(
    number: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "write_whole", refusing(number))
    check(pretune("train", "sfrik_tiny", "--out", "run"), 2, f"/there/file cannot be used ({os.strerror(number)}); ")
    assert not (here / "run").exists()


@pytest.mark.parametrize(("typed", "number"), ENDED)
def test_a_sweep_whose_journal_cannot_be_opened_is_refused(
    typed: str, number: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    monkeypatch.setattr(journal, "_lock", refusing(number))
    accept = ["--accept-changes"] if typed.startswith("resume") else []
    remedy = "make room" if number in (errno.ENOSPC, errno.EDQUOT) else "check path and permissions"
    check(pretune(*typed.split(), *accept), 2, "/there/file cannot be used (", remedy)


# ---- it comes while something runs: 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_that_a_disk_ends_says_so_and_how_it_goes_on(
    number: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run", refusing(number))
    check(
        pretune("train", "sfrik_tiny", "--out", "run"),
        1,
        f"/there/file cannot be used ({os.strerror(number)})",
        "go on with: pretune train run/config.json --out run --resume",
    )


def test_a_full_disk_says_what_a_checkpoint_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Outcome:
        raise DiskFullError(
            errno.ENOSPC, "the disk is full: a checkpoint in x needs 3.0 MB, 1.0 MB are free; make room"
        )

    monkeypatch.setattr(launch, "run", full)
    check(pretune("train", "sfrik_tiny", "--out", "run"), 1, "error: the disk is full: a checkpoint in x needs 3.0 MB")


def test_an_epoch_that_cannot_be_written_down_ends_the_run_and_the_earlier_ones_stay(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, report: Callable[[EpochReport], bool], **__: object) -> Outcome:
        report(EpochReport(epoch=1, metrics={"loss/total": 1.0}))
        monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC, None))
        report(EpochReport(epoch=2, metrics={"loss/total": 1.0}))
        raise AssertionError("it went on")

    monkeypatch.setattr(launch, "run", run)
    result = pretune("train", "sfrik_tiny", "--out", "run")
    check(result, 1, "run/metrics.jsonl cannot be used (No space left on device); make room, then try again")
    assert run_folder.read(here / "run")[0].epoch == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_could_not_be_written_is_not_tried_again_at_the_end(tmp_path: Path) -> None:
    log = run_folder.RunLog(tmp_path / "run", RECIPES["sfrik_tiny"](), resume=None)
    log._file.close()
    log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - closed by the log
    with pytest.raises(OSError, match="No space left") as error, log:
        log.add(EpochReport(epoch=1, metrics={}))
    assert error.value.filename == str(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.parametrize("number", NUMBERS)
def test_curves_that_cannot_be_written_end_a_run_in_words(
    number: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, report: Callable[[EpochReport], bool], **__: object) -> Outcome:
        report(EpochReport(epoch=1, metrics={"loss/total": 1.0}))
        raise AssertionError("it went on")

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr("pretune.display.tensorboard.EventFileWriter", refusing(number))
    check(pretune("train", "sfrik_tiny", "--out", "run"), 1, "/there/file cannot be used", "go on with: ")


@pytest.mark.parametrize(("typed", "number"), ENDED)
def test_a_sweep_that_a_disk_ends_says_so(typed: str, number: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    for name in ("run", "resume"):
        monkeypatch.setattr(f"pretune.sweep.{name}", refusing(number))
    accept = ["--accept-changes"] if typed.startswith("resume") else []
    check(pretune(*typed.split(), *accept), 1, "error: the sweep failed: /there/file cannot be used (")


def test_a_closing_screen_that_cannot_be_written_leaves_the_sweep_whole(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretune.core import results

    synthetic_sweep(here / "sweeps" / "s", closed="interrupted").rename(here / "sweeps" / "my sweep")
    done = results.read(here / "sweeps" / "my sweep")
    monkeypatch.setattr("pretune.sweep.run", lambda *_, **__: done)
    monkeypatch.setattr(kinds._Search, "write", refusing(errno.ENOSPC))
    result = pretune("sweep", "kernels")
    check(result, 1, "cannot be used (No space left on device)")
    assert re.search(r"the sweep is whole: pretune show '.*/my sweep'", result.stderr)


@pytest.mark.parametrize("number", NUMBERS)
def test_other_commands_end_in_words_too(number: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    monkeypatch.setattr(finalize, "check", lambda *_, **__: SimpleNamespace(candidates=("the best",)))
    monkeypatch.setattr(finalize, "run", refusing(number))
    check(pretune("finalize", "known"), 1, "/there/file cannot be used (")
    monkeypatch.setattr("pretune.analysis.replay.run", refusing(number))
    check(pretune("replay", "known", "0"), 1, "/there/file cannot be used (")
    monkeypatch.setattr(contract, "ask", lambda *_, **__: None)
    monkeypatch.setattr(contract, "run", refusing(number))
    check(pretune("check", "mmd"), 1, "/there/file cannot be used (")
    monkeypatch.setattr("pretune.request.inventory.collect", refusing(number))
    check(pretune("list"), 2, "/there/file cannot be used (")
    monkeypatch.setattr("pretune.core.results.sweeps", refusing(number))
    check(pretune("show"), 2, "/there/file cannot be used (")


@pytest.mark.parametrize("number", NUMBERS)
def test_data_that_cannot_be_written_are_refused(number: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.datasets.write_whole", refusing(number))
    check(pretune("data", "digits", "--out", "new"), 2, "/there/file: could not be read or written (")
    assert not (here / "new").exists()


def test_an_error_that_no_disk_has_made_keeps_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", refusing(errno.ECONNRESET))
    result = pretune("train", "sfrik_tiny", "--out", "run")
    assert isinstance(result.exception, ConnectionResetError)


def test_a_reader_that_has_gone_makes_no_request_wrong(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `pretune show | head -1`."""
    monkeypatch.setattr("pretune.core.results.sweeps", refusing(errno.EPIPE, None))
    result = pretune("show")
    assert "error" not in result.output
