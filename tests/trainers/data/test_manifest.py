"""A data set on disk by its manifest alone: opened, named by its hash, checked, refused in words. Nothing is built."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.imports import imported
from trainers.data import manifest
from trainers.data.manifest import (
    DATA_FILES,
    REPORT_FILE,
    REPORT_LABELS,
    SEARCH_FILE,
    SEARCH_LABELS,
    Dataset,
    FileRecord,
    open_dataset,
    quick_hash,
    sha256_of,
    summary,
    verify,
)

TRAIN, SELECT, UNLABELED, REPORT = 12, 6, 4, 5
LABELS = np.array([*(index % 3 for index in range(TRAIN + SELECT)), *[-1] * UNLABELED], dtype=np.int64)


def record_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "quick": quick_hash(path)}


def write(folder: Path, **changes: Any) -> Path:
    """A data set whose FFCV files hold a few bytes of anything; `changes` are made to its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SEARCH_FILE).write_bytes(b"images of the search" * 50)
    (folder / REPORT_FILE).write_bytes(b"images of the report" * 20)
    np.save(folder / SEARCH_LABELS, LABELS)
    np.save(folder / REPORT_LABELS, np.arange(REPORT, dtype=np.int64) % 3)
    values = {
        "kind": "npz",
        "source": "made by a test",
        "class_names": ["a", "b", "c"],
        "counts": {"train": TRAIN, "select": SELECT, "report": REPORT, "unlabeled": UNLABELED},
        "class_counts": {"train": [4, 4, 4], "select": [2, 2, 2], "report": [2, 2, 1]},
        "encoding": "raw",
        "fixed_size": [8, 6],
        "min_size": [8, 6],
        "max_size": [8, 6],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "split_seed": 3,
        "report_origin": "carved",
        "max_side": None,
        "reencoded": 0,
        "skipped": 0,
        "duplicates": {"select/train": 0, "report/train": 1200},
        "content": {"train": "0" * 64},
        "files": {name: record_of(folder / name) for name in DATA_FILES},
    }
    (folder / "manifest.json").write_text(json.dumps({**values, **changes}))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return open_dataset(write(tmp_path / "set"))


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        act()
    return str(error.value)


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_rows_of_the_search_file_are_train_then_select_then_unlabeled(data: Dataset) -> None:
    assert data.train_ids.tolist() == list(range(12))
    assert data.select_ids.tolist() == list(range(12, 18))
    assert data.unlabeled_ids.tolist() == list(range(18, 22))
    assert (data.train_count, data.select_count, data.unlabeled_count, data.report_count) == (12, 6, 4, 5)
    assert data.class_count == 3
    assert data.search_labels().tolist() == LABELS.tolist()
    assert data.report_labels().tolist() == [0, 1, 2, 0, 1]


def test_unlabeled_images_join_pretraining_where_no_subset_is_asked_for(data: Dataset) -> None:
    assert data.pretrain_ids().tolist() == [*range(12), *range(18, 22)]
    subset = data.pretrain_ids(6)
    assert subset.tolist() == sorted(subset.tolist())
    assert np.bincount(LABELS[subset]).tolist() == [2, 2, 2]
    assert set(subset.tolist()) < set(data.pretrain_ids(9).tolist())


@pytest.mark.parametrize(("share", "count"), [("50%", 6), ("100%", 12), ("1%", 1), ("12.5%", 2), ("0.001%", 1)])
def test_a_share_is_the_subset_of_so_many_images(data: Dataset, share: str, count: int) -> None:
    assert data.pretrain_ids(share).tolist() == data.pretrain_ids(count).tolist()


@pytest.mark.parametrize("subset", [0, -1, TRAIN + 1])
def test_a_subset_is_of_the_images_of_train(data: Dataset, subset: int) -> None:
    assert refused(lambda: data.pretrain_ids(subset)) == (
        f"data.subset must be 1 to 12 (the images of `train` in {data.folder}), but is {subset}; lower it"
    )


def test_a_subset_depends_on_the_data_sets_own_seed(data: Dataset, tmp_path: Path) -> None:
    chosen = {
        seed: tuple(open_dataset(write(tmp_path / str(seed), split_seed=seed)).pretrain_ids(6).tolist())
        for seed in range(5)
    }
    assert chosen[3] == tuple(data.pretrain_ids(6).tolist()), "the folder does not matter"
    assert len(set(chosen.values())) > 1


