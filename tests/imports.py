"""What a program has imported by its end, in a process of its own: users feel heavy imports before anything else."""

from __future__ import annotations

import ast
import subprocess
import sys


def imported(program: str, names: str) -> list[str]:
    """Those of `names`, modules told apart by spaces, that `program` has imported when it ends, directly or not."""
    ending = f"\nimport sys; print(sorted(set({names.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program + ending], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return found
