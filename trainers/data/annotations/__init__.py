"""Images with boxes, and masks where they are asked for, in PASCAL VOC's and COCO's formats: `read(path)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainers.data.annotations.base import VOID, AnnotatedImage, Annotations, Box, Instance, Mask
from trainers.data.annotations.coco import coco_files, read_coco
from trainers.data.annotations.voc import is_voc, read_voc

__all__ = ["VOID", "AnnotatedImage", "Annotations", "Box", "Instance", "Mask", "is_annotated", "read"]


def is_annotated(place: Path | str) -> bool:
    """Whether `read` would find a format that it knows."""
    path = Path(place)
    return bool(_kits(path) or coco_files(path))


def read(
    place: Path | str, *, masks: bool = False, classes: Sequence[str] | None = None, skip: float = 0.0
) -> Annotations:
    """The annotated data set at `place`: a folder in VOC's or COCO's format, or one of COCO's files.

    Args:
        place: VOC's folder with `Annotations` and `JPEGImages`, or one that has a single such `VOCdevkit/VOC2007` in
            it; COCO's folder with `annotations/instances_PART.json`, or such a file.
        masks: read masks, too (pycocotools' run-length code). Of VOC, the images of `ImageSets/Segmentation` alone.
        classes: their names in order; objects of others are faults. By default those of the source.
        skip: the share of images and objects that may be wrong; they are left out and told in `left_out`. By default
            none.

    ValueError with everything that is wrong: images or labels that are missing or broken, sizes that differ, boxes and
    masks that are empty, inverted or out of their image, unknown classes, annotations of no image, broken JSON or XML.
    """
    path = Path(place)
    if not path.exists():
        raise ValueError(f"{path}: annotated images must exist, but nothing is there; check the path")
    if not 0.0 <= skip < 1.0:
        raise ValueError(f"skip must be a share from 0 to below 1, but is {skip}; use for example 0.001")
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"classes must differ, but are {', '.join(classes)}; name each once")
    kits = _kits(path)
    if len(kits) > 1:
        raise ValueError(
            f"{path}: must hold one VOC data set, but holds {', '.join(str(kit) for kit in kits)}; name one"
        )
    if kits:
        return read_voc(kits[0], masks=masks, classes=classes, skip=skip)
    files = coco_files(path)
    if not files:
        raise ValueError(
            f"{path}: must hold VOC's Annotations and JPEGImages, or COCO's annotations/instances_PART.json, but holds "
            "neither; name the folder that does, or one of COCO's files"
        )
    return read_coco(path, files, masks=masks, classes=classes, skip=skip)


def _kits(path: Path) -> list[Path]:
    """The VOC data sets in a folder: itself, or those of a development kit."""
    folders = (path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*")))
    return [root for root in folders if is_voc(root)]
