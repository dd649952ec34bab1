"""The journal survives what a crash can do to it, and notices what a crash cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import FILE, Journal, is_locked, read
from pretune.core.place import Place
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Record, Started
from trainers.config import TrialConfig
from trainers.report import Checkpoint
from trainers.terms import Alignment

EXPERIMENT = Experiment(name="s", space="kernels", base=TrialConfig(objective={"alignment": Alignment()}))
RECORDS: list[Record] = [
    Opened(experiment=EXPERIMENT, versions={"ray": "2.60.0"}, host={"node": "here"}),
    Asked(number=0, params={"width": 0.1 + 0.2}, distributions={"width": "{}"}, config={"epochs": 3}),
    Started(number=0, attempt=0, epoch=0),
    Epoch(
        number=0,
        epoch=1,
        metrics={"probe/linear": 1 / 3, "loss/total": float("nan"), "loss/mmd": float("inf")},
        checkpoint=Checkpoint(path="/x", sha256="y", epoch=1),
    ),
    Ended(number=0, state="PRUNED", reason="weak – stopped\nearly", rung=0),
    Closed(reason="finished"),
]


def write(folder: Path) -> Path:
    with Journal(folder, new=True, clock=lambda: 12.5) as journal:
        for record in RECORDS:
            journal.append(record)
    return folder / FILE


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    write(tmp_path)
    here = Opened.model_validate(RECORDS[0]).model_copy(update={"experiment": EXPERIMENT.at(Place(tmp_path))})
    stamped = [record.model_copy(update={"time": 12.5}) for record in [here, *RECORDS[1:]]]
    assert [repr(record) for record in read(tmp_path)] == [repr(record) for record in stamped]


def test_each_line_is_a_json_object_with_checksum_and_record(tmp_path: Path) -> None:
    lines = write(tmp_path).read_text().splitlines()
    assert [json.loads(line)["record"]["kind"] for line in lines] == [record.kind for record in RECORDS]
    assert all(len(json.loads(line)["crc32"]) == 8 for line in lines)


def test_a_record_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def sync(handle: int) -> None:
        synced.append(journal.path.stat().st_size)
        real(handle)

    with Journal(tmp_path, new=True) as journal:
        monkeypatch.setattr(os, "fsync", sync)
        for record in RECORDS:
            journal.append(record)
            assert synced[-1] == journal.path.stat().st_size
            assert len(read(tmp_path)) == len(synced)


def test_a_line_torn_anywhere_is_dropped_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "whole")
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(content)):
        torn = tmp_path / f"torn-{end}"
        torn.mkdir()
        (torn / FILE).write_bytes(content[:end])
        assert len(read(torn)) == len(RECORDS) - 1
        with Journal(torn, new=False) as journal:
            assert journal.dropped_bytes == end - start
            assert (torn / FILE).stat().st_size == start
            journal.append(RECORDS[-1])
        assert read(torn)[-1].kind == "closed"
        assert len(read(torn)) == len(RECORDS)


def test_a_last_line_of_zeros_as_file_systems_leave_them_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path)
    with path.open("ab") as file:
        file.write(b"\0" * 300)
    assert len(read(tmp_path)) == len(RECORDS)


def test_a_changed_byte_in_any_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for position in range(len(lines)):
        middle = len(lines[position]) // 2
        changed = lines[position][:middle] + b"#" + lines[position][middle + 1 :]
        path.write_bytes(b"".join([*lines[:position], changed, *lines[position + 1 :]]))
        with pytest.raises(RequestError, match=f"line {position + 1} of {len(lines)} is corrupt"):
            read(tmp_path)
        with pytest.raises(RequestError, match="is corrupt"):
            Journal(tmp_path, new=False)


def test_a_flipped_bit_anywhere_in_the_last_line_is_told_from_a_torn_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for position in range(start, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(RequestError, match=f"line {len(RECORDS)} of .* is corrupt"):
                read(tmp_path)
    with pytest.raises(RequestError, match="is corrupt"):
        Journal(tmp_path, new=False)
    assert path.read_bytes() == changed, "and nothing is cut off"


@pytest.mark.parametrize("block", [16, 100])
def test_a_last_line_of_which_a_block_is_still_zeros_is_dropped(tmp_path: Path, block: int) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for begins in (start, start + 2):
        path.write_bytes(content[:begins] + b"\0" * block + content[begins + block :])
        assert len(read(tmp_path)) == len(RECORDS) - 1


def test_a_missing_line_and_two_swapped_lines_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(RequestError, match="line 3 of 5"):
        read(tmp_path)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(RequestError, match="line 2 of 6"):
        read(tmp_path)


def test_two_processes_cannot_run_one_sweep(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pretune.core.journal import Journal\n"
        f"j = Journal(Path({str(tmp_path)!r}), new=True); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert is_locked(tmp_path)
        with pytest.raises(RequestError, match=f"being run by another process .pid {other.pid} on"):
            Journal(tmp_path, new=True)
        other.kill()
        other.wait()
    assert not is_locked(tmp_path)
    Journal(tmp_path, new=True).close()


def test_a_sweep_of_that_name_is_not_overwritten_and_a_missing_one_not_resumed(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(RequestError, match="choose another --name, or go on with `pretune resume"):
        Journal(tmp_path, new=True)
    with pytest.raises(RequestError, match="no sweep in"):
        Journal(tmp_path / "nothing", new=False)
    with pytest.raises(RequestError, match="no sweep in"):
        read(tmp_path / "nothing")


def test_a_full_disk_leaves_no_half_line_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, new=True) as journal:
        journal.append(RECORDS[0])

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                journal.append(RECORDS[1])
        assert len(read(tmp_path)) == 1
        journal.append(RECORDS[1])
    assert [record.kind for record in read(tmp_path)] == ["opened", "asked"]


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n[]\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_what_was_never_a_journal_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(RequestError, match=r"line 1 of .* is corrupt"):
        read(tmp_path)


def test_a_sweep_that_never_began_leaves_no_journal_behind(tmp_path: Path) -> None:
    Journal(tmp_path, new=True).close()
    assert not (tmp_path / FILE).exists()
