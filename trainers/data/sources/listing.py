"""Which image files a folder or an archive holds, and what else lies there. Nothing is decoded.

A walk ends: each folder is read once, links are followed but never twice to the same folder, and nothing that is no
regular file is opened.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from trainers.data.sources.base import AVIF_SUFFIXES, HEIF_SUFFIXES, Blob, image_suffixes, shown

_COMPRESSED: dict[bytes, type[gzip.GzipFile] | type[bz2.BZ2File] | type[lzma.LZMAFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_BLOCK = 512  # bytes, of a tar
_HEAD = 16  # bytes at a file's start that tell what it is
_LITTER = frozenset(
    {
        "__macosx",  # a Mac's zip
        "@eadir", "#recycle", "@recycle",  # network disks
        "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",  # Windows
        "icon\r",  # a Mac's folder
        "lost+found",
    }
)  # fmt: skip
"""What systems leave behind, in lower case; hidden files (such as .DS_Store or .ipynb_checkpoints) go as well."""

_BESIDE = (".cls", ".json")
"""Suffixes of files that may hold the label of the image of their name."""

_KNOWN = {
    ".heic": "HEIC image", ".heif": "HEIF image", ".hif": "HEIF image", ".avif": "AVIF image", ".jxl": "JPEG XL image",
    ".jp2": "JPEG 2000 image", ".dng": "raw photo", ".cr2": "raw photo", ".cr3": "raw photo", ".nef": "raw photo",
    ".arw": "raw photo", ".svg": "SVG drawing", ".dcm": "DICOM file", ".mp4": "video", ".mov": "video", ".avi": "video",
    ".zip": "zip archive", ".tar": "tar", ".gz": "compressed file", ".tgz": "compressed tar", ".rar": "RAR archive",
    ".7z": "7-Zip archive", ".npz": ".npz file", ".npy": ".npy file", ".parquet": "Parquet file", ".csv": "CSV file",
    ".h5": "HDF5 file", ".hdf5": "HDF5 file", ".tfrecord": "TFRecord file",
}  # fmt: skip
"""What other files are called, by suffix."""
_REMEDIES = {
    "HEIC image": "read them with the extra: pip install 'pretune[heic]'; or convert them to JPEG or PNG",
    "HEIF image": "read them with the extra: pip install 'pretune[heic]'; or convert them to JPEG or PNG",
    "AVIF image": "install a Pillow that was built with AVIF, as its wheels are; or convert them to JPEG or PNG",
    "image": "convert them to JPEG or PNG",
    "photo": "convert them to JPEG or PNG",
    "archive": "name the archive itself with --source, or unpack it",
    "tar": "name the tar itself with --source",
    ".npz file": "use `pretune data npz`",
    "CSV file": "name the file itself with --source",
    "Parquet file": "name the file itself with --source",
}
_FOREIGN: dict[bytes, tuple[str, str]] = {
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it and name the folder"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it and name the folder"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "unpack it and name the tar or the folder"),
    b"\x04\x22\x4d\x18": ("compressed by LZ4", "unpack it and name the tar or the folder"),
    b"PAR1": ("a Parquet file", "let its name end with .parquet"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", "export its images to one folder per class"),
    b"\x93NUMPY": ("a .npy file", "save it with np.savez as `images` and `labels`, and use `pretune data npz`"),
    b"SQLite format 3": ("an SQLite database", "export its images to one folder per class"),
    b"%PDF": ("a PDF", "export its images to one folder per class"),
}
"""What a single file may be instead of an archive of images, by its first bytes; and what to do."""


class Entry(NamedTuple):
    """An image file, and where it lies below its source: `folders` are the names between, `file` is its own."""

    folders: tuple[str, ...]
    blob: Blob
    file: str = ""


class Listing(NamedTuple):
    """What a source holds. `others`: files that are no images, by what they are; `notes`: what was left out or is
    out of the ordinary, one sentence each.
    """

    entries: list[Entry]
    others: Counter[str]
    notes: list[str]
    folders: set[tuple[str, ...]]
    """Every folder that was seen, by the names above it and its own."""
    beside: list[Entry]
    """Of the others those that may hold the label of an image."""


def listing(path: Path, scratch: Path) -> Listing:
    """The images of a folder, tar or zip in the order of their paths; hidden files and litter don't count.

    An archive that is compressed is unpacked into `scratch`, as images are read in any order. ValueError, naming the
    path, where it is none of these, damaged, or holds no image.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        raise ValueError(
            f"{shown(path)}: images must come from a folder, tar or zip, but this is {_SPECIAL.get(kind, 'none')}; "
            f"check the path"
        )
    if kind == stat.S_IFDIR:
        found = _from_folder(path)
    else:
        head = _head(path)
        found = _from_zip(path, scratch) if _is_zip(path, head) else _from_tar(path, scratch, head)
    if not found.entries:
        raise ValueError(
            f"{shown(path)}: must hold images ({' '.join(sorted(image_suffixes()))}), {_but(found.others)}"
        )
    if empty := _empty(found):
        few = ", ".join("/".join(map(shown, folders)) for folders in empty[:3])
        more = f" and {len(empty) - 3:,} more" if len(empty) > 3 else ""
        found.notes.append(f"no image in {'this folder' if len(empty) == 1 else 'these folders'}: {few}{more}")
    found.entries.sort(key=lambda entry: (entry.folders, entry.blob.name))
    return found


