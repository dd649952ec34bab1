"""Our writer of FFCV's format against FFCV's own writer and reader."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from trainers.data.beton import SMALLEST_PAGE, BetonWriter, file_bytes, page_size_for


def random_images(count: int, low: int = 20, high: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(low, high, (count, 2))
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]


def write(path: Path, images: list[np.ndarray], labels: list[int], page_size: int = SMALLEST_PAGE) -> None:
    with BetonWriter(path, rows=len(images), page_size=page_size) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.add(image.tobytes(), height=image.shape[0], width=image.shape[1], encoding="raw", label=label)
        writer.finish()


def test_raw_files_equal_those_of_ffcvs_own_writer_byte_for_byte(tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = random_images(700)  # about 3.4 MB: two pages
    labels = [index % 11 - 1 for index in range(700)]
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = DatasetWriter(str(tmp_path / "theirs"), fields, page_size=SMALLEST_PAGE, num_workers=1)
        theirs.from_indexed_dataset(list(zip(images, labels, strict=True)))
    write(tmp_path / "ours", images, labels)
    assert (tmp_path / "ours").stat().st_size > 3 * SMALLEST_PAGE  # the rows, then more than one page
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_ffcvs_decoder_reads_a_kept_jpeg_as_pillow_does(tmp_path: Path) -> None:
    from ffcv.libffcv import imdecode
    from ffcv.reader import Reader

    smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95, subsampling=0)
    path = tmp_path / "one"
    with BetonWriter(path, rows=1) as writer:
        writer.add(buffer.getvalue(), height=48, width=64, encoding="jpeg", label=7)
        writer.finish()
    reader = Reader(str(path))
    row, allocation = reader.metadata[0], reader.alloc_table[0]
    assert (int(row["f0"]["mode"]), int(row["f0"]["height"]), int(row["f0"]["width"]), int(row["f1"])) == (0, 48, 64, 7)
    start = int(allocation["ptr"])
    stored = np.frombuffer(path.read_bytes(), np.uint8)[start : start + int(allocation["size"])].copy()
    assert stored.tobytes() == buffer.getvalue()
    decoded = np.zeros((48, 64, 3), np.uint8)
    imdecode(stored, decoded, 48, 64, 48, 64)
    by_pillow = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(decoded.astype(int) - by_pillow).max() <= 4  # ffcv uses the faster, slightly rougher transform


@pytest.mark.parametrize("side", [8, 500, 700, 800])
def test_the_announced_size_bounds_the_file_and_is_not_far_off(tmp_path: Path, side: int) -> None:
    count = 3_000 if side == 8 else 9
    images = [np.zeros((side, side, 3), np.uint8)] * count
    largest = side * side * 3
    page = page_size_for(largest)
    write(tmp_path / "file", images, [0] * count, page)
    bound, size = file_bytes(count, count * largest, largest, page), (tmp_path / "file").stat().st_size
    assert size <= bound <= 2 * size + 2 * page


def test_a_page_holds_the_largest_sample_and_is_a_power_of_two() -> None:
    sizes = (1, SMALLEST_PAGE - 1, SMALLEST_PAGE, SMALLEST_PAGE + 1, 5_000_000)
    assert [page_size_for(size) // SMALLEST_PAGE for size in sizes] == [1, 1, 1, 2, 4]


@pytest.mark.parametrize(
    ("payload", "height", "encoding", "fault"),
    [
        (b"", 1, "jpeg", "1 to 2097152 bytes"),
        (bytes(SMALLEST_PAGE + 1), 1, "jpeg", "1 to 2097152 bytes"),
        (bytes(3), 70_000, "jpeg", "1 to 65535 pixels"),
        (bytes(4), 1, "raw", "1x1 RGB pixels are 3 bytes, but 4"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, payload: bytes, height: int, encoding: Literal["raw", "jpeg"], fault: str
) -> None:
    with BetonWriter(tmp_path / "file", rows=1) as writer, pytest.raises(ValueError, match=fault):
        writer.add(payload, height=height, width=1, encoding=encoding, label=0)


def test_a_file_with_rows_missing_is_not_finished(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "file", rows=2) as writer:
        writer.add(bytes(3), height=1, width=1, encoding="raw", label=0)
        with pytest.raises(ValueError, match="2 samples were announced, but 1"):
            writer.finish()


def test_a_page_size_that_ffcv_would_refuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="power of two"):
        BetonWriter(tmp_path / "file", rows=1, page_size=3_000_000)
