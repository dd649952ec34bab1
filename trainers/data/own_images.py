"""Images that are in no data set, as evaluation sees those of one: resized, cropped and normalized by the same code.

What a data set would hold of an image is what is rendered here: the bytes of a plain JPEG, else its upright RGB pixels,
with the data set's own range of 16-bit gray and its longest side.
(Of an image that is no JPEG, a data set of JPEGs holds one of quality 95, which differs a little.)

Letters: n = images, S = a view's height and width in pixels.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.beton import LARGEST_SIDE, MODES, ROW
from trainers.data.datasets import RAW_SIDE
from trainers.data.sources.base import WHITE, Blob, FileImages, as_pixels, target_size, upright_rgb
from trainers.data.views import evaluation_table, render
from trainers.settings import Resampling

OwnImage = Image.Image | str | Path | Blob | NDArray[np.uint8]
"""An image file, a part of a file that is one, one of Pillow's images, or pixels [height, width, 3] or [height, width],
0 to 255.
"""


class _Stored(NamedTuple):
    """An image as a data set's file would hold it."""

    payload: NDArray[np.uint8]
    height: int
    width: int
    mode: int


def rendered(
    images: Sequence[OwnImage] | NDArray[np.uint8],
    *,
    size: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    resampling: Resampling,
    batch_size: int,
    white: int = WHITE,
    max_side: int | None = None,
    threads: int = 1,
) -> Iterator[NDArray[np.float32]]:
    """Batches [n, S, S, 3] of normalized pixels, in the order of `images`; the last one may be smaller.

    The shorter side is resized to S = `size`, the center cropped; `mean` and `deviation` per channel, 0..1 scale.
    `white`, `max_side`: as in the manifest of the data set trained on, the value of 16-bit gray that becomes white and
    the longest side that an image was brought down to. Files are decoded by `threads` threads, a few ahead.
    ValueError, naming the image, where one is broken, of a kind that is not known, or larger than 65,535 pixels.
    """
    settings = evaluation_table(size, mean, deviation, resampling=resampling)
    decoded = _decoded(images, white, max_side, threads)
    for start in range(0, len(images), batch_size):
        count = min(batch_size, len(images) - start)
        pixels = np.empty(count * size * size * 3, np.float32)
        for place in range(count):
            _render(next(decoded), f"images[{start + place}]", pixels, settings, place=place, rows=count)
        yield pixels.reshape(count, size, size, 3)


def _decoded(
    images: Sequence[OwnImage] | NDArray[np.uint8], white: int, max_side: int | None, threads: int
) -> Iterator[_Stored]:
    """In their order; of large images, only a few are held."""
    waiting: deque[Future[_Stored]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for index, image in enumerate(images):
            waiting.append(pool.submit(_stored, image, f"images[{index}]", white, max_side))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _stored(image: OwnImage, name: str, white: int, max_side: int | None) -> _Stored:
    jpeg: bytes | None = None
    match image:
        case str() | Path():
            decoded, jpeg = FileImages([Blob(Path(image), str(image))]).read(0, white)
        case Blob():
            decoded, jpeg = FileImages([image]).read(0, white)
        case Image.Image():
            decoded = upright_rgb(image, white)
        case np.ndarray():
            decoded = Image.fromarray(as_pixels(image[None], name)[0])
        case _:
            raise ValueError(
                f"{name} must be a path, an image of Pillow's or an array of pixels, but is {type(image).__name__}; "
                "give one of these (a batch that is a tensor already goes to the encoder itself)"
            )
    height, width = target_size(decoded.height, decoded.width, max_side)
    if (width, height) != decoded.size:
        decoded, jpeg = decoded.resize((width, height), Image.Resampling.LANCZOS), None
    if max(decoded.size) > LARGEST_SIDE:
        raise ValueError(
            f"{name} must have sides of at most {LARGEST_SIDE} pixels, but has {decoded.width}x{decoded.height}; "
            "make it smaller"
        )
    # Small images are stored as pixels, whatever their files were.
    keeps = jpeg is not None and max(decoded.size) > RAW_SIDE
    payload = np.frombuffer(jpeg, np.uint8) if jpeg is not None and keeps else np.asarray(decoded).reshape(-1)
    return _Stored(payload, decoded.height, decoded.width, MODES["jpeg" if keeps else "raw"])


def _render(
    stored: _Stored, name: str, pixels: NDArray[np.float32], settings: NDArray[np.void], *, place: int, rows: int
) -> None:
    """One image into row `place` of a batch of `rows`, by the code that renders a data set's, as a file of one image.

    Its arrays have the types of a file's (read-only bytes, a column of two or more rows), so that nothing is compiled
    anew.
    """
    payload = stored.payload.copy()
    rows_of_file = np.zeros(2, ROW)
    rows_of_file[0] = ((stored.mode, stored.width, stored.height, 0), 0)
    metadata = rows_of_file["image"]
    payload.flags.writeable = metadata.flags.writeable = False
    memory = (payload, np.zeros(1, np.uint64), np.array([len(payload)], np.uint64))
    decoder = _jpeg_decoder() if stored.mode == MODES["jpeg"] else 0
    side, area = max(stored.height, stored.width), stored.height * stored.width
    numbers = np.array([0, 0, place, rows, side, area, decoder, 0], dtype=np.int64)
    broken = np.full(1, -1, dtype=np.int64)
    render(np.zeros(1, np.int64), pixels, settings, numbers, broken, metadata, memory)
    if broken[0] >= 0:
        raise ValueError(f"{name} must be a readable JPEG, but does not decode; replace the file")


def _jpeg_decoder() -> int:
    """The address of FFCV's `imdecode`; imported here, as only JPEG needs it."""
    from trainers.data.quick_ffcv import ctypes_imdecode

    return int(ctypes.cast(ctypes_imdecode, ctypes.c_void_p).value or 0)
