"""Images that somebody names: files, folders and archives, each image once and under a name of its own."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data import named_images
from trainers.data.named_images import check_headers, collect, without_broken
from trainers.data.sources.base import BrokenImageError, FileImages


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def image(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["dog/2.png", "cat/1.png", "cat/0.jpg"]):
        image(Path("pets") / name, number)
    return Path("pets")


def test_a_folders_images_are_named_by_their_paths_and_labeled_by_the_folders_they_are_in(
    pets: Path, scratch: Path
) -> None:
    found = collect([pets], scratch)
    assert found.names == ["pets/cat/0.jpg", "pets/cat/1.png", "pets/dog/2.png"]
    assert found.labels is not None
    assert [found.class_names[label] for label in found.labels] == ["cat", "cat", "dog"]
    assert collect([pets / "cat"], scratch).labels is None
    assert collect([pets, image(Path("own.png"))], scratch).labels is None


def test_files_are_taken_in_the_order_in_which_they_are_named(pets: Path, scratch: Path) -> None:
    found = collect([pets / "dog/2.png", pets / "cat"], scratch)
    assert found.names == ["pets/dog/2.png", "pets/cat/0.jpg", "pets/cat/1.png"]


def test_archives_are_read_as_folders_are(pets: Path, scratch: Path) -> None:
    with tarfile.open("pets.tar", "w") as tar:
        tar.add(pets)
    with zipfile.ZipFile("pets.zip", "w") as archive:
        for path in sorted(pets.rglob("*.*")):
            archive.write(path)
    for name in ("pets.tar", "pets.zip"):
        found = collect([Path(name)], scratch)
        assert found.names[0] == f"{name}: pets/cat/0.jpg"
        assert found.class_names == ("cat", "dog")
        assert np.array_equal(
            np.asarray(FileImages(found.blobs).read(1).image), np.asarray(Image.open("pets/cat/1.png"))
        )


@pytest.mark.parametrize("twice", [["pets", "pets"], ["pets", "pets/cat/0.jpg"], ["pets", "./pets/dog"]])
def test_an_image_that_is_named_twice_is_refused(pets: Path, scratch: Path, twice: list[str]) -> None:
    with pytest.raises(ValueError, match="named twice; name each file once"):
        collect([Path(name) for name in twice], scratch)


def test_members_of_a_tar_that_share_a_name_are_refused(pets: Path, scratch: Path) -> None:
    with tarfile.open("pets.tar", "w") as tar:
        tar.add("pets/cat/0.jpg")
        tar.add("pets/cat/0.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 is named twice[\s\S]*pets\.tar: pets/cat/0\.jpg"):
        collect([Path("pets.tar")], scratch)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "must exist"),
        ("*.jpg", "must exist"),
        ("empty", "must hold images"),
        ("notes.txt", "tar"),
        ("a.jxl", "is a JPEG XL image; convert"),
    ],
)
def test_what_holds_no_image_is_refused(pets: Path, scratch: Path, name: str, said: str) -> None:
    Path("empty").mkdir()
    for other in ("notes.txt", "a.jxl"):
        Path(other).write_text("no image at all")
    with pytest.raises(ValueError, match=said):
        collect([pets, Path(name)], scratch)
    with pytest.raises(ValueError, match="none was named"):
        collect([], scratch)


def test_all_files_that_are_no_images_are_listed_by_their_headers(pets: Path, scratch: Path) -> None:
    for name in ("cat/bad.png", "dog/worse.jpg"):
        (pets / name).write_text("no image")
    with pytest.raises(ValueError, match=r"2 of 5 are broken[\s\S]*cat/bad\.png[\s\S]*dog/worse\.jpg"):
        check_headers(collect([pets], scratch), threads=2)


def test_broken_images_are_left_out_up_to_a_bound(pets: Path, scratch: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pets / "cat/0.jpg")
    (pets / "cat/0.jpg").write_bytes((pets / "cat/0.jpg").read_bytes()[:3000])
    found = collect([pets], scratch)
    check_headers(found, threads=1)  # its header is fine
    sound, skipped = without_broken(found, percent=34, threads=2)
    assert (sound.names, skipped) == (["pets/cat/1.png", "pets/dog/2.png"], ["pets/cat/0.jpg"])
    assert sound.labels is not None
    assert sound.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="at most 33% of the files may be broken"):
        without_broken(found, percent=33, threads=2)
    first = BrokenImageError("met.png", "met first")
    assert "cat/0.jpg" in str(named_images.all_broken(found, first, threads=1))
