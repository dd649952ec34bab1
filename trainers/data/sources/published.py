"""What is known of published data sets: by which files they are recognized, and which classes their subsets have."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path

from trainers.data.sources.base import shown

LISTS = Path(__file__).parent.parent / "classes"
"""Published lists of classes, one a line; each file says where it is from."""
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