def test_a_data_set_is_named_by_the_bytes_of_its_manifest(data: Dataset, tmp_path: Path) -> None:
    found = hashlib.sha256((data.folder / "manifest.json").read_bytes()).hexdigest()
    assert data.manifest_hash == found
    assert open_dataset(str(data.folder), expected_hash=found) == data
    assert open_dataset(write(tmp_path / "copy")).manifest_hash == found
    assert open_dataset(write(tmp_path / "other", skipped=1)).manifest_hash != found


def test_a_data_set_is_opened_without_torch_and_ffcv(data: Dataset) -> None:
    program = f"from trainers.data.manifest import open_dataset\nopen_dataset({str(data.folder)!r}).pretrain_ids(6)"
    assert imported(program, "torch ffcv cv2 sklearn") == []


def test_the_summary_says_in_words_what_is_in_it(data: Dataset, tmp_path: Path) -> None:
    said = summary(data)
    assert said["images"] == "6x8, stored as raw", "width before height, as people say it"
    assert said["report"] == "5 images, carved, as the source has no test part"
    assert said["duplicates"] == "report/train 1,200", "pairs without any are left out"
    assert said["hash"] == data.manifest_hash
    other = summary(
        open_dataset(
            write(tmp_path / "other", report_origin="source", max_size=[10, 20], fixed_size=None, duplicates={})
        )
    )
    assert other["images"] == "6x8 to 20x10, stored as raw"
    assert other["report"] == "5 images, the source's own test part"
    assert other["duplicates"] == "none"


# ---- opening what is wrong -------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_data_set_is_refused_with_the_command_to_type(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert refused(lambda path=path: open_dataset(path)) == (  # type: ignore[misc]
            f"{path}: a data set is a folder with a manifest.json, but there is none; build it with `pretune data`, or "
            "check the path"
        )


def test_a_manifest_that_can_not_be_read_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    assert "manifest.json: cannot be read (Is a directory); check who may" in refused(lambda: open_dataset(tmp_path))


