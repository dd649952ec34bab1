"""What is known of published data sets: by which files they are recognized, which classes their subsets have, and which
of their images have labels where papers take few.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from trainers.data.sources.base import shown

LISTS = Path(__file__).parent.parent / "classes"
"""Published lists of classes, one a line; each file says where it is from."""
FEW_LABELS = Path(__file__).parent.parent / "labels" / "imagenet.txt.xz"
"""SimCLR's lists of ImageNet's images; the file says where they are from and what its lines mean."""
SHARES = ("1%", "10%")
LEAST_THERE = 0.95
"""Of what is listed of a source's classes, the part that it must have to be ImageNet, or a subset of its classes."""
_IMAGE = re.compile(r"(?<![A-Za-z0-9])(n\d{8})_(\d+)(?:_n\d{8})?\.\w+$")
"""ImageNet's name of an image, behind folders or an archive's name, whatever the format it was saved in."""
_MARKS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "tiny-imagenet": ("Tiny ImageNet", ("wnids.txt",), "tiny-imagenet-200"),
    "cifar10": ("CIFAR-10", ("data_batch_1", "test_batch"), "cifar-10-batches-py"),
    "cifar100": ("CIFAR-100", ("train", "test", "meta"), "cifar-100-python"),
    "stl10": ("STL-10", ("train_X.bin", "test_X.bin"), "stl10_binary"),
}
"""By kind: its name, files that lie in its folder, and what the folder is called."""


def refuse(path: Path) -> None:
    """ValueError, with the command that reads it, where `path` is a data set that has a kind of its own."""
    for kind, (name, files, folder) in _MARKS.items():
        place = path / folder if (path / folder).is_dir() else path
        if path.is_dir() and all((place / file).is_file() for file in files):
            raise ValueError(f"{shown(path)}: this is {name}; read it with: pretune data {kind} --source {shown(path)}")
        if path.is_file() and _first_folder(path) == folder:
            raise ValueError(
                f"{shown(path)}: this is {name} in an archive; unpack it and read it with: pretune data {kind} "
                f"--source FOLDER/{folder}"
            )


def classes(text: str) -> list[str]:
    """The classes of a list: the name of a published one, such as `imagenet100`, or a file with one a line, in which #
    begins a remark. ValueError where there is no such list, or it is empty.
    """
    path = Path(text)
    if not path.is_file() and (LISTS / f"{text}.txt").is_file():
        path = LISTS / f"{text}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LISTS.glob("*.txt")))
        raise ValueError(f"--classes must be a file with one class a line, or {known}, but is {text!r}; check the path")
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)}: a list of classes must be UTF-8, but is not ({error}); save it so") from error
    found = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not found:
        raise ValueError(f"{shown(path)}: a list of classes must name some, one a line, but is empty; check the file")
    return found


class Listed(NamedTuple):
    """Of a share of ImageNet's labels, what concerns a source."""

    places: list[int]
    """Of its images."""
    listed: int
    """Images that are listed of its classes."""


def few_labels(names: Iterable[str]) -> dict[str, Listed]:
    """By `SHARES`, which of a source's images, by their names, are on the list. Nothing where the images are not those
    of ImageNet or of some of its classes, as when more than a twentieth of the listed ones is missing.
    """
    found = [(place, match) for place, name in enumerate(names) if (match := _IMAGE.search(name))]
    place_of = {(match[1], int(match[2])): place for place, match in found}
    classes = {name for name, _ in place_of}
    known = {name: numbers for name, numbers in _few_labels().items() if name in classes} if classes else {}
    result = {}
    for share in SHARES:
        listed = [(name, number) for name, numbers in known.items() for number in numbers[share]]
        places = sorted(place_of[one] for one in listed if one in place_of)
        if listed and len(places) >= LEAST_THERE * len(listed):
            result[share] = Listed(places, len(listed))
    return result


def _few_labels() -> dict[str, Mapping[str, list[int]]]:
    """Of each class of ImageNet, by share, the numbers of the listed images' files."""
    found: dict[str, Mapping[str, list[int]]] = {}
    for line in lzma.decompress(FEW_LABELS.read_bytes()).decode().splitlines():
        if line.startswith("#"):
            continue
        name, *steps = line.split()
        number, numbers = 0, {share: list[int]() for share in SHARES}
        for step in steps:
            number += int(step.removesuffix("*"))
            numbers["10%"].append(number)
            if step.endswith("*"):
                numbers["1%"].append(number)
        found[name] = numbers
    return found


def _first_folder(path: Path) -> str:
    """The folder that an archive begins with; empty where it has none or is no archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(iter(archive.namelist()), "")
        else:
            with tarfile.open(path) as tar:
                first = tar.next()
                name = "" if first is None else first.name
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error, lzma.LZMAError):
        return ""
    return next((part for part in name.split("/") if part not in ("", ".")), "")