def is_image_file(path: Path) -> bool:
    """Whether the file at `path` is an image itself, told as within a folder."""
    return path.is_file() and _is_image(path.name, lambda: _head(path))


def foreign_image(name: str) -> str:
    """What an image of a kind that is not read here is, and what to do; empty for any other file."""
    called = _called(name)
    remedy = next(
        (text for end, text in _REMEDIES.items() if end.endswith(("image", "photo")) and called.endswith(end)), ""
    )
    return f"{called}; {remedy}" if remedy else ""


def joined(found: Sequence[Listing]) -> Listing:
    """Several listings as one, in their order."""
    return Listing(
        [entry for one in found for entry in one.entries],
        sum((one.others for one in found), Counter[str]()),
        [note for one in found for note in one.notes],
        {folders for one in found for folders in one.folders},
        [entry for one in found for entry in one.beside],
    )


def left_out(others: Counter[str]) -> str:
    """What is left out of a source, and what to do where that is photographs."""
    remedies = dict.fromkeys(_REMEDIES[what] for what in ("HEIC image", "HEIF image", "AVIF image") if others[what])
    return "; ".join(["no images that are read here, left out: " + counted(others), *remedies])


def counted(others: Counter[str]) -> str:
    """`3 HEIC images, 1 .txt file`: the most frequent first, at most four kinds."""
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in kinds[:4]]
    rest = sum(count for _, count in kinds[4:])
    return ", ".join([*words, *([f"{rest:,} others"] if rest else [])])


def _empty(found: Listing) -> list[tuple[str, ...]]:
    """The folders without an image at any depth, of nested ones the outermost, in order."""
    filled = {entry.folders[:depth] for entry in found.entries for depth in range(len(entry.folders) + 1)}
    return sorted(folders for folders in found.folders - filled if folders[:-1] in filled)


def _but(others: Counter[str]) -> str:
    if not others:
        return "but there is none; check the path"
    most = max(others, key=lambda what: (others[what], what))
    remedy = next((remedy for end, remedy in _REMEDIES.items() if most.endswith(end)), "check the path")
    return f"but holds only {counted(others)}; {remedy}"


def _is_litter(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part.lower() in _LITTER for part in parts)


