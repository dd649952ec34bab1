from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pretune.execution.logfile import LogFile


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
