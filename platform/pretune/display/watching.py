"""Who watches a sweep while it runs: the live view on a console, and TensorBoard's files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console

from pretune.core.conductor import Listener
from pretune.core.experiment import Experiment
from pretune.core.journal import Record
from pretune.display import live, tables
from pretune.display.tensorboard import SweepCurves


class _Listeners:
    """Tells several listeners, in order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def on_event(self, record: Record) -> None:
        for listener in self._listeners:
            listener.on_event(record)


@contextmanager
def watching(experiment: Experiment, console: Console | None, *, earlier: Sequence[Record] = ()) -> Iterator[Listener]:
    """A listener for `sweep.run`, which draws on `console` (nothing is drawn without one) and writes curves.

    `earlier` are the records of a sweep that goes on.
    """
    since = time.time()
    curves = SweepCurves(tables.curves_folder(experiment.folder), metric=experiment.metric, since=since)
    view: Any = None if console is None else live.view(live.Progress(experiment, since=since), console)
    listeners = _Listeners(curves) if view is None else _Listeners(view, curves)
    for record in earlier:
        listeners.on_event(record)
    try:
        with nullcontext() if view is None else view:
            yield listeners
    finally:
        curves.close()
