"""Building, opening and checking data sets, end to end; what is on disk is read with FFCV's own reader."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from trainers.data import datasets
from trainers.data.beton import BetonWriter
from trainers.data.datasets import Dataset, build, ensure_builtin, open_dataset, verify

CLASSES = 3


def noise(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_npz(path: Path, count: int = 60, side: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=noise(count, side, side, seed), labels=np.arange(count) % CLASSES)
    return path


def write_images(root: Path, sizes: list[tuple[int, int]], suffix: str = "png", seed: int = 0) -> Path:
    """Images of these (height, width) in each of two classes."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index, (height, width) in enumerate(sizes):
            pixels = noise(1, height, width, seed + index + 1000 * (name == "b"))[0]
            Image.fromarray(pixels).save(root / name / f"{index:03}.{suffix}")
    return root


class Row(NamedTuple):
    mode: str
    height: int
    width: int
    payload: bytes
    label: int


def stored_rows(path: Path) -> list[Row]:
    """Every row of an FFCV file, by FFCV's reader of headers and tables."""
    from ffcv.reader import Reader

    reader, content = Reader(str(path)), path.read_bytes()
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
    rows = []
    for (mode, width, height, start), label in reader.metadata.tolist():
        rows.append(Row(("jpeg", "raw")[mode], height, width, content[start : start + sizes[start]], label))
    return rows


