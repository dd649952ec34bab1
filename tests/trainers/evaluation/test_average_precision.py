from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.data.annotations import AnnotatedImage, Box, Instance
from trainers.data.annotations.base import encoded
from trainers.evaluation.average_precision import (
    THRESHOLDS,
    Found,
    Regions,
    by_class,
    coco_matches,
    mean_of,
    overlaps,
    voc_matches,
)
from trainers.evaluation.protocol import around

SIZE = 64
CLASSES = 3


def _drawn(seed: int, count: int = 12) -> tuple[list[AnnotatedImage], list[Found]]:
    """Images with objects, some ignored, and detections that are near, doubled, elsewhere or of another class."""
    draw = np.random.default_rng(seed)
    images, found = [], []
    for place in range(count):
        instances, boxes, labels = [], [], []
        for _ in range(int(draw.integers(0, 6))):
            left, top = (float(value) for value in draw.integers(0, 40, 2))
            box = Box(left, top, left + float(draw.integers(6, 24)), top + float(draw.integers(6, 24)))
            label, ignored = int(draw.integers(CLASSES)), bool(draw.random() < 0.2)
            mask = encoded(_filled(np.array(box)))
            instances.append(Instance(label, box, float(mask.area), ignored, mask))
            for _ in range(int(draw.integers(0, 3))):
                boxes.append(np.clip(np.array(box) + draw.normal(0, 2, 4), 0, SIZE))
                labels.append(label if draw.random() < 0.9 else int(draw.integers(CLASSES)))
        for _ in range(int(draw.integers(0, 4))):
            left, top = draw.uniform(0, 40, 2)
            boxes.append(np.array([left, top, left + 12, top + 12]))
            labels.append(int(draw.integers(CLASSES)))
        corners = np.array(boxes).reshape(-1, 4)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
        scores = np.round(draw.random(len(labels)), 2)  # with equal ones
        masks = tuple(encoded(_filled(box)) for box in corners)
        images.append(AnnotatedImage(str(place), Path(str(place)), SIZE, SIZE, tuple(instances)))
        found.append(Found(corners, scores, np.array(labels, np.int64), masks))
    return images, found


