"""COCO's format (Lin et al. 2014, arXiv 1405.0312; cocodataset.org/#format-data):

    ROOT/annotations/instances_PART.json     images, categories, annotations: bbox = left, top, width, height from 0
    ROOT/PART/NAME.jpg                       or ROOT/images/PART, ROOT/images, ROOT, beside the file

`segmentation` is a list of polygons, or a run-length code (`counts` a list, or a compressed text). Classes are in the
order of the categories' ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from trainers.data.annotations.base import (
    SLACK,
    AnnotatedImage,
    Annotations,
    Faults,
    Instance,
    Mask,
    as_number,
    coco_masks,
    digest,
    headers,
    mask_fault,
    runs_of,
    text_of,
    within,
)

PREFIX = "instances_"


class _Part(NamedTuple):
    name: str
    file: Path
    images: Mapping[int, Mapping[str, Any]]
    objects: Sequence[Mapping[str, Any]]
    categories: Mapping[int, str]


def coco_files(place: Path) -> tuple[Path, ...]:
    """The files of annotations of a data set: the file itself, or those of a folder."""
    if place.is_file():
        return (place,) if place.suffix == ".json" else ()
    found: list[Path] = []
    for folder in (place / "annotations", place):
        found = found or sorted(folder.glob(f"{PREFIX}*.json"))
    return tuple(found)


def read_coco(
    place: Path, files: Sequence[Path], *, masks: bool, classes: Sequence[str] | None, skip: float
) -> Annotations:
    faults = Faults(place)
    parsed = [part for file in files if (part := _parsed(file, faults)) is not None]
    names = _classes(parsed, classes, faults)
    located = [(part, number, path) for part in parsed for number, path in _located(place, part, faults).items()]
    sizes = headers([path for _, _, path in located])

    by_image: dict[tuple[str, int | None], list[Mapping[str, Any]]] = {}
    total = len(located)
    for part in parsed:
        total += len(part.objects)
        for each in part.objects:
            if (number := each.get("image_id")) not in part.images:
                faults.add(f"{part.file.name}: annotation {each.get('id')}: its image {number} is not among the images")
            else:
                by_image.setdefault((part.name, number), []).append(each)

    images: list[AnnotatedImage] = []
    hashes: list[str] = []
    parts: dict[str, list[int]] = {part.name: [] for part in parsed}
    for (part, number, path), size in zip(located, sizes, strict=True):
        described = part.images[number]
        where = f"{part.file.name}: image {number} ({described['file_name']})"
        if isinstance(size, str):
            faults.add(f"{where}: {size}")
            continue
        said = (described.get("height", size.height), described.get("width", size.width))
        if said != (size.height, size.width):
            faults.add(
                f"{where}: its size must be the file's, {size.width} x {size.height}, but is {said[1]!r} x {said[0]!r}"
            )
            continue
        found = []
        for each in by_image.get((part.name, number), []):
            instance = _instance(each, size.height, size.width, part.categories, names, masks=masks)
            if isinstance(instance, str):
                faults.add(f"{part.file.name}: annotation {each.get('id')} of {described['file_name']}: {instance}")
            else:
                found.append(instance)
        parts[part.name].append(len(images))
        name = described["file_name"] if len(parsed) == 1 else f"{part.name}/{described['file_name']}"
        images.append(AnnotatedImage(name, path, size.height, size.width, tuple(found)))
        hashes.append(size.sha256)
    left_out = faults.refuse_if_any(total, skip)
    if not any(image.instances for image in images):
        raise ValueError(
            f"{place}: must hold at least one object, but its {len(images):,} images have none; annotate them"
        )
    if masks and not any(each.mask is not None for image in images for each in image.instances):
        raise ValueError(
            f"{place}: masks must be in the annotations' `segmentation`, but there are none; segmentation needs them, "
            "detection does not"
        )
    # One file alone is no division into parts.
    frozen = {name: tuple(ids) for name, ids in parts.items()} if len(parsed) > 1 else {}
    return Annotations(
        place=place,
        format="coco",
        classes=names,
        images=tuple(images),
        parts=frozen,
        sha256=digest(names, images, frozen, hashes),
        left_out=left_out,
    )


# --- one file --------------------------------------------------------------------------------------------------------


def _parsed(file: Path, faults: Faults) -> _Part | None:
    try:
        values = json.loads(text_of(file), parse_constant=_no_number)
    except RecursionError:
        faults.add(f"{file.name}: must be COCO's JSON, but is nested without end")
        return None
    except ValueError as error:
        faults.add(f"{file.name}: must be JSON, but is broken ({error})")
        return None
    if not isinstance(values, dict):
        faults.add(f"{file.name}: must hold an object with images, categories and annotations")
        return None
    lists = {}
    for key in ("images", "categories", "annotations"):
        rows = values.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            missing = "is missing" if rows is None else "is not"
            labels = ": the labels" if key == "annotations" else ""
            faults.add(f"{file.name}: {key!r} must be a list of objects, but {missing}{labels}")
        else:
            lists[key] = rows
    if len(lists) < 3:
        return None
    images = _by_id(lists["images"], "file_name", f"{file.name}: image", faults)
    categories = {
        number: str(row["name"])
        for number, row in _by_id(lists["categories"], "name", f"{file.name}: category", faults).items()
    }
    for number, count in Counter(_plain(row.get("id")) for row in lists["annotations"] if "id" in row).items():
        if count > 1:
            faults.add(f"{file.name}: annotation {number} is there {count} times; ids must differ")
    objects = [{**row, "image_id": _plain(row.get("image_id"))} for row in lists["annotations"]]
    name = file.stem.removeprefix(PREFIX)
    return _Part(name, file, images, objects, categories)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def _plain(value: Any) -> int | str | None:
    """An id that can be looked up: an integer, or what it is as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return None if value is None else str(value)


