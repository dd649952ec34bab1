"""Published data sets: recognized where another kind is asked for, and their subsets by lists of classes."""

from __future__ import annotations

import hashlib
import lzma
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data import sources
from trainers.data.sources import published
from trainers.data.sources.base import Source

LAYOUTS = {
    "tiny-imagenet": ("tiny-imagenet-200", ["wnids.txt", "train/n01443537/images/x.JPEG", "val/images/y.JPEG"]),
    "cifar10": ("cifar-10-batches-py", ["data_batch_1", "test_batch", "batches.meta"]),
    "cifar100": ("cifar-100-python", ["train", "test", "meta"]),
    "stl10": ("stl10_binary", ["train_X.bin", "test_X.bin"]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "around", "tar", "zip"])
def test_a_data_set_with_a_kind_of_its_own_is_pointed_to_it(tmp_path: Path, kind: str, form: str) -> None:
    name, files = LAYOUTS[kind]
    for file in files:
        (tmp_path / "in" / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name / file).write_bytes(b"x")
    path = tmp_path / "in" / name if form == "folder" else tmp_path / "in"
    if form == "tar":
        with tarfile.open(tmp_path / "renamed.tgz", "w:gz") as tar:
            tar.add(tmp_path / "in" / name, arcname=f"./{name}")
        path = tmp_path / "renamed.tgz"
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "renamed.zip", "w") as archive:
            for file in files:
                archive.write(tmp_path / "in" / name / file, f"{name}/{file}")
        path = tmp_path / "renamed.zip"
    with pytest.raises(ValueError, match=rf"this is .*: pretune data {kind} --source "):
        sources.load("images", [path], scratch=tmp_path)


def write_classes(root: Path, *names: str) -> None:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng((place, index)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def load(path: Path, classes: str) -> Source:
    return sources.load("images", [path], scratch=path.parent, classes=classes)


def test_a_list_of_classes_is_read_from_all_parts_and_nothing_else_is(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_classes(tmp_path / "in" / part, "n01", "n02", "n03", "golden retriever")
    (tmp_path / "list.txt").write_text("# a subset\nn03\nn01 tench, Tinca tinca\n\ngolden retriever\nn03\n")
    source = load(tmp_path / "in", str(tmp_path / "list.txt"))
    assert source.test is not None
    assert source.class_names == ("golden retriever", "n01", "n03")
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert source.train.images.name(3).endswith("train/n01/0.png")
    assert "left out, of classes that are not in the list: 6 images" in source.notes
    assert source.skipped == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n01\nn09\nn08\n", "2 of 3 are not, such as 'n08' (there are n01, n02)"),
        ("# nothing\n", "must name some, one a line, but is empty"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    write_classes(tmp_path / "in", "n01", "n02")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        load(tmp_path / "in", str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="must be a file with one class a line, or imagenet100, but is 'imagenet1000'"):
        load(tmp_path / "in", "imagenet1000")
    with pytest.raises(ValueError, match="--classes is for the kind images, but the kind is npz"):
        sources.load("npz", [tmp_path], scratch=tmp_path, classes="imagenet100")


LISTED = {"1%": (12_811, "6581e723dbf23ae4"), "10%": (128_116, "220f3e2f6dba9d26")}
"""By share, the images of SimCLR's list, and the sha256 of its lines, sorted and without the last line's end."""


def listed(share: str) -> list[str]:
    return [f"{name}_{number}.JPEG" for name, shares in published._few_labels().items() for number in shares[share]]


@pytest.mark.parametrize("share", published.SHARES)
def test_the_lists_of_few_labels_are_the_published_ones(share: str) -> None:
    names = sorted(listed(share))
    found = len(names), hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    assert found == LISTED[share]
    assert len({name.split("_")[0] for name in names}) == 1000
    assert "Source: github.com/google-research/simclr" in lzma.decompress(published.FEW_LABELS.read_bytes()).decode()


def test_images_of_imagenet_are_known_by_their_names_wherever_they_lie() -> None:
    own = [name for name in listed("10%") if name.startswith(("n01440764", "n01443537"))]
    names = [f"x/train/n01440764/n01440764_{number}.JPEG" for number in (1, 2)] + [f"in.tar: a/{name}" for name in own]
    found = published.few_labels(names)
    assert found["10%"] == published.Listed(list(range(2, len(names))), len(own))
    few = set(listed("1%"))
    assert [names[place].split("/")[-1] for place in found["1%"].places] == [name for name in own if name in few]
    resized = [name.replace("in.tar: a/", "").replace(".JPEG", "_n01440764.png") for name in names]
    assert published.few_labels(resized) == found


def test_images_that_are_not_all_of_imagenets_classes_have_no_published_list() -> None:
    own = [name for name in listed("10%") if name.startswith("n01440764")]
    assert published.few_labels(own[: len(own) * 9 // 10]) == {}
    assert published.few_labels([name.replace("n0144", "xn0144") for name in own]) == {}
    assert published.few_labels(["image 0 of digits", "n99999999_1.JPEG"]) == {}


def test_every_published_list_says_where_it_is_from() -> None:
    assert [path.stem for path in published.LISTS.iterdir()] == ["imagenet100"]
    assert "Source:" in (published.LISTS / "imagenet100.txt").read_text()
    found = published.classes("imagenet100")
    assert len(set(found)) == len(found) == 100
    assert all(re.fullmatch(r"n\d{8}", name) for name in found)
