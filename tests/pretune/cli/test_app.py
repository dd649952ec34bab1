"""The command line as a whole: what is not imported to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretune.cli.command import synthetic_sweep


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["sweep", "--help"], 0),
        (["list"], 0),
        (["show"], 0),
        (["show", "known"], 0),
        (["sweep", "kernels", "--data", "nowhere"], 2),
        (["sweep", "kernels", "--subset", "100000"], 2),
        (["train", "sfrik_tiny", "--set", "epoch=1"], 2),
        (["finalize", "known"], 2),
        (["resume", "known"], 2),
        (["show", "known", "0"], 0),
        (["stop", "known", "0"], 2),
        (["leaderboard"], 0),
    ],
)
def test_neither_ray_nor_torch_nor_ffcv_is_imported_to_answer(here: Path, arguments: list[str], code: int) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    program = (
        "import sys\n"
        "from pretune.__main__ import main\n"
        f"sys.argv = ['pretune', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "heavy = {'ray', 'torch', 'torchvision', 'ffcv', 'numba', 'tensorboard', 'sklearn'} & set(sys.modules)\n"
        "print('code', code, 'heavy', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"code {code} heavy []", done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [["list"], ["show"], ["show", "known"], ["finalize", "known"]])
def test_a_narrow_terminal_without_color_or_unicode_is_served(here: Path, arguments: list[str], encoding: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    plain = {"PYTHONIOENCODING": encoding, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "60"}
    command = [sys.executable, "-m", "pretune", *arguments]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **plain}, timeout=60)
    assert done.returncode in (0, 2)
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
