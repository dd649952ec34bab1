"""Who watches a sweep while it runs: the live view on a console, and TensorBoard's files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import Any

from rich.console import Console
from rich.text import Text

from pretune.core.conductor import Listener
from pretune.core.experiment import Experiment
from pretune.core.records import Record
from pretune.display import live, tables, trackers
from pretune.display.tensorboard import SweepCurves
from pretune.display.trackers import Tracker

logger = logging.getLogger(__name__)


class _Listeners:
    """Tells several listeners, in order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def on_event(self, record: Record) -> None:
        for listener in self._listeners:
            listener.on_event(record)


@contextmanager
def watching(
    experiment: Experiment,
    console: Console | None,
    *,
    earlier: Sequence[Record] = (),
    log_to: Sequence[Tracker] = (),
    before_s: float = 0.0,
) -> Iterator[Listener]:
    """A listener for `sweep.run`, which draws on `console` (nothing is drawn without one), writes curves and tells
    `log_to`.

    `earlier` are the records of a sweep that goes on; `before_s` is what its command has taken so far.
    """
    since = time.time()
    curves = SweepCurves(tables.curves_folder(experiment.folder), metric=experiment.metric, since=since)
    view: Any = None
    if console is not None:
        view = live.view(live.Progress(experiment, since=since, before_s=before_s), console)
    logged = [trackers.Logged(one, experiment, partial(_complain, console), since=since) for one in log_to]
    listeners = _Listeners(*([] if view is None else [view]), curves, *logged)
    for record in earlier:
        listeners.on_event(record)
    with ExitStack() as stack:
        stack.enter_context(closing(curves))
        for one in logged:
            stack.enter_context(closing(one))
        with nullcontext() if view is None else view:
            yield listeners


def _complain(console: Console | None, message: str) -> None:
    if console is None:
        logger.warning(message)
    else:
        console.print(Text(f"note: {message}", style="yellow"), soft_wrap=True)
