"""Where images come from: one module per kind of source, each turning files into a `Source`. `trainers.data.datasets`
reads them.
"""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from trainers.data.sources import cifar, digits, images, npz, stl10, tiny_imagenet
from trainers.data.sources.base import CHANNELS, Branch, Channels, Images, Part, Source, no_labels, shown
from trainers.data.sources.layout import LAYOUTS
from trainers.data.splits import UNLABELED

_NETWORK_TIMEOUT_S = 30.0


class Asked(NamedTuple):
    """What a user says of a source that cannot always be told from it: one of its kind's `layouts`, and by which key a
    .npz file, or by which column a table, holds what.
    """

    layout: Any = "auto"
    arrays: Mapping[str, str] = MappingProxyType({})
    columns: Mapping[str, str] = MappingProxyType({})
    classes: str | None = None


class Kind(NamedTuple):
    """`layout` says in one line what `load` expects; `load` gets the paths, a scratch folder that is removed
    afterwards, and what was asked for.
    """

    layout: str
    load: Callable[[Sequence[Path], Path, Asked], Source]
    download: str | None = None
    """The name of torchvision's class, where it can fetch this kind."""
    layouts: tuple[str, ...] = ("auto",)
    """How such a source may lie, where that cannot always be told from it."""


def _digits(sources: Sequence[Path], scratch: Path, asked: Asked) -> Source:
    if sources:
        raise ValueError(f"digits is built in and takes no --source, but got {sources[0]}; leave it out")
    return digits.load()


def _cifar(classes: int, sources: Sequence[Path], scratch: Path, asked: Asked) -> Source:
    return cifar.load(sources, classes)


def _stl10(sources: Sequence[Path], scratch: Path, asked: Asked) -> Source:
    return stl10.load(sources)


def _tiny_imagenet(sources: Sequence[Path], scratch: Path, asked: Asked) -> Source:
    return tiny_imagenet.load(sources)


def _npz(sources: Sequence[Path], scratch: Path, asked: Asked) -> Source:
    return npz.load(sources, channels=asked.layout, arrays=asked.arrays)


def _images(sources: Sequence[Path], scratch: Path, asked: Asked) -> Source:
    return images.load(sources, scratch, asked.layout, asked.columns, asked.classes)


KINDS: dict[str, Kind] = {
    "digits": Kind("built in: scikit-learn's handwritten digits, no --source", _digits),
    "cifar10": Kind(
        "a folder with the original python batches, or train_*.npz and test.npz", partial(_cifar, 10), "CIFAR10"
    ),
    "cifar100": Kind(
        "a folder with the original python files, or train*.npz and test.npz", partial(_cifar, 100), "CIFAR100"
    ),
    "stl10": Kind("a folder with train_X.bin, train_y.bin, test_X.bin, test_y.bin", _stl10, "STL10"),
    "tiny-imagenet": Kind("the original folder tiny-imagenet-200", _tiny_imagenet),
    "images": Kind(
        "a folder, tar or zip with one sub-folder per class, or train/ and val/ with such sub-folders; WebDataset "
        "shards; a CSV or Parquet file; what Hugging Face's save_to_disk wrote",
        _images,
        layouts=LAYOUTS,
    ),
    "npz": Kind(".npz files with `images` and `labels`; files named test… are the test part", _npz, layouts=CHANNELS),
}


UNLABELED_ALONE = frozenset({"images", "npz", "stl10"})
"""Kinds for which images without labels may be the whole data set."""


def load(
    kind: str,
    sources: Sequence[Path],
    *,
    scratch: Path,
    download: bool = False,
    layout: str = "auto",
    arrays: Mapping[str, str] = MappingProxyType({}),
    columns: Mapping[str, str] = MappingProxyType({}),
    classes: str | None = None,
) -> Source:
    """Read a source of `kind`. With `download`, torchvision fetches it first, into the one source given or into
    `scratch`. `layout`: how it lies, one of the kind's `layouts`; `arrays`, `columns`: by which key a .npz file, or by
    which column a table, holds what; `classes`: a list of those to read, of the kind images.
    """
    check(kind, layout=layout, arrays=arrays, columns=columns, classes=classes)
    _refuse_overlap(sources)
    if download:
        sources = [_download(kind, sources[0] if sources else scratch)]
    return KINDS[kind].load(sources, scratch, Asked(layout, arrays, columns, classes))