def only_left(folder: Path) -> set[str]:
    """What lies in a folder, hidden files included."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "source" / "all.npz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "set"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ensure_builtin("digits", tmp_path_factory.mktemp("data"))


# ---- what a data set holds


def test_every_image_is_in_exactly_one_split_with_its_pixels_and_label(npz: Path, out: Path) -> None:
    dataset = build("npz", source=[npz], out=out)
    search, report = stored_rows(dataset.search_file), stored_rows(dataset.report_file)
    assert {row.mode for row in search + report} == {"raw"}
    with np.load(npz) as source:
        pairs = zip(source["images"], source["labels"], strict=True)
        expected = sorted((image.tobytes(), int(label)) for image, label in pairs)
    assert sorted((row.payload, row.label) for row in search + report) == expected
    assert [row.label for row in search] == dataset.search_labels().tolist()
    assert [row.label for row in report] == dataset.report_labels().tolist()
    assert (dataset.train_count, dataset.select_count, dataset.report_count) == (38, 12, 10)
    assert dataset.class_count == CLASSES


def test_the_sources_test_part_becomes_report_in_its_order(tmp_path: Path, out: Path) -> None:
    train = write_npz(tmp_path / "train.npz")
    test = write_npz(tmp_path / "test.npz", count=9, seed=1)
    dataset = build("npz", source=[train, test], out=out)
    assert [row.payload for row in stored_rows(dataset.report_file)] == [image.tobytes() for image in noise(9, seed=1)]
    assert dataset.manifest.report_origin == "source"
    assert dataset.train_count + dataset.select_count == 60
    with pytest.raises(ValueError, match=r"report_images .*own test part"):
        build("npz", source=[train, test], out=out.with_name("other"), report_images=10)


def test_digits_have_a_select_split_of_at_least_500_in_all_classes(digits: Dataset) -> None:
    assert (digits.train_count, digits.select_count, digits.report_count) == (997, 500, 300)
    assert digits.manifest.fixed_size == (16, 16)
    assert digits.manifest.encoding == "raw"
    labels = digits.search_labels()
    assert len(labels) == 1497
    for ids in (digits.train_ids, digits.select_ids):
        shares = np.bincount(labels[ids]) / len(ids)
        assert np.abs(shares - 0.1).max() < 0.005
    assert digits.manifest.duplicates == {"train/train": 0, "select/train": 0, "report/train": 0, "report/select": 0}


def test_the_manifest_says_the_mean_and_spread_of_train_alone(digits: Dataset) -> None:
    rows = stored_rows(digits.search_file)[: digits.train_count]
    pixels = np.frombuffer(b"".join(row.payload for row in rows), np.uint8).reshape(-1, 3) / 255
    assert np.allclose(digits.manifest.mean, pixels.mean(0), rtol=1e-12)
    assert np.allclose(digits.manifest.std, pixels.std(0), rtol=1e-10)


def test_the_manifests_own_hashes_are_those_of_the_files(digits: Dataset) -> None:
    for name, record in digits.manifest.files.items():
        content = (digits.folder / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert digits.manifest_hash == hashlib.sha256((digits.folder / "manifest.json").read_bytes()).hexdigest()


def flat(folder: Path, count: int = 40, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(noise(count, seed=seed)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def test_images_without_labels_are_split_as_others_and_have_no_class(tmp_path: Path, out: Path) -> None:
    dataset = build("images", source=[flat(tmp_path / "in")], out=out)
    assert (dataset.train_count, dataset.select_count, dataset.report_count) == (26, 8, 6)
    assert not dataset.has_labels
    assert set(dataset.search_labels().tolist()) == set(dataset.report_labels().tolist()) == {-1}
    payloads = [row.payload for row in stored_rows(dataset.search_file) + stored_rows(dataset.report_file)]
    assert sorted(payloads) == sorted(pixels.tobytes() for pixels in noise(40))
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["format_version"], manifest["class_names"]) == (2, []), "an older version would misread it"
    assert dataset.manifest.class_counts == {"train": (), "select": (), "report": ()}
    assert datasets.summary(dataset)["classes"] == "none: the images have no labels"
    quarter = dataset.pretrain_ids("25%").tolist()
    assert len(quarter) == 7
    assert set(quarter) < set(dataset.pretrain_ids("50%").tolist()) < set(dataset.train_ids.tolist())


@pytest.mark.parametrize("kind", ["images", "npz"])
def test_unlabelled_images_alone_are_a_data_set(npz: Path, tmp_path: Path, out: Path, kind: str) -> None:
    path = flat(tmp_path / "a" / "cats").parent if kind == "images" else npz
    dataset = build(kind, unlabeled=path, out=out)
    assert (dataset.has_labels, dataset.unlabeled_count, dataset.report_count > 0) == (False, 0, True)
    assert dataset.manifest.source == f"{kind} without labels: {path.name}"


def test_too_few_images_without_labels_and_kinds_that_have_some_are_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(ValueError, match="there must be at least 5 images for the splits, but there are 4; add some"):
        build("images", source=[flat(tmp_path / "few", 4)], out=out)
    assert build("images", source=[flat(tmp_path / "five", 5)], out=out).train_count == 1
    with pytest.raises(ValueError, match="cifar10 needs exactly one --source"):
        build("cifar10", unlabeled=tmp_path / "five", out=out.with_name("other"))


def test_splits_are_drawn_as_shares_of_the_training_part(tmp_path: Path, out: Path) -> None:
    source = [write_npz(tmp_path / "all.npz", count=200)]
    dataset = build("npz", source=source, out=out, select_images="10%", report_images="25%")
    assert (dataset.train_count, dataset.select_count, dataset.report_count) == (130, 20, 50)
    assert max(dataset.manifest.class_counts["select"]) - min(dataset.manifest.class_counts["select"]) <= 1
    same = build("npz", source=source, out=out.with_name("same"), select_images="20", report_images=50)
    assert same.manifest_hash == dataset.manifest_hash
    for wrong, said in (("99%", "but was asked for 99%, which is 198"), ("0%", "--select must be a number of images")):
        with pytest.raises(ValueError, match=said):
            build("npz", source=source, out=out.with_name("wrong"), select_images=wrong)


def test_ids_follow_the_order_train_select_unlabeled(npz: Path, tmp_path: Path, out: Path) -> None:
    extra = tmp_path / "extra.npz"
    np.savez(extra, images=noise(7, seed=5))
    dataset = build("npz", source=[npz], unlabeled=extra, out=out)
    joined = np.concatenate([dataset.train_ids, dataset.select_ids, dataset.unlabeled_ids])
    assert np.array_equal(joined, np.arange(57))
    assert dataset.search_labels()[dataset.unlabeled_ids].tolist() == [-1] * 7
    rows = stored_rows(dataset.search_file)
    assert [rows[index].payload for index in dataset.unlabeled_ids] == [image.tobytes() for image in noise(7, seed=5)]
    assert np.array_equal(dataset.pretrain_ids(), np.concatenate([dataset.train_ids, dataset.unlabeled_ids]))


def test_subsets_are_stratified_nested_and_from_train_alone(digits: Dataset) -> None:
    small, large = digits.pretrain_ids(100), digits.pretrain_ids(500)
    assert (len(small), len(large)) == (100, 500)
    assert set(small.tolist()) < set(large.tolist()) < set(digits.train_ids.tolist())
    assert np.bincount(digits.search_labels()[small]).tolist() == pytest.approx([10] * 10, abs=1)
    for wrong in (0, 998):
        with pytest.raises(ValueError, match=rf"data\.subset must be 1 to 997 .* is {wrong}"):
            digits.pretrain_ids(wrong)


# ---- how images are stored


def test_images_of_one_small_size_are_stored_as_pixels_whatever_their_format(tmp_path: Path, out: Path) -> None:
    dataset = build("images", source=[write_images(tmp_path / "in", [(20, 30)] * 10)], out=out)
    assert (dataset.manifest.encoding, dataset.manifest.fixed_size) == ("raw", (20, 30))
    rows = stored_rows(dataset.search_file)
    assert {(row.mode, row.height, row.width) for row in rows} == {("raw", 20, 30)}
    originals = {np.asarray(Image.open(path)).tobytes() for path in (tmp_path / "in").rglob("*.png")}
    assert {row.payload for row in rows} < originals


def test_upright_rgb_jpegs_keep_their_bytes_and_others_are_encoded_close_to_the_original(
    tmp_path: Path, out: Path
) -> None:
    source = write_images(tmp_path / "in", [(80, 100 + index) for index in range(10)], suffix="jpg")
    smooth = np.linspace(0, 255, 90 * 70 * 3).reshape(90, 70, 3).astype(np.uint8)
    Image.fromarray(smooth).save(source / "a" / "smooth.png")
    dataset = build("images", source=[source], out=out)
    manifest = dataset.manifest
    assert (manifest.encoding, manifest.fixed_size, manifest.reencoded) == ("jpeg", None, 1)
    assert (manifest.min_size, manifest.max_size) == ((80, 70), (90, 109))
    rows = stored_rows(dataset.search_file) + stored_rows(dataset.report_file)
    originals = {path.read_bytes() for path in source.rglob("*.jpg")}
    assert originals < {row.payload for row in rows}
    (encoded,) = [row for row in rows if row.payload not in originals]
    decoded = np.asarray(Image.open(io.BytesIO(encoded.payload))).astype(int)
    assert decoded.shape == (encoded.height, encoded.width, 3) == (90, 70, 3)
    assert np.abs(decoded - smooth).mean() < 2


def test_max_side_brings_down_the_longer_side_and_keeps_the_shape(tmp_path: Path, out: Path) -> None:
    source = write_images(tmp_path / "in", [(200, 100)] * 8, suffix="jpg")
    dataset = build("images", source=[source], out=out, max_side=150)
    assert (dataset.manifest.fixed_size, dataset.manifest.reencoded) == ((150, 75), 16)
    small = build("images", source=[source], out=out.with_name("small"), max_side=40)
    assert (small.manifest.fixed_size, small.manifest.encoding, small.manifest.reencoded) == ((40, 20), "raw", 0)


@pytest.mark.parametrize(
    ("top", "white"), [(200, 255), (900, 1023), (4000, 4095), (16383, 16383), (16384, 65535), (60000, 65535)]
)
def test_gray_of_fewer_than_16_bits_keeps_its_range_in_all_images_alike_and_that_is_said(
    tmp_path: Path, out: Path, top: int, white: int
) -> None:
    ramp = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(6):
            # Only the last has the brightest value: the range is that of all.
            Image.fromarray(ramp if number == 5 else ramp // 2).save(tmp_path / "in" / name / f"{number}.png")
    said: list[str] = []
    dataset = build("images", source=[tmp_path / "in"], out=out, understood=lambda tree, notes: said.extend(notes))
    rows = stored_rows(dataset.search_file) + stored_rows(dataset.report_file)
    expected = {np.round(values / white * 255).astype(np.uint8).tobytes() for values in (ramp, ramp // 2)}
    assert {row.payload[::3] for row in rows} == expected
    assert dataset.manifest.gray_white == open_dataset(out).manifest.gray_white == white
    words = (
        f"12 images of 16-bit gray use {white.bit_length()} bits, up to {top:,}: 0 to {white:,} become black to white"
    )
    assert [text for text in said if "16-bit" in text] == ([] if white == 65535 else [words])
    assert ("gray_white" in json.loads((out / "manifest.json").read_text())) == (white != 65535)


def test_unlabeled_images_of_other_sizes_are_cropped_to_fixed_size_pixels(npz: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "extra").mkdir()
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255  # the middle third is what remains
    Image.fromarray(wide).save(tmp_path / "extra" / "x.png")
    dataset = build("npz", source=[npz], unlabeled=tmp_path / "extra", out=out)
    assert dataset.manifest.fixed_size == (8, 8)
    assert np.frombuffer(stored_rows(dataset.search_file)[-1].payload, np.uint8).min() > 230  # squeezed, it would be
    # black at both ends


def test_equal_images_across_splits_are_counted(tmp_path: Path, out: Path) -> None:
    images = noise(60)
    images[30:] = images[:30]  # each image twice
    np.savez(tmp_path / "train.npz", images=images, labels=np.zeros(60, np.int64))
    np.savez(tmp_path / "test.npz", images=images[:5], labels=np.zeros(5, np.int64))
    found = build("npz", source=[tmp_path / "train.npz", tmp_path / "test.npz"], out=out)
    rows = stored_rows(found.search_file)
    train = {row.payload for row in rows[: found.train_count]}
    assert (
        found.manifest.duplicates["select/train"] == sum(row.payload in train for row in rows[found.train_count :]) > 0
    )
    assert found.manifest.duplicates["train/train"] == found.train_count - len(train) > 0
    assert found.manifest.duplicates["report/train"] == sum(image.tobytes() in train for image in images[:5])


def test_a_large_image_is_read_without_a_warning_and_one_too_large_to_be_meant_is_named(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow warns beyond it, and refuses beyond twice as many
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(12):
            Image.fromarray(noise(1, 9, 9, index)[0]).save(tmp_path / "in" / name / f"{index}.png")
    assert build("images", source=[tmp_path / "in"], out=out).train_count
    Image.fromarray(noise(1, 11, 11)[0]).save(tmp_path / "in" / "a" / "huge.png")
    with pytest.raises(ValueError, match=r"huge\.png: broken image.* \(121 pixels\) exceeds limit"):
        build("images", source=[tmp_path / "in"], out=out.with_name("other"))


# ---- determinism


def test_equal_pixels_under_two_labels_and_nearly_equal_images_are_named_and_noted(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    for part, name, first in (("train", "a", 0), ("train", "b", 20), ("test", "a", 40), ("test", "b", 45)):
        (folder / part / name).mkdir(parents=True)
        for index in range(first, first + (20 if part == "train" else 5)):
            rough = Image.fromarray(noise(1, 6, 6, index)[0]).resize((96, 96), Image.Resampling.BICUBIC)
            rough.save(folder / part / name / f"{index}.png")
    clean = build("images", source=[folder], out=out.with_name("clean"))
    assert (clean.manifest.contradictions, clean.manifest.near_duplicates) == (0, {})
    text = (clean.folder / "manifest.json").read_text()
    assert "contradictions" not in text, "the same source has the hash that it always had"
    assert "near_duplicates" not in text
    shutil.copy(folder / "train" / "a" / "3.png", folder / "train" / "b" / "copy.png")
    for index in range(8, 18):
        with Image.open(folder / "train" / "a" / f"{index}.png") as image:
            image.save(folder / "test" / "a" / f"again{index}.jpg", quality=90)
    told: list[str] = []
    dataset = build("images", source=[folder], out=out, understood=lambda tree, notes: told.extend(notes))
    assert dataset.manifest.contradictions == 2
    found = dataset.manifest.near_duplicates["report/train"]
    assert 10 - dataset.select_count // 2 <= found <= 10, "the originals but for those that are in select"
    near = next(
        text for text in told if text.startswith(f"{found} images of report are nearly equal to one of train: ")
    )
    assert near.endswith(f"; and {found - 3} more")
    for pair in near.partition(": ")[2].split("; ")[:3]:
        copy, original = (Path(name).stem for name in pair.split(" ~ "))
        assert copy == f"again{original}"
    assert any("2 images have equal pixels and different labels: " in text and "copy.png" in text for text in told)
    assert datasets.summary(dataset)["labels"] == "2 images occur with another label too"


def test_the_same_source_and_seed_give_the_same_hash_anywhere_with_any_number_of_threads(
    tmp_path: Path, out: Path
) -> None:
    source = write_images(tmp_path / "in", [(80, 100 + index) for index in range(40)])
    shutil.copytree(source, tmp_path / "elsewhere" / "in")
    one = build("images", source=[source], out=out, threads=1)
    two = build("images", source=[tmp_path / "elsewhere" / "in"], out=out.with_name("two"), threads=3)
    assert one.manifest_hash == two.manifest_hash
    assert str(tmp_path) not in one.manifest.model_dump_json()
    other = build("images", source=[source], out=out.with_name("other"), split_seed=1)
    assert other.manifest.content["select"] != one.manifest.content["select"]


def test_progress_ends_at_its_total_and_never_goes_back(tmp_path: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write_images(tmp_path / "in", [(8, 8)] * 10)
    build("images", source=[source], out=out, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 40)  # 20 headers, then 20 images
    assert seen[-1] == (40, 40)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---- opening and checking


def test_opening_reads_what_building_returned(npz: Path, out: Path) -> None:
    built = build("npz", source=[npz], out=out)
    assert open_dataset(str(out), expected_hash=built.manifest_hash) == built
    verify(built)


def test_what_is_no_manifest_is_refused(digits: Dataset, tmp_path: Path) -> None:
    content = json.loads((digits.folder / "manifest.json").read_text())
    del content["kind"]
    for text, fault in ((json.dumps(content), "kind: "), ("{", ""), ("[]", ""), ('{"format_version": 0}', "")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=f"not a manifest of this version .*{fault}.*build it again"):
            open_dataset(tmp_path)


def test_a_manifest_with_keys_of_a_later_version_opens_as_what_is_known_of_it(digits: Dataset, tmp_path: Path) -> None:
    shutil.copytree(digits.folder, tmp_path / "later")
    path = tmp_path / "later" / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["search.beton"]["blocks"] = 7
    path.write_text(json.dumps({**content, "surprise": {"a": [1]}}))
    opened = open_dataset(tmp_path / "later")
    assert opened.manifest == digits.manifest
    assert opened.manifest_hash != digits.manifest_hash, "a manifest's name is that of its bytes"


def test_a_manifest_of_a_later_format_is_refused_with_the_version_that_is_needed(
    digits: Dataset, tmp_path: Path
) -> None:
    content = json.loads((digits.folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format_version": 3}))
    with pytest.raises(ValueError, match=r"has format 3, but this version of pretune reads up to 2; use a newer one"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["search.beton", "report.beton", "search_labels.npy", "report_labels.npy"])
def test_a_missing_truncated_or_changed_file_is_named(npz: Path, out: Path, name: str) -> None:
    dataset = build("npz", source=[npz], out=out)
    path = out / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[-1] ^= 1
    path.write_bytes(changed)
    for full in (True, False):
        with pytest.raises(ValueError, match=f"{name}: its bytes must have the hash"):
            verify(dataset, full=full)
    others = [other for other in dataset.manifest.files if other != name]
    verify(dataset, files=others)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name}: must have {len(content)} bytes, but has {len(content) - 1} bytes"):
        open_dataset(out)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name}: .* is missing"):
        open_dataset(out)


def test_changed_labels_are_refused_when_they_are_read(npz: Path, out: Path) -> None:
    dataset = build("npz", source=[npz], out=out)
    labels = np.load(out / "search_labels.npy")
    np.save(out / "search_labels.npy", labels[::-1])
    with pytest.raises(ValueError, match=r"search_labels\.npy: its bytes"):
        dataset.search_labels()


def test_the_search_files_can_be_checked_and_read_without_the_report_split(npz: Path, out: Path) -> None:
    dataset = build("npz", source=[npz], out=out)
    (out / "report.beton").unlink()
    (out / "report_labels.npy").unlink()
    verify(dataset, files=("search.beton", "search_labels.npy"))
    assert len(dataset.search_labels()) == 50
    assert len(dataset.pretrain_ids(10)) == 10


# ---- all or nothing


def test_an_existing_data_set_is_never_overwritten(npz: Path, out: Path) -> None:
    build("npz", source=[npz], out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="a data set lies there already and is never overwritten"):
        build("npz", source=[npz], out=out, split_seed=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out.parent / "mine").mkdir()
    (out.parent / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="something else lies there"):
        build("npz", source=[npz], out=out.parent / "mine")
    assert only_left(out.parent) == {"set", "mine"}


def test_a_broken_image_among_good_ones_is_named_and_leaves_nothing(tmp_path: Path, out: Path) -> None:
    source = write_images(tmp_path / "in", [(80, 80)] * 20, suffix="jpg")
    broken = source / "b" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"b/007\.jpg: broken image, .*replace or remove the file"):
        build("images", source=[source], out=out)
    assert only_left(out.parent) == set()


def cut(path: Path, keep: float) -> Path:
    """Leave a share of a file's bytes."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def test_broken_images_are_listed_all_at_once_whatever_part_of_them_is_missing(tmp_path: Path, out: Path) -> None:
    source = write_images(tmp_path / "in", [(80, 80)] * 20, suffix="jpg")
    extra = write_images(tmp_path / "extra", [(80, 80)] * 2, suffix="jpg")
    bad = [cut(source / "a" / f"{number:03}.jpg", keep) for number, keep in ((0, 0.9), (7, 0.0), (9, 0.1))]
    bad += [cut(source / "b" / "003.jpg", 0.8), cut(extra / "b" / "001.jpg", 0.8)]
    with pytest.raises(ValueError, match=r"5 of 44 are broken \(11%\); .* --skip-broken 11\.4%:") as refused:
        build("images", source=[source], unlabeled=extra, out=out)
    lines = str(refused.value).splitlines()
    assert sorted(line.split()[0] for line in lines[1:]) == sorted(map(str, bad))
    assert only_left(out.parent) == set()


