"""Small annotated data sets, drawn: bright squares and dark discs on noise, in VOC's and COCO's formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("disc", "square")


class Drawn(NamedTuple):
    """One picture: its pixels [S, S, 3], and of each object its class, its box and its mask [S, S]."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    masks: tuple[NDArray[np.bool_], ...]


def drawn(seed: int, *, size: int = 64, objects: int = 2) -> Drawn:
    """Objects of 12 to 24 pixels that do not overlap."""
    draw = np.random.default_rng(seed)
    pixels = draw.normal(128, 12, (size, size, 3))
    names: list[str] = []
    boxes: list[tuple[int, int, int, int]] = []
    masks: list[NDArray[np.bool_]] = []
    rows, columns = np.mgrid[:size, :size]
    taken = np.zeros((size, size), dtype=bool)
    while len(names) < objects:
        side = int(draw.integers(12, 25))
        left, top = (int(value) for value in draw.integers(0, size - side + 1, 2))
        name = CLASSES[int(draw.integers(2))]
        mask = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        if (mask & taken).any():
            continue
        taken |= mask
        if name == "disc":
            center = (side - 1) / 2
            mask = (rows - top - center) ** 2 + (columns - left - center) ** 2 <= (side / 2) ** 2
        pixels[mask] = draw.normal((220, 200, 60) if name == "square" else (40, 60, 190), 8, (int(mask.sum()), 3))
        names.append(name)
        boxes.append((left, top, left + side, top + side))
        masks.append(mask)
    return Drawn(np.clip(pixels, 0, 255).astype(np.uint8), tuple(names), tuple(boxes), tuple(masks))


def pictures(count: int, *, seed: int = 0, size: int = 64, objects: int = 2) -> list[Drawn]:
    return [drawn(1000 * seed + place, size=size, objects=objects) for place in range(count)]


def xml(picture: Drawn, *, difficult: Sequence[int] = ()) -> str:
    """VOC counts from 1, and its boxes hold both ends."""
    height, width = picture.pixels.shape[:2]
    lines = ["<annotation>", f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    for place, (name, (left, top, right, bottom)) in enumerate(zip(picture.names, picture.boxes, strict=True)):
        lines.append(
            f"<object><name>{name}</name><difficult>{int(place in difficult)}</difficult><bndbox>"
            f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>"])


def write_voc(root: Path, train: Sequence[Drawn], test: Sequence[Drawn]) -> Path:
    for folder in (
        "Annotations",
        "JPEGImages",
        "ImageSets/Main",
        "ImageSets/Segmentation",
        "SegmentationClass",
        "SegmentationObject",
    ):
        (root / folder).mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for part, its in (("train", train), ("test", test)):
        for place, picture in enumerate(its):
            name = f"{part}_{place:03}"
            lists[part].append(name)
            Image.fromarray(picture.pixels).save(root / "JPEGImages" / f"{name}.png")
            (root / "Annotations" / f"{name}.xml").write_text(xml(picture))
            classes, objects = (np.zeros(picture.pixels.shape[:2], np.uint8) for _ in range(2))
            for number, (label, mask) in enumerate(zip(picture.names, picture.masks, strict=True), start=1):
                classes[mask], objects[mask] = CLASSES.index(label) + 1, number
            for folder, values in (("SegmentationClass", classes), ("SegmentationObject", objects)):
                image = Image.fromarray(values).convert("P")
                image.putdata(values.ravel().tolist())
                image.save(root / folder / f"{name}.png")
        for folder in ("Main", "Segmentation"):
            (root / "ImageSets" / folder / f"{part}.txt").write_text("\n".join(lists[part]) + "\n")
    return root


def coco(its: Sequence[Drawn], prefix: str) -> dict[str, Any]:
    """Category ids as COCO's own, with holes; masks as polygons of a square's corners, or an uncompressed code."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, picture in enumerate(its):
        height, width = picture.pixels.shape[:2]
        images.append({"id": place + 10, "file_name": f"{prefix}{place:03}.png", "height": height, "width": width})
        for name, (left, top, right, bottom), mask in zip(picture.names, picture.boxes, picture.masks, strict=True):
            flat = mask.ravel(order="F")
            edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
            runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
            code: Any = {"size": [height, width], "counts": [0, *runs] if flat[0] else runs}
            polygon: Any = [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": place + 10,
                    "category_id": {"disc": 3, "square": 7}[name],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": polygon if name == "square" else code,
                }
            )
    categories = [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def write_coco(root: Path, train: Sequence[Drawn], test: Sequence[Drawn]) -> Path:
    (root / "annotations").mkdir(parents=True)
    for part, its in (("train", train), ("val", test)):
        (root / part).mkdir()
        for place, picture in enumerate(its):
            Image.fromarray(picture.pixels).save(root / part / f"{place:03}.png")
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(coco(its, "")))
    return root