def check(
    kind: str,
    *,
    layout: str = "auto",
    arrays: Mapping[str, str] = MappingProxyType({}),
    columns: Mapping[str, str] = MappingProxyType({}),
    classes: str | None = None,
) -> None:
    """ValueError where there is no such kind, or what is said of a source cannot be said of one of it."""
    if kind not in KINDS:
        raise ValueError(f"the kind of data must be one of {', '.join(KINDS)}, but is {kind!r}; choose one")
    known = KINDS[kind].layouts
    if layout not in known:
        able = [f"{name} (not auto: {', '.join(one.layouts[1:])})" for name, one in KINDS.items() if one.layouts[1:]]
        raise ValueError(
            f"the layout of {kind} must be {' or '.join(known)}, but is {layout!r}; choose one"
            + ("" if known[1:] else f"; others have {'; '.join(able)}")
        )
    if arrays and kind != "npz":
        raise ValueError(f"--array is for the kind npz, but the kind is {kind}; leave it out")
    if classes is not None and kind != "images":
        raise ValueError(f"--classes is for the kind images, but the kind is {kind}; leave it out")
    if columns and kind != "images":
        raise ValueError(f"--column is for tables of the kind images, but the kind is {kind}; leave it out")


def load_unlabeled(
    path: Path,
    *,
    scratch: Path,
    channels: Channels = "auto",
    key: str = "images",
    columns: Mapping[str, str] = MappingProxyType({}),
) -> Images:
    """Images without labels: a folder of images, a tar or zip, an .npz with `images`, STL-10's unlabeled_X.bin or the
    folder it is in, a table. `channels`, `key`: of an .npz, which axis they are on, and what its images are called;
    `columns`: of a table, as for `load`.
    """
    if path.is_dir():
        for inside in (path / "unlabeled_X.bin", path / "stl10_binary" / "unlabeled_X.bin"):
            if inside.exists():
                return stl10.load_images(inside)
        return images.load_images(path, scratch, columns)
    if path.suffix == ".bin":
        return stl10.load_images(path)
    if path.suffix == ".npz":
        return npz.load_images(path, channels, key)
    return images.load_images(path, scratch, columns)


def without_labels(kind: str, paths: Sequence[Path], images: Images) -> Source:
    """A source of images of which nobody says what is on them: no class, and -1 as every label."""
    names = ", ".join(shown(path.resolve().name) for path in paths)
    return Source(
        description=f"{kind} without labels: {names}",
        class_names=(),
        train=Part(images, np.full(len(images), UNLABELED, dtype=np.int64)),
        test=None,
        outline=images.outline or (Branch(f"{names}: {len(images):,} images"),),
        notes=(*images.notes, no_labels(len(images))),
    )


def outline(source: Source, unlabeled: Images | None) -> tuple[Branch, ...]:
    """What was understood, as a small tree with counts: each source, the test part, the unlabeled images."""
    lines = source.outline or (
        Branch(
            source.description,
            tuple(
                Branch(f"{name}: {len(part.labels):,} images, {len(source.class_names):,} classes")
                for name, part in (("train", source.train), ("test", source.test))
                if part is not None
            ),
        ),
    )
    if unlabeled is not None:
        lines = (*lines, *(unlabeled.outline or (Branch(f"unlabeled: {len(unlabeled):,} images"),)))
    origin = "carved from train, as there is no test part" if source.test is None else "the test part"
    return (*lines, Branch(f"report, the split that is read once: {origin}"))


def _refuse_overlap(sources: Sequence[Path]) -> None:
    """An image that is read twice would be in two splits."""
    real = [path.resolve() for path in sources]
    for number, one in enumerate(real):
        for other in real[number + 1 :]:
            if one.is_relative_to(other) or other.is_relative_to(one):
                inner, outer = sorted((one, other), key=lambda path: -len(path.parts))
                raise ValueError(
                    f"{shown(inner)}: no source may lie in another, but this one is in {shown(outer)}; name each once"
                )


def _download(kind: str, folder: Path) -> Path:
    name = KINDS[kind].download
    if name is None:
        able = ", ".join(kind for kind, entry in KINDS.items() if entry.download)
        raise ValueError(
            f"only {able} can be downloaded, but {kind} cannot; fetch it yourself and name it with --source"
        )
    from torchvision import datasets  # type: ignore[import-untyped, unused-ignore]

    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)  # torchvision sets none, and would wait for ever
    try:
        # torchvision prints its own bar and messages; ours is enough.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            getattr(datasets, name)(root=str(folder), download=True)
    except (OSError, RuntimeError, EOFError) as error:  # OSError includes every network error of urllib
        raise ValueError(
            f"{kind}: torchvision could not download it ({error}); fetch it yourself and name its folder with --source"
        ) from error
    finally:
        socket.setdefaulttimeout(waited)
    return folder
