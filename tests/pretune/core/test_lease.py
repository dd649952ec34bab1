"""Who may write a sweep's remote journal: taken when free or stale, with a rising number, and given back at the end."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path

import pytest

from pretune.core import lease
from pretune.core.errors import LeaseLostError, RequestError
from pretune.core.lease import STALE_S, Held, Lease
from tests.object_store import Faulty
from trainers import storage

NOW = 1_000_000.0


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/s/lease.json"


@pytest.fixture(autouse=True)
def _short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("WATCH_S", 0.1), ("LOOK_S", 0.01)):
        monkeypatch.setattr(lease, name, seconds)


def take(uri: str, *, at: float = NOW, above: int = 0) -> Held:
    return lease.take(uri, above=above, clock=lambda: at, settle_s=0.0)


def found(uri: str) -> Lease:
    there = lease.read(uri)
    assert there is not None
    return there


def test_a_free_lease_is_taken_with_a_number_above_every_segments(uri: str) -> None:
    assert lease.read(uri) is None
    held = take(uri, above=6)
    assert held.fence == 7
    assert (found(uri).fence, found(uri).heartbeat, found(uri).released) == (7, NOW, False)
    assert re.fullmatch(r"pid \d+ on \S+", found(uri).host)
    held.check()


@pytest.mark.parametrize("age", [0.0, STALE_S - 1.0, STALE_S])
def test_a_lease_whose_owner_lives_is_refused_with_who_and_how_long_to_wait(uri: str, age: float) -> None:
    take(uri)
    with pytest.raises(RequestError) as error:
        take(uri, at=NOW + age)
    assert f"is being run by another process ({found(uri).host}; heartbeat {age:.0f} s ago in {uri})" in str(
        error.value
    )
    assert f"or wait {STALE_S:.0f} s after it died" in str(error.value)


def test_a_stale_lease_is_taken_over_and_its_former_owner_finds_out(uri: str) -> None:
    old = take(uri)
    new = take(uri, at=NOW + STALE_S + 1.0)
    assert new.fence == old.fence + 1
    new.check()
    before = found(uri)
    for act in (old.check, old.beat):
        with pytest.raises(LeaseLostError) as error:
            act()
        assert (
            f"the lease {uri} must be ours, with fencing number 1, but is that of {before.host} with fencing number 2"
            in str(error.value)
        )
        assert "end it and run `pretune resume`" in str(error.value)
    assert found(uri) == before, "a heartbeat never overwrites another owner's lease"


DAY = 24 * 3600.0


@pytest.mark.parametrize("ahead", [DAY, -DAY])
def test_a_clock_that_is_a_day_wrong_blocks_no_lease(ahead: float, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever died left a heartbeat from the future, or from long ago."""
    take(uri, at=NOW + ahead)
    monkeypatch.setattr(lease, "STALE_S", 0.2)
    assert not lease.is_live(uri, clock=lambda: NOW)
    new = take(uri)
    assert (new.fence, found(uri).heartbeat) == (2, NOW)
    new.check()


@pytest.mark.parametrize("ahead", [DAY, -DAY])
def test_an_owner_that_lives_keeps_its_lease_whatever_its_clock_says(
    ahead: float, uri: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 10.0)
    held = lease.take(uri, above=0, clock=lambda: time.time() + ahead, settle_s=0.0)
    with lease.kept(held):
        with pytest.raises(RequestError, match=r"is being run by another process \(.*; heartbeat seen just now in"):
            lease.take(uri, above=0, settle_s=0.0)
        assert lease.is_live(uri) is (ahead > 0), "who only looks does not watch what is old by his clock"
        held.check()


def test_a_lease_that_is_given_back_while_it_is_watched_is_free_at_once(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 600.0)
    held = take(uri)
    timer = threading.Timer(0.05, lambda: held.beat(released=True))
    timer.start()
    assert take(uri, at=NOW + DAY).fence == 2
    timer.join()


