"""Log lines in a file, and logs that are packed."""

from __future__ import annotations

import logging
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pretune.core import results
from pretune.execution.logfile import LogFile, pack, pack_where_all_went_well
from tests.pretune.cli.command import synthetic_sweep


def test_lines_have_time_level_and_name(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log.txt")
    log = logging.Logger("one")
    log.addHandler(handler)
    assert not (tmp_path / "log.txt").exists()
    log.warning("all is well")
    handler.close()
    line = (tmp_path / "log.txt").read_text()
    assert line.endswith("WARNING one: all is well\n")
    assert line[:2] == "20"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_neither_raises_nor_prints(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile(Path("/dev/full"))
    log = logging.Logger("one")
    log.addHandler(handler)
    log.error("lost")
    handler.close()
    assert capsys.readouterr() == ("", "")


def logs(folder: Path, text: str) -> Path:
    (folder / "old").mkdir(parents=True)
    (folder / "raylet.out").write_text(text)
    (folder / "old" / "gcs.log").write_text(text * 1000)
    return folder


def test_logs_become_one_archive_beside_those_of_earlier_sessions(tmp_path: Path) -> None:
    for number, name in enumerate(("ray.tar.gz", "ray-2.tar.gz", "ray-3.tar.gz")):
        assert pack(logs(tmp_path / "ray", f"session {number}")) == tmp_path / name
        assert not (tmp_path / "ray").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ray-2.tar.gz", "ray-3.tar.gz", "ray.tar.gz"]
    with tarfile.open(tmp_path / "ray-2.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["ray", "ray/old", "ray/old/gcs.log", "ray/raylet.out"]
        member = archive.extractfile("ray/raylet.out")
        assert member is not None
        assert member.read() == b"session 1"
    assert (tmp_path / "ray.tar.gz").stat().st_size < 1000
    assert pack(tmp_path / "ray") is None, "there is nothing left"


def test_logs_that_cannot_be_packed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = logs(tmp_path / "ray", "text")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert pack(folder) is None
    assert (folder / "raylet.out").read_text() == "text"
    assert list(tmp_path.iterdir()) == [folder]


def test_ray_s_logs_are_packed_after_a_good_end_alone(tmp_path: Path) -> None:
    result = results.read(synthetic_sweep(tmp_path / "s"))
    ray, packed = logs(result.folder / "logs" / "ray", "text"), result.folder / "logs" / "ray.tar.gz"
    first, *others = result.trials
    for bad in (
        replace(result, closed="interrupted"),
        replace(result, closed="failed"),
        replace(result, closed=None),
        replace(result, trials=(replace(first, state="FAIL"), *others)),
        replace(result, trials=(replace(first, failures=1), *others)),
    ):
        pack_where_all_went_well(bad)
        assert ray.is_dir()
        assert not packed.exists()
    pack_where_all_went_well(replace(result, closed="exhausted"))
    assert packed.is_file()
    assert not ray.exists()
