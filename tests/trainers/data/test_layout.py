"""Which folders are parts and which are classes: usual names, odd nestings, and what is asked instead of guessed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from trainers.data.sources.base import Blob, Branch
from trainers.data.sources.layout import Layout, Reading, read, role
from trainers.data.sources.listing import Entry


def entries(*folders: str, count: int = 2) -> list[Entry]:
    """`count` images in each folder; one folder may be "", beside all others."""
    blobs = [(folder, Path(folder, f"{number}.png")) for folder in sorted(folders) for number in range(count)]
    return [Entry(tuple(part for part in folder.split("/") if part), Blob(path, str(path))) for folder, path in blobs]


def both(train: str, test: str) -> list[Entry]:
    """Two parts of two classes."""
    return entries(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")


def understood(found: Reading) -> tuple[dict[str, int], dict[str, int] | None]:
    """Images by class in train, and in test."""

    def classes(part: list[Entry]) -> dict[str, int]:
        return dict(Counter(entry.folders[0] for entry in part))

    return classes(found.train), None if found.test is None else classes(found.test)


def lines(branches: tuple[Branch, ...]) -> list[str]:
    return [line for branch in branches for line in (branch.text, *lines(branch.below))]


TWO = {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"), ("Training", "Testing"), ("TRAIN", "VAL"), ("train", "dev"), ("Train", "Eval"),
        ("seg_train", "seg_test"), ("train_images", "images_test"), ("imagesTr", "imagesTs"), ("x-train", "x-valid"),
        ("train2017", "val2017"), ("trn", "tst"), ("training_set", "test_set"), ("trainset", "TESTset"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("Training Data", "Hold-out"), ("trainval", "holdout"),
        ("TrainImages", "PublicTest"), ("train (1)", "evaluation"), ("01_training", "02_validation"),
        ("mnist.tr", "mnist.te"), ("train+val", "test"), ("Train_", "_Test"),
    ],
)  # fmt: skip
def test_parts_are_known_by_any_usual_name(names: tuple[str, str]) -> None:
    assert (role(names[0]), role(names[1])) == ("train", "test")
    assert understood(read(both(*names), where="in")) == (TWO, TWO)


@pytest.mark.parametrize(
    "name",
    ["cat", "images", "data", "trains", "trainer", "restraint", "contest", "latest", "tr", "ts", "set", "value",
     "valley", "device", "medieval", "train_test_split", "", "2017", "猫", "devotion", "testament"],
)  # fmt: skip
def test_other_names_are_no_parts(name: str) -> None:
    assert role(name) is None


@pytest.mark.parametrize("around", ["photos", "archive/data", "home/me/photos", "train", "my_test"])
def test_folders_around_parts_are_looked_through_and_shown(around: str) -> None:
    found = read(both(f"{around}/Training", f"{around}/Testing"), where="in")
    assert understood(found) == (TWO, TWO)
    for name in around.split("/"):
        assert f"{name}/  the only folder here: looked through" in lines(found.below)


@pytest.mark.parametrize("around", ["photos", "archive/data", "a/b/c/d"])
def test_folders_around_classes_are_looked_through_and_shown(around: str) -> None:
    found = read(entries(f"{around}/cat", f"{around}/dog"), where="in")
    assert understood(found) == (TWO, None)
    assert f"{around.split('/')[-1]}/  the only folder here: looked through" in lines(found.below)


@pytest.mark.parametrize(
    ("train", "test"),
    [("seg_train/seg_train", "seg_test/seg_test"), ("train/images", "test/images"), ("train/a/b", "test")],
)
def test_folders_around_the_classes_of_a_part_are_looked_through(train: str, test: str) -> None:
    found = read(both(train, test), where="in")
    assert understood(found) == (TWO, TWO)
    assert f"{train}/  train: 4 images, 2 classes" in lines(found.below)


def test_what_is_in_neither_part_is_left_out_and_shown_with_its_count() -> None:
    found = read([*both("seg_train", "seg_test"), *entries("seg_pred/seg_pred", "", count=3)], where="in")
    assert understood(found) == (TWO, TWO)
    assert found.left_out == 6
    assert "seg_pred/  left out, no part's name: 3 images" in lines(found.below)
    assert "left out, beside the parts: 3 images" in lines(found.below)
    doubled = [*both("seg_train/seg_train", "seg_test/seg_test"), *entries("seg_pred/seg_pred")]
    assert understood(read(doubled, where="in")) == (TWO, TWO)
    found = read(entries("train/cat", "train/dog", "test/test"), where="in")
    assert understood(found) == (TWO, None)
    assert "test/test/  left out, no class folders: 2 images" in lines(found.below)


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (["train", "test"], "images lie right in them"),
        (["TRAIN", "VAL", "car"], "images lie right in them"),
        (["seg_train", "seg_test", "seg_pred"], "images lie right in them"),
        (["train1/cat", "train1/dog", "train2/cat", "train2/dog"], "all have names of the same part"),
        (["val", "test"], "all have names of the same part"),
        (["train"], "it has a part's name"),
        (["train/cat", "train/dog", "unlabeled"], "one has a part's name and holds folders, the others have not"),
        (["train/cat", "train/dog", "extra/cat", "extra/dog"], "one has a part's name and holds folders"),
        (["train/cat", "train/dog", "test/cat", "more/dog"], "more has no part's name and holds the same folders"),
        (["train/cat", "train/dog", "test/bus", "more/fox"], "hold other folders than one another"),
        (["Lernen/cat", "Lernen/dog", "Pruefung/cat", "Pruefung/dog"], r"all hold the same folders \(cat, dog\)"),
    ],
)
def test_what_could_be_parts_or_classes_is_asked_with_the_counts(folders: list[str], why: str) -> None:
    match = rf"^in: its folders must be parts .*{why}.*\(\d+ images\).*--layout parts or --layout classes$"
    with pytest.raises(ValueError, match=match):
        read(entries(*folders), where="in")


@pytest.mark.parametrize(
    "folders",
    [
        ["cat/train", "cat/test", "dog/train"],
        ["cat/Train/x", "cat/Val/x", "dog"],
        ["around/cat/tr", "around/cat/train", "around/cat/dev", "around/x"],
    ],
)
def test_parts_inside_the_classes_are_refused_and_joined_only_where_that_is_said(folders: list[str]) -> None:
    with pytest.raises(ValueError, match=r"but cat holds parts itself: .*sort them as train/cat, .*--layout classes$"):
        read(entries(*folders), where="in")
    assert understood(read(entries(*folders), where="in", layout="classes"))[1] is None


@pytest.mark.parametrize("inner", [["train/train", "train/test"], ["train/train", "train/val", "test"], ["train/Test"]])
@pytest.mark.parametrize("layout", ["auto", "parts"])
def test_parts_inside_a_part_are_refused(inner: list[str], layout: Layout) -> None:
    held = [*entries("test/cat", "test/dog"), *(e for name in inner for e in entries(f"{name}/cat", f"{name}/dog"))]
    with pytest.raises(ValueError, match=r"in/train: a part must hold its classes' folders, but .*one --source for"):
        read(held, where="in", layout=layout)


def test_a_class_may_have_a_parts_name_among_classes_that_have_none() -> None:
    assert understood(read(entries("train", "bus", "car"), where="in"))[0].keys() == {"train", "bus", "car"}
    many = ["bullet_train", "test_tube", *(f"n{number}" for number in range(9))]
    assert len(understood(read(entries(*many), where="in"))[0]) == 11
    found = read([*both("train", "test"), *entries("train/train", "test/train")], where="in")
    assert understood(found) == ({**TWO, "train": 2}, {**TWO, "train": 2})


def test_the_layout_settles_what_is_open() -> None:
    open_case = entries("train/cat", "train/dog", "extra/cat", "extra/dog")
    assert understood(read(open_case, where="in", layout="parts")) == (TWO, None)
    assert understood(read(open_case, where="in", layout="classes")) == ({"extra": 4, "train": 4}, None)
    wrapped = entries("photos/cat", "photos/dog")
    assert understood(read(wrapped, where="in", layout="classes")) == ({"photos": 4}, None)


def test_a_layout_of_parts_needs_parts_with_class_folders() -> None:
    with pytest.raises(ValueError, match=r"must be folders named as parts, .* there are cat \(2 images\), dog"):
        read(entries("cat", "dog"), where="in", layout="parts")
    with pytest.raises(ValueError, match="in/train: a part to train on must hold one folder per class"):
        read(entries("train", "test"), where="in", layout="parts")


def test_two_folders_for_one_part_are_refused_with_the_command_that_chooses() -> None:
    three = [*both("photos/train", "photos/val"), *entries("photos/test/cat")]
    with pytest.raises(ValueError, match=r"test and val both have .*--source in/photos/train --source in/photos/test$"):
        read(three, where="in")
    with pytest.raises(ValueError, match=r"unpack it, and name each part's folder with --source$"):
        read(three, where="in.tar", folder=False)


def test_of_many_classes_the_first_are_shown_and_the_rest_counted() -> None:
    found = read(entries(*(f"class{number:03}" for number in range(100))), where="in")
    assert len(found.below) == 8
    assert found.below[-1].text == "… 93 more of 2 images"
