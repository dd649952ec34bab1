"""FFCV's file format (version 2), written in one process: the fields `image` (RGBImageField) and `label` (IntField).

Why not `ffcv.writer.DatasetWriter`: an exception in one of its worker processes leaves the parent waiting for ever,
several workers lay the pages out in an order that varies, it cannot keep the bytes of a JPEG that exists already, and
importing ffcv costs seconds because torch and numba come with it. The tests compare both writers byte for byte, and
read with ffcv's reader.

Layout: header | field descriptions | one metadata row per sample | zeros up to a page | pages | table of allocations.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

SMALLEST_PAGE = 1 << 21  # ffcv's own minimum, bytes
LARGEST_PAGE = 1 << 31  # ffcv asks for less than 2^32
LARGEST_SIDE = (1 << 16) - 1  # height and width are 16-bit fields

_VERSION = 2
_INT_FIELD, _IMAGE_FIELD = 1, 2
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
_FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ROW = np.dtype([("image", _IMAGE), ("label", "<i8")], align=True)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
MODES = {"jpeg": 0, "raw": 1}


def page_size_for(largest_sample: int) -> int:
    """The smallest page, in bytes, that holds a sample of so many bytes (a sample never crosses a page)."""
    return max(SMALLEST_PAGE, 1 << max(0, largest_sample - 1).bit_length())


def file_bytes(rows: int, payload: int, largest_sample: int, page_size: int) -> int:
    """An upper bound, in bytes, of the file that holds `rows` samples of `payload` bytes together."""
    preamble = _HEADER.itemsize + 2 * _FIELD.itemsize + rows * ROW.itemsize
    # The end of a page stays empty where the next sample does not fit, and two neighbors hold more than one page
    # together.
    usable = max(page_size - largest_sample, page_size // 2)
    pages = -(-preamble // page_size) + -(-payload // usable) + 1
    return pages * page_size + rows * _ALLOCATION.itemsize


class BetonWriter:
    """Writes `rows` samples in order, then closes the file with `finish`. Leaving the `with` block early closes it
    unfinished.

    The bytes depend on the samples and `page_size` alone. Raises ValueError when a sample is larger than a page or a
    side is longer than the format can say, OSError as `write` does.
    """

    def __init__(self, path: Path, *, rows: int, page_size: int = SMALLEST_PAGE) -> None:
        if page_size & (page_size - 1) or not SMALLEST_PAGE <= page_size <= LARGEST_PAGE:
            raise ValueError(
                f"page_size must be a power of two from {SMALLEST_PAGE} to {LARGEST_PAGE} bytes, but is {page_size}; "
                "use page_size_for()"
            )
        self.path = path
        self._page_size = page_size
        self._rows = np.zeros(rows, ROW)
        self._allocations = np.zeros(rows, _ALLOCATION)
        self._count = 0
        self._page = bytearray()
        self._preamble = _HEADER.itemsize + 2 * _FIELD.itemsize + self._rows.nbytes
        self._next_page = -(-self._preamble // page_size) * page_size
        self._file = path.open("wb")

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, payload: bytes, *, height: int, width: int, encoding: Literal["raw", "jpeg"], label: int) -> None:
        """Append one image: RGB pixels [height, width, 3] as bytes if `raw`, a JPEG file otherwise."""
        if not 0 < len(payload) <= self._page_size:
            raise ValueError(
                f"a sample must have 1 to {self._page_size} bytes (one page), but has {len(payload)}; make it smaller"
            )
        if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
            raise ValueError(
                f"sides must be 1 to {LARGEST_SIDE} pixels, but the image is {width}x{height}; make it smaller"
            )
        if encoding == "raw" and len(payload) != height * width * 3:
            raise ValueError(
                f"{width}x{height} RGB pixels are {height * width * 3} bytes, but {len(payload)} were given"
            )
        if len(self._page) + len(payload) > self._page_size:
            self._flush()
        address = self._next_page + len(self._page)
        self._page += payload
        self._rows[self._count] = ((MODES[encoding], width, height, address), label)
        self._allocations[self._count] = (self._count, address, len(payload))
        self._count += 1

    def finish(self) -> None:
        """Write what is outstanding, and the bytes to the disk."""
        if self._count != len(self._rows):
            raise ValueError(
                f"{len(self._rows)} samples were announced, but {self._count} were added; announce what is added"
            )
        self._flush()
        header = np.zeros(1, _HEADER)
        header["version"], header["num_fields"] = _VERSION, 2
        header["page_size"], header["num_samples"] = self._page_size, self._count
        header["alloc_table_ptr"] = self._next_page
        fields = np.zeros(2, _FIELD)
        for row, (name, type_id) in zip(fields, (("image", _IMAGE_FIELD), ("label", _INT_FIELD)), strict=True):
            row["type_id"] = type_id
            row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), "<u1")
        self._file.seek(self._next_page)
        self._file.write(self._allocations.tobytes())
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._rows.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _flush(self) -> None:
        if self._page:
            self._file.seek(self._next_page)
            self._file.write(self._page)
            self._file.write(bytes(self._page_size - len(self._page)))
            self._next_page += self._page_size
            self._page = bytearray()