def test_another_data_set_than_the_expected_one_is_refused(data: Dataset) -> None:
    assert refused(lambda: open_dataset(data.folder, expected_hash="0123456789abcdef")) == (
        f"{data.folder}: the run was made for the data set 0123456789ab, but this one is {data.manifest_hash[:12]}; "
        "name the folder with the original data, or start a new run"
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format_version": 0}, "format_version: "),
        ({"counts": {"train": 1}}, "counts.select: "),
        ({"mean": [0.5, 0.5]}, "mean.2: "),
        ({"encoding": "png"}, "encoding: "),
        ({"std": [0.1, float("nan"), 0.1]}, "std.1: "),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_its_first_fault(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    text = refused(lambda: open_dataset(write(tmp_path, **changes)))
    assert text.startswith(f"{tmp_path / 'manifest.json'}: not a manifest of this version ({fault}")
    assert text.endswith("); build it again")


@pytest.mark.parametrize("content", ["", "{", "[]", "no json"])
def test_a_manifest_that_is_none_is_refused(data: Dataset, content: str) -> None:
    (data.folder / "manifest.json").write_text(content)
    text = refused(lambda: open_dataset(data.folder))
    assert text.startswith(f"{data.folder}/manifest.json: not a manifest of this version (")
    assert text.endswith("); build it again")


def test_a_later_versions_data_set_is_refused_with_the_version_to_use(tmp_path: Path) -> None:
    assert refused(lambda: open_dataset(write(tmp_path, format_version=manifest.FORMAT + 1))) == (
        f"{tmp_path}/manifest.json: has format {manifest.FORMAT + 1}, but this version of pretune reads up to "
        f"{manifest.FORMAT}; use a newer one"
    )


def test_a_key_that_this_version_does_not_know_is_passed_over_and_counts_for_the_name(data: Dataset) -> None:
    known = data.manifest
    values = json.loads((data.folder / "manifest.json").read_text())
    (data.folder / "manifest.json").write_text(json.dumps({**values, "surprise": 1}))
    again = open_dataset(data.folder)
    assert again.manifest == known
    assert again.manifest_hash != data.manifest_hash


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_file_that_is_missing_shorter_or_not_listed_is_named(data: Dataset, name: str, tmp_path: Path) -> None:
    path = data.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    rule = f"{path}: must have {len(content)} bytes"
    assert refused(lambda: open_dataset(data.folder)) == (
        f"{rule}, but has {len(content) - 1} bytes; build the data set again"
    )
    path.unlink()
    assert refused(lambda: open_dataset(data.folder)) == f"{rule}, but is missing; build the data set again"
    others = [other for other in DATA_FILES if other != name]
    assert open_dataset(data.folder, files=others) == data, "who needs it not does not miss it"
    listed = {other: record_of(write(tmp_path / "other") / other) for other in others}
    unlisted = write(tmp_path / "other", files=listed)
    assert f"{unlisted / name}: must be listed in the manifest, but has " in refused(lambda: open_dataset(unlisted))


# ---- checking the bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA_FILES)
@pytest.mark.parametrize("full", [True, False])
def test_a_changed_byte_is_found_in_the_file_it_is_in(data: Dataset, name: str, full: bool) -> None:
    verify(data, full=full)
    path = data.folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    open_dataset(data.folder)  # its size is right
    found = hashlib.sha256(content).hexdigest() if full else quick_hash(path)
    record: FileRecord = data.manifest.files[name]
    expected = record.sha256 if full else record.quick
    assert refused(lambda: verify(data, full=full)) == (
        f"{path}: its bytes must have the hash {expected[:12]} of the manifest, but have {found[:12]}; the file was "
        "changed or damaged: build the data set again"
    )
    verify(data, files=[other for other in DATA_FILES if other != name], full=full)


def test_a_search_is_checked_without_opening_the_report_split(data: Dataset) -> None:
    (data.folder / REPORT_FILE).unlink()
    (data.folder / REPORT_LABELS).unlink()
    verify(data, files=(SEARCH_FILE, SEARCH_LABELS))
    assert len(data.pretrain_ids(6)) == 6
    assert f"{REPORT_FILE}: cannot be read (No such file or directory)" in refused(lambda: verify(data))


def test_labels_are_checked_whenever_they_are_read(data: Dataset) -> None:
    np.save(data.folder / SEARCH_LABELS, LABELS[::-1])
    assert f"{SEARCH_LABELS}: its bytes must have the hash" in refused(data.search_labels)


@pytest.mark.parametrize("labels", [LABELS[:-1], LABELS.astype(np.int32), LABELS[:, None]])
def test_labels_that_do_not_fit_the_counts_are_refused(tmp_path: Path, labels: np.ndarray[Any, Any]) -> None:
    folder = write(tmp_path)
    np.save(folder / SEARCH_LABELS, labels)
    files = {name: record_of(folder / name) for name in DATA_FILES}
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, "files": files}))
    text = refused(open_dataset(folder).search_labels)
    assert f"must hold 22 int64 labels, but holds {labels.dtype} {list(labels.shape)}; build it again" in text


def test_a_file_is_hashed_once_until_it_is_touched(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    path = data.folder / SEARCH_FILE
    first = sha256_of(path)
    assert (sha256_of(path), sha256_of(data.folder / "." / SEARCH_FILE)) == (first, first)
    assert hashed == [SEARCH_FILE]
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    os.utime(path, ns=(1, 1))
    assert sha256_of(path) == hashlib.sha256(content[::-1]).hexdigest()
    assert hashed == [SEARCH_FILE] * 2


def test_the_quick_hash_reads_the_size_both_ends_and_blocks_between(tmp_path: Path) -> None:
    path, size = tmp_path / "large", 40 * 2**20
    with path.open("wb") as empty:
        empty.truncate(size)
    before = quick_hash(path)

    def put(byte: bytes, place: int) -> None:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(byte)

    def changed_at(place: int) -> bool:
        put(b"\x01", place)
        found = quick_hash(path)
        put(b"\x00", place)
        return found != before

    assert all(changed_at(place) for place in (0, 2**20 - 1, size - 1, size - 2**20, size * 128 // 256))
    assert not changed_at(size * 128 // 256 + 2**13), "between two blocks: that is what the whole hash is for"
    assert quick_hash(path) == before
    with path.open("r+b") as file:
        file.truncate(size + 1)
    assert quick_hash(path) != before
