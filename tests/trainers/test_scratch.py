"""Temporary folders outlive a killed owner by one run at most, and nobody's else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainers import scratch

OWNER = """
import sys, time
from pathlib import Path
from trainers import scratch
with scratch.folder(place=Path(sys.argv[1])) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _path()})


def _path() -> str:
    return str(Path(scratch.__file__).parents[1])


def test_a_folder_is_private_and_goes_with_its_block(tmp_path: Path) -> None:
    with scratch.folder(place=tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_owner_left_goes_with_the_next_and_what_a_living_one_has_stays(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    assert owner.stdout is not None
    theirs = Path(owner.stdout.readline().strip())
    told: list[Path] = []
    with owner:
        with scratch.folder(place=tmp_path, before_removal=told.append):
            assert (theirs / "deep" / "file").is_file()
        owner.send_signal(signal.SIGKILL)
    with scratch.folder(place=tmp_path, before_removal=told.append) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert told == [theirs]


def test_a_folder_without_an_owners_lock_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / f"{scratch.PREFIX}mine"
    mine.mkdir()
    (mine / "results").write_text("x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / scratch.OWNER).touch()
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(elsewhere)
    made_when_killed = tmp_path / f"{scratch.PREFIX}empty"
    made_when_killed.mkdir()
    made_again = tmp_path / f"{scratch.PREFIX}again"
    (made_again / "ray" / "session").mkdir(parents=True)
    scratch.remove_orphans(tmp_path)
    assert (mine / "results").is_file()
    assert (elsewhere / scratch.OWNER).is_file()
    assert not made_when_killed.exists()
    assert not made_again.exists()
