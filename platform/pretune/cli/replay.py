"""`pretune replay`: one trial of a sweep again, against the journal."""

from __future__ import annotations

import shlex
from contextlib import suppress

from rich.text import Text

from pretune.cli import kinds
from pretune.cli.exits import checking, fail, interrupted, running
from pretune.cli.options import STORAGE, Storage, Sweep, Trial
from pretune.core.errors import RequestError
from pretune.display import screen
from trainers import scratch


def replay_command(
    sweep: Sweep,
    trial: Trial,
    storage: Storage = STORAGE,
) -> None:
    """Run one trial of a sweep again, without Ray, and compare its numbers with the journal's bit for bit."""
    console = screen.console()
    with checking():
        from pretune import sweep as sweeps
        from pretune.analysis import replay
        from pretune.core.history import History
        from pretune.core.journal import read
        from pretune.core.records import Opened, Resumed
        from pretune.display import replay as display
        from pretune.display import tables
        from pretune.execution import family
        from pretune.request import request

        result = request.read_sweep(sweep, storage, fresh=True)
        config = replay.trial_of(result, trial)
        request.open_data(config.data.path, expected_hash=config.data.manifest)
        records = read(result.folder)
        told = History(records).trials[trial].epochs
        began = [record for record in records if isinstance(record, Opened | Resumed)]
        changed: list[str] = []
        with suppress(RequestError):  # a space that is gone says nothing of the trial
            changed = sweeps.changes(began[-1], kinds.of(result.experiment).space(result.experiment), config)
    workers = result.experiment.workers_per_trial
    console.print(
        Text(f"trial {trial} of {result.name}, {max(told)} of {config.epochs} epochs, {workers} worker(s)"),
        soft_wrap=True,
    )
    with running(), scratch.folder() as folder, console.status("training"):
        try:
            compared, outcome = replay.run(config, told, folder, workers=workers)
        except KeyboardInterrupt as error:
            interrupted("interrupted; nothing was to be kept", error)
        except family.WorkerFailedError as error:
            fail(str(error))
    screen.show(console, display.table(compared, result.metric))
    different = next((one for one in compared if one.different), None)
    if different is not None:
        since = f" Since the sweep last ran these changed: {', '.join(changed)}." if changed else ""
        fail(
            f"DIFFERENT from epoch {different.epoch} on, first in {different.different[0]}; equal numbers need the "
            f"same type of CPU, the same versions and, on a GPU, deterministic=true.{since}"
        )
    if len(compared) < max(told):
        fail(f"the replay {outcome.state.replace('_', ' ')} after epoch {outcome.epochs}: {outcome.reason}")
    console.print(Text("EQUAL: every number of every epoch, bit for bit", style="bold green"))
    again = f"pretune show {shlex.quote(sweep)}"
    console.print(tables.commands({again: "the sweep"}), soft_wrap=True)
