"""Few labels: the published ones where images are ImageNet's, else drawn ones; the result says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data import datasets
from trainers.data.manifest import Dataset, LabelList
from trainers.data.sources import published
from trainers.evaluation.features import Store
from trainers.evaluation.protocol import Data, Split
from trainers.evaluation.protocols.low_labels import drawn, few

CLASSES = ("n01440764", "n01443537")
OTHERS = 300
"""Images of a class that are on no list."""


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two of ImageNet's classes by their files' names: the listed images are bright, the others dark."""
    root = tmp_path_factory.mktemp("imagenet")
    for place, name in enumerate(CLASSES):
        folder = root / "in" / name
        folder.mkdir(parents=True)
        listed = published._few_labels()[name]
        numbers = listed["10%"] + [number for number in range(1, 10_000) if number not in listed["10%"]][:OTHERS]
        for index, number in enumerate(numbers):
            bright = 128 if number in listed["10%"] else 0
            more = 64 if number in listed["1%"] else 0
            pixels = np.full((4, 4, 3), bright + more + place, dtype=np.uint8)
            pixels[0, 0] = index % 256, index // 256, place
            Image.fromarray(pixels).save(folder / f"{name}_{number}.JPEG", format="png")
    return datasets.build("images", source=[root / "in"], out=root / "out")


def data(dataset: Dataset, split: Split) -> Data:
    return Data(dataset, "two", split, None, Store(Path("nowhere")))  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["select", "report"])
@pytest.mark.parametrize("share", ["1%", "10%", "1.0%"])
def test_of_imagenet_the_published_list_is_fitted_on_as_far_as_it_may_be(
    imagenet: Dataset, split: Split, share: str
) -> None:
    from trainers.data.loader import Loaders

    on = data(imagenet, split)
    found = few(on, share, seed=0)
    assert few(on, share, seed=1).places.tolist() == found.places.tolist()
    batches = Loaders().images(
        imagenet, on.fit_ids, size=4, batch_size=64, threads=1, normalization=((0.0,) * 3, (1.0,) * 3)
    )
    brightness = np.concatenate([images[:, 0, 3, 3].numpy() for images, _ in batches]) * 255
    bound = 100 if share == "10%" else 160
    assert found.places.tolist() == np.flatnonzero(brightness > bound).tolist()
    count = sum(len(published._few_labels()[name]["10%" if share == "10%" else "1%"]) for name in CLASSES)
    said = f"SimCLR's published list, {len(found.places):,} images (the other {count - len(found.places):,} of these"
    assert said in found.how
    assert 0 < len(found.places) < count


def test_of_other_images_and_shares_they_are_drawn_as_ever(imagenet: Dataset) -> None:
    on = data(imagenet, "select")
    for share in ("5%", 40):
        found = few(on, share, seed=1)
        assert found.places.tolist() == drawn(on.fit_labels, share, imagenet, 1).tolist()
        assert found.how == f"{share} of the labels: drawn by seed, stratified"


def test_data_sets_of_other_images_and_of_other_versions_say_nothing_of_lists(imagenet: Dataset) -> None:
    digits = datasets.ensure_builtin("digits", imagenet.folder.parent)
    assert "label_lists" not in (digits.folder / "manifest.json").read_text()
    assert few(data(digits, "select"), "10%", seed=0).how == "10% of the labels: drawn by seed, stratified"
    assert set(imagenet.manifest.label_lists) == {"1%", "10%"}


def test_a_list_in_a_manifest_gives_its_rows_back_and_a_damaged_one_is_refused() -> None:
    rows = np.array([0, 7, 8, 30])
    stored = LabelList.of(rows, 31, listed=5)
    assert stored.ids.tolist() == rows.tolist()
    with pytest.raises(ValueError, match="label_lists are damaged"):
        stored.model_copy(update={"rows": stored.rows[:-8]}).ids  # noqa: B018
