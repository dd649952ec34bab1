"""Features in a file read back with numpy, pyarrow or safetensors alone; the file is whole or not there."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainers.data import feature_files
from trainers.data.feature_files import About

PATHS = ["a/1.jpg", "b: ü.png", "c/" + "long" * 30]
LABELS = np.array([1, -1, 0])
METADATA = {"subject": "mine", "mean": [0.1, 0.2, 0.3]}
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2) / 7


class Read:
    """What another program finds in a file, with the library of its format alone."""

    def __init__(self, path: Path) -> None:
        self.class_names: list[str] = []
        self.labels: list[int] | None = None
        getattr(self, path.suffix.strip("."))(path)

    def npz(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as found:
            self.features, self.ids = found["features"], found["ids"].tolist()
            self.metadata = json.loads(str(found["metadata"]))
            if "labels" in found:
                self.labels, self.class_names = found["labels"].tolist(), found["class_names"].tolist()

    def parquet(self, path: Path) -> None:
        from pyarrow import parquet

        found = parquet.read_table(path)
        self.metadata = json.loads(found.schema.metadata[b"pretune"])
        self.features = np.stack(found["features"].to_numpy())
        self.ids = found["id"].to_pylist()
        if "label" in found.column_names:
            self.labels = [-1 if label is None else label for label in found["label"].to_pylist()]
            pairs = set(zip(self.labels, found["class"].to_pylist(), strict=True))
            self.class_names = [name for label, name in sorted(pairs) if label >= 0]

    def safetensors(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "np") as found:
            self.metadata = json.loads(found.metadata()["pretune"])
            self.features = found.get_tensor("features")
            self.ids = found.get_tensor("ids").tolist()
            if "id_ends" in found.keys():  # noqa: SIM118
                text, ends = found.get_tensor("ids").tobytes(), found.get_tensor("id_ends")
                starts = [0, *ends[:-1].tolist()]
                self.ids = [text[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=True)]
            if "labels" in found.keys():  # noqa: SIM118
                self.labels = found.get_tensor("labels").tolist()
                self.class_names = self.metadata.pop("class_names")


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_file_reads_back_bit_for_bit_without_pretune(tmp_path: Path, suffix: str, dtype: Any) -> None:
    path = tmp_path / f"features{suffix}"
    rows = ROWS.astype(dtype)
    feature_files.write(path, [rows[:2], rows[2:]], About(PATHS, LABELS, ("cat", "dog"), METADATA))
    read = Read(path)
    assert read.features.dtype == dtype
    assert np.array_equal(read.features, rows)
    assert (read.ids, read.labels, read.class_names) == (PATHS, [1, -1, 0], ["cat", "dog"])
    assert read.metadata == METADATA
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
def test_sample_ids_are_numbers_and_labels_may_be_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"features{suffix}"
    feature_files.write(path, [ROWS], About(np.array([4, 7, 2**40]), None, (), METADATA))
    read = Read(path)
    assert (read.ids, read.labels) == ([4, 7, 2**40], None)
    assert np.array_equal(read.features, ROWS)


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
def test_equal_features_make_equal_files(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        feature_files.write(path, [ROWS], About(PATHS, LABELS, ("cat", "dog"), METADATA))
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
def test_a_file_larger_than_what_is_held_is_written_batch_by_batch(tmp_path: Path, suffix: str) -> None:
    count, batch = 96, np.ones((1024, 256), np.float32)  # 1 MiB each
    path = tmp_path / f"features{suffix}"
    about = About(np.arange(count * len(batch)), None, (), {})

    def batches() -> Iterator[NDArray[np.float32]]:
        for _ in range(count):
            yield batch.copy()

    tracemalloc.start()
    try:
        feature_files.write(path, batches(), about)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > count * batch.nbytes
    held = feature_files.ROW_GROUP_BYTES if suffix == ".parquet" else 0
    assert most < held + 8 * 2**20


def test_a_parquet_file_has_row_groups_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr(feature_files, "ROW_GROUP_BYTES", 4 * 8 * 10)
    path = tmp_path / "features.parquet"
    rows = np.random.default_rng(0).normal(size=(47, 8)).astype(np.float32)
    feature_files.write(path, np.split(rows, [3, 30]), About(np.arange(47), None, (), {}))
    found = parquet.ParquetFile(path)
    assert [found.metadata.row_group(group).num_rows for group in range(found.num_row_groups)] == [10, 10, 10, 10, 7]
    assert np.array_equal(Read(path).features, rows)


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
@pytest.mark.parametrize("rows", [[ROWS[:2]], [ROWS, ROWS], []])
def test_rows_that_are_too_few_or_too_many_leave_no_file(tmp_path: Path, suffix: str, rows: list[Any]) -> None:
    path = tmp_path / f"features{suffix}"
    path.write_text("mine")
    with pytest.raises(ValueError, match="a row of features for each of the 3 ids"):
        feature_files.write(path, rows, About(PATHS, None, (), {}))
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "mine"


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
def test_a_disk_without_room_is_told_after_the_first_batch(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    asked: list[int] = []

    def batches() -> Iterator[NDArray[np.float32]]:
        for row in ROWS:
            asked.append(1)
            yield row[None]

    with pytest.raises(OSError, match="it takes 0 MB, but 0 MB are free"):
        feature_files.write(tmp_path / f"features{suffix}", batches(), About(PATHS, None, (), {}))
    assert (asked, list(tmp_path.iterdir())) == ([1], [])