def test_of_very_many_broken_images_the_first_hundred_are_listed(tmp_path: Path, out: Path) -> None:
    source = write_images(tmp_path / "in", [(8, 8)] * 100)
    for path in [*source.rglob("*.png")][:130]:
        cut(path, 0.5)
    with pytest.raises(ValueError, match="130 of 200 are broken") as refused:
        build("images", source=[source], out=out)
    assert len(str(refused.value).splitlines()) == 102
    assert str(refused.value).endswith("and 30 more")


def test_broken_images_are_skipped_up_to_a_bound_and_listed_in_the_manifest(tmp_path: Path, out: Path) -> None:
    source = write_images(tmp_path / "in", [(80, 80)] * 20, suffix="jpg")
    extra = write_images(tmp_path / "extra", [(80, 80)] * 10, suffix="jpg")
    request: dict[str, Any] = {"source": [source], "unlabeled": extra}
    whole = build("images", out=out.with_name("whole"), skip_broken=0, **request)
    assert "broken" not in json.loads((whole.folder / "manifest.json").read_text())
    for path in (source / "a" / "004.jpg", source / "b" / "007.jpg", extra / "a" / "001.jpg"):
        cut(path, 0.9)
    with pytest.raises(ValueError, match=r"at most 4% of the files may be broken, but 3 of 60 are broken \(5%\)"):
        build("images", out=out, skip_broken=4, **request)
    assert only_left(out.parent) == {"whole"}
    dataset = build("images", out=out, skip_broken=5, **request)
    assert dataset.manifest.broken == ("in/a/004.jpg", "in/b/007.jpg", "extra/a/001.jpg")
    assert str(tmp_path) not in dataset.manifest.model_dump_json()
    counts = dataset.manifest.counts
    assert (counts.train + counts.select + counts.report, counts.unlabeled) == (38, 19)
    assert datasets.summary(dataset)["broken"] == "3 left out, listed in the manifest"
    assert open_dataset(out) == dataset
    for wrong in (-1.0, 101.0, float("nan")):
        with pytest.raises(ValueError, match="skip_broken must be 0 to 100 percent"):
            build("images", out=out.with_name("other"), skip_broken=wrong, **request)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("a bug")])
