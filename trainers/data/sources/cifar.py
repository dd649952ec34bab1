"""CIFAR-10 and CIFAR-100: the original python batches, or .npz parts (train_1.npz … test.npz, with `images` and
`labels`).
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainers.data.sources import npz
from trainers.data.sources.base import ArrayImages, ChainedImages, Images, Part, Source, as_labels, one_folder

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Layout:
    """How the original archive names its files and keys."""

    def __init__(self, folder: str, train: tuple[str, ...], test: str, meta: str, names: str, labels: str) -> None:
        self.folder, self.train, self.test, self.meta, self.names, self.labels = (
            folder,
            train,
            test,
            meta,
            names,
            labels,
        )


_LAYOUTS = {
    10: _Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "batches.meta",
        "label_names",
        "labels",
    ),
    100: _Layout("cifar-100-python", ("train",), "test", "meta", "fine_label_names", "fine_labels"),
}


def load(sources: Sequence[Path], classes: int) -> Source:
    """`classes`: 10 or 100 (the fine labels). The test batch becomes `report`."""
    kind, layout = f"cifar{classes}", _LAYOUTS[classes]
    folder = one_folder(sources, kind, f"a folder with {layout.train[0]} … or train_1.npz …")
    if (folder / layout.folder).is_dir():
        folder = folder / layout.folder
    if not any((folder / name).exists() for name in (*layout.train, layout.test)):
        if any(folder.glob("*.npz")):
            return _from_npz(folder, kind, classes)
        raise ValueError(
            f"{folder}: must hold the original python batches ({', '.join((*layout.train, layout.test))}) or .npz "
            f"parts, "
            "but holds neither; name the folder that does, or use --download"
        )
    names = _class_names(folder / layout.meta, layout, classes)
    train = [_batch(folder / name, layout.labels, classes) for name in layout.train]
    test = _batch(folder / layout.test, layout.labels, classes)
    labels = np.concatenate([part.labels for part in train])
    return Source(f"{kind}: python batches", names, Part(ChainedImages([part.images for part in train]), labels), test)


def _from_npz(folder: Path, kind: str, classes: int) -> Source:
    source = npz.load([folder], kind=kind, class_names=CIFAR10_CLASSES if classes == 10 else _numbers(classes))
    if source.test is None:
        raise ValueError(f"{folder}: the .npz parts of {kind} must include test.npz, but it is missing; copy it there")
    for part in (source.train, source.test):
        if part.images.uniform != (32, 32):
            raise ValueError(
                f"{folder}: images of {kind} must be 32x32, but are not; use the kind `npz` for other arrays"
            )
    return source


def _class_names(path: Path, layout: _Layout, classes: int) -> tuple[str, ...]:
    if not path.exists():
        return CIFAR10_CLASSES if classes == 10 else _numbers(classes)
    names = unpickle(path).get(layout.names.encode())
    if not isinstance(names, list) or len(names) != classes:
        raise ValueError(
            f"{path}: must list {classes} names under {layout.names!r}, but does not; copy the original file"
        )
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)


def _numbers(classes: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(classes))


def _batch(path: Path, label_key: str, classes: int) -> Part:
    if not path.exists():
        raise ValueError(
            f"{path}: every batch must be there, but this one is missing; copy the original folder completely"
        )
    content = unpickle(path)
    data, marks = content.get(b"data"), content.get(label_key.encode())
    if not isinstance(data, np.ndarray) or marks is None:
        raise ValueError(
            f"{path}: must hold b'data' and {label_key.encode()!r}, but holds {sorted(map(repr, content))}; is it "
            f"CIFAR?"
        )
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError(
            f"{path}: images must be uint8 rows of 3072, but are {data.dtype} {list(data.shape)}; copy the original"
        )
    # A row is the red, then the green, then the blue plane.
    pixels: NDArray[np.uint8] = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    images: Images = ArrayImages(pixels, str(path))
    return Part(images, as_labels(np.asarray(marks), len(data), str(path), classes=classes))


def unpickle(path: Path) -> dict[Any, Any]:
    """A pickled dict of plain values and uint8 arrays, keys as bytes: they are text in what Python 3 pickled again.

    Any other class or function in it is refused, never called. NumPy's own rebuilding of arrays is not called either:
    given damaged bytes it can leave the interpreter broken.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError, ImportError, LookupError, TypeError, ValueError,
            OverflowError, MemoryError, RecursionError) as error:  # fmt: skip
        # What a damaged pickle raises depends on the byte that is wrong.
        raise ValueError(
            f"{path}: not a complete pickle of plain values and arrays ({error}); copy the original file again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a dict, but holds a {type(content).__name__}; copy the original file")
    named = {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
    return {key: value.rebuilt(path) if isinstance(value, _PickledArray) else value for key, value in named.items()}


class _Dtype:
    """Stands for numpy.dtype: remembers its name."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which a single byte has not."""


class _PickledArray:
    """Stands for numpy.ndarray: remembers what it is to be built from."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def rebuilt(self, path: Path) -> NDArray[np.uint8]:
        match self.state:
            case (_, tuple(shape), _Dtype(name="u1"), fortran, bytes() | bytearray() as data) if not fortran:
                if all(isinstance(n, int) and n >= 0 for n in shape) and math.prod(shape) == len(data):
                    return np.frombuffer(data, np.uint8).reshape(shape)
        raise ValueError(
            f"{path}: arrays must be uint8 in C order, of as many bytes as their shape says; copy the original"
        )


def _from_buffer(data: object, dtype: object, shape: object, order: object, *_: object) -> _PickledArray:
    """Stands for numpy's rebuilding of an array in pickles of protocol 5."""
    array = _PickledArray()
    array.state = (1, shape, dtype, order not in ("C", b"C"), data)
    return array


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stands for _codecs.encode, by which old protocols say bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes must be spelled as latin1 text")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Knows only what arrays are pickled with, under its names in all versions of NumPy, and puts our own in its
    place.
    """

    _STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._STAND_INS:
            return self._STAND_INS[module, name]
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which plain arrays don't need and which is not allowed"
        )