def _is_image(name: str, head: Callable[[], bytes]) -> bool:
    """By its suffix; a file without one (or with a mere number) by its first bytes, which `head` reads."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in image_suffixes() or (not suffix.lstrip(".0123456789") and _starts_as_image(head()))


def _starts_as_image(head: bytes) -> bool:
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*"))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head.startswith(b"BM") and head[6:10] == b"\0\0\0\0")
        or (head[4:12] in (b"ftypavif", b"ftypavis") and image_suffixes() >= AVIF_SUFFIXES)
        or (head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1") and image_suffixes() >= HEIF_SUFFIXES)
    )


def _called(name: str) -> str:
    """What a file that is no image is called."""
    suffix = PurePosixPath(name).suffix.lower()
    return _KNOWN.get(suffix) or (f"{shown(suffix)} file" if suffix else "suffixless file")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


# ---- folders

_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class _Folder(NamedTuple):
    """A folder still to be read. `outside`: it is reached by a link that leaves the source."""

    path: Path
    folders: tuple[str, ...]
    outside: bool


def _from_folder(root: Path) -> Listing:
    entries: list[Entry] = []
    beside: list[Entry] = []
    others: Counter[str] = Counter()
    folders: set[tuple[str, ...]] = set()
    special: list[str] = []
    again: list[str] = []
    beyond: list[str] = []
    real_root = Path(os.path.realpath(root))
    seen: set[tuple[int, int]] = set()
    # Real folders come first: what a link leads to as well is then found under its own name.
    real, linked = [_Folder(root, (), False)], deque[_Folder]()
    while real or linked:
        here = real.pop() if real else linked.popleft()
        inside = _inside(here.path, seen)
        if inside is None:
            again.append(shown(here.path))
            continue
        folders.add(here.folders)
        for name, path, status in inside:
            outside = here.outside
            if path.is_symlink():
                target = Path(os.path.realpath(path))
                outside = not target.is_relative_to(real_root)
                if status is not None and stat.S_ISDIR(status.st_mode) and real_root.is_relative_to(target):
                    again.append(shown(path))  # it leads to what is around the source
                    continue
            mode = None if status is None else status.st_mode
            if mode is not None and stat.S_ISDIR(mode):
                folder = _Folder(path, (*here.folders, name), outside)
                (linked.append if path.is_symlink() else real.append)(folder)
            elif mode is not None and not stat.S_ISREG(mode):
                special.append(f"{shown(path)} ({_SPECIAL.get(stat.S_IFMT(mode), 'no regular file')})")
            elif _is_image(name, lambda path=path, mode=mode: b"" if mode is None else _head(path)):  # type: ignore[misc]
                entries.append(Entry(here.folders, Blob(path, shown(path)), name))
                beyond += [shown(path)] if outside and status is not None else []
            else:
                others[_called(name)] += 1
                beside += [Entry(here.folders, Blob(path, shown(path)), name)] if name.lower().endswith(_BESIDE) else []
    notes = [
        *_note(special, "{} no regular file, never opened: {}", "is", "are"),
        *_note(again, "{} to a folder that is read already, left out: {}", "link leads", "links lead"),
        *_note(beyond, "{} outside of the source, reached by a link: {}", "image lies", "images lie"),
    ]
    others.update({"special file": len(special)} if special else {})
    return Listing(entries, others, notes, folders, beside)


def _inside(folder: Path, seen: set[tuple[int, int]]) -> list[tuple[str, Path, os.stat_result | None]] | None:
    """(name, path, what it leads to; None where a link dangles) in order. None: the folder was read before."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return None
        seen.add((status.st_dev, status.st_ino))
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(
            f"{shown(folder)}: the folder cannot be read ({error.strerror}); check who may read it"
        ) from error
    return [(name, folder / name, _status(folder / name)) for name in names if not _is_litter([name])]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _note(paths: list[str], text: str, one: str, many: str) -> list[str]:
    if not paths:
        return []
    listed = ", ".join(paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")
    return [text.format(f"{len(paths):,} {one if len(paths) == 1 else many}", listed)]


# ---- archives


def _parts_of(name: str, folders: set[tuple[str, ...]], *, is_folder: bool) -> tuple[str, ...] | None:
    """Folders and file of a member, as it would lie below the folder it is unpacked in: never above, never absolute.
    None of litter, and of a folder, which is added to `folders`.
    """
    if "/" not in name:
        name = name.replace("\\", "/")  # packed on Windows
    parts = tuple(part for part in posixpath.normpath(name).split("/") if part not in ("", ".", ".."))
    if not parts or _is_litter(parts):
        return None
    if is_folder:
        folders.add(parts)
        return None
    return parts


def _from_tar(path: Path, scratch: Path, head: bytes) -> Listing:
    what, remedy = next((known for magic, known in _FOREIGN.items() if head.startswith(magic)), ("", ""))
    if _starts_as_image(head):
        what, remedy = "a single image", "name the folder around its class's folder"
    if what:
        raise ValueError(f"{shown(path)}: images must come from a folder, tar or zip, but this is {what}; {remedy}")
    plain = _decompressed(path, scratch, head)
    entries: list[Entry] = []
    beside: list[Entry] = []
    others: Counter[str] = Counter()
    folders: set[tuple[str, ...]] = set()
    end = 0
    try:
        with tarfile.open(plain, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else member.offset_data
                parts = _parts_of(member.name, folders, is_folder=member.isdir())
                if parts is None:
                    continue
                # A hard link has no bytes of its own: it names an earlier member.
                held = tar.getmember(member.linkname) if member.islnk() else member
                blob = Blob(plain, f"{shown(path)}: {shown(member.name)}", held.offset_data, held.size)
                if held.isreg() and _is_image(parts[-1], lambda blob=blob: blob.read()[:_HEAD]):  # type: ignore[misc]
                    entries.append(Entry(parts[:-1], blob, parts[-1]))
                else:
                    others[_called(parts[-1]) if held.isreg() else "link or special file"] += 1
                    beside += (
                        [Entry(parts[:-1], blob, parts[-1])]
                        if held.isreg() and parts[-1].lower().endswith(_BESIDE)
                        else []
                    )
        with plain.open("rb") as file:
            file.seek(end)
            complete = not any(file.read(_BLOCK)) and plain.stat().st_size > end
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{shown(path)}: not a complete tar file ({error}); it may be truncated: copy it again"
        ) from error
    if not complete:
        raise ValueError(
            f"{shown(path)}: a tar must end with an empty block, but this one stops early: truncated; copy it again"
        )
    return Listing(entries, others, [], folders, beside)


def _decompressed(path: Path, scratch: Path, head: bytes) -> Path:
    """The tar itself: images are read in any order, so a compressed one is unpacked aside for the time of the build."""
    opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
    if opener is None:
        return path
    plain = scratch / f"{uuid.uuid4().hex}.tar"
    try:
        with opener(path) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, such as being full; a damaged file has no error number
        raise ValueError(
            f"{shown(path)}: not a complete compressed tar ({error}); it may be truncated: copy it again"
        ) from error
    return plain


def _is_zip(path: Path, head: bytes) -> bool:
    """Also one whose directory is missing, which is then refused as a damaged zip."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or path.suffix.lower() == ".zip"


def _from_zip(path: Path, scratch: Path) -> Listing:
    """Members are unpacked one after the other into a single file aside."""
    entries: list[Entry] = []
    beside: list[Entry] = []
    others: Counter[str] = Counter()
    folders: set[tuple[str, ...]] = set()
    plain = scratch / f"{uuid.uuid4().hex}.unzipped"
    try:
        with zipfile.ZipFile(path) as archive, plain.open("wb") as file:
            members = archive.infolist()
            if any(member.filename.endswith(".npy") for member in members):
                raise ValueError(
                    f"{shown(path)}: images must come from a folder, tar or zip, but this is a .npz file of arrays; "
                    f"use `pretune data npz`"
                )
            refuse_too_large(path, scratch, sum(member.file_size for member in members))
            for member in members:
                parts = _parts_of(member.filename, folders, is_folder=member.is_dir())
                if parts is None:
                    continue
                if member.flag_bits & 1:
                    raise ValueError(
                        f"{shown(path)}: a zip must have no password, but {shown(member.filename)} has one; unpack it "
                        f"and name the folder"
                    )
                regular = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
                with archive.open(member) as packed:
                    head = packed.read(_HEAD) if regular else b""
                    image = regular and _is_image(parts[-1], lambda head=head: head)  # type: ignore[misc]
                    if not image:
                        others[_called(parts[-1]) if regular else "link or special file"] += 1
                        if not regular or not parts[-1].lower().endswith(_BESIDE):
                            continue
                    start = file.tell()
                    file.write(head)
                    shutil.copyfileobj(packed, file, 1 << 20)
                blob = Blob(plain, f"{shown(path)}: {shown(member.filename)}", start, file.tell() - start)
                (entries if image else beside).append(Entry(parts[:-1], blob, parts[-1]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, lzma.LZMAError, RuntimeError) as error:
        raise ValueError(
            f"{shown(path)}: not a complete zip archive ({error}); it may be truncated: copy it again, or unpack it "
            f"and name the folder"
        ) from error
    return Listing(entries, others, [], folders, beside)


def refuse_too_large(path: Path, scratch: Path, size: int) -> None:
    """ValueError where `size` bytes more have no room in the scratch folder."""
    free = shutil.disk_usage(scratch).free
    if size > free:
        raise ValueError(
            f"{shown(path)}: unpacked it takes {size / 2**20:,.0f} MiB, which must fit beside --out, but "
            f"{free / 2**20:,.0f} MiB are free there; free some, or choose another --out"
        )
