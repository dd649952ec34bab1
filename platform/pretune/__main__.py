"""`python -m pretune`, and what the command `pretune` calls."""

from __future__ import annotations

import gc
import io
import sys
from pathlib import Path

from pretune.cli.app import app
from pretune.cli.ending import leave
from pretune.cli.exits import interrupted_code, print_error
from pretune.execution.interruption import Interruption

COLLECTED_AFTER = 50_000
"""New objects, before garbage is looked for. What a command reads is kept to its end: to look through all of it every
700 objects, as Python does by itself, takes a tenth of `show` and of a decision at 10,000 trials.
"""


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    gc.set_threshold(COLLECTED_AFTER)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ± must not end a sweep
    interruption = Interruption()
    try:
        with interruption.caught():
            _check_folder()  # before anything is looked for there
            app(prog_name="pretune")
    except SystemExit as end:
        leave(end.code if interruption.received is None else interrupted_code(interruption.received))


def _check_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        print_error("the folder that this command is called in is gone; change to one that is there")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
