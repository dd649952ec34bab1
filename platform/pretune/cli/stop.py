"""`pretune stop`: somebody ends a trial."""

from __future__ import annotations

import math
import shlex
from typing import Annotated

import typer

from pretune.cli.exits import checking, fail
from pretune.cli.options import STORAGE, Storage, Sweep, Trial
from pretune.display import screen


def stop_command(
    sweep: Sweep,
    trial: Trial,
    reason: Annotated[str, typer.Option("--reason", help="why; it is kept in the journal")] = "",
    storage: Storage = STORAGE,
) -> None:
    """End a trial of a sweep, whether the sweep runs or not; its checkpoint and its last value are kept."""
    with checking():
        from pretune.core import requests, results
        from pretune.core.records import StopRequested
        from pretune.request import request

        result = request.sweep_to_change(sweep, storage)
        wanted = StopRequested(request=requests.new_id(), number=trial, reason=" ".join(reason.split()))
        try:
            running = requests.hand_in(result, wanted)
        except requests.UnansweredError as error:
            fail(str(error))
        now = results.read(result.folder, remote=result.remote).trials[trial]
    if now.state in ("WAITING", "RUNNING"):
        left = (now.config or {}).get("epochs", math.inf) - now.epochs
        said = f"trial {trial} ends at its next report, after epoch {now.epochs + 1}"
        if left == 1:
            said += ", its last one, which makes it complete"
        elif left < 1:
            said = f"trial {trial} has trained all its epochs and is complete when the sweep goes on"
    else:
        said = f"trial {trial} has ended ({now.state}: {now.reason})"
    how = "written by the sweep's driver" if running else "written into its journal"
    console = screen.console()
    console.print(f"{said}; {how}: pretune show {shlex.quote(sweep)} {trial}", markup=False, soft_wrap=True)
