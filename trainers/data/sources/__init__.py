"""Where images come from: one module per kind of source, each turning files into a `Source`. `trainers.data.datasets`
reads them.
"""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from trainers.data.sources import cifar, digits, images, npz, stl10, tiny_imagenet
from trainers.data.sources.base import Images, Source, existing

_NETWORK_TIMEOUT_S = 30.0


class Kind(NamedTuple):
    """`layout` says in one line what `load` expects; `load` gets the paths and a scratch folder that is removed
    afterwards.
    """

    layout: str
    load: Callable[[Sequence[Path], Path], Source]
    download: str | None = None
    """The name of torchvision's class, where it can fetch this kind."""


def _digits(sources: Sequence[Path], scratch: Path) -> Source:
    if sources:
        raise ValueError(f"digits is built in and takes no --source, but got {sources[0]}; leave it out")
    return digits.load()


def _cifar(classes: int, sources: Sequence[Path], scratch: Path) -> Source:
    return cifar.load(sources, classes)


def _stl10(sources: Sequence[Path], scratch: Path) -> Source:
    return stl10.load(sources)


def _tiny_imagenet(sources: Sequence[Path], scratch: Path) -> Source:
    return tiny_imagenet.load(sources)


def _npz(sources: Sequence[Path], scratch: Path) -> Source:
    return npz.load(sources)


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
        "a folder or tar with one sub-folder per class, or train/ and val/ with such sub-folders", images.load
    ),
    "npz": Kind(".npz files with `images` and `labels`; files named test… are the test part", _npz),
}


def load(kind: str, sources: Sequence[Path], *, scratch: Path, download: bool = False) -> Source:
    """Read a source of `kind`. With `download`, torchvision fetches it first, into the one source given or into
    `scratch`.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of data must be one of {', '.join(KINDS)}, but is {kind!r}; choose one")
    if download:
        sources = [_download(kind, sources[0] if sources else scratch)]
    return KINDS[kind].load(sources, scratch)


def load_unlabeled(path: Path, *, scratch: Path) -> Images:
    """Images without labels: a folder of images, a tar, an .npz with `images`, STL-10's unlabeled_X.bin or the
    folder it is in.
    """
    existing(path, "the unlabelled images")
    if path.is_dir():
        for inside in (path / "unlabeled_X.bin", path / "stl10_binary" / "unlabeled_X.bin"):
            if inside.exists():
                return stl10.load_images(inside)
        return images.load_images(path, scratch)
    if path.suffix == ".bin":
        return stl10.load_images(path)
    if path.suffix == ".npz":
        return npz.load_images(path)
    return images.load_images(path, scratch)


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
