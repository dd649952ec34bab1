"""Images that occur twice: found whatever was done to their files, and nothing else is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainers.data import duplicates


def scene(index: int, side: int = 96) -> Image.Image:
    """A smooth picture of its own, with light and shade as a photograph has."""
    rough = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)


def pictures(images: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.frombuffer(duplicates.picture(image), np.uint8) for image in images])


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("change", ["compressed", "halved", "both", "none"])
def test_scaled_and_compressed_copies_are_found_with_their_originals(change: str) -> None:
    originals = [scene(index) for index in range(200)]
    copies = [image.resize((48, 48), Image.Resampling.LANCZOS) for image in originals[50:150:10]]
    if change in ("compressed", "none"):
        copies = originals[50:150:10]
    if change in ("compressed", "both"):
        copies = [compressed(image, 80) for image in copies]
    found = duplicates.near(pictures(copies), pictures(originals))
    assert found.rows.tolist() == list(range(10))
    assert found.others.tolist() == list(range(50, 150, 10))


def test_different_pictures_are_not_and_no_order_matters() -> None:
    one, other = pictures([scene(index) for index in range(300)]), pictures([scene(index) for index in range(300, 600)])
    assert len(duplicates.near(one, other).rows) == 0
    assert len(duplicates.near(one[:0], other).rows) == len(duplicates.near(one, other[:0]).rows) == 0
    shuffled = np.random.default_rng(0).permutation(300)
    assert duplicates.near(one, one[shuffled]).others.tolist() == np.argsort(shuffled).tolist()


def test_as_many_pairs_as_there_are_in_one_cell_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    dark = np.random.default_rng(0).integers(0, 2, (400, 72)).astype(np.uint8)
    whole = duplicates.near(dark, dark)
    assert whole.rows.tolist() == list(range(400)), "plain grounds have one hash"
    monkeypatch.setattr(duplicates, "_PAIRS", 1000)
    pieces = duplicates.near(dark, dark)
    assert np.array_equal(whole.others, pieces.others)
    monkeypatch.setattr(duplicates, "_MOST", 10)
    assert len(duplicates.near(dark, dark).rows) == 400


def test_a_hash_says_which_cells_are_darker_than_their_neighbor() -> None:
    rising = np.tile(np.arange(9, dtype=np.uint8) * 10, 8)[None]
    assert duplicates.hashes(rising).tolist() == [2**64 - 1]
    assert duplicates.hashes(255 - rising).tolist() == [0]
    one: NDArray[Any] = np.zeros((1, 72), np.uint8)
    one[0, 1] = 200
    assert duplicates.hashes(one).tolist() == [1 << 63]


def test_equal_pixels_under_different_labels_are_grouped() -> None:
    digests = np.array([5, 7, 5, 9, 7, 5, 7], dtype=np.uint64)
    labels = np.array([0, 1, 1, 0, 1, 0, 1])
    assert [group.tolist() for group in duplicates.contradicting(digests, labels)] == [[0, 2, 5]]
    assert duplicates.contradicting(digests[:0], labels[:0]) == []
