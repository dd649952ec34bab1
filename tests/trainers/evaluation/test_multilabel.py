"""Average precision against scikit-learn and torchmetrics, separate regressions, and the protocol on small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.annotated import CLASSES, pictures, write_coco, write_voc, xml
from tests.trainers.evaluation import small
from trainers.data.loader import Loaders
from trainers.evaluation.features import Store
from trainers.evaluation.multilabel import average_precision, mean_average_precision
from trainers.evaluation.protocol import Data, Split
from trainers.evaluation.protocols.multilabel import Multilabel, read
from trainers.evaluation.regression import fit_multilabel

SPLITS: tuple[Split, ...] = ("select", "report")


def ranked(seed: int, count: int = 200) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, 4)) < 0.3).astype(np.int64)
    scores = np.round(generator.normal(size=(count, 4)) + targets, 1)  # many are equal
    return scores, targets


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_scikit_learns_and_torchmetrics(seed: int) -> None:
    from sklearn.metrics import average_precision_score

    metrics = pytest.importorskip("torchmetrics.functional.classification")
    scores, targets = ranked(seed)
    mean, each = mean_average_precision(scores, targets)
    theirs = [average_precision_score(targets[:, label], scores[:, label]) for label in range(4)]
    np.testing.assert_allclose(each, theirs, rtol=0, atol=1e-12)
    torchs = metrics.multilabel_average_precision(
        torch.from_numpy(scores).sigmoid(), torch.from_numpy(targets), num_labels=4, average="macro"
    )
    assert mean == pytest.approx(float(torchs), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_eleven_points_are_those_of_torchmetrics_curve(seed: int) -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    scores, targets = ranked(seed)
    theirs = []
    for label in range(4):
        precision, recall, _ = metrics.binary_precision_recall_curve(
            torch.from_numpy(scores[:, label]).sigmoid(), torch.from_numpy(targets[:, label])
        )
        precision, recall = precision[:-1], recall[:-1]  # the last one is set to precision 1 at recall 0
        theirs.append(np.mean([float(precision[recall >= level - 1e-6].max()) for level in np.linspace(0, 1, 11)]))
    mean, each = mean_average_precision(scores, targets, "11-point")
    np.testing.assert_allclose(each, theirs, rtol=0, atol=1e-6)
    assert mean == pytest.approx(np.mean(theirs), abs=1e-6)


def test_eleven_points_are_the_best_precision_from_each_recall_on() -> None:
    # Found: right, wrong, right. Precision 1 up to recall 0.5 (6 levels), 2/3 up to 1 (5 levels).
    found = average_precision(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1]), "11-point")
    assert found == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_what_is_not_known_counts_for_nothing() -> None:
    scores, targets = np.array([0.9, 0.8, 0.7, 0.6]), np.array([-1, 1, -1, 0])
    assert average_precision(scores, targets) == average_precision(scores[[1, 3]], targets[[1, 3]]) == 1.0
    assert np.isnan(average_precision(scores, np.array([0, 0, -1, 0])))


def test_each_class_has_scikit_learns_own_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    digits = small.Digits()
    features = digits.pixels[:600, 0].flatten(1).double()
    labels = torch.from_numpy(digits.labels[:600])
    targets = torch.stack([labels % 2 == 0, labels > 4], dim=1).long()
    targets[::10, 1] = -1
    found = fit_multilabel(features, targets, regularization=1e-2, excess=1e-10)
    x = ((features - found.mean) / found.scale).numpy()
    for label in range(2):
        known = targets[:, label] >= 0
        # Ours is the mean over all images, theirs a sum.
        reference = LogisticRegression(C=1 / (1e-2 * 600), solver="newton-cg", tol=1e-10, max_iter=2000)
        reference.fit(x[known], targets[known, label])
        np.testing.assert_allclose(found.weight[:, label].numpy(), reference.coef_[0], rtol=0, atol=1e-5)


def squares(folder: Path, count: int = 120) -> Path:
    """Noise with a red square, a green square, both or neither."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 60, (count, 8, 8, 3), dtype=np.uint8)
    labels = generator.integers(0, 2, (count, 2))
    for image, (red, green) in zip(images, labels, strict=True):
        image[1:4, 1:4, 0] += np.uint8(150 * red)
        image[4:7, 4:7, 1] += np.uint8(150 * green)
    labels[0, 0] = -1
    path = folder / "squares.npz"
    half = count // 2
    np.savez(path, images=images[:half], labels=labels[:half], test_images=images[half:], test_labels=labels[half:])
    return path


