"""What people ask of a sweep while it runs: end this trial, try that configuration next.

A running sweep's journal belongs to its driver alone. So a request is a file in the sweep's folder, which the driver
looks for now and then, takes, and writes into the journal before it acts: what is decided stays a function of the
journal. Each step is one rename or one removal, so that of a driver and an asker who change their mind in the same
moment one is first: `<id>.json` is asked and may be withdrawn, `<id>.taken` is the driver's, `<id>.refused` its answer
where it cannot be done. Where no driver runs, the asker opens the journal itself.

With a storage URI requests go by the working copy, on the machine on which the driver runs.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from pretune.core import journal, journal_remote, points
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.records import Enqueued, Opened, Resumed, StopRequested
from pretune.core.results import SweepResult
from pretune.core.upgrade import FORMAT
from trainers.files import write_whole

logger = logging.getLogger(__name__)

FOLDER = "requests"
LOOK_S = 0.5
"""How often a driver looks for requests at most."""
WAIT_S = 30.0
"""How long an asker waits for the driver; it is busy for so long only where a disk or a storage hangs."""
_TAKEN_S = 10.0
"""How long for the journal's line of a request that was taken."""
_POLL_S = 0.1

Request = StopRequested | Enqueued
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])


class UnansweredError(RuntimeError):
    """The driver did not look in time, and the request was withdrawn: nothing has changed."""


def new_id() -> str:
    """Ids sort by the time at which they were made."""
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"


class Inbox:
    """The driver's side. What is wrong with a request, or with the folder of them, is no concern of the sweep's."""

    def __init__(self, folder: Path, conductor: Conductor, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`folder` is the sweep's."""
        self._folder, self._conductor, self._clock = folder / FOLDER, conductor, clock
        self._next = clock()
        self._complained = False

    def look(self) -> None:
        """Takes in what was asked since the last look, in the order in which it was asked; at most every `LOOK_S`, and
        not once the sweep is finished: then its asker finds the journal free in a moment.

        OSError, where the journal cannot be written.
        """
        if self._clock() < self._next or self._conductor.finished:
            return
        self._next = self._clock() + LOOK_S
        for path in self._found():
            taken = path.with_suffix(".taken")
            text = self._take(path, taken)
            if text is not None:
                refusal = self._request(text)
                self._put_away(taken, refusal)

    def _found(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix in (".json", ".taken"))
        except FileNotFoundError:
            return []
        except OSError as error:
            self._complain(error)
            return []

    def _take(self, path: Path, taken: Path) -> str | None:
        try:
            os.replace(path, taken)  # of a driver that was killed in between it is taken already
            return taken.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # withdrawn
            return None
        except OSError as error:
            self._complain(error)
            return None

    def _request(self, text: str) -> str:
        """Why it cannot be done; empty where it is."""
        try:
            self._conductor.request(_REQUEST.validate_json(text))
        except ValidationError as error:
            return f"the driver does not understand the request: {error}"
        except RequestError as error:
            return str(error)
        return ""

    def _put_away(self, taken: Path, refusal: str) -> None:
        try:
            if refusal:
                write_whole(taken.with_suffix(".refused"), refusal)
            taken.unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            logger.warning("requests in %s are not all answered: %s", self._folder, error)
        self._complained = True


def hand_in(result: SweepResult, request: Request, *, wait_s: float = WAIT_S) -> bool:
    """Asks `request` of the sweep: of its driver where one runs, else it is written into the journal here. Whether
    there was a driver.

    Raises:
        RequestError: it cannot be done, or the sweep runs on another machine.
        UnansweredError: the driver did not look within `wait_s`.
    """
    if journal.is_locked(result.folder):
        if _ask_driver(result.folder, request, wait_s):
            return True
    elif result.live:
        raise RequestError(
            f"sweep {result.name!r} runs on another machine, and requests go by its working copy there: type the same "
            f"on the machine on which its driver runs"
        )
    with journal_remote.opened(result.folder, result.remote, new=False) as opened:
        sessions = [record for record in opened.records if isinstance(record, Opened | Resumed)]
        if not sessions:
            raise RequestError(f"the sweep in {result.folder} was never started; run its `pretune sweep` command again")
        if sessions[-1].format != FORMAT:
            raise RequestError(
                f"the journal of sweep {result.name!r} has format {sessions[-1].format}, an older one: `pretune "
                f"resume` brings it to today's; ask again while it runs, or afterwards"
            )
        # Nothing is proposed here.
        conductor = Conductor(opened, points.FixedPoints(result.experiment))
        conductor.request(request.model_copy(update={"no_driver": True}))
        if isinstance(request, StopRequested) and conductor.finished:
            conductor.close_finished()
    return False


def _ask_driver(folder: Path, request: Request, wait_s: float) -> bool:
    """Whether a driver has taken the request in; False where it has gone. Errors as of `hand_in`."""
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    asked = place / f"{request.request}.json"
    since = (folder / journal.FILE).stat().st_size
    write_whole(asked, request.model_dump_json())
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if _is_answered(folder, asked, request, since):
            return True
        if not journal.is_locked(folder):
            # A driver that has gone leaves what it had taken as well.
            asked.unlink(missing_ok=True)
            asked.with_suffix(".taken").unlink(missing_ok=True)
            return _is_answered(folder, asked, request, since)
        time.sleep(_POLL_S)
    with suppress(FileNotFoundError):
        asked.unlink()
        raise UnansweredError(
            f"the sweep's driver did not look for requests within {wait_s:.0f} s (is it stopped, or its disk full?); "
            f"the request was withdrawn and nothing has changed: try again"
        )
    until = time.monotonic() + _TAKEN_S
    while time.monotonic() < until:
        if _is_answered(folder, asked, request, since):
            return True
        time.sleep(_POLL_S)
    raise UnansweredError(
        "the sweep's driver has taken the request but has not written it down yet; look with `pretune show`"
    )


def _is_answered(folder: Path, asked: Path, request: Request, since: int) -> bool:
    """Whether the journal has the request's line, after its first `since` bytes. RequestError where it was refused."""
    refused = asked.with_suffix(".refused")
    with suppress(FileNotFoundError):
        why = refused.read_text(encoding="utf-8")
        refused.unlink(missing_ok=True)
        raise RequestError(why)
    with (folder / journal.FILE).open("rb") as file:
        file.seek(since)
        lines = file.read()
    return f'"request":"{request.request}"'.encode() in lines[: lines.rfind(b"\n") + 1]
