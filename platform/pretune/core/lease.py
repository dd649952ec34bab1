"""Who runs a sweep on an object store: one small object with owner, heartbeat and fencing number.

Advisory: S3 itself can write an object on the condition that it is absent (`If-None-Match: *`), but pyarrow's file
systems, which all storage goes through, have no way to ask for it. So two drivers that take a lease within the same
moment are told apart only by reading it again after a pause. What makes a late writer harmless is the fencing number in
the names of its segments (journal_remote.py).

The clocks of two machines need not agree. A heartbeat from the last minute, by the clock of whoever looks, is believed.
Any other one, older or from the future, says nothing where a clock is wrong: the lease is watched, and is that of a
living owner if it changes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from pretune.core.errors import LeaseLostError, RequestError
from trainers import storage

logger = logging.getLogger(__name__)

FILE = "lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A lease without a heartbeat for so long is no longer believed to have an owner."""
WATCH_S = 2.5 * HEARTBEAT_S
"""A lease whose heartbeat is old by our clock is taken over once it was not changed for so long. Where its heartbeat is
from the future we know nothing of its age, and wait for `STALE_S`.
"""
LOOK_S = 1.0
"""How often a lease is looked at meanwhile."""
SETTLE_S = 1.0
"""Pause between writing a lease and reading it again."""


class Lease(BaseModel):
    """`heartbeat` is in Unix seconds. `released`: the owner left in order. A later version may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    owner: str
    host: str
    fence: int
    heartbeat: float
    released: bool = False


class Held:
    """A lease that this process holds."""

    def __init__(self, uri: str, lease: Lease, clock: Callable[[], float]) -> None:
        self._uri = uri
        self._lease = lease
        self._clock = clock

    @property
    def fence(self) -> int:
        return self._lease.fence

    def check(self, *, bound_s: float = storage.BOUND_S) -> None:
        """LeaseLostError where the lease is no longer ours."""
        found = read(self._uri, bound_s=bound_s)
        if found is None or found.owner != self._lease.owner:
            now = "gone" if found is None else f"that of {found.host} with fencing number {found.fence}"
            raise LeaseLostError(
                f"the lease {self._uri} must be ours, with fencing number {self.fence}, but is {now}: another driver "
                f"runs this sweep; leave it alone, or end it and run `pretune resume`"
            )

    def beat(self, *, released: bool = False, bound_s: float = storage.BOUND_S) -> None:
        """Says that the owner lives, or leaves. LeaseLostError, and nothing is written, where it is another owner's."""
        self.check(bound_s=bound_s)
        lease = self._lease.model_copy(update={"heartbeat": self._clock(), "released": released})
        storage.write(self._uri, lease.model_dump_json().encode(), bound_s=bound_s)


def read(uri: str, *, bound_s: float = storage.BOUND_S) -> Lease | None:
    """The lease, None where there is none. RequestError where it is not understood."""
    try:
        return Lease.model_validate_json(storage.read(uri, bound_s=bound_s))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RequestError(
            f"{uri} must be a lease that pretune wrote, but is not; remove it if no driver runs"
        ) from error


def is_live(uri: str, *, clock: Callable[[], float] = time.time) -> bool:
    """Whether a driver holds the lease and has said so lately. A heartbeat from the future is watched for a while; an
    old one is believed to be old, as whoever only looks does not wait.
    """
    lease = read(uri)
    if lease is None or lease.released:
        return False
    age_s = clock() - lease.heartbeat
    return age_s <= STALE_S and (age_s >= -STALE_S or _owned(uri, lease, watch_s=WATCH_S) is not None)


def take(uri: str, *, above: int, clock: Callable[[], float] = time.time, settle_s: float = SETTLE_S) -> Held:
    """Takes a lease that is free or stale, with a fencing number higher than `above` and than the former one's.

    RequestError where another driver holds it, or took it in the same moment.
    """
    before = read(uri)
    if before is not None and not before.released:
        age_s = clock() - before.heartbeat
        if abs(age_s) <= STALE_S:
            _refuse(uri, before, f"heartbeat {max(0.0, age_s):.0f} s ago")
        watch_s = WATCH_S if age_s > STALE_S else STALE_S
        logger.warning(
            "%s is watched for up to %.0f s: its owner (%s) may live, with a clock %s ours",
            uri,
            watch_s,
            before.host,
            "behind" if age_s > STALE_S else "ahead of",
        )
        found = _owned(uri, before, watch_s=watch_s)
        if found is not None:
            _refuse(uri, found, "heartbeat seen just now")
        before = read(uri) or before
    fence = max(above, 0 if before is None else before.fence) + 1
    host = f"pid {os.getpid()} on {os.uname().nodename}"
    lease = Lease(owner=uuid.uuid4().hex, host=host, fence=fence, heartbeat=clock())
    storage.write(uri, lease.model_dump_json().encode())
    time.sleep(settle_s)
    held = Held(uri, lease, clock)
    try:
        held.check()
    except LeaseLostError as error:
        raise RequestError(f"the sweep was taken by another process in the same moment: {error}") from error
    return held


def _owned(uri: str, lease: Lease, *, watch_s: float) -> Lease | None:
    """The lease as a living owner has changed it; None where it was released, removed, or stayed as it is for `watch_s`
    by a clock that nobody sets.
    """
    until = time.monotonic() + watch_s
    while time.monotonic() < until:
        time.sleep(min(LOOK_S, watch_s))
        found = read(uri)
        if found is None or found.released:
            return None
        if found != lease:
            return found
    return None


def _refuse(uri: str, lease: Lease, sign: str) -> NoReturn:
    raise RequestError(
        f"the sweep is being run by another process ({lease.host}; {sign} in {uri}); wait for it, end it, or wait "
        f"{STALE_S:.0f} s after it died"
    )


@contextmanager
def kept(held: Held) -> Iterator[Held]:
    """Heartbeats in the background, and the lease released at the end."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            try:
                held.beat(bound_s=HEARTBEAT_S)
            except LeaseLostError:
                return  # the next upload finds out and ends the sweep
            except OSError as error:
                logger.warning("no heartbeat: %s", error)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join(timeout=3 * HEARTBEAT_S)
        try:
            held.beat(released=True, bound_s=HEARTBEAT_S)
        except (OSError, RequestError) as error:
            logger.warning("the lease was not released, it goes stale in %.0f s: %s", STALE_S, error)
