"""Splits: disjoint, stratified, exact in size, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.data.splits import carve, keyed_ranks, stratified_order

NAMES = ("a", "b", "c")
MASK = (1 << 64) - 1


def uneven_labels() -> np.ndarray:
    return np.array([0] * 70 + [1] * 25 + [2] * 5, dtype=np.int64)


def splitmix64(state: int) -> int:
    """The reference generator of Vigna, on Python integers."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_ranks_are_splitmix64_of_the_row() -> None:
    import hashlib

    start = int.from_bytes(hashlib.sha256(b"key").digest()[:8], "little")
    expected = [splitmix64(start + (row + 1) * 0x9E3779B97F4A7C15) for row in range(5)]
    assert keyed_ranks(5, "key").tolist() == expected


def test_carved_splits_are_disjoint_and_complete_and_have_the_asked_sizes() -> None:
    labels = uneven_labels()
    report, select, train = carve(labels, [10, 20], key="k", class_names=NAMES, where="here")
    assert (len(report), len(select), len(train)) == (10, 20, 70)
    assert np.array_equal(np.sort(np.concatenate([report, select, train])), np.arange(100))
    for split in (report, select, train):
        assert np.array_equal(split, np.sort(split))


def test_every_class_has_its_share_of_every_split() -> None:
    labels = uneven_labels()
    report, select, train = carve(labels, [10, 20], key="k", class_names=NAMES, where="here")
    # 10 of 100: shares 7, 2.5, 0.5, each at least one; 20 of 100: 14, 5, 1.
    assert np.bincount(labels[report]).tolist() == [7, 2, 1]
    assert np.bincount(labels[select]).tolist() == [14, 5, 1]
    assert np.bincount(labels[train]).tolist() == [49, 18, 3]


def test_a_class_of_one_image_per_split_is_enough_and_fewer_are_refused_by_name() -> None:
    labels = np.array([0] * 50 + [1] * 3, dtype=np.int64)
    report, select, train = carve(labels, [20, 20], key="k", class_names=("big", "small"), where="here")
    assert [np.bincount(labels[split])[1] for split in (report, select, train)] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"here: class 'small' has 2 images, but each class needs at least 3"):
        carve(labels[:-1], [20, 20], key="k", class_names=("big", "small"), where="here")


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"class 'c' has 0 images"):
        carve(np.array([0, 0, 1, 1]), [2], key="k", class_names=NAMES, where="here")


def test_another_key_carves_other_images() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    one, _ = carve(labels, [500], key="seed 0", class_names=("a",), where="here")
    two, _ = carve(labels, [500], key="seed 1", class_names=("a",), where="here")
    overlap = len(np.intersect1d(one, two))
    assert 200 < overlap < 300  # half of 500 by chance; the standard deviation is 8


@pytest.mark.parametrize("count", [3, 10, 37, 99, 100])
def test_prefixes_of_the_stratified_order_hold_each_class_in_proportion(count: int) -> None:
    labels = uneven_labels()
    order = stratified_order(labels, "k")
    assert np.array_equal(np.sort(order), np.arange(100))
    held = np.bincount(labels[order[:count]], minlength=3)
    assert np.abs(held - np.array([0.70, 0.25, 0.05]) * count).max() <= 1.0