def _filled(box: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    pixels = np.zeros((SIZE, SIZE), bool)
    left, top, right, bottom = (int(value) for value in box)
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return pixels


@pytest.mark.parametrize("regions", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_figures_are_those_of_pycocotools_on_the_same_detections(regions: Regions, seed: int) -> None:
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    images, found = _drawn(seed)
    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, (image, its) in enumerate(zip(images, found, strict=True)):
        for each in image.instances:
            left, top, right, bottom = each.box
            assert each.mask is not None
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": number,
                    "category_id": each.label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": each.area,
                    "iscrowd": int(each.ignored),
                    "segmentation": {"size": [SIZE, SIZE], "counts": each.mask.counts.decode()},
                }
            )
        assert its.masks is not None
        for box, score, label, mask in zip(its.boxes, its.scores, its.labels, its.masks, strict=True):
            guess: dict[str, Any] = {"image_id": number, "category_id": int(label), "score": float(score)}
            if regions == "bbox":
                guess["bbox"] = [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
            else:
                guess["segmentation"] = {"size": [SIZE, SIZE], "counts": mask.counts.decode()}
            guesses.append(guess)
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO()
        table.dataset = {
            "info": {},
            "images": [{"id": number, "height": SIZE, "width": SIZE} for number in range(len(images))],
            "categories": [{"id": label, "name": str(label)} for label in range(CLASSES)],
            "annotations": truth,
        }
        table.createIndex()
        judge = COCOeval(table, table.loadRes(guesses), regions)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    figures = by_class(coco_matches(images, found, class_count=CLASSES, regions=regions), "coco")
    assert figures.shape == (len(THRESHOLDS), CLASSES)
    seen = [mean_of(figures), mean_of(figures[0]), mean_of(figures[5])]
    assert 0.05 < seen[0] < 0.95
    np.testing.assert_allclose(seen, judge.stats[:3], atol=1e-12)


def _voc_by_hand(images: list[AnnotatedImage], found: list[Found], label: int) -> tuple[float, float]:
    """PASCAL VOC's two figures, one detection after the other."""
    ranked = sorted(
        (-score, place, number)
        for place, one in enumerate(found)
        for number, score in enumerate(one.scores)
        if one.labels[number] == label
    )
    wanted = sum(each.label == label and not each.ignored for image in images for each in image.instances)
    taken, right, wrong, points = set(), 0, 0, []
    for _, place, number in ranked:
        objects = [each for each in images[place].instances if each.label == label]
        shares = [
            float(overlaps(found[place].boxes[number : number + 1], np.array([each.box]))[0, 0]) for each in objects
        ]
        best = int(np.argmax(shares)) if shares else -1
        if best >= 0 and shares[best] > 0.5:
            if objects[best].ignored:
                continue
            right, wrong = (right, wrong + 1) if (place, best) in taken else (right + 1, wrong)
            taken.add((place, best))
        else:
            wrong += 1
        points.append((right / wanted, right / (right + wrong)))
    area = before = 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    eleven = [
        max((precision for recall, precision in points if recall >= level), default=0.0)
        for level in np.arange(0.0, 1.1, 0.1)
    ]
    return area, float(np.mean(eleven))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vocs_figures_are_those_of_its_rule_by_hand(seed: int) -> None:
    images, found = _drawn(seed)
    for one in found:  # the rule by hand orders equal scores otherwise
        one.scores[:] += np.random.default_rng(seed).random(len(one.scores)) * 1e-3
    matches = voc_matches(images, found, class_count=CLASSES)
    wanted = np.array([_voc_by_hand(images, found, label) for label in range(CLASSES)])
    np.testing.assert_allclose(by_class(matches, "area")[0], wanted[:, 0], atol=1e-12)
    np.testing.assert_allclose(by_class(matches, "11")[0], wanted[:, 1], atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_mean_average_precision_is_torchmetrics(seed: int) -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    images, found = _drawn(seed)
    metric = detection.MeanAveragePrecision()
    for image, its in zip(images, found, strict=True):
        boxes = torch.tensor([each.box for each in image.instances], dtype=torch.float64).reshape(-1, 4)
        told = [(each.label, each.ignored) for each in image.instances]
        labels, crowds = (torch.tensor([int(one[place]) for one in told], dtype=torch.int64) for place in (0, 1))
        metric.update(
            [
                {
                    "boxes": torch.from_numpy(its.boxes),
                    "scores": torch.from_numpy(its.scores),
                    "labels": torch.from_numpy(its.labels),
                }
            ],
            [{"boxes": boxes, "labels": labels, "iscrowd": crowds}],
        )
    theirs = metric.compute()
    ours = by_class(coco_matches(images, found, class_count=CLASSES), "coco")
    assert mean_of(ours) == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert mean_of(ours[0]) == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert mean_of(ours[5]) == pytest.approx(float(theirs["map_75"]), abs=1e-6)


def test_an_image_that_counts_twice_is_as_if_it_were_there_twice() -> None:
    images, found = _drawn(3)
    for one in found:  # without equal scores
        one.scores[:] += np.random.default_rng(len(one.scores)).random(len(one.scores)) * 1e-3
    weights = np.array([0, 2, 1, 1, 3, 0, 1, 1, 1, 2, 1, 1], dtype=np.float64)
    repeated = [place for place, weight in enumerate(weights) for _ in range(int(weight))]
    once = by_class(coco_matches(images, found, class_count=CLASSES), "coco", weights)
    again = by_class(
        coco_matches([images[k] for k in repeated], [found[k] for k in repeated], class_count=CLASSES), "coco"
    )
    np.testing.assert_allclose(once, again, atol=1e-12)


def test_perfect_detections_have_1_none_have_0_and_a_class_without_objects_does_not_count() -> None:
    images, _ = _drawn(4)
    perfect = []
    for image in images:
        boxes = np.array([each.box for each in image.instances]).reshape(-1, 4)
        labels = np.array([each.label for each in image.instances], np.int64)
        perfect.append(Found(boxes, np.ones(len(labels)), labels))
    silent = [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)) for _ in images]
    for matches in (coco_matches, voc_matches):
        figures = by_class(matches(images, perfect, class_count=CLASSES + 1), "coco")
        assert np.isnan(figures[:, CLASSES]).all()
        assert mean_of(figures) == 1.0
        assert mean_of(by_class(matches(images, silent, class_count=CLASSES), "area")) == 0.0


@pytest.mark.parametrize("count", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_the_interval_of_average_precision_holds_the_truth_as_often_as_it_says(count: int) -> None:
    from benchmarks.simulate_detection import rows

    shares = [float(row[2].removesuffix(" %")) for row in rows(count, seed=0)]
    assert sum(shares) / len(shares) > (70.0 if count == 1 else 88.0), shares


def test_an_interval_of_what_is_always_right_is_not_empty() -> None:
    low, high = around(1.0, [1.0] * 50, 40)
    assert low == pytest.approx(40 / (40 + 1.96**2), abs=1e-4)
    assert high == pytest.approx(1.0)
    assert around(0.0, [0.0] * 50, 40) == pytest.approx((0.0, 1.0 - low))
    assert around(0.5, [0.4, 0.6] * 25, 40)[0] < 0.4
