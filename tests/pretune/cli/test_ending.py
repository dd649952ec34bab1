"""How the process of a command ends: `pretune.cli.ending`. What signals do is in test_interruption.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, ctypes, sys
from pretune.cli.ending import leave

atexit.register(print, "what Python had to do")
{ray}
# As C++ does with what it takes down at the end of a process, while threads of Ray's still use it.
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)
print("said", end=" ")
leave({code})
"""


def _ended(code: object, ray: str = "sys.modules['ray'] = sys") -> tuple[int, str]:
    program = PROGRAM.format(ray=ray, code=repr(code))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("code", "expected"), [(143, 143), (2, 2), (0, 0), (None, 0)])
def test_a_process_with_ray_in_it_ends_with_its_own_code_whatever_cpp_would_do(code: int | None, expected: int) -> None:
    assert _ended(code) == (expected, "said what Python had to do\n")


def test_without_ray_a_process_ends_as_any_other_does() -> None:
    code, told = _ended(143, ray="")
    assert code < 0, "or the tests above prove nothing"
    assert told == "said what Python had to do\n"


def test_a_command_in_a_folder_that_is_gone_is_refused_in_words() -> None:
    program = """
import os, sys, tempfile
from pretune.__main__ import main
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
sys.argv = ["pretune", "list"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "the folder that this command is called in is gone" in done.stderr
    assert "Traceback" not in done.stderr