def _by_id(rows: Sequence[Mapping[str, Any]], key: str, what: str, faults: Faults) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for place, row in enumerate(rows):
        number = _plain(row.get("id"))
        if not isinstance(number, int):
            faults.add(f"{what} at place {place}: its id must be an integer, but is {row.get('id')!r}")
        elif not _is_text(row.get(key)):
            faults.add(f"{what} {number}: its {key} must be a text, but is {row.get(key)!r}")
        elif number in found:
            faults.add(f"{what} {number} is there twice; ids must differ")
        else:
            found[number] = row
    return found


def _is_text(value: Any) -> bool:
    """Whether it is a text, with something in it, that can be written down: JSON may escape half a pair of UTF-16."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= each <= "\udfff" for each in value)


def _classes(parsed: Sequence[_Part], wanted: Sequence[str] | None, faults: Faults) -> tuple[str, ...]:
    if wanted is not None:
        return tuple(wanted)
    first: Mapping[int, str] = parsed[0].categories if parsed else {}
    for part in parsed[1:]:
        if part.categories != first:
            differing = sorted(set(part.categories.values()) ^ set(first.values())) or ["their ids"]
            faults.add(
                f"{part.file.name}: its categories must be those of {parsed[0].file.name}, but differ: "
                f"{', '.join(differing)}"
            )
    names = tuple(first[number] for number in sorted(first))
    for name, count in Counter(names).items():
        if count > 1:
            faults.add(f"{parsed[0].file.name}: category {name!r} is there {count} times; names must differ")
    return names


def _located(place: Path, part: _Part, faults: Faults) -> dict[int, Path]:
    """Where each image lies. One folder holds all images of a part: the first that has the first one."""
    root = place if place.is_dir() else part.file.parent
    folders = [root / part.name, root / "images" / part.name, root / "images", root, part.file.parent]
    if place.is_file():
        folders += [part.file.parent.parent / part.name, part.file.parent.parent / "images", part.file.parent.parent]
    found: dict[int, Path] = {}
    named: dict[str, int] = {}
    chosen: Path | None = None
    for number, row in part.images.items():
        name = row["file_name"]
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            faults.add(f"{part.file.name}: image {number}: file_name must lie in the data set, but is {name!r}")
            continue
        if name in named:
            faults.add(f"{part.file.name}: image {number}: {name} is image {named[name]}, too; name each file once")
            continue
        named[name] = number
        if chosen is None:
            with suppress(OSError):  # a name that no file can have; `headers` says so
                chosen = next((folder for folder in folders if (folder / name).is_file()), None)
        found[number] = (chosen or folders[0]) / name
    return found


# --- one object ------------------------------------------------------------------------------------------------------


def _instance(
    row: Mapping[str, Any],
    height: int,
    width: int,
    categories: Mapping[int, str],
    names: Sequence[str],
    *,
    masks: bool,
) -> Instance | str:
    """The object, or what is wrong with it."""
    category = _plain(row.get("category_id"))
    if category is None:
        return "its category_id, the label, is missing"
    name = categories.get(category) if isinstance(category, int) else None
    if name is None:
        return f"its category {category!r} is not among the categories"
    if name not in names:
        return f"its class {name} is unknown; classes are {', '.join(names)}"
    numbers = row.get("bbox")
    values = (
        [None if isinstance(value, str) else as_number(value) for value in numbers] if isinstance(numbers, list) else []
    )
    if len(values) != 4 or any(value is None for value in values):
        return f"its bbox must be four numbers (left, top, width, height), but is {numbers!r}"
    left, top, wide, high = (value or 0.0 for value in values)
    box = within((left, top, left + wide, top + high), height, width)
    if isinstance(box, str):
        return box
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        return f"its iscrowd must be 0 or 1, but is {crowd!r}"
    given = row.get("area", wide * high)
    area = None if isinstance(given, str) else as_number(given)
    if area is None or area < 0:
        return f"its area must be a number of pixels, but is {given!r}"
    mask: Mask | None = None
    if masks:
        found = _mask(row.get("segmentation"), height, width)
        if isinstance(found, str):
            return found
        if fault := mask_fault(found, box):
            return fault
        mask = found
    return Instance(names.index(name), box, area, ignored=bool(crowd), mask=mask)


def _mask(segmentation: Any, height: int, width: int) -> Mask | str:
    """Polygons or a run-length code as a mask, drawn as COCO's own code does it, or what is wrong with it."""
    codes = coco_masks()
    if isinstance(segmentation, list):
        polygons = []
        for polygon in segmentation:
            values = [as_number(value) for value in polygon] if isinstance(polygon, list) else []
            points = [value for value in values if value is not None]
            if len(points) < 6 or len(points) % 2 or len(points) != len(values):
                return "a polygon of its segmentation must be x, y, x, y, … of three points or more"
            if min(points) < -SLACK or max(points[::2]) > width + SLACK or max(points[1::2]) > height + SLACK:
                return f"a polygon of its segmentation must lie in the image of {width} x {height} pixels, but does not"
            polygons.append(points)
        if not polygons:
            return "its segmentation must have a polygon, but has none"
        code = codes.merge(codes.frPyObjects(polygons, height, width))
        return Mask(height, width, code["counts"])
    if not isinstance(segmentation, dict):
        return "its segmentation must be polygons or a run-length code, but is missing"
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        return f"the size of its run-length code must be [{height}, {width}], the image's, but is {size!r}"
    if isinstance(counts, list):
        runs = [value for value in counts if isinstance(value, int) and not isinstance(value, bool) and value >= 0]
        if len(runs) != len(counts) or sum(runs) != height * width:
            return f"its run-length code must cover {height * width} pixels, but its counts do not"
        return Mask(height, width, codes.frPyObjects({"size": size, "counts": runs}, height, width)["counts"])
    if not isinstance(counts, str) or _covered(counts) != height * width:
        return f"its run-length code must cover {height * width} pixels, but its counts do not"
    return Mask(height, width, counts.encode())


def _covered(text: str) -> int:
    """Pixels that a compressed run-length code covers; -1 where it is none."""
    try:
        return sum(runs_of(text))
    except ValueError:
        return -1
