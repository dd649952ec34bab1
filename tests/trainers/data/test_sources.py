"""Every kind of source, on small files made here; and what is said about damaged ones."""

from __future__ import annotations

import gzip
import lzma
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from trainers.data import sources
from trainers.data.sources import base, listing
from trainers.data.sources.base import Images, Source
from trainers.data.sources.cifar import unpickle

TURNS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""What undoes each orientation of EXIF, so that a reader that heeds it sees the picture upright."""


def noise(count: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def pixels(images: Images) -> np.ndarray:
    return np.stack([np.asarray(images.read(index).image) for index in range(len(images))])


def load(kind: str, *paths: Path, scratch: Path) -> Source:
    return sources.load(kind, paths, scratch=scratch)


def save_png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


# ---- digits


def test_digits_are_the_1797_images_of_scikit_learn_at_16_pixels(scratch: Path) -> None:
    from sklearn.datasets import load_digits

    source = load("digits", scratch=scratch)
    assert source.test is None
    assert source.class_names == tuple("0123456789")
    assert np.array_equal(source.train.labels, load_digits().target)
    images = pixels(source.train.images)
    assert images.shape == (1797, 16, 16, 3)
    # Enlarging keeps the mean brightness: full scale is 16 there and 255 here.
    ours, theirs = images.mean((1, 2, 3)), load_digits().images.mean((1, 2)) * 255 / 16
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    assert images.max() == 255
    with pytest.raises(ValueError, match="takes no --source"):
        load("digits", scratch, scratch=scratch)


# ---- CIFAR


def write_cifar(
    folder: Path, classes: int = 10, per_file: int = 10, protocol: int = 2, text: bool = False
) -> tuple[np.ndarray, list[int]]:
    """Python batches as the originals: rows of red, green, blue planes, keys as Python 2's byte strings, or as `text`,
    as they are where Python 3 has pickled them again.
    """
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    images = noise(per_file * len(names), 32)
    labels = [index % classes for index in range(len(images))]
    key = b"labels" if classes == 10 else b"fine_labels"
    for number, name in enumerate(names):
        part = slice(number * per_file, (number + 1) * per_file)
        batch: dict[Any, Any] = {
            b"data": images[part].transpose(0, 3, 1, 2).reshape(per_file, -1),
            key: labels[part],
        }
        if text:
            batch = {name.decode(): value for name, value in batch.items()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return images, labels


@pytest.mark.parametrize(("protocol", "text"), [(2, False), (5, False), (4, True)])
def test_the_original_batches_of_cifar10_are_read_in_their_order(
    tmp_path: Path, scratch: Path, protocol: int, text: bool
) -> None:
    images, labels = write_cifar(tmp_path / "cifar-10-batches-py", protocol=protocol, text=text)
    source = load("cifar10", tmp_path, scratch=scratch)  # the folder around it is fine, too
    assert np.array_equal(pixels(source.train.images), images[:50])
    assert source.train.labels.tolist() == labels[:50]
    assert source.test is not None
    assert np.array_equal(pixels(source.test.images), images[50:])
    assert source.test.labels.tolist() == labels[50:]
    assert source.class_names[3] == "cat"


def test_cifar100_takes_the_fine_labels_and_the_names_in_meta(tmp_path: Path, scratch: Path) -> None:
    _, labels = write_cifar(tmp_path / "c", classes=100, per_file=100)
    (tmp_path / "c" / "meta").write_bytes(
        pickle.dumps({b"fine_label_names": [f"n{i}".encode() for i in range(100)]}, 2)
    )
    source = load("cifar100", tmp_path / "c", scratch=scratch)
    assert source.train.labels.tolist() == labels[:100]
    assert source.class_names[:2] == ("n0", "n1")


def test_npz_parts_of_cifar10_are_joined_and_the_test_part_kept_apart(tmp_path: Path, scratch: Path) -> None:
    images = noise(30, 32)
    for number in range(3):
        name = ("train_1", "train_2", "test")[number]
        part = slice(number * 10, number * 10 + 10)
        np.savez(tmp_path / f"{name}.npz", images=images[part], labels=np.arange(10))
    source = load("cifar10", tmp_path, scratch=scratch)
    assert np.array_equal(pixels(source.train.images), images[:20])
    assert source.test is not None
    assert np.array_equal(pixels(source.test.images), images[20:])
    (tmp_path / "test.npz").unlink()
    with pytest.raises(ValueError, match=r"must include test\.npz"):
        load("cifar10", tmp_path, scratch=scratch)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": _Evil(tmp_path / "hacked")}, 2))
    with pytest.raises(ValueError, match=r"data_batch_1: not a complete pickle.*posix\.mkdir.*not allowed"):
        unpickle(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"not a pickle", "not a complete pickle"),
        (b"", "not a complete pickle"),
        (pickle.dumps([1, 2], 2), "must hold a dict"),
        (pickle.dumps({b"labels": [1]}, 2), "must hold b'data'"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]}, 2), "rows of 3072"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2), "1 labels for 2 images"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, 2), "numbered from 0 to 9"),
    ],
)
def test_a_wrong_batch_is_named_with_what_is_wrong(tmp_path: Path, scratch: Path, content: bytes, fault: str) -> None:
    write_cifar(tmp_path / "c")
    (tmp_path / "c" / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_3: .*{fault}"):
        load("cifar10", tmp_path / "c", scratch=scratch)


def test_a_truncated_or_missing_batch_is_named(tmp_path: Path, scratch: Path) -> None:
    write_cifar(tmp_path / "c")
    path = tmp_path / "c" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="data_batch_2: not a complete pickle"):
        load("cifar10", tmp_path / "c", scratch=scratch)
    path.unlink()
    with pytest.raises(ValueError, match=r"data_batch_2: .*missing"):
        load("cifar10", tmp_path / "c", scratch=scratch)


# ---- STL-10


def write_stl10(folder: Path, count: int = 20) -> np.ndarray:
    folder.mkdir(parents=True)
    images = noise(3 * count, 96)
    for number, name in enumerate(("train", "test", "unlabeled")):
        part = images[number * count : (number + 1) * count]
        (folder / f"{name}_X.bin").write_bytes(part.transpose(0, 3, 2, 1).tobytes())  # columns before rows
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(index % 10 + 1 for index in range(count)))
    return images


def test_stl10_is_read_upright_with_labels_from_zero(tmp_path: Path, scratch: Path) -> None:
    images = write_stl10(tmp_path / "stl10_binary")
    source = load("stl10", tmp_path, scratch=scratch)
    assert np.array_equal(pixels(source.train.images), images[:20])
    assert source.train.labels.tolist() == [index % 10 for index in range(20)]
    assert source.test is not None
    assert np.array_equal(pixels(source.test.images), images[20:40])
    for path in (tmp_path, tmp_path / "stl10_binary", tmp_path / "stl10_binary" / "unlabeled_X.bin"):
        assert np.array_equal(pixels(sources.load_unlabeled(path, scratch=scratch)), images[40:])


def test_damaged_binary_files_are_named(tmp_path: Path, scratch: Path) -> None:
    write_stl10(tmp_path / "s")
    labels, planes = tmp_path / "s" / "train_y.bin", tmp_path / "s" / "test_X.bin"
    planes.write_bytes(planes.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test_X\.bin: must be whole images of 27648 bytes.*truncated"):
        load("stl10", tmp_path / "s", scratch=scratch)
    labels.write_bytes(bytes([11] * 20))
    with pytest.raises(ValueError, match=r"train_y\.bin: labels must be 1 to 10"):
        load("stl10", tmp_path / "s", scratch=scratch)
    labels.write_bytes(bytes([1] * 19))
    with pytest.raises(ValueError, match=r"train_y\.bin: labels don't match the images: 19 labels for 20 images"):
        load("stl10", tmp_path / "s", scratch=scratch)


# ---- Tiny ImageNet


def write_tiny_imagenet(root: Path) -> None:
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish\nn02\tsalamander, newt\nn03\tnot here\n")
    for wnid in ("n01", "n02"):
        for index in range(3):
            save_png(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", noise(1, 64, index)[0])
    lines = []
    for index, wnid in enumerate(("n02", "n01")):
        save_png(root / "val" / "images" / f"val_{index}.JPEG", noise(1, 64, 9)[0])
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def test_tiny_imagenet_takes_its_labels_from_folders_and_annotations(tmp_path: Path, scratch: Path) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    source = load("tiny-imagenet", tmp_path, scratch=scratch)
    assert source.class_names == ("goldfish", "salamander, newt")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 0]


def test_annotations_that_do_not_match_the_images_are_refused(tmp_path: Path, scratch: Path) -> None:
    write_tiny_imagenet(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    complete = annotations.read_text()
    annotations.write_text(complete.splitlines()[0])
    with pytest.raises(ValueError, match=r"val_1\.JPEG has no line there"):
        load("tiny-imagenet", tmp_path, scratch=scratch)
    annotations.write_text(complete + "val_2.JPEG\tn01\n")
    with pytest.raises(ValueError, match=r"val_2\.JPEG is missing"):
        load("tiny-imagenet", tmp_path, scratch=scratch)
    annotations.write_text(complete.replace("n02", "n99"))
    with pytest.raises(ValueError, match="line 1: must name a class"):
        load("tiny-imagenet", tmp_path, scratch=scratch)


def test_a_fifo_among_the_images_is_refused_and_not_waited_for(tmp_path: Path, scratch: Path) -> None:
    write_tiny_imagenet(tmp_path)
    os.mkfifo(tmp_path / "train" / "n01" / "images" / "n01_9.JPEG")
    with pytest.raises(ValueError, match=r"n01_9\.JPEG: an image must be a regular file"):
        load("tiny-imagenet", tmp_path, scratch=scratch)


# ---- images


def write_classes(root: Path, *names: str, count: int = 2) -> None:
    for number, name in enumerate(names):
        for index in range(count):
            save_png(root / name / f"{index}.png", noise(1, seed=100 * number + index)[0])


def pack(folder: Path, path: Path, prefix: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*")):
            tar.add(file, arcname=prefix + str(file.relative_to(folder)), recursive=False)
    return path


def zipped(folder: Path, path: Path, prefix: str = "", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def names_and_counts(source: Source) -> tuple[tuple[str, ...], list[int], list[int] | None]:
    test = None if source.test is None else np.bincount(source.test.labels).tolist()
    return source.class_names, np.bincount(source.train.labels).tolist(), test


def test_a_folder_per_class_is_read_without_a_test_part(tmp_path: Path, scratch: Path) -> None:
    write_classes(tmp_path / "in", "cat", "dog")
    save_png(tmp_path / "in" / "dog" / "deeper" / "x.PNG", noise(1)[0])
    (tmp_path / "in" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "in" / ".DS_Store").write_text("hidden")
    source = load("images", tmp_path / "in", scratch=scratch)
    assert names_and_counts(source) == (("cat", "dog"), [2, 3], None)
    assert source.skipped == 1
    assert np.array_equal(np.asarray(source.train.images.read(0).image), noise(1, seed=0)[0])


@pytest.mark.parametrize("test_name", ["val", "valid", "validation", "test"])
def test_train_and_test_folders_are_recognized_in_folders_and_tars(
    tmp_path: Path, scratch: Path, test_name: str
) -> None:
    write_classes(tmp_path / "in" / "train", "a", "b")
    write_classes(tmp_path / "in" / test_name, "a", "b", count=1)
    expected = (("a", "b"), [2, 2], [1, 1])
    assert names_and_counts(load("images", tmp_path / "in", scratch=scratch)) == expected
    for prefix in ("", "./", "around/"):
        tar = pack(tmp_path / "in", tmp_path / "all.tar", prefix)
        assert names_and_counts(load("images", tar, scratch=scratch)) == expected


@pytest.mark.parametrize(
    "prefix", ["/", "/home/me/", "../../", "./../x/", "a/../b/./", "x//y/", "photos/", "deep/er/photos/"]
)
@pytest.mark.parametrize("parts", [("Training", "Testing"), ("seg_train/seg_train", "seg_test/seg_test"), None])
def test_archives_are_understood_as_folders_are_whatever_is_around_their_paths(
    tmp_path: Path, scratch: Path, prefix: str, parts: tuple[str, str] | None
) -> None:
    for name in parts or ("",):
        write_classes(tmp_path / "in" / name, "a", "b")
    expected = (("a", "b"), [2, 2], [2, 2] if parts else None)
    assert names_and_counts(load("images", tmp_path / "in", scratch=scratch)) == expected
    tar = pack(tmp_path / "in", tmp_path / "in.tar", prefix)
    assert names_and_counts(load("images", tar, scratch=scratch)) == expected
    packed = zipped(tmp_path / "in", tmp_path / "in.zip", prefix)
    assert names_and_counts(load("images", packed, scratch=scratch)) == expected


def test_one_of_several_sources_is_the_part_that_its_name_says(tmp_path: Path, scratch: Path) -> None:
    for name, count in (("photos", 3), ("TRAIN_a", 2), ("Holdout", 1)):
        write_classes(tmp_path / name, "a", "b", count=count)
    held_out = pack(tmp_path / "Holdout", tmp_path / "holdout.v2.tar")
    for other in (tmp_path / "Holdout", held_out):
        found = load("images", tmp_path / "TRAIN_a", tmp_path / "photos", other, scratch=scratch)
        assert names_and_counts(found) == (("a", "b"), [5, 5], [1, 1])
        pair = sources.load("images", [tmp_path / "TRAIN_a", other], scratch=scratch, layout="parts")
        assert names_and_counts(pair) == (("a", "b"), [2, 2], [1, 1])
    with pytest.raises(ValueError, match="only a test part was found"):
        load("images", tmp_path / "Holdout", held_out, scratch=scratch)


def test_a_source_inside_another_is_refused(tmp_path: Path, scratch: Path) -> None:
    write_classes(tmp_path / "in" / "train", "a", "b")
    write_classes(tmp_path / "in" / "test", "a", "b")
    for inner in (tmp_path / "in" / "test", tmp_path / "in"):
        with pytest.raises(ValueError, match="no source may lie in another"):
            load("images", tmp_path / "in", inner, scratch=scratch)


@pytest.mark.parametrize("folder", ["a", "photos/a", "train/a"])
def test_a_single_class_is_refused_unless_it_is_asked_for(tmp_path: Path, scratch: Path, folder: str) -> None:
    write_classes(tmp_path / "in", folder)
    with pytest.raises(
        ValueError, match=r"two classes or more, but all 2 images .* are in one, '(a|photos)'.*--layout"
    ):
        load("images", tmp_path / "in", scratch=scratch)
    found = sources.load("images", [tmp_path / "in"], scratch=scratch, layout="classes")
    assert found.class_names == (folder.split("/")[0],)
    assert any("there is one class only" in note for note in found.notes)


def test_the_unlabeled_images_of_a_test_part_are_pointed_at(tmp_path: Path, scratch: Path) -> None:
    write_classes(tmp_path / "in" / "Training", "a")
    write_classes(tmp_path / "in" / "Testing", "a")
    (note,) = sources.load_unlabeled(tmp_path / "in", scratch=scratch).notes
    assert note == "unlabeled images from Testing/, a test part by its name, join pretraining"


def test_a_layout_is_one_of_the_kinds_own(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(
        ValueError, match="layout of images must be auto or parts or classes, but is 'part'; choose one"
    ):
        sources.load("images", [tmp_path], scratch=scratch, layout="part")
    with pytest.raises(ValueError, match=r"layout of digits must be auto, but is 'parts'; .* images \(not auto: parts"):
        sources.load("digits", [], scratch=scratch, layout="parts")


def test_parts_may_come_as_several_sources(tmp_path: Path, scratch: Path) -> None:
    write_classes(tmp_path / "in" / "train", "a", "b")
    write_classes(tmp_path / "in" / "val", "a", "b", count=1)
    expected = (("a", "b"), [2, 2], [1, 1])
    train, val = tmp_path / "in" / "train", tmp_path / "in" / "val"
    assert names_and_counts(load("images", train, val, scratch=scratch)) == expected
    for prefix in (("", ""), ("train/", "val/"), ("x/train/", "x/val/")):
        tars = [
            pack(folder, tmp_path / f"{folder.name}.tar", p) for folder, p in zip((train, val), prefix, strict=True)
        ]
        assert names_and_counts(load("images", *tars, scratch=scratch)) == expected
    with pytest.raises(ValueError, match="only a test part was found"):
        load("images", tars[1], scratch=scratch)


def test_classes_may_be_called_train_and_test_where_that_is_said(tmp_path: Path, scratch: Path) -> None:
    write_classes(tmp_path / "in", "train", "test", "car")
    with pytest.raises(
        ValueError, match=r"in: its folders must be parts .* or classes, .*--layout parts or --layout cl"
    ):
        load("images", tmp_path / "in", scratch=scratch)
    assert names_and_counts(sources.load("images", [tmp_path / "in"], scratch=scratch, layout="classes")) == (
        ("car", "test", "train"),
        [2, 2, 2],
        None,
    )


def test_an_unlabeled_test_folder_is_left_out_and_two_labeled_ones_are_ambiguous(tmp_path: Path, scratch: Path) -> None:
    write_classes(tmp_path / "in" / "train", "a", "b")
    write_classes(tmp_path / "in" / "val", "a", "b", count=1)
    save_png(tmp_path / "in" / "test" / "secret.png", noise(1)[0])
    source = load("images", tmp_path / "in", scratch=scratch)
    assert names_and_counts(source) == (("a", "b"), [2, 2], [1, 1])
    assert source.skipped == 1
    (tmp_path / "in" / "test" / "secret.png").unlink()
    write_classes(tmp_path / "in" / "test", "a")
    with pytest.raises(ValueError, match="test and val both have class folders"):
        load("images", tmp_path / "in", scratch=scratch)


def test_a_test_class_without_training_images_and_an_image_beside_the_classes_are_refused(
    tmp_path: Path, scratch: Path
) -> None:
    write_classes(tmp_path / "in" / "train", "a", "b")
    write_classes(tmp_path / "in" / "val", "a", "c")
    with pytest.raises(ValueError, match="labels don't match: the test part has the class 'c'"):
        load("images", tmp_path / "in", scratch=scratch)
    write_classes(tmp_path / "flat", "a")
    save_png(tmp_path / "flat" / "lost.png", noise(1)[0])
    with pytest.raises(ValueError, match=r"lost\.png: every image must lie in the folder of its class"):
        load("images", tmp_path / "flat", scratch=scratch)


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_images_without_any_folder_have_no_labels_and_that_is_said(tmp_path: Path, scratch: Path, form: str) -> None:
    for number in range(5):
        save_png(tmp_path / "in" / f"{number}.png", noise(1)[0])
    path = tmp_path / "in"
    if form != "folder":
        path = pack(path, tmp_path / "x.tar") if form == "tar" else zipped(path, tmp_path / "x.zip")
    source = load("images", path, scratch=scratch)
    assert (source.class_names, source.train.labels.tolist(), source.test) == ((), [-1] * 5, None)
    assert source.outline[0].text == f"{path.name}{'/' if form == 'folder' else ''}  train: 5 images without labels"
    assert any("5 images without labels: a probe can not judge" in note for note in source.notes)
    with pytest.raises(ValueError, match=r"with --layout classes every image must lie in the folder of its class"):
        sources.load("images", [path], scratch=scratch, layout="classes")


def test_flat_parts_are_told_by_their_names_and_not_mixed_with_labeled_ones(tmp_path: Path, scratch: Path) -> None:
    for name, count in (("train", 4), ("test", 3)):
        for number in range(count):
            save_png(tmp_path / name / f"{number}.png", noise(1)[0])
    source = load("images", tmp_path / "train", tmp_path / "test", scratch=scratch)
    assert source.test is not None
    assert (len(source.train.images), len(source.test.images), source.class_names) == (4, 3, ())
    write_classes(tmp_path / "more", "cat", "dog")
    with pytest.raises(ValueError, match=r"train: all sources must have labels, or none, .* give it by --unlabelled"):
        load("images", tmp_path / "more", tmp_path / "train", scratch=scratch)


def test_missing_and_empty_sources_are_refused(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: .* must exist"):
        load("images", tmp_path / "nowhere", scratch=scratch)
    with pytest.raises(ValueError, match="needs --source"):
        load("images", scratch=scratch)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold images"):
        load("images", tmp_path / "empty", scratch=scratch)
    with pytest.raises(ValueError, match="exactly one --source"):
        load("cifar10", scratch=scratch)
    with pytest.raises(ValueError, match=r"must be one of digits, cifar10.*but is 'mnist'"):
        load("mnist", scratch=scratch)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_compressed_tar_is_unpacked_aside(tmp_path: Path, scratch: Path, compress: Callable[[bytes], bytes]) -> None:
    write_classes(tmp_path / "in", "a", "b")
    packed = tmp_path / "in.tar.packed"
    packed.write_bytes(compress(pack(tmp_path / "in", tmp_path / "in.tar").read_bytes()))
    source = load("images", packed, scratch=scratch)
    assert names_and_counts(source) == (("a", "b"), [2, 2], None)
    assert np.array_equal(np.asarray(source.train.images.read(2).image), noise(1, seed=100)[0])
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"in\.tar\.packed: not a complete compressed tar"):
        load("images", packed, scratch=scratch)


def test_avif_is_read_where_pillow_was_built_with_it(tmp_path: Path, scratch: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    write_classes(tmp_path / "in", "a", "b")
    smooth = Image.new("RGB", (40, 20), (200, 30, 90))
    smooth.save(tmp_path / "in" / "a" / "x.avif", quality=95)
    (tmp_path / "in" / "a" / "x.avif").rename(tmp_path / "in" / "a" / "no suffix")
    smooth.save(tmp_path / "in" / "b" / "y.AVIF", "AVIF", quality=95)
    source = load("images", tmp_path / "in", scratch=scratch)
    assert names_and_counts(source) == (("a", "b"), [3, 3], None)
    assert np.abs(np.asarray(source.train.images.read(2).image).astype(int) - [200, 30, 90]).max() < 6


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_read_upright_with_the_extra(tmp_path: Path, scratch: Path, orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    top = np.zeros((40, 80, 3), np.uint8)
    top[:20, :40] = 250  # the corner tells how it is turned
    image = Image.fromarray(top)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = image if orientation == 1 else image.transpose(TURNS[orientation])
    write_classes(tmp_path / "in", "a", "b")
    base.image_suffixes()
    heif.from_pillow(turned).save(tmp_path / "in" / "a" / "z.HEIC", quality=95, exif=exif.tobytes())
    images = load("images", tmp_path / "in", scratch=scratch).train.images
    shape, read = images.shape(2), np.asarray(images.read(2).image).astype(int)
    assert (shape.height, shape.width, shape.jpeg) == (40, 80, None)
    assert np.abs(read - top).max() < 40


def test_heic_without_the_extra_is_named_with_the_remedy(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "image_suffixes", lambda: base.IMAGE_SUFFIXES)
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"holds only 1 HEIC image; .* pip install 'pretune\[heic\]'"):
        load("images", tmp_path / "in", scratch=scratch)
    write_classes(tmp_path / "in", "b", "c")
    notes = load("images", tmp_path / "in", scratch=scratch).notes
    assert any("left out: 1 HEIC image; read them with the extra: pip install" in note for note in notes)


@pytest.mark.parametrize("cut", ["inside an image", "after an image", "inside a header"])
def test_a_truncated_tar_is_refused(tmp_path: Path, scratch: Path, cut: str) -> None:
    write_classes(tmp_path / "in", "a", "b")
    path = pack(tmp_path / "in", tmp_path / "in.tar")
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = {
        "inside an image": last.offset_data + 10,
        "after an image": last.offset_data + -(-last.size // 512) * 512,
        "inside a header": last.offset + 100,
    }[cut]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"in\.tar: .*truncated"):
        load("images", path, scratch=scratch)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello" * 200)
    with pytest.raises(ValueError, match=r"x\.tar: not a complete tar"):
        load("images", tmp_path / "x.tar", scratch=scratch)


# ---- color modes and orientation

RED, WHITE = (255, 0, 0), (255, 255, 255)


def read_one(path: Path) -> np.ndarray:
    images = sources.load_unlabeled(path.parent, scratch=path.parent)
    assert len(images) == 1
    shape, raster = images.shape(0), images.read(0)
    assert (shape.height, shape.width) == (raster.image.height, raster.image.width)
    assert raster.image.mode == "RGB"
    return np.asarray(raster.image).astype(int)


def test_gray_palette_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    red = Image.new("RGB", (8, 8), RED)
    for number, (image, suffix, expected) in enumerate(
        [
            (gray, "png", np.repeat(np.arange(64).reshape(8, 8, 1), 3, 2)),
            (red.convert("P"), "gif", np.broadcast_to(RED, (8, 8, 3))),
            (red.convert("CMYK"), "tiff", np.broadcast_to(RED, (8, 8, 3))),
            (red.convert("CMYK"), "jpg", np.broadcast_to(RED, (8, 8, 3))),
            (Image.new("1", (8, 8), 1), "png", np.broadcast_to(WHITE, (8, 8, 3))),
        ]
    ):
        path = tmp_path / str(number) / f"x.{suffix}"
        path.parent.mkdir()
        image.save(path)
        assert np.abs(read_one(path) - expected).max() <= 3, suffix


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, :, 0] = 255
    half[:, 4:, 3] = 255  # the left half is invisible red, the right half opaque red
    found = read_one(save_png(tmp_path / "rgba" / "x.png", half))
    assert np.array_equal(found[:, :4], np.broadcast_to(WHITE, (8, 4, 3)))
    assert np.array_equal(found[:, 4:], np.broadcast_to(RED, (8, 4, 3)))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    (tmp_path / "p").mkdir()
    palette.save(tmp_path / "p" / "x.png", transparency=0)
    assert np.array_equal(read_one(tmp_path / "p" / "x.png"), np.broadcast_to(WHITE, (8, 8, 3)))


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    wide = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    found = read_one(save_png(tmp_path / "x.png", wide))
    assert np.abs(found[..., 0] - wide / 257).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((6, 10, 3), np.uint8)
    upright[:3, :5], upright[:3, 5:], upright[3:, :5] = RED, WHITE, (0, 0, 255)
    # What a camera that was held so stores: the inverse of what a viewer does (EXIF 2.3, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tiff"):
        path = tmp_path / suffix / f"x.{suffix}"
        path.parent.mkdir()
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
        assert np.array_equal(read_one(path), upright)


def test_only_an_upright_complete_rgb_jpeg_keeps_its_bytes(tmp_path: Path, scratch: Path) -> None:
    image = Image.fromarray(noise(1, 32)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a_plain.jpg")
    image.save(tmp_path / "b_progressive.jpg", progressive=True, subsampling=0)
    image.save(tmp_path / "c_sideways.jpg", exif=exif)
    image.convert("L").save(tmp_path / "d_gray.jpg")
    image.convert("CMYK").save(tmp_path / "e_cmyk.jpg")
    image.save(tmp_path / "f_other.png")
    (tmp_path / "g_without_end.jpg").write_bytes((tmp_path / "a_plain.jpg").read_bytes()[:-2] + b"\xff\xd9 and more")
    images = sources.load_unlabeled(tmp_path, scratch=scratch)
    kept = [images.read(index).jpeg is not None for index in range(len(images))]
    assert kept == [True, True, False, False, False, False, False]
    assert images.read(0).jpeg == (tmp_path / "a_plain.jpg").read_bytes()
    assert images.shape(0).jpeg == (tmp_path / "a_plain.jpg").stat().st_size
    assert images.shape(3).jpeg is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp", "ppm"])
def test_a_truncated_image_of_any_format_is_named(tmp_path: Path, scratch: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise(1, 64)[0]).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    images = sources.load_unlabeled(tmp_path, scratch=scratch)
    with pytest.raises(ValueError, match=rf"x\.{suffix}: broken image"):
        images.read(0)


def test_an_image_of_floating_point_is_named_with_the_remedy(tmp_path: Path, scratch: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "x.tif")
    images = sources.load_unlabeled(tmp_path, scratch=scratch)
    with pytest.raises(ValueError, match=r"x\.tif: broken image.* are floating point, .* save it as an 8-bit image"):
        images.read(0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_an_image_of_a_single_row_column_or_pixel_is_read(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert np.array_equal(read_one(save_png(tmp_path / "x.png", pixels)), pixels)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"plain text", b"\xff\xd8\xff\xe0 no jpeg"])
def test_a_file_that_is_no_image_is_named_from_its_header(tmp_path: Path, scratch: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    images = sources.load_unlabeled(tmp_path, scratch=scratch)
    with pytest.raises(ValueError, match=r"x\.jpg: broken image"):
        images.shape(0)


def test_a_broken_image_in_a_tar_is_named_with_its_tar(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.jpg").write_bytes(b"oops")
    save_png(tmp_path / "in" / "b" / "y.png", noise(1)[0])
    tar = pack(tmp_path / "in", tmp_path / "in.tar")
    with pytest.raises(ValueError, match=r"in\.tar: a/x\.jpg: broken image"):
        load("images", tar, scratch=scratch).train.images.shape(0)


# ---- npz


def test_npz_takes_gray_arrays_and_class_names(tmp_path: Path, scratch: Path) -> None:
    gray = noise(6)[..., 0]
    np.savez(
        tmp_path / "x.npz", images=gray, labels=np.array([0, 1] * 3, np.uint8), class_names=np.array(["no", "yes"])
    )
    source = load("npz", tmp_path / "x.npz", scratch=scratch)
    assert source.class_names == ("no", "yes")
    assert source.test is None
    assert np.array_equal(pixels(source.train.images), np.repeat(gray[..., None], 3, 3))
    assert np.array_equal(pixels(sources.load_unlabeled(tmp_path / "x.npz", scratch=scratch))[..., 1], gray)


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        (
            {"images": noise(3)},
            r"lacks labels \(it holds images\).*without labels by --unlabelled",
        ),
        ({"images": noise(3), "labels": np.arange(2)}, "labels don't match the images: 2 labels for 3 images"),
        ({"images": noise(3), "labels": np.array([0.0, 1.0, 2.0])}, r"must be integers.*labels\.astype\(int\)"),
        ({"images": noise(3), "labels": np.array(["a", "b", "c"])}, r"but are <U1 \[3\]; number them.*np\.unique"),
        ({"images": noise(3), "labels": np.eye(3, dtype=int)}, r"but are int64 \[3, 3\].*labels\.argmax"),
        ({"images": noise(3), "labels": np.array([1, 2, 3])}, "numbered from 0, but range from 1 to 3; subtract 1"),
        ({"images": noise(3), "labels": np.array([-1, 0, 1])}, "numbered from 0, but range from -1 to 1"),
        ({"images": noise(3) / 255, "labels": np.arange(3)}, "images must be uint8"),
        ({"images": noise(3)[..., :2], "labels": np.arange(3)}, "must have the shape"),
        ({"images": noise(3)[..., [0, 1, 2, 0]], "labels": np.arange(3)}, r"have \[3, 8, 8, 4\]; a fourth channel"),
        ({"images": np.array([None] * 3), "labels": np.arange(3)}, "images or labels holds Python objects"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, scratch: Path, arrays: dict[str, np.ndarray], fault: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"x\.npz: .*{fault}"):
        load("npz", tmp_path / "x.npz", scratch=scratch)


@pytest.mark.parametrize("name", ["Test", "mnist-test", "eval", "dev_1", "report", "holdout"])
def test_an_npz_that_is_named_as_a_test_part_is_kept_apart(tmp_path: Path, scratch: Path, name: str) -> None:
    for file, count in ((name, 2), ("mnist-train", 4)):
        np.savez(tmp_path / f"{file}.npz", images=noise(count), labels=np.arange(count) % 2)
    assert names_and_counts(load("npz", tmp_path, scratch=scratch)) == (("0", "1"), [2, 2], [1, 1])


def test_of_a_folder_only_whole_npz_files_are_read(tmp_path: Path, scratch: Path) -> None:
    np.savez(tmp_path / "train.npz", images=noise(4), labels=np.arange(4))
    (tmp_path / "train.npz").rename(tmp_path / "Train.NPZ")
    (tmp_path / "._Train.npz").write_bytes(b"left by a Mac")
    os.mkfifo(tmp_path / "pipe.npz")
    assert len(load("npz", tmp_path, scratch=scratch).train.labels) == 4
    with pytest.raises(
        ValueError, match=r"pipe\.npz: the source of npz must be \.npz files, but this is no regular file"
    ):
        load("npz", tmp_path / "pipe.npz", scratch=scratch)
    np.save(tmp_path / "one.npy", noise(4))
    with pytest.raises(ValueError, match=r"one\.npy: .* but this is \.npy; save the array with np\.savez"):
        load("npz", tmp_path / "one.npy", scratch=scratch)


MEDMNIST = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")


def test_arrays_by_other_names_are_asked_for_with_the_options_that_fit_and_read_by_them(
    tmp_path: Path, scratch: Path
) -> None:
    arrays = [
        noise(6),
        np.arange(6)[:, None] % 2,
        noise(4),
        np.zeros((4, 1), int),
        noise(2, seed=1),
        np.array([[0], [1]]),
    ]
    np.savez(tmp_path / "x.npz", **dict(zip(MEDMNIST, arrays, strict=True)))  # type: ignore[arg-type]
    options = {
        "images": "train_images",
        "labels": "train_labels",
        "test_images": "test_images",
        "test_labels": "test_labels",
    }
    with pytest.raises(ValueError, match=r"x\.npz: must hold the arrays images, labels, but lacks") as asked:
        load("npz", tmp_path / "x.npz", scratch=scratch)
    assert str(asked.value).endswith(f"such as {' '.join(f'--array {name}={key}' for name, key in options.items())}")
    found = sources.load("npz", [tmp_path / "x.npz"], scratch=scratch, arrays=options)
    assert names_and_counts(found) == (("0", "1"), [3, 3], [1, 1])
    assert found.test is not None
    assert np.array_equal(pixels(found.test.images), noise(2, seed=1))
    assert found.notes == ("arrays that are not read: val_images, val_labels",)


@pytest.mark.parametrize(
    ("held", "options"),
    [
        (("x", "y"), "--array images=x --array labels=y"),
        (("data", "targets", "X_test"), "--array images=data --array labels=targets"),
        (("x_train", "y_train", "x_test", "y_test"),
         "--array images=x_train --array labels=y_train --array test_images=x_test --array test_labels=y_test"),
        (("a", "b"), "--array images=KEY --array labels=KEY"),
    ],
)  # fmt: skip
def test_what_is_suggested_for_arrays_fits_their_names(
    tmp_path: Path, scratch: Path, held: tuple[str, ...], options: str
) -> None:
    np.savez(tmp_path / "x.npz", **dict.fromkeys(held, np.zeros(3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"such as {options}$"):
        load("npz", tmp_path / "x.npz", scratch=scratch)


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"picture": "x"}, "--array must name one of images, labels, test_images, test_labels, but names picture"),
        ({"test_images": "x"}, "--array must name test_images and test_labels, or neither, but names one"),
        ({"images": "x"}, r"must hold the arrays x, labels, but lacks x"),
    ],
)
def test_wrong_names_for_arrays_are_refused(tmp_path: Path, scratch: Path, arrays: dict[str, str], fault: str) -> None:
    np.savez(tmp_path / "x.npz", images=noise(3), labels=np.arange(3))
    with pytest.raises(ValueError, match=fault):
        sources.load("npz", [tmp_path / "x.npz"], scratch=scratch, arrays=arrays)
    with pytest.raises(ValueError, match="--array is for the kind npz, but the kind is digits"):
        sources.load("digits", [], scratch=scratch, arrays=arrays)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_axis_that_may_or_may_not_hold_the_channels_is_asked_for(
    tmp_path: Path, scratch: Path, side: int, channels: int
) -> None:
    images = noise(4)[:, :, :side, :channels]  # images of width 1 or 3
    np.savez(tmp_path / "x.npz", images=images.transpose(0, 3, 1, 2), labels=np.arange(4))
    with pytest.raises(
        ValueError, match=r"which axis holds the channels.*--layout channels-first or --layout channels-l"
    ):
        load("npz", tmp_path / "x.npz", scratch=scratch)
    with pytest.raises(ValueError, match="it must be clear which axis holds the channels"):
        sources.load_unlabeled(tmp_path / "x.npz", scratch=scratch)
    first = sources.load("npz", [tmp_path / "x.npz"], scratch=scratch, layout="channels-first").train.images
    assert np.array_equal(pixels(first), np.broadcast_to(images, (4, 8, side, 3)))
    last = sources.load("npz", [tmp_path / "x.npz"], scratch=scratch, layout="channels-last").train.images
    assert last.uniform == (channels, 8)


def test_channels_that_are_plainly_first_are_read_where_that_is_said(tmp_path: Path, scratch: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(4).transpose(0, 3, 1, 2), labels=np.arange(4))
    with pytest.raises(ValueError, match=r"put the channels last, or say --layout channels-first"):
        load("npz", tmp_path / "x.npz", scratch=scratch)
    found = sources.load("npz", [tmp_path / "x.npz"], scratch=scratch, layout="channels-first")
    assert np.array_equal(pixels(found.train.images), noise(4))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_npz_is_named(tmp_path: Path, scratch: Path, keep: float) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=noise(9), labels=np.arange(9))
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"x\.npz: not a complete .npz"):
        load("npz", tmp_path / "x.npz", scratch=scratch)


def test_an_npy_that_is_called_npz_is_told(tmp_path: Path, scratch: Path) -> None:
    with (tmp_path / "train.npz").open("wb") as file:
        np.save(file, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"train\.npz: .* holds a single array, not named ones"):
        load("npz", tmp_path / "train.npz", scratch=scratch)


def test_a_damaged_byte_in_an_npz_is_noticed(tmp_path: Path, scratch: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(9), labels=np.arange(9))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[800] ^= 1  # a pixel; the zip's checksum knows
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: not a complete .npz"):
        load("npz", tmp_path / "x.npz", scratch=scratch)


# ---- downloads


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, cifar10: Callable[..., None]) -> None:
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    vars(datasets)["CIFAR10"] = cifar10
    vars(package)["datasets"] = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_a_download_is_read_from_where_torchvision_put_it(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(root: str, download: bool) -> None:
        print("Downloading loudly")
        assert download
        write_cifar(Path(root) / "cifar-10-batches-py")

    fake_torchvision(monkeypatch, fetch)
    source = sources.load("cifar10", [], scratch=scratch, download=True)
    assert len(source.train.labels) == 50
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [RuntimeError("File not found or corrupted."), OSError("<urlopen error>")])
def test_a_failed_download_says_what_to_do(scratch: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(root: str, download: bool) -> None:
        raise error

    fake_torchvision(monkeypatch, fail)
    with pytest.raises(ValueError, match=r"cifar10: torchvision could not download it .*--source"):
        sources.load("cifar10", [], scratch=scratch, download=True)


def test_what_cannot_be_downloaded_is_refused(scratch: Path) -> None:
    with pytest.raises(ValueError, match="only cifar10, cifar100, stl10 can be downloaded, but npz cannot"):
        sources.load("npz", [], scratch=scratch, download=True)
