"""NVIDIA's Multi-Process Service is started, asked and ended; a script stands in for NVIDIA's program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretune.execution import mps
from pretune.execution.mps import NotServedError, serving
from tests.fake_mps import Daemons, goes, installed, lives


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemons:
    return installed(tmp_path, monkeypatch)


def test_a_daemon_serves_the_block_and_is_gone_after_it(daemons: Daemons) -> None:
    with serving():
        (pid,) = daemons()
        assert lives(pid)
        pipes = Path(os.environ[mps.PIPES])
        assert pipes.parent.stat().st_mode & 0o077 == 0, "nobody else reads it"
        assert not mps.used()
        (pipes / "servers").write_text("4711\n")
        assert mps.used()
    assert not lives(pid)
    assert not pipes.parent.exists()
    assert mps.PIPES not in os.environ


def test_it_is_gone_after_an_error(daemons: Daemons) -> None:
    with pytest.raises(KeyboardInterrupt), serving():
        raise KeyboardInterrupt
    assert not lives(daemons()[0])


@pytest.mark.parametrize("deaf", ["deaf", "stubborn"])
def test_one_that_does_not_heed_its_end_is_made_to(
    daemons: Daemons, deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MPS", deaf)
    with serving():
        pass
    assert goes(daemons()[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_goes_with_a_driver_that_is_killed(daemons: Daemons, number: signal.Signals) -> None:
    program = (
        "import time; from pretune.execution.mps import serving\nwith serving(): print(flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert driver.stdout is not None
    driver.stdout.readline()
    (pid,) = daemons()
    assert lives(pid)
    os.killpg(driver.pid, number)
    assert goes(pid)
    driver.wait()
    driver.stdout.close()


def test_one_that_was_there_is_left_alone(daemons: Daemons, tmp_path: Path) -> None:
    with subprocess.Popen([mps.CONTROL, "-f"], env={**os.environ, mps.PIPES: str(tmp_path / "default")}) as there:
        while not (tmp_path / "default" / "daemon.pid").exists():
            time.sleep(0.01)
        with pytest.raises(NotServedError, match="a service that was there before is used already"), serving():
            raise AssertionError
        assert daemons() == [there.pid]
        assert lives(there.pid)
        there.kill()


def test_where_it_may_not_be_started_its_own_words_say_why(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MPS", "refused")
    monkeypatch.setattr(mps, "START_S", 0.3)
    with pytest.raises(NotServedError, match="did not answer within 0 s: not allowed here"), serving():
        raise AssertionError
    assert mps.PIPES not in os.environ


def test_it_is_not_started_where_others_pipes_are_named(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mps.PIPES, "/tmp/nowhere")
    with pytest.raises(NotServedError, match="/tmp/nowhere, where no service answers"), serving():
        raise AssertionError
    assert daemons() == []


def test_a_machine_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotServedError, match="nvidia-cuda-mps-control is not installed"), serving():
        raise AssertionError
