"""Losing the machine of a driver loses no decision; two drivers do not both decide."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretune.core import journal, journal_remote, lease
from pretune.core.errors import LeaseLostError, RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import FILE, Journal
from pretune.core.records import Asked, Opened, Record, Started
from tests.object_store import Faulty
from trainers import storage
from trainers.config import TrialConfig
from trainers.terms import Alignment

EXPERIMENT = Experiment(name="s", space="kernels", base=TrialConfig(objective={"alignment": Alignment()}))


def records(count: int) -> list[Record]:
    asked = [Asked(number=number, params={"w": number / 3}, distributions={}, config={}) for number in range(count)]
    return [Opened(experiment=EXPERIMENT), *asked]


@pytest.fixture(params=["file", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote/s" if request.param == "file" else str(request.getfixturevalue("bucket"))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.take, "__kwdefaults__", {**(lease.take.__kwdefaults__ or {}), "settle_s": 0.02})
    monkeypatch.setattr(lease, "WATCH_S", 0.02)
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(storage, "LONGEST_WAIT_S", 0.01)


def write(folder: Path, remote: str, count: int) -> bytes:
    with journal_remote.opened(folder, remote, new=True) as opened:
        for record in records(count):
            opened.append(record)
    return (folder / FILE).read_bytes()


def names(remote: str) -> list[str]:
    return storage.names(storage.join(remote, journal_remote.FOLDER))


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_lost_head_is_rebuilt_exactly_and_goes_on(remote: str, tmp_path: Path, kept: int) -> None:
    """Killed after each record: what is remote then is what was on the lost disk."""
    with journal_remote.opened(tmp_path / "head", remote, new=True) as opened:
        for record in records(kept):
            opened.append(record)
        on_disk = (tmp_path / "head" / FILE).read_bytes()
        assert journal_remote.read(remote) == on_disk
    shutil.rmtree(tmp_path / "head")
    assert journal_remote.fetch(remote, tmp_path / "other") == "remote"
    assert (tmp_path / "other" / FILE).read_bytes() == on_disk
    shutil.rmtree(tmp_path / "other")
    with journal_remote.opened(tmp_path / "other", remote, new=False) as opened:
        assert [record.kind for record in opened.records] == [record.kind for record in records(kept)]
        opened.append(Started(number=0, attempt=0, epoch=0))
    assert journal_remote.read(remote) == (tmp_path / "other" / FILE).read_bytes()
    assert [record.kind for record in journal.read(tmp_path / "other")][-1] == "started"
    assert journal_remote.fetch(remote, tmp_path / "other") == "equal"


def test_each_record_is_in_the_storage_before_append_returns(remote: str, tmp_path: Path) -> None:
    with journal_remote.opened(tmp_path, remote, new=True) as opened:
        for position, record in enumerate(records(3)):
            opened.append(record)
            assert len(names(remote)) == position + 1
            assert journal_remote.read(remote) == (tmp_path / FILE).read_bytes()


def test_the_disk_has_a_record_before_the_storage_is_asked(tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = []
    with Journal(tmp_path, new=True, publish=lambda line: sizes.append((len(line), path.stat().st_size))) as opened:
        path = opened.path
        for record in records(2):
            opened.append(record)
    lines = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    assert sizes == [(lines[0], lines[0]), (lines[1], sum(lines[:2])), (lines[2], sum(lines))]


def test_a_torn_last_segment_is_dropped_and_a_changed_one_is_named(remote: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "a", remote, 3)
    lines = whole.splitlines(keepends=True)
    last = storage.join(remote, journal_remote.FOLDER, names(remote)[-1])
    storage.write(last, lines[-1][:-7])
    assert journal_remote.read(remote) == b"".join(lines[:-1])
    storage.write(last, lines[-1].replace(b"asked", b"asket"))
    with pytest.raises(RequestError, match=r"00000001-00000003\.jsonl.* is corrupt"):
        journal_remote.read(remote)
    storage.write(last, lines[-1])
    second = storage.join(remote, journal_remote.FOLDER, names(remote)[1])
    storage.write(second, lines[1][:-7])
    with pytest.raises(RequestError, match=r"00000001-00000001\.jsonl.* is corrupt"):
        journal_remote.read(remote)
    storage.remove(second)
    with pytest.raises(RequestError, match=r"00000001-00000001\.jsonl.* is missing"):
        journal_remote.read(remote)


def test_the_longer_journal_wins_if_it_continues_the_other_and_nothing_is_overwritten_otherwise(
    remote: str, tmp_path: Path
) -> None:
    whole = write(tmp_path / "a", remote, 3)
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "a" / FILE
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-4])
    assert journal_remote.fetch(remote, tmp_path / "a") == "remote"
    assert path.read_bytes() == whole
    storage.remove(storage.join(remote, journal_remote.FOLDER, names(remote)[-1]))
    assert journal_remote.fetch(remote, tmp_path / "a") == "local"
    with journal_remote.opened(tmp_path / "a", remote, new=False):
        assert journal_remote.read(remote) == whole
    with Journal(tmp_path / "b", new=True, clock=lambda: 1.0) as other:
        for record in records(6):
            other.append(record)
    before = (tmp_path / "b" / FILE).read_bytes()
    with pytest.raises(RequestError, match=r"differ \(longer: local; 7 lines here, 4 there\)"):
        journal_remote.fetch(remote, tmp_path / "b")
    assert (tmp_path / "b" / FILE).read_bytes() == before


def test_a_second_driver_is_refused_while_the_first_one_lives(remote: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from pretune.core import journal_remote; from pretune.core.journal import Opened\n"
        "from tests.pretune.core.test_journal_remote import EXPERIMENT\n"
        f"with journal_remote.opened(Path({str(tmp_path / 'a')!r}), {remote!r}, new=True) as j:\n"
        "    j.append(Opened(experiment=EXPERIMENT)); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert lease.is_live(storage.join(remote, lease.FILE))
        with (
            pytest.raises(RequestError, match=f"being run by another process .pid {other.pid} on"),
            journal_remote.opened(tmp_path / "b", remote, new=False),
        ):
            pass
        other.communicate("")
    assert not lease.is_live(storage.join(remote, lease.FILE))
    with journal_remote.opened(tmp_path / "b", remote, new=False) as opened:
        assert len(opened.records) == 1


def test_a_stale_lease_is_taken_over_and_what_the_old_driver_writes_then_is_ignored(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal_remote.opened(tmp_path / "old", remote, new=True) as old:
        for record in records(2):
            old.append(record)
        now = time.time()
        monkeypatch.setattr(lease.take, "__kwdefaults__", {"clock": lambda: now + lease.STALE_S + 5, "settle_s": 0.02})
        with journal_remote.opened(tmp_path / "new", remote, new=False) as new:
            new.append(Started(number=1, attempt=0, epoch=0))
            truth = (tmp_path / "new" / FILE).read_bytes()
            with pytest.raises(LeaseLostError, match=r"with fencing number 1, but is that of .* number 2"):
                old.append(Started(number=0, attempt=0, epoch=0))
            assert names(remote)[3] == "00000001-00000003.jsonl"
            assert journal_remote.read(remote) == truth
            new.append(Started(number=0, attempt=0, epoch=0))
    assert journal_remote.read(remote) == (tmp_path / "new" / FILE).read_bytes()
    assert journal_remote.read(remote).startswith(truth)
    found = lease.read(storage.join(remote, lease.FILE))
    assert found is not None
    assert found.fence == 2


def test_a_flaky_storage_delays_a_sweep_and_changes_nothing(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faulty(monkeypatch, seed=11, failing=0.3, delay_s=0.003)
    whole = write(tmp_path / "a", remote, 12)
    assert journal_remote.read(remote) == whole
    assert faults.failures >= 10


def test_a_storage_that_stays_away_ends_the_sweep_and_the_next_driver_uploads_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = f"file://{tmp_path}/remote/s"
    monkeypatch.setattr(storage, "BOUND_S", 0.05)
    with journal_remote.opened(tmp_path / "a", remote, new=True) as opened:
        for record in records(1):
            opened.append(record)
        with monkeypatch.context() as broken:
            Faulty(broken, seed=0, failing=1.0)
            with pytest.raises(storage.StorageError, match=r"cannot write .*00000001-00000002\.jsonl"):
                opened.append(Started(number=0, attempt=0, epoch=0))
    assert len(journal_remote.read(remote).splitlines()) == 2
    with journal_remote.opened(tmp_path / "a", remote, new=False) as opened:
        assert [record.kind for record in opened.records] == ["opened", "asked", "started"]
    assert journal_remote.read(remote) == (tmp_path / "a" / FILE).read_bytes()


def test_a_name_that_is_taken_in_the_storage_is_refused_and_an_empty_one_not_resumed(
    remote: str, tmp_path: Path
) -> None:
    write(tmp_path / "a", remote, 1)
    with (
        pytest.raises(RequestError, match="choose another --name"),
        journal_remote.opened(tmp_path / "b", remote, new=True),
    ):
        pass
    with pytest.raises(RequestError, match="it has no journal"):
        journal_remote.fetch(storage.join(storage.parent_of(remote), "nothing"), tmp_path / "c")
