"""Files in a folder and in a bucket behave alike; a storage that fails is tried again, and then given up on clearly."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.object_store import Faulty
from trainers import checkpoint, storage


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/deep/er" if request.param == "file" else str(request.getfixturevalue("bucket"))


@pytest.fixture
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(storage, "LONGEST_WAIT_S", 0.01)


def test_what_is_written_is_read_listed_replaced_and_removed(place: str, tmp_path: Path) -> None:
    storage.check_usable(place)
    one = storage.join(place, "in", "one")
    assert storage.names(storage.join(place, "in")) == []
    assert not storage.exists(one)
    with pytest.raises(FileNotFoundError):
        storage.read(one)
    storage.write(one, b"first")
    storage.write(one, b"second")
    (tmp_path / "two").write_bytes(bytes(range(256)) * 50_000)
    storage.upload(tmp_path / "two", storage.join(place, "in", "two"))
    assert storage.read(one) == b"second"
    assert storage.read(storage.join(place, "in", "two")) == (tmp_path / "two").read_bytes()
    assert storage.names(storage.join(place, "in")) == ["one", "two"]
    assert storage.exists(one)
    storage.remove(one)
    storage.remove(one)
    assert storage.names(storage.join(place, "in")) == ["two"]


@pytest.mark.usefixtures("_short_waits")
def test_a_storage_that_fails_now_and_then_is_tried_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faulty(monkeypatch, seed=3, failing=0.4, delay_s=0.002)
    for number in range(20):
        storage.write(storage.join(place, str(number)), str(number).encode())
    assert [storage.read(storage.join(place, str(number))) for number in range(20)] == [b"%d" % n for n in range(20)]
    assert faults.failures >= 10


def test_the_waits_grow_and_the_last_error_is_told_once_the_bound_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    Faulty(monkeypatch, seed=0, failing=1.0)
    monkeypatch.setattr("trainers.storage.time.sleep", lambda s: sleep(s) if s else None)
    monkeypatch.setattr("trainers.storage.time.monotonic", lambda: now)
    with pytest.raises(storage.StorageError, match=r"cannot write file:.*/x: tried 6 time.* injected: "):
        storage.write(f"file://{tmp_path}/x", b"", bound_s=10.0)
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", "begins with s3://, gs://, file://"),
        ("s3:///x", "must name a bucket"),
        ("gs://", "must name a bucket"),
        ("file://x/y", "write file:///folder"),
    ],
)
def test_a_uri_of_the_wrong_form_is_refused_without_asking_anybody(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        storage.check_form(uri)


def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer_are_named(bucket: str) -> None:
    with pytest.raises(ValueError, match=r"must be writable.*NO_SUCH_BUCKET.*check the bucket's name"):
        storage.check_usable(bucket.replace("s3://bucket", "s3://nobody-has-this"))
    with pytest.raises(ValueError, match="must be writable"):
        storage.check_usable("s3://bucket/x?endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=us-east-1", bound_s=0.1)


def test_what_stands_behind_the_question_mark_stays_there() -> None:
    uri = storage.join("s3://b/p/?region=x", "trials", "0001")
    assert uri == "s3://b/p/trials/0001?region=x"
    assert (storage.name_of(uri), storage.parent_of(uri)) == ("0001", "s3://b/p/trials?region=x")


def test_pyarrow_is_not_imported_before_a_uri_is_used() -> None:
    program = (
        "import sys, trainers.storage, pretune.core.journal_remote, pretune.request; sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_checkpoints_in_a_storage_come_back_verified_and_only_the_newest_are_kept(place: str) -> None:
    folder = storage.join(place, "checkpoints")
    saved = [checkpoint.save(folder, {"model": torch.arange(5) + epoch}, epoch=epoch) for epoch in (1, 2, 3)]
    assert storage.names(folder)[:2] == ["epoch-0001.pt", "epoch-0001.pt.json"]
    assert torch.equal(checkpoint.load(saved[0])["model"], torch.arange(5) + 1)
    checkpoint.retain(folder, epoch=3)
    assert storage.names(folder) == [f"epoch-000{n}.pt{end}" for n in (2, 3) for end in ("", ".json")]
    with pytest.raises(ValueError, match=r"epoch-0001\.pt.* is missing"):
        checkpoint.load(saved[0])
    storage.write(saved[1].path, b"other bytes")
    with pytest.raises(ValueError, match=r"epoch-0002\.pt.* must have sha256"):
        checkpoint.load(saved[1])


@pytest.mark.usefixtures("_short_waits")
def test_a_checkpoints_manifest_is_written_after_its_data(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = storage._put

    def put(uri: str, content: bytes | Path) -> None:
        real(uri, content)
        written.append(storage.name_of(uri))

    monkeypatch.setattr(storage, "_put", put)
    Faulty(monkeypatch, seed=5, failing=0.3)
    saved = checkpoint.save(place, {"model": torch.ones(3)}, epoch=7)
    assert written == ["epoch-0007.pt", "epoch-0007.pt.json"]
    assert torch.equal(checkpoint.load(saved)["model"], torch.ones(3))


def test_a_full_disk_or_quota_is_told_from_other_errors() -> None:
    assert storage.is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert storage.is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not storage.is_full(OSError(errno.EACCES, "Permission denied"))
    assert not storage.is_full(ValueError("full"))
