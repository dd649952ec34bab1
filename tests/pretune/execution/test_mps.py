"""NVIDIA's Multi-Process Service is started, asked and ended; a script stands in for NVIDIA's program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretune.execution import mps
from pretune.execution.mps import NotServedError, serving

PROGRAM = """#!/bin/sh
# As nvidia-cuda-mps-control: a daemon with -f, else commands for it on the standard input.
place=${CUDA_MPS_PIPE_DIRECTORY:-%(default)s}
if [ "$1" = -f ]; then
    [ "$FAKE_MPS" = refused ] && { echo "not allowed here" > "$CUDA_MPS_LOG_DIRECTORY/control.log"; exit 1; }
    [ "$FAKE_MPS" = stubborn ] && trap "" TERM
    echo $$ > "$place/daemon.pid"
    echo $$ >> %(begun)s
    while :; do sleep 0.05; done
fi
kill -0 "$(cat "$place/daemon.pid" 2>/dev/null)" 2>/dev/null || { echo "Cannot find a daemon" >&2; exit 1; }
while read -r command; do
    case $command in
        get_server_list) cat "$place/servers" 2>/dev/null ;;
        quit) case $FAKE_MPS in deaf | stubborn) ;; *) kill "$(cat "$place/daemon.pid")" ;; esac ;;
    esac
done
exit 0
"""

Daemons = Callable[[], list[int]]


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemons:
    """The program is on the path; gives the daemons that it has begun."""
    program, begun, default = tmp_path / "bin" / mps.CONTROL, tmp_path / "begun", tmp_path / "default"
    program.parent.mkdir()
    default.mkdir()
    begun.touch()
    program.write_text(PROGRAM % {"default": default, "begun": begun})
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mps, "GRACE", 2)
    return lambda: [int(line) for line in begun.read_text().split()]


def lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def goes(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


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