def test_an_interrupted_build_leaves_nothing(npz: Path, out: Path, error: BaseException) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(type(error)):
        build("npz", source=[npz], out=out, progress=interrupt)
    assert only_left(out.parent) == set()


def test_too_little_disk_is_noticed_before_anything_is_written(
    npz: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3 << 20}))
    monkeypatch.setattr("trainers.data.datasets.BetonWriter", None)  # would fail otherwise
    with pytest.raises(ValueError, match=r"set: the data set needs about \d+ MiB, but 3 MiB are free"):
        build("npz", source=[npz], out=out)
    assert only_left(out.parent) == set()


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(npz: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(BetonWriter, "finish", full)
    with pytest.raises(ValueError, match=r"No space left on device.*free some disk space"):
        build("npz", source=[npz], out=out)
    assert only_left(out.parent) == set()


def test_leftovers_of_a_killed_build_are_removed_by_the_next(npz: Path, out: Path) -> None:
    slow = (
        "import sys, time; from pathlib import Path; from trainers.data.datasets import build\n"
        "def stall(done, total):\n"
        "    if done > 30: print('half', flush=True); time.sleep(60)\n"
        "build('npz', source=[Path(sys.argv[1])], out=Path(sys.argv[2]), progress=stall)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, str(npz), str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        with pytest.raises(ValueError, match="only one process may build it, but another does so now"):
            build("npz", source=[npz], out=out)
    finally:
        process.kill()
        process.communicate()
    assert any(name.endswith(".partial") for name in only_left(out.parent))
    build("npz", source=[npz], out=out)
    assert only_left(out.parent) == {"set"}


def test_processes_that_race_for_the_digits_all_get_the_same_ones(tmp_path: Path, digits: Dataset) -> None:
    program = (
        "import sys; from pathlib import Path; from trainers.data.datasets import ensure_builtin\n"
        "dataset = ensure_builtin('digits', Path(sys.argv[1]))\n"
        "print(dataset.manifest_hash, 'torch' in sys.modules or 'ffcv' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {racer.communicate(timeout=120)[0] for racer in racers}
    assert said == {f"{digits.manifest_hash} False\n"}
    assert only_left(tmp_path / "data") == {"digits"}


def test_only_digits_are_built_in(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cifar10' is not built in, only 'digits' is"):
        ensure_builtin("cifar10", tmp_path)


# ---- requests that cannot be met


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "mnist"}, "the kind of data must be one of digits, cifar10"),
        ({"source": [Path("/nowhere.npz")]}, "/nowhere.npz: .* must exist"),
        ({"unlabeled": Path("/nowhere")}, "/nowhere: the unlabelled images must exist"),
        ({"select_images": 60}, "the select split must take 3 to 47 of 50 images, but was asked for 60"),
        ({"report_images": 1}, "the report split must take 3 to 54 of 60 images, but was asked for 1"),
        ({"max_side": 0}, "max_side must be"),
        ({"threads": 0}, "threads must be"),
        ({"split_seed": -1}, "split_seed must be"),
    ],
)
def test_a_wrong_request_is_refused_and_leaves_nothing(
    npz: Path, out: Path, change: dict[str, Any], fault: str
) -> None:
    request: dict[str, Any] = {"kind": "npz", "source": [npz], "out": out, **change}
    with pytest.raises(ValueError, match=fault):
        build(request.pop("kind"), **request)
    assert only_left(out.parent) == set()


