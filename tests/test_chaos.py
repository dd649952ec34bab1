"""A quick part of `make chaos`: nine kills of a driver, and one of a node under a sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("part", "count"), [("points", 9), pytest.param("nodes", 1, marks=[pytest.mark.ray, pytest.mark.timeout(400)])]
)
def test_a_part_of_the_chaos_keeps_its_promises(part: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.chaos", part, "--count", str(count), "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as promised" in done.stdout
