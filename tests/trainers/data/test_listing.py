"""Which files of a folder or archive are images: litter, links, special files, odd names, other formats."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.sources.base import FileImages
from trainers.data.sources.listing import Listing, listing


def encoded(name: str = "PNG", seed: int = 0) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, name)
    return stream.getvalue()


def fill(root: Path, *files: str, content: bytes | None = None) -> Path:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(encoded(seed=number) if content is None else content)
    return root


def names(found: Listing) -> list[str]:
    return ["/".join((*entry.folders, entry.blob.name.rsplit("/", 1)[-1])) for entry in found.entries]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path / "in", "cat/0.png", "dog/1.png")


def test_what_systems_leave_behind_is_passed_over_without_a_word(root: Path, tmp_path: Path) -> None:
    litter = [
        "@eaDir/x/THUMB.jpg",
        ".ipynb_checkpoints/0.png",
        "__MACOSX/cat/._0.png",
        "cat/.hidden.jpg",
        "cat/._0.png",
    ]
    fill(root, *litter, "cat/Thumbs.db", "cat/desktop.ini", ".DS_Store", "cat/Icon\r", "$RECYCLE.BIN/0.png")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(root, arcname=".")
    for source in (root, tmp_path / "in.tar"):
        found = listing(source, tmp_path)
        assert [entry.folders for entry in found.entries] == [("cat",), ("dog",)]
        assert (found.others.total(), found.notes) == (0, [])


def test_what_is_no_regular_file_is_named_and_never_opened(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "cat" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "dog" / "s.jpg"))
        os.symlink("/dev/zero", root / "dog" / "zero.jpg")
        found = listing(root, tmp_path)
    assert names(found) == ["cat/0.png", "dog/1.png"]
    (note,) = found.notes
    assert note.startswith("3 are no regular file, never opened: ")
    assert all(part in note for part in ("pipe.png (a FIFO)", "s.jpg (a socket)", "zero.jpg (a device)"))
    assert found.others == {"special file": 3}


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_a_source_that_is_no_regular_file_is_refused(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"must come from a folder, tar or zip, but this is a (FIFO|device)"):
        listing(tmp_path / path, tmp_path)


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog", "/"])
def test_links_to_what_is_read_already_or_around_the_source_end_the_walk_there(
    root: Path, tmp_path: Path, target: str
) -> None:
    os.symlink(target, root / "cat" / "again")
    found = listing(root, tmp_path)
    assert names(found) == ["cat/0.png", "dog/1.png"]
    assert found.notes == [f"1 link leads to a folder that is read already, left out: {root}/cat/again"]


def test_links_that_lead_to_each_other_end(root: Path, tmp_path: Path) -> None:
    for one, other in (("cat", "dog"), ("dog", "cat")):
        os.symlink(root / other, root / one / "other")
        os.symlink("itself", root / one / "itself")
    found = listing(root, tmp_path)
    assert names(found) == ["cat/0.png", "dog/1.png"]
    assert found.others == {"suffixless file": 2}


def test_a_class_behind_a_link_is_read_and_said_to_be_outside(root: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere" / "fox", "2.png", "deeper/3.png")
    os.symlink(tmp_path / "elsewhere" / "fox", root / "fox")
    os.symlink(tmp_path / "elsewhere" / "fox" / "2.png", root / "dog" / "2.png")
    found = listing(root, tmp_path)
    assert names(found) == ["cat/0.png", "dog/1.png", "dog/2.png", "fox/2.png", "fox/deeper/3.png"]
    (note,) = found.notes
    assert note.startswith("3 images lie outside of the source, reached by a link: ")


def test_names_that_are_no_utf8_can_be_read_and_printed(root: Path, tmp_path: Path) -> None:
    folder = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(encoded())
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(root, arcname=".")
    for source in (root, tmp_path / "in.tar"):
        entry = next(entry for entry in listing(source, tmp_path).entries if entry.folders[0].startswith("caf"))
        assert entry.blob.name.endswith("caf\\xe9/\\xff.png")
        assert FileImages([entry.blob]).read(0).image.size == (8, 8)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_file_without_a_suffix_is_told_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "in", "cat/0", "cat/photo.1", content=encoded(name))
    fill(root, "cat/README", "cat/LICENSE", "cat/notes.2", content=b"text")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(root, arcname=".")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, file.relative_to(root))
    for source in (root, tmp_path / "in.tar", tmp_path / "in.zip"):
        found = listing(source, tmp_path)
        assert (len(found.entries), found.others.total()) == (2, 3)
        assert FileImages([entry.blob for entry in found.entries]).read(1).image.size == (8, 8)


@pytest.mark.parametrize(
    ("suffix", "what", "remedy"),
    [
        ("JXL", "3 JPEG XL images", "convert them to JPEG or PNG"),
        ("csv", "3 CSV files", "name the file itself with --source"),
        ("CR2", "3 raw photos", "convert them to JPEG or PNG"),
        ("zip", "3 zip archives", "name the archive itself with --source"),
        ("tar", "3 tars", "name the tar itself with --source"),
        ("npz", "3 .npz files", "use `pretune data npz`"),
        ("xyz", "3 .xyz files", "check the path"),
    ],
)
def test_a_folder_of_other_files_is_refused_by_what_they_are(
    tmp_path: Path, suffix: str, what: str, remedy: str
) -> None:
    root = fill(tmp_path / "in", *(f"cat/{number}.{suffix}" for number in range(3)), content=b"?")
    with pytest.raises(ValueError, match=rf"in: must hold images .*, but holds only {what}; {remedy}"):
        listing(root, tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\0", "a 7-Zip archive"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"\x28\xb5\x2f\xfd rest", "compressed by Zstandard"),
        (b"PAR1 rest", "a Parquet file"),
        (encoded("JPEG"), "a single image"),
        (encoded("PNG"), "a single image"),
    ],
)
def test_a_file_that_is_no_archive_of_images_is_refused_by_what_it_is(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ValueError, match=f"must come from a folder, tar or zip, but this is {what}; "):
        listing(tmp_path / "x.tar", tmp_path)
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"this is a \.npz file of arrays; use `pretune data npz`"):
        listing(tmp_path / "x.npz", tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_gives_the_bytes_that_were_packed(tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "photos", "w", compression) as archive:
        for number in range(3):
            archive.writestr(f"photos\\cat\\{number}.png", encoded(seed=number))  # as packed on Windows
        archive.writestr("photos/notes.txt", "hello")
    found = listing(tmp_path / "photos", tmp_path)
    assert [entry.folders for entry in found.entries] == [("photos", "cat")] * 3
    assert [entry.blob.read() for entry in found.entries] == [encoded(seed=number) for number in range(3)]
    assert found.others == {".txt file": 1}


def test_a_damaged_or_locked_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/0.png", encoded())
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[80] ^= 1
    for content in (whole[:-30], bytes(damaged), b"", b"no zip"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.zip: not a complete zip archive"):
            listing(path, tmp_path)
    locked = bytearray(whole)
    locked[6] |= 1
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(ValueError, match="a zip must have no password"):
        listing(path, tmp_path)


def test_folders_without_images_are_named(root: Path, tmp_path: Path) -> None:
    (root / "bird" / "young").mkdir(parents=True)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(root, arcname=".")
    for source in (root, tmp_path / "in.tar"):
        assert listing(source, tmp_path).notes == ["no image in this folder: bird"]