def test_a_lease_that_was_given_back_is_free_at_once_and_its_number_is_not_used_again(uri: str) -> None:
    take(uri, above=3).beat(released=True)
    assert not lease.is_live(uri, clock=lambda: NOW)
    assert take(uri).fence == 5


def test_a_number_never_falls_even_where_the_segments_are_older(uri: str) -> None:
    take(uri, above=8).beat(released=True)
    assert take(uri, above=2).fence == 10


def test_a_lease_that_someone_removed_is_lost(uri: str) -> None:
    held = take(uri)
    storage.remove(uri)
    with pytest.raises(LeaseLostError, match="but is gone"):
        held.check()


@pytest.mark.parametrize(
    ("age", "released", "live"),
    [(0.0, False, True), (STALE_S, False, True), (STALE_S + 0.1, False, False), (0.0, True, False)],
)
def test_a_lease_is_live_while_its_owner_says_so(uri: str, age: float, released: bool, live: bool) -> None:
    assert not lease.is_live(uri)
    take(uri).beat(released=released)
    assert lease.is_live(uri, clock=lambda: NOW + age) is live


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner": "a"}', b'{"fence": "x"}'])
def test_a_file_that_is_no_lease_is_refused_and_left_alone(uri: str, content: bytes) -> None:
    storage.write(uri, content)
    with pytest.raises(RequestError, match=r"lease\.json must be a lease that pretune wrote, but is not; remove it if"):
        take(uri)
    assert storage.read(uri) == content


def test_of_two_that_take_a_lease_in_the_same_moment_one_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    second: list[Held] = []

    def meanwhile(seconds: float) -> None:
        monkeypatch.undo()
        storage.remove(uri)
        second.append(take(uri))

    monkeypatch.setattr("pretune.core.lease.time.sleep", meanwhile)
    with pytest.raises(RequestError, match="taken by another process in the same moment"):
        take(uri)
    second[0].check()


# ---- kept in the background ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)


def wait_for_a_beat(uri: str, *, after: float) -> None:
    deadline = time.monotonic() + 10.0
    while found(uri).heartbeat <= after:
        assert time.monotonic() < deadline, "no heartbeat"
        time.sleep(0.01)


def beating() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lease"]


def test_heartbeats_keep_a_lease_alive_and_its_end_gives_it_back(uri: str, quick: None) -> None:
    with lease.kept(lease.take(uri, above=4, settle_s=0.0)) as held:
        wait_for_a_beat(uri, after=found(uri).heartbeat)
        assert (held.fence, found(uri).fence) == (5, 5)
        assert beating()
    assert found(uri).released
    assert not lease.is_live(uri)
    assert not beating()


def test_a_lease_is_given_back_whatever_ends_the_sweep(uri: str, quick: None) -> None:
    with pytest.raises(KeyError, match="bug"), lease.kept(take(uri)):
        raise KeyError("bug")
    assert found(uri).released
    assert not beating()


def test_a_lease_that_is_lost_meanwhile_stays_the_other_drivers(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.5)  # the other one is there before the first
    caplog.set_level(logging.WARNING, logger="pretune.core.lease")
    with lease.kept(take(uri)) as held:
        other = take(uri, at=time.time() + 2 * STALE_S)
        theirs = found(uri)
        deadline = time.monotonic() + 10.0
        while beating() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not beating(), "whoever lost it beats no more"
        with pytest.raises(LeaseLostError):
            held.check()
    other.check()
    assert found(uri) == theirs
    assert "the lease was not released" in caplog.text


def test_a_storage_that_fails_for_a_while_costs_a_heartbeat_and_no_sweep(
    uri: str, quick: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, logger="pretune.core.lease")
    with lease.kept(lease.take(uri, above=0, settle_s=0.0)) as held:
        with monkeypatch.context() as broken:
            Faulty(broken, seed=0, failing=1.0)
            deadline = time.monotonic() + 10.0
            while "no heartbeat" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        wait_for_a_beat(uri, after=found(uri).heartbeat)
        held.check()
