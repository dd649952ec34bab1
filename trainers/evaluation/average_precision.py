"""How good detections are: average precision as COCO defines it and as PASCAL VOC does, of any weighting of the images.

What matches what is found once for each image; the figure of some images, as a bootstrap draws them, is then a sum with
a weight for each image.

Letters: n = images, d = detections of one class, T = thresholds of overlap.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers.data.annotations import AnnotatedImage, Mask
from trainers.data.annotations.base import coco_masks

Floats = NDArray[np.float64]
Regions = Literal["bbox", "segm"]
"""What has to overlap: boxes or masks."""

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's: how much of the union must be common."""
MOST = 100
"""Detections of an image and class that are looked at, those of the highest score."""


class Found(NamedTuple):
    """What a detector says of one image."""

    boxes: Floats
    """Left, top, right, bottom in pixels, [k, 4]."""
    scores: Floats
    """How sure it is, [k]."""
    labels: NDArray[np.int64]
    """Classes, [k]."""
    masks: tuple[Mask, ...] | None = None


class Matches(NamedTuple):
    """The detections of one class, by falling score, and what they match."""

    images: NDArray[np.int64]
    """Which image each is of, [d]."""
    true: NDArray[np.bool_]
    """Whether it is an object that none with a higher score is, [T, d]."""
    ignored: NDArray[np.bool_]
    """Whether it is neither right nor wrong, [T, d]."""
    objects: NDArray[np.int64]
    """How many objects of the class are to be found on each image, [n]."""


