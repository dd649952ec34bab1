"""The notebook of the docs runs as a script, in an empty folder, and shows what its text says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent.parent / "docs" / "notebook.py"


@pytest.mark.ray
@pytest.mark.slow
def test_the_notebook_of_the_docs_runs_from_an_empty_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, NOTEBOOK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^<Sweep '\S+': finished, 2 of 2 trials, best trial \d with probe/linear 0\.\d+>$", done.stdout, re.M
    )
    assert len(re.findall(r"^\d +COMPLETE +2 ", done.stdout, re.M)) == 2, done.stdout
    assert re.search(r"^trial \d: probe/linear 0\.\d+$", done.stdout, re.M), done.stdout
    neighbors = re.search(r"of 200 digits, (\d+)% have a neighbor of their own class", done.stdout)
    assert neighbors is not None, done.stdout
    assert int(neighbors[1]) > 50
