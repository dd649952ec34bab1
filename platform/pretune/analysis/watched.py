"""What `pretune watch` follows: one sweep, here or behind a URI, or all of a folder. Nothing in them is changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pretune.analysis.following import Followed
from pretune.core import journal
from pretune.core.errors import RequestError
from pretune.core.experiment import local_root
from pretune.core.journal_remote import Copy
from trainers import scratch, storage

DISCOVER_S = 2.0
"""How often it is looked for new sweeps in a folder."""
POLL_REMOTE_S = 3.0


class Watched(Protocol):
    """Sweeps by their names. `alone`: there is one, and there will be no other."""

    @property
    def alone(self) -> bool: ...

    @property
    def place(self) -> str:
        """Where they are, for who looks."""

    def sweeps(self) -> dict[str, Followed]:
        """Those that there are now; none of them has been polled."""

    def problem(self) -> str:
        """Why the place itself cannot be read; empty where it can."""


class OneSweep:
    """The sweep in `folder`, whether or not it is there yet."""

    alone = True

    def __init__(self, folder: Path) -> None:
        self._followed = Followed(folder)
        self.place = str(folder)

    def sweeps(self) -> dict[str, Followed]:
        return {self._followed.folder.name: self._followed}

    def problem(self) -> str:
        return ""


class Folder:
    """All sweeps right below `folder`, which may come and go."""

    alone = False

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)
        self._folder = folder
        self._found: dict[str, Followed] = {}
        self._looked = float("-inf")
        self._problem = ""

    def sweeps(self) -> dict[str, Followed]:
        now = time.monotonic()
        if now - self._looked >= DISCOVER_S:
            self._looked = now
            self._look()
        return self._found

    def problem(self) -> str:
        return self._problem

    def _look(self) -> None:
        names: set[str] = set()
        try:
            if self._folder.exists():
                names = {
                    path.name
                    for path in self._folder.iterdir()
                    if (path / journal.FILE).is_file() or (path / journal.LOCK).is_file()
                }
            self._problem = ""
        except OSError as error:
            self._problem = f"{self._folder} cannot be read ({error.strerror or error})"
            return
        for name in set(self._found) - names:
            self._found.pop(name).close()
        for name in names - set(self._found):
            self._found[name] = Followed(self._folder / name)


class Remote:
    """The sweep in a storage: its journal is copied to `folder` bit by bit, by a thread of its own."""

    alone = True

    def __init__(self, uri: str, folder: Path) -> None:
        self._copy = Copy(uri, folder)
        name = storage.name_of(uri)
        self.place = uri.partition("?")[0]  # what stands behind may be nobody's business
        self._name, self._problem, self._ended = name, "", threading.Event()
        self._followed = Followed(folder, remote=uri, logs=local_root(uri) / name, is_live=lambda: self._copy.live)
        self._thread = threading.Thread(target=self._update, name="remote journal", daemon=True)
        self._thread.start()

    def sweeps(self) -> dict[str, Followed]:
        return {self._name: self._followed}

    def problem(self) -> str:
        return self._problem

    def end(self) -> None:
        """Asks the storage no more."""
        self._ended.set()

    def _update(self) -> None:
        while not self._ended.is_set():
            try:
                self._copy.update()
                self._problem = ""
            except (OSError, RequestError) as error:
                self._problem = str(error)
            self._ended.wait(POLL_REMOTE_S)


@contextmanager
def remote(uri: str) -> Iterator[Remote]:
    """The sweep in `uri`, for the time of the block."""
    with scratch.folder() as folder:
        found = Remote(uri, folder)
        try:
            yield found
        finally:
            found.end()


def listing(watched: Watched) -> dict[str, Any]:
    """All sweeps as a whole, those with the newest records first."""
    found = []
    for name, followed in watched.sweeps().items():
        followed.poll()
        found.append((followed.newest, {**followed.summary(), "key": name}))
    found.sort(key=lambda one: (-one[0], one[1]["key"]))
    return {
        "alone": watched.alone,
        "place": watched.place,
        "problem": watched.problem(),
        "sweeps": [told for _, told in found],
    }