def coco_matches(
    images: Sequence[AnnotatedImage], found: Sequence[Found], *, class_count: int, regions: Regions = "bbox"
) -> list[Matches]:
    """Of each class, by pycocotools' own code: at `THRESHOLDS`, at most `MOST` detections of an image and class.

    A detection is ignored where it matches an ignored object, or lies in one (COCO's rule for crowds).
    ValueError where pycocotools is not installed.
    """
    coco_masks()
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for place, (image, its) in enumerate(zip(images, found, strict=True)):
        for instance in image.instances:
            row = _row(place, instance.label, instance.box, instance.mask, len(truth) + 1)
            truth.append(row | {"area": instance.area, "iscrowd": int(instance.ignored)})
        for number, (box, score, label) in enumerate(zip(its.boxes, its.scores, its.labels, strict=True)):
            mask = None if its.masks is None else its.masks[number]
            row = _row(place, int(label), box.tolist(), mask, len(guesses) + 1)
            guesses.append(row | {"score": float(score), "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0})
    rows = [{"id": place, "height": image.height, "width": image.width} for place, image in enumerate(images)]
    categories = [{"id": label, "name": str(label)} for label in range(class_count)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        tables = []
        for annotations in (truth, guesses):
            table = COCO()
            table.dataset = {"images": rows, "categories": categories, "annotations": annotations}
            table.createIndex()
            tables.append(table)
        judge = COCOeval(*tables, iouType=regions)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [MOST]
        judge.evaluate()
    count = len(images)
    return [
        _joined(judge.evalImgs[label * count : (label + 1) * count], count, len(THRESHOLDS))
        for label in range(class_count)
    ]


def _row(image: int, label: int, box: Sequence[float], mask: Mask | None, number: int) -> dict[str, Any]:
    left, top, right, bottom = box
    row: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": label,
        "bbox": [left, top, right - left, bottom - top],
    }
    if mask is not None:
        row["segmentation"] = {"size": [mask.height, mask.width], "counts": mask.counts}
    return row


def _joined(of_images: Sequence[dict[str, Any] | None], count: int, thresholds: int) -> Matches:
    """One class's matches on all images, from pycocotools' of each."""
    objects = np.zeros(count, np.int64)
    places: list[int] = []
    scores: list[float] = []
    true, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    for place, its in enumerate(of_images):
        if its is None:
            continue
        objects[place] = np.count_nonzero(np.asarray(its["gtIgnore"]) == 0)
        scores += its["dtScores"]
        places += [place] * len(its["dtScores"])
        ignored.append(np.asarray(its["dtIgnore"]).astype(bool))
        true.append((np.asarray(its["dtMatches"]) != 0) & ~ignored[-1])
    order = np.argsort(-np.array(scores), kind="mergesort")
    return Matches(
        np.array(places, np.int64)[order],
        np.concatenate(true, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        objects,
    )


def voc_matches(
    images: Sequence[AnnotatedImage], found: Sequence[Found], *, class_count: int, overlap: float = 0.5
) -> list[Matches]:
    """Of each class, by the rule of PASCAL VOC's development kit: a detection is of the object that it overlaps most,
    right where that is by more than `overlap` and none with a higher score is of the same object; those of difficult
    ones are ignored. T is 1.
    """
    classes = []
    for label in range(class_count):
        objects = np.zeros(len(images), np.int64)
        rows: list[tuple[float, int, bool, bool]] = []
        for place, (image, its) in enumerate(zip(images, found, strict=True)):
            wanted = [instance for instance in image.instances if instance.label == label]
            objects[place] = sum(not instance.ignored for instance in wanted)
            mine = np.flatnonzero(its.labels == label)
            mine = mine[np.argsort(-its.scores[mine], kind="mergesort")]
            shares = overlaps(its.boxes[mine], np.array([instance.box for instance in wanted]).reshape(-1, 4))
            taken: set[int] = set()
            for share, number in zip(shares, mine, strict=True):
                best = int(share.argmax()) if wanted else -1
                hit = best >= 0 and share[best] > overlap
                ignored = hit and wanted[best].ignored
                rows.append((float(its.scores[number]), place, hit and not ignored and best not in taken, ignored))
                if hit:
                    taken.add(best)
        rows.sort(key=lambda row: -row[0])
        classes.append(
            Matches(
                np.array([row[1] for row in rows], np.int64),
                np.array([[row[2] for row in rows]], bool).reshape(1, -1),
                np.array([[row[3] for row in rows]], bool).reshape(1, -1),
                objects,
            )
        )
    return classes


def overlaps(first: Floats, second: Floats) -> Floats:
    """What boxes [k, 4] and [m, 4] have in common as a share of both together, [k, m]."""
    corners = np.maximum(first[:, None, :2], second[None, :, :2]), np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(corners[1] - corners[0], 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    found: Floats = common / np.maximum(areas[0][:, None] + areas[1][None] - common, np.finfo(float).tiny)
    return found


# --- from matches to figures -----------------------------------------------------------------------------------------

Rule = Literal["coco", "area", "11"]
"""How precision is averaged over recall: at 101 of them (COCO), over the area below the curve (VOC from 2010 on), at 11
(VOC 2007); each time the best precision at that recall or a higher one."""


def by_class(classes: Sequence[Matches], rule: Rule, weights: Floats | None = None) -> Floats:
    """Average precision [T, C] of each class and threshold; not-a-number where a class has no objects to be found.

    `weights` [n]: how often each image is counted, once by default.
    """
    return np.stack([_one_class(matches, rule, weights) for matches in classes], axis=1)


def _one_class(matches: Matches, rule: Rule, weights: Floats | None) -> Floats:
    thresholds = len(matches.true)
    image_weights = np.ones(len(matches.objects)) if weights is None else weights
    wanted = float(image_weights @ matches.objects)
    if not wanted:
        return np.full(thresholds, np.nan)
    counted = image_weights[matches.images]
    right = np.cumsum(matches.true * counted, axis=1)
    wrong = np.cumsum((~matches.true & ~matches.ignored) * counted, axis=1)
    recall = right / wanted
    precision = right / np.maximum(right + wrong, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([_averaged(recall[t], best[t], rule) for t in range(thresholds)])


def _averaged(recall: Floats, best: Floats, rule: Rule) -> float:
    if rule == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * best))
    # As the two development kits have them, rounding included.
    levels = np.linspace(0.0, 1.0, 101) if rule == "coco" else np.arange(0.0, 1.1, 0.1)
    places = np.searchsorted(recall, levels, side="left")
    values = np.append(best, 0.0)[places]
    return float(values.mean())


def mean_of(values: Floats) -> float:
    """The mean over classes that have objects (and over thresholds); 0 where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0