class AllPixels(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


@pytest.mark.ffcv
def test_squares_are_told_on_images_that_were_not_fitted_on(tmp_path: Path) -> None:
    place = squares(tmp_path)
    made = small.data(small.Digits(), tmp_path, "report")
    data = Data(None, "squares", "report", made.loaders, made.store, annotations=place)
    protocol = Multilabel(regularizations=(1e-2, 1e-1))
    found = protocol.run(small.subject(AllPixels()), data, seeds=(0, 1), device=small.CPU, report=small.silent)
    assert found.score("map").value > 0.95
    assert found.score("map11").value > 0.95
    assert (found.fitted, found.score("map").count) == (60, 60)
    assert found.manifest == protocol.check_annotated(place, "report")


def test_files_that_are_wrong_are_told_what_is(tmp_path: Path) -> None:
    images, labels = np.zeros((10, 8, 8, 3), np.uint8), np.ones((10, 2), np.int64)
    whole = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    for change, message in (
        ({"labels": labels[:9]}, r"labels must be \[10, classes\]"),
        ({"labels": labels + 1}, "of 1, 0 and -1"),
        ({"test_labels": np.ones((10, 3))}, "of the same classes"),
        ({"images": images[..., 0]}, "must be bytes"),
        ({"labels": np.tile([1, 0], (10, 1))}, "'1' is on none"),
        ({"class_names": np.array(["a"])}, "a name for each of 2"),
        ({"labels": labels[:, :0], "test_labels": labels[:, :0]}, r"labels must be \[10, classes\]"),
        ({"labels": np.full((10, 2), "yes")}, "of 1, 0 and -1"),
        ({"test_images": images[:0], "test_labels": labels[:0]}, "left to score on `report`, but of 10 none is"),
        ({"test_labels": 0 * labels}, "on an image that is scored, but on the 10 of `report` is none"),
        ({"images": images[:, :0]}, "must be bytes"),
    ):
        path = tmp_path / "wrong.npz"
        np.savez(path, **(whole | change))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            read(path, "report")
    np.savez(path, **(whole | {"images": images[:1], "labels": labels[:1]}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs two images or more to fit on"):
        Multilabel().check_annotated(path, "report")
    with pytest.raises(ValueError, match="left to score on `select`"):
        Multilabel().check_annotated(path, "select")
    np.savez_compressed(path, **whole)  # type: ignore[arg-type]
    packed = bytearray(path.read_bytes())
    packed[200:260] = bytes(60)
    (tmp_path / "array.npy").write_bytes(b"")
    np.save(tmp_path / "array.npy", images)
    for content in (b"no zip", b"", bytes(packed), (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            read(path, "report")
    with pytest.raises(ValueError, match="VOC's Annotations and JPEGImages, or COCO's"):
        Multilabel().check_annotated(tmp_path, "report")


# --- VOC's and COCO's formats -----------------------------------------------------------------------------------------


def test_a_class_is_known_where_not_all_of_its_objects_are_ignored(tmp_path: Path) -> None:
    drawn = pictures(6)
    place = write_voc(tmp_path / "voc", drawn, pictures(2, seed=1))
    (place / "Annotations" / "train_000.xml").write_text(xml(drawn[0], difficult=(0, 1)))
    (place / "Annotations" / "train_001.xml").write_text(xml(drawn[1], difficult=(0,)))
    given = Multilabel().labeled(place, "report")
    assert given.classes == CLASSES
    wanted = []
    for number, picture in enumerate(drawn):
        row = [0, 0]
        ignored = {0: (0, 1), 1: (0,)}.get(number, ())
        for each in sorted(range(2), key=lambda each: each not in ignored):
            row[CLASSES.index(picture.names[each])] = -1 if each in ignored else 1
        wanted.append(row)
    np.testing.assert_array_equal(given.fit_targets, wanted)
    assert set(np.unique(given.fit_targets)) == {-1, 0, 1}


def test_both_formats_of_the_same_images_have_the_same_targets(tmp_path: Path) -> None:
    its = pictures(6), pictures(3, seed=1)
    voc, coco = write_voc(tmp_path / "voc", *its), write_coco(tmp_path / "coco", *its)
    for split in SPLITS:
        (one, two) = (Multilabel().labeled(place, split) for place in (voc, coco))
        order = [two.classes.index(name) for name in one.classes]
        assert len(one.scored) == len(two.scored)
        if split == "report":
            np.testing.assert_array_equal(one.fit_targets, two.fit_targets[:, order])
            np.testing.assert_array_equal(one.scored_targets, two.scored_targets[:, order])


def test_objects_on_drawn_images_are_told_above_chance(tmp_path: Path) -> None:
    place = write_voc(tmp_path / "voc", pictures(60, objects=1), pictures(30, seed=1, objects=1))
    data = Data(None, "voc", "report", Loaders(), Store(tmp_path / "store"), annotations=place)
    found = Multilabel(regularizations=(1e-2, 1e-1)).run(
        small.subject(AllPixels()), data, seeds=(0,), device=small.CPU, report=small.silent
    )
    chance = max(one.count for one in found.classes) / 30
    assert found.score("map").value > chance + 0.2
    assert found.manifest == Multilabel().check_annotated(place, "report")


def test_faulty_annotations_may_be_left_out_and_are_told(tmp_path: Path) -> None:
    place = write_voc(tmp_path / "voc", pictures(12), pictures(3, seed=1))
    (place / "Annotations" / "train_003.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match="train_003"):
        Multilabel().check_annotated(place, "report")
    (note,) = Multilabel(skip=0.1).labeled(place, "report").notes
    assert note.startswith("1 faulty image or object was left out, such as")
