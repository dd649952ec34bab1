"""The command line as a whole: what is not imported to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.pretune.cli.command import synthetic_sweep

ANSWERED = {
    "--help": 0,
    "sweep --help": 0,
    "list": 0,
    "show": 0,
    "show known": 0,
    "sweep kernels --data nowhere": 2,
    "sweep kernels --subset 100000": 2,
    "train sfrik_tiny --set epoch=1": 2,
    "finalize known": 2,
    "resume known": 2,
    "show known 0": 0,
    "stop known 0": 2,
    "leaderboard": 0,
}
"""Commands, one after another, and the codes that they end with."""


def program(commands: Iterable[str], then: str) -> str:
    """Types these commands one after another and does `then` after each, of which it knows `typed` and its `code`."""
    return (
        "import sys\n"
        "from pretune.__main__ import main\n"
        f"for typed in {[*commands]!r}:\n"
        "    sys.argv = ['pretune', *typed.split()]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        code = end.code or 0\n"
        f"    {then}\n"
    )


def test_neither_ray_nor_torch_nor_ffcv_is_imported_to_answer(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    heavy = "{'ray', 'torch', 'torchvision', 'ffcv', 'numba', 'tensorboard', 'sklearn'} & set(sys.modules)"
    command = [sys.executable, "-c", program(ANSWERED, f"print('answered', typed, code, *sorted({heavy}), sep=',')")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answers = [line.removeprefix("answered,") for line in done.stdout.splitlines() if line.startswith("answered,")]
    assert answers == [f"{typed},{code}" for typed, code in ANSWERED.items()], done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_narrow_terminal_without_color_or_unicode_is_served(here: Path, encoding: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    plain = {"PYTHONIOENCODING": encoding, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "60"}
    commands = ("list", "show", "show known", "finalize known")
    command = [sys.executable, "-c", program(commands, "assert code in (0, 2), (typed, code)")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **plain}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
