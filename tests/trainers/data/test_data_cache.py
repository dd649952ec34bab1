"""Data that lies elsewhere is fetched once per machine, checked, and fetched again where the copy is damaged."""

from __future__ import annotations

import collections
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainers import storage
from trainers.data import data_cache
from trainers.data.datasets import ensure_builtin
from trainers.data.manifest import DATA_FILES, REPORT_FILE, SEARCH_FILE, Dataset


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ensure_builtin("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture
def place(source: Dataset, tmp_path: Path) -> str:
    """The data set as a `file://` URI."""
    shutil.copytree(source.folder, tmp_path / "shared" / "digits")
    return (tmp_path / "shared" / "digits").as_uri()


@pytest.fixture(autouse=True)
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were downloaded; the cache is the test's own."""
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    names: list[str] = []
    real = storage.download

    def download(uri: str, file: Any, **options: Any) -> str:
        names.append(storage.name_of(uri))
        return real(uri, file, **options)

    monkeypatch.setattr(storage, "download", download)
    return names


def test_a_folder_is_mapped_where_it_lies(source: Dataset, fetched: list[str]) -> None:
    assert data_cache.open_anywhere(str(source.folder)).folder == source.folder
    assert fetched == []


def test_what_a_search_reads_is_fetched_once_and_the_report_split_only_when_it_is_asked_for(
    source: Dataset, place: str, fetched: list[str]
) -> None:
    first = data_cache.open_anywhere(place)
    assert first.manifest_hash == source.manifest_hash
    assert first.search_file.read_bytes() == source.search_file.read_bytes()
    assert (first.search_labels() == source.search_labels()).all()
    again = data_cache.open_anywhere(place, expected_hash=source.manifest_hash)
    assert again.folder == first.folder
    assert fetched == list(data_cache.SEARCH_FILES)
    assert not first.report_file.exists()
    whole = data_cache.open_anywhere(place, files=DATA_FILES)
    assert whole.report_file.read_bytes() == source.report_file.read_bytes()
    assert collections.Counter(fetched) == collections.Counter(DATA_FILES)


def test_a_copy_that_is_there_needs_no_storage(place: str, source: Dataset, tmp_path: Path) -> None:
    data_cache.open_anywhere(place)
    shutil.rmtree(tmp_path / "shared")
    assert data_cache.open_anywhere(place, expected_hash=source.manifest_hash).train_count == source.train_count


@pytest.mark.parametrize("damage", ["other bytes", "cut short", "gone"])
def test_a_damaged_copy_is_replaced(place: str, source: Dataset, fetched: list[str], damage: str) -> None:
    path = data_cache.open_anywhere(place).search_file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-7] if damage == "cut short" else b"x" + content[1:])
    data_cache.open_anywhere(place, expected_hash=source.manifest_hash)
    assert path.read_bytes() == content
    assert fetched.count(SEARCH_FILE) == 2


def test_those_who_ask_at_once_share_one_fetch(place: str, fetched: list[str]) -> None:
    found: list[Dataset] = []
    threads = [threading.Thread(target=lambda: found.append(data_cache.open_anywhere(place))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert sorted(fetched) == sorted(data_cache.SEARCH_FILES)


def test_what_is_not_what_the_manifest_says_is_refused(place: str, tmp_path: Path) -> None:
    file = tmp_path / "shared" / "digits" / SEARCH_FILE
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"search\.beton must have sha256 .* copy the folder there again"):
        data_cache.open_anywhere(place)
    assert not list(data_cache.cache().rglob("*.part"))


def test_other_data_and_none_at_all_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the run was made for the data set 000000000000, but this one is"):
        data_cache.open_anywhere(place, expected_hash="0" * 64)
    with pytest.raises(ValueError, match=r"a data set has a manifest\.json, but there is none"):
        data_cache.open_anywhere((tmp_path / "nothing").as_uri())


def test_the_copy_that_was_not_used_for_longest_makes_room_and_a_full_disk_is_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, older = data_cache.cache() / "old", data_cache.cache() / "older"
    for age, folder in ((100, old), (200, older)):
        folder.mkdir(parents=True)
        (folder / "search.beton").write_bytes(b"")
        os.utime(folder, (age and 1e9 - age,) * 2)

    def usage(path: Path) -> Any:
        free = data_cache.SPARE_BYTES + (10**9 if not older.exists() else 0)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    data_cache.open_anywhere(place)
    assert old.exists()
    assert not older.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(ValueError, match=r"needs .* MB and 268 MB to spare, but 1 MB are free; make room"):
        data_cache.open_anywhere(place, files=(REPORT_FILE,))
