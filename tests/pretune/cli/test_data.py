"""`pretune data`: a data set is written, described and verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pretune.cli.command import pretune
from trainers.data import datasets


def write_images(root: Path, *folders: str, count: int = 6) -> None:
    """Different images of noise in each of these folders."""
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng((place, number)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")


def test_data_writes_a_data_set_and_says_what_is_in_it(here: Path) -> None:
    result = pretune("data", "digits", "--out", "mine", "--split-seed", "3")
    assert result.exit_code == 0, result.output
    dataset = datasets.open_dataset(here / "mine")
    assert dataset.manifest.split_seed == 3
    assert f"{dataset.train_count:,} images" in result.stdout
    assert "pretune sweep kernels --data mine" in result.stdout
    assert pretune("data", "digits", "--out", "mine", "--verify").exit_code == 0
    whole = (here / "mine" / "search.beton").read_bytes()
    (here / "mine" / "search.beton").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = pretune("data", "digits", "--out", "mine", "--verify")
    assert damaged.exit_code == 2
    assert "search.beton" in damaged.stderr


def test_the_command_to_type_next_can_be_typed_where_a_folder_has_spaces(here: Path) -> None:
    write_images(here / "mine", "a", "b", count=20)
    done = pretune("data", "images", "--source", "mine", "--out", "a folder/of data")
    assert done.exit_code == 0, done.output
    assert "pretune sweep kernels --data 'a folder/of data'" in done.stdout


def test_what_a_source_is_taken_for_is_printed_before_anything_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(here / "in", "Training/cat", "Training/dog", "Testing/cat", "Testing/dog", "misc")

    def stop(*_: object) -> None:
        raise ValueError("nothing was written yet")

    with monkeypatch.context() as patched:
        patched.setattr(datasets, "_write", stop)
        stopped = pretune("data", "images", "--source", "in", "--out", "mine")
    assert stopped.exit_code == 2
    assert not (here / "mine").exists()
    assert [line.rstrip() for line in stopped.stdout.splitlines()] == [
        "in/",
        "├── Testing/  test: 12 images, 2 classes",
        "│   ├── cat/  6",
        "│   └── dog/  6",
        "├── Training/  train: 12 images, 2 classes",
        "│   ├── cat/  6",
        "│   └── dog/  6",
        "└── misc/  left out, no part's name: 6 images",
        "report, the split that is read once: the test part",
    ]
    assert pretune("data", "images", "--source", "in", "--out", "mine").exit_code == 0
    counts = datasets.open_dataset(here / "mine").manifest.counts
    assert (counts.train + counts.select, counts.report) == (12, 12)


def test_a_doubt_between_parts_and_classes_is_refused_and_settled_by_the_layout(here: Path) -> None:
    write_images(here / "in", "train/cat", "train/dog", "extra/cat", "extra/dog")
    asked = pretune("data", "images", "--source", "in", "--out", "mine")
    assert asked.exit_code == 2
    assert "extra (12 images), train (12 images)" in asked.stderr
    assert "--layout parts or --layout classes" in asked.stderr
    assert not (here / "mine").exists()
    for layout, names in (("parts", ("cat", "dog")), ("classes", ("extra", "train"))):
        assert pretune("data", "images", "--source", "in", "--out", layout, "--layout", layout).exit_code == 0
        assert datasets.open_dataset(here / layout).manifest.class_names == names
    wrong = pretune("data", "images", "--source", "in", "--out", "mine", "--layout", "partz")
    assert wrong.exit_code == 2
    assert "must be auto or parts or classes, but is 'partz'" in wrong.stderr


def test_broken_images_are_skipped_where_that_is_asked_for(here: Path) -> None:
    write_images(here / "in", "cat", "dog", count=10)
    (here / "in" / "cat" / "0.png").write_bytes(b"")
    arguments = ("data", "images", "--source", "in", "--out", "mine")
    refused = pretune(*arguments)
    assert refused.exit_code == 2
    assert "in/cat/0.png: broken image" in refused.stderr
    for share, fault in (("4%", "at most 4% of the files may be broken"), ("few", "must be a percentage, such as 2%")):
        wrong = pretune(*arguments, "--skip-broken", share)
        assert (wrong.exit_code, fault in wrong.stderr) == (2, True)
    done = pretune(*arguments, "--skip-broken", "5%")
    assert done.exit_code == 0, done.output
    assert "1 left out, listed in the manifest" in done.stdout
    assert datasets.open_dataset(here / "mine").manifest.broken == ("in/cat/0.png",)


def test_the_arrays_of_a_file_are_asked_for_and_named_one_by_one(here: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(here / "x.npz", x_train=images, y_train=np.arange(40) % 2)
    arguments = ("data", "npz", "--source", "x.npz", "--out", "mine")
    asked = pretune(*arguments)
    assert asked.exit_code == 2
    options = ("--array", "images=x_train", "--array", "labels=y_train")
    assert asked.stderr.strip().endswith(" ".join(options))
    wrong = pretune(*arguments, "--array", "images")
    assert (wrong.exit_code, "--array must be NAME=KEY" in wrong.stderr) == (2, True)
    assert not (here / "mine").exists()
    done = pretune(*arguments, *options)
    assert done.exit_code == 0, done.output
    assert "train: 40 images, 2 classes" in done.stdout


def test_images_without_labels_come_with_the_metric_to_search_for(here: Path) -> None:
    write_images(here, "flat", count=40)
    result = pretune("data", "images", "--source", "flat", "--out", "mine", "--select", "25%", "--report", "5")
    assert result.exit_code == 0, result.output
    assert "note: 40 images without labels" in result.output
    assert "pretune sweep kernels --data mine --metric health/embedding/effective_rank" in result.stdout
    counts = datasets.open_dataset(here / "mine").manifest.counts
    assert (counts.train, counts.select, counts.report) == (25, 10, 5)
    refused = pretune("sweep", "kernels", "--data", "mine", "--set", "batch_size=8")
    assert refused.exit_code == 2
    assert "is 'probe/linear', the default" in refused.stderr


def test_images_of_one_class_come_with_the_metric_to_search_for(here: Path) -> None:
    write_images(here, "all/cat", count=40)
    result = pretune("data", "images", "--source", "all", "--out", "mine", "--layout", "classes")
    assert result.exit_code == 0, result.output
    assert "pretune sweep kernels --data mine --metric health/embedding/effective_rank" in result.stdout


def test_columns_and_classes_are_asked_for_by_options(here: Path) -> None:
    write_images(here, "img", count=12)
    rows = "".join(f"{number},{'abc'[number % 3]}\n" for number in range(12))
    (here / "list.csv").write_text(f"id,species\n{rows}")
    (here / "two.txt").write_text("c\na\n")
    asked = ["--column", "path=img/{id}.png", "--column", "label=species", "--classes", "two.txt"]
    result = pretune("data", "images", "--source", "list.csv", "--out", "mine", *asked)
    assert result.exit_code == 0, result.output
    assert datasets.open_dataset(here / "mine").manifest.class_names == ("a", "c")
    wrong = pretune("data", "images", "--source", "list.csv", "--out", "other", "--column", "path")
    assert wrong.exit_code == 2
    assert "--column must be NAME=COLUMN, such as label=species, but is 'path'" in wrong.stderr