def test_a_class_too_small_to_split_is_named(tmp_path: Path, out: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(42), labels=np.array([0] * 40 + [1] * 2))
    with pytest.raises(ValueError, match=r"x\.npz: class '1' has 2 images, but each class needs at least 3"):
        build("npz", source=[tmp_path / "x.npz"], out=out)
    assert only_left(out.parent) == set()


@pytest.mark.parametrize("empty", ["source", "unlabeled"])
def test_arrays_without_images_are_refused(npz: Path, tmp_path: Path, out: Path, empty: str) -> None:
    np.savez(tmp_path / "none.npz", images=noise(0), labels=np.zeros(0, np.int64))
    request: dict[str, Any] = {"source": [npz]}
    request[empty] = [tmp_path / "none.npz"] if empty == "source" else tmp_path / "none.npz"
    with pytest.raises(ValueError, match=r"none\.npz: .* none"):
        build("npz", out=out, **request)
    assert only_left(out.parent) == set()


def test_a_place_that_cannot_be_written_to_is_refused(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match="must be a folder that can be written to"):
        build("npz", source=[npz], out=tmp_path / "file" / "set")


def test_every_kind_is_described_and_a_summary_names_the_counts(digits: Dataset) -> None:
    assert list(datasets.kinds()) == ["digits", "cifar10", "cifar100", "stl10", "tiny-imagenet", "images", "npz"]
    rows = datasets.summary(digits)
    assert rows["train"] == "997 images"
    assert rows["images"] == "16x16, stored as raw"
