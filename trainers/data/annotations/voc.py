"""PASCAL VOC's format (Everingham et al. 2010, doi 10.1007/s11263-009-0275-4, and its development kit):

    ROOT/Annotations/NAME.xml            boxes, counted from 1, both ends inside; `difficult`
    ROOT/JPEGImages/NAME.jpg
    ROOT/ImageSets/Main/PART.txt         names, one a line; ImageSets/Segmentation for masks
    ROOT/SegmentationClass/NAME.png      a class for each pixel, in the order of the classes; 255 at borders
    ROOT/SegmentationObject/NAME.png     an object for each pixel, in the order of the XML

Classes are in alphabetical order, as VOC's own are, or in that of ROOT/classes.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from trainers.data.annotations.base import (
    VOID,
    AnnotatedImage,
    Annotations,
    Faults,
    Header,
    Instance,
    Mask,
    as_number,
    digest,
    encoded,
    headers,
    in_threads,
    indexed,
    mask_fault,
    text_of,
    within,
)
from trainers.data.sources.base import image_suffixes

XML, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets"
OBJECTS, CLASSES = "SegmentationObject", "SegmentationClass"


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]
    """As VOC counts: from 1, the last pixel inside."""
    difficult: bool


def is_voc(root: Path) -> bool:
    return (root / XML).is_dir() and (root / IMAGES).is_dir()


def read_voc(root: Path, *, masks: bool, classes: Sequence[str] | None, skip: float) -> Annotations:
    """All of ROOT; with `masks`, the images of ImageSets/Segmentation (or those that have masks) with theirs."""
    faults = Faults(root)
    files = _files(root / IMAGES, faults)
    described = {path.stem: path for path in sorted((root / XML).glob("*.xml"))}
    lists = _lists(root, masks=masks, faults=faults)
    names = sorted({name for part in lists.values() for name in part} if lists else described)
    if masks and not lists:
        names = [name for name in names if (root / CLASSES / f"{name}.png").is_file()]
    if not lists:
        for name in sorted(files.keys() - described.keys()):
            faults.add(f"{IMAGES}/{files[name].name}: has no labels; write {XML}/{name}.xml, or list the images")

    kept: list[str] = []
    for name in names:
        if name not in files:
            asked = f"{XML}/{name}.xml" if name in described else f"{LISTS}"
            faults.add(f"{asked}: its image {IMAGES}/{name}.jpg is missing")
        elif name not in described:
            faults.add(f"{IMAGES}/{files[name].name}: its labels {XML}/{name}.xml are missing")
        else:
            kept.append(name)
    sizes = headers([files[name] for name in kept])
    parsed = in_threads(lambda name: _parsed(described[name]), kept)

    known = list(classes) if classes is not None else _classes(root, faults)
    if known is None:
        known = sorted({each.name for found in parsed if not isinstance(found, str) for each in found.objects})
    images, hashes, total = [], [], len(names)
    for name, size, found in zip(kept, sizes, parsed, strict=True):
        where = f"{XML}/{name}.xml"
        if isinstance(size, str):
            faults.add(f"{IMAGES}/{files[name].name}: {size}")
        elif isinstance(found, str):
            faults.add(f"{where}: {found}")
        elif found.size is not None and found.size != (size.height, size.width):
            faults.add(
                f"{where}: its size must be the image's, {size.width} x {size.height}, but is {found.size[1]} x "
                f"{found.size[0]}"
            )
        else:
            total += len(found.objects)
            for fault in found.faults:
                faults.add(f"{where}: {fault}")
            shapes, map_path = _masks(root, name, found.objects, size, known, faults) if masks else (None, None)
            instances = _instances(found.objects, shapes, size, known, where, faults)
            images.append(AnnotatedImage(name, files[name], size.height, size.width, instances, map_path))
            hashes.append(size.sha256)
    left_out = faults.refuse_if_any(total, skip)
    _refuse_nothing(root, images, masks=masks)
    places = {image.name: place for place, image in enumerate(images)}
    parts = {part: tuple(sorted(places[name] for name in set(its) if name in places)) for part, its in lists.items()}
    return Annotations(
        place=root,
        format="voc",
        classes=tuple(known),
        images=tuple(images),
        parts=parts,
        sha256=digest(known, images, parts, hashes),
        left_out=left_out,
    )


def _files(folder: Path, faults: Faults) -> Mapping[str, Path]:
    """The images in a folder, by the names that labels and lists call them."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in image_suffixes():
            continue
        if path.stem in found:
            faults.add(f"{IMAGES}/{path.name}: {found[path.stem].name} has the same name; keep one of them")
        found[path.stem] = path
    return found


def _refuse_nothing(root: Path, images: Sequence[AnnotatedImage], *, masks: bool) -> None:
    if not any(image.instances for image in images):
        raise ValueError(
            f"{root}: must hold at least one object, but its {len(images):,} images have none; annotate them"
        )
    if masks and not any(image.classes_of_pixels for image in images):
        raise ValueError(
            f"{root}: masks must lie in {CLASSES}/NAME.png and {OBJECTS}/NAME.png, but there are none; segmentation "
            "needs them, detection does not"
        )


def _classes(root: Path, faults: Faults) -> list[str] | None:
    path = root / "classes.txt"
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in text_of(path).splitlines() if line.strip()]
    except ValueError as error:
        faults.add(f"classes.txt: {error}")
        return None
    if not names:
        faults.add("classes.txt: must name a class on each line, but is empty")
    if len(set(names)) < len(names):
        faults.add("classes.txt: a class is there twice")
    return names or None


def _lists(root: Path, *, masks: bool, faults: Faults) -> Mapping[str, list[str]]:
    """Names of images by part. Lists of one class's images (`cat_train.txt`) have a second column, and are no parts."""
    folder = root / LISTS / ("Segmentation" if masks else "Main")
    if masks and not folder.is_dir():
        return {}
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        try:
            rows = [line.split() for line in text_of(path).splitlines() if line.strip()]
        except ValueError as error:
            faults.add(f"{path.relative_to(root)}: {error}")
            continue
        if rows and all(len(row) == 1 for row in rows):
            names = [row[0] for row in rows]
            doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
            for name in doubled:
                faults.add(f"{path.relative_to(root)}: {name} is there twice")
            found[path.stem] = names
    return found


# --- one XML file ----------------------------------------------------------------------------------------------------


class _Described(NamedTuple):
    size: tuple[int, int] | None
    """(height, width), where it says so."""
    objects: tuple[_Object, ...]
    faults: tuple[str, ...]


def _parsed(path: Path) -> _Described | str:
    """What a file says, or what is wrong with it as a whole."""
    try:
        tree = parse_xml(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    if tree.tag != "annotation":
        return f"must hold <annotation>, but holds <{tree.tag}>"
    objects, faults = [], []
    for number, element in enumerate(tree.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        box = element.find("bndbox")
        numbers = [
            as_number(box.findtext(edge)) if box is not None else None for edge in ("xmin", "ymin", "xmax", "ymax")
        ]
        difficult = (element.findtext("difficult") or "0").strip()
        if not name:
            faults.append(f"object {number}: its <name>, the class, is missing")
        elif any(value is None for value in numbers):
            faults.append(f"object {number} ({name}): its <bndbox> must have four numbers xmin, ymin, xmax, ymax")
        elif difficult not in ("0", "1"):
            faults.append(f"object {number} ({name}): <difficult> must be 0 or 1, but is {difficult!r}")
        else:
            left, top, right, bottom = (value or 0.0 for value in numbers)
            objects.append(_Object(name, (left, top, right, bottom), difficult == "1"))
            continue
        objects.append(_Object("", (0.0, 0.0, 0.0, 0.0), False))  # keeps the numbers of the others' masks
    height, width = as_number(tree.findtext("size/height")), as_number(tree.findtext("size/width"))
    size = (int(height), int(width)) if height and width else None
    return _Described(size, tuple(objects), tuple(faults))


def parse_xml(text: bytes) -> Element:
    """The tree of a document that declares no entities and no type, so that nothing outside of it is read and nothing
    grows. ValueError where it is broken or does.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("must not declare a document type or entities (<!DOCTYPE, <!ENTITY); remove the declaration")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name, attributes)
    parser.EndElementHandler = lambda name: builder.end(name)
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise ValueError(f"must be XML, but is broken ({error})") from error
    return builder.close()


# --- objects and masks -----------------------------------------------------------------------------------------------


def _instances(
    objects: Sequence[_Object],
    masks: Mapping[int, Mask | None] | None,
    size: Header,
    classes: Sequence[str],
    where: str,
    faults: Faults,
) -> tuple[Instance, ...]:
    def checked() -> Iterator[Instance]:
        for number, each in enumerate(objects, start=1):
            if not each.name:
                continue
            label = f"{where}: object {number} ({each.name})"
            if each.name not in classes:
                faults.add(f"{label}: its class is unknown; classes are {', '.join(classes)}")
                continue
            left, top, right, bottom = each.corners
            box = within((left - 1, top - 1, right, bottom), size.height, size.width)
            if isinstance(box, str):
                faults.add(f"{label}: {box} (counted from 0; VOC's files count from 1)")
                continue
            mask = None if masks is None else masks.get(number)
            area = (box.right - box.left) * (box.bottom - box.top)
            if mask is not None:
                area = float(mask.area)
                if fault := mask_fault(mask, box):
                    faults.add(f"{label}: {fault}")
                    continue
            elif masks is not None:
                if number not in masks and not each.difficult:  # one that is difficult counts neither way
                    faults.add(f"{label}: has no pixel of the number {number} in {OBJECTS}")
                continue
            yield Instance(classes.index(each.name), box, area, ignored=each.difficult, mask=mask)

    return tuple(checked())


def _masks(
    root: Path, name: str, objects: Sequence[_Object], size: Header, classes: Sequence[str], faults: Faults
) -> tuple[Mapping[int, Mask | None] | None, Path | None]:
    """Masks by the number of the object, and the picture of classes, of one image; None of what has been told."""
    pictures = {}
    for folder in (CLASSES, OBJECTS):
        path = root / folder / f"{name}.png"
        try:
            picture = indexed(path)
        except FileNotFoundError:
            faults.add(f"{folder}/{name}.png: the masks are missing")
            return None, None
        except (OSError, SyntaxError, ValueError) as error:
            faults.add(f"{folder}/{name}.png: cannot be used ({str(error).replace(str(path), path.name)})")
            return None, None
        if picture.shape != (size.height, size.width):
            faults.add(
                f"{folder}/{name}.png: must have the image's size, {size.width} x {size.height}, but has "
                f"{picture.shape[1]} x {picture.shape[0]}"
            )
            return None, None
        pictures[folder] = picture
    found: dict[int, Mask | None] = {}
    for value in np.unique(pictures[CLASSES]):
        if value not in (0, VOID) and value > len(classes):
            faults.add(f"{CLASSES}/{name}.png: has class {value}, but there are {len(classes)}")
    for value in np.unique(pictures[OBJECTS]):
        if value in (0, VOID):
            continue
        number = int(value)
        if number > len(objects):
            faults.add(f"{OBJECTS}/{name}.png: has object {number}, but {XML}/{name}.xml has {len(objects)}")
            continue
        its = pictures[OBJECTS] == value
        seen = int(np.bincount(pictures[CLASSES][its]).argmax())
        given = objects[number - 1].name
        if given in classes and seen != classes.index(given) + 1:
            what = classes[seen - 1] if 0 < seen <= len(classes) else f"number {seen}"
            faults.add(
                f"{CLASSES}/{name}.png: says {what} where object {number} of {XML}/{name}.xml is a {given}; classes "
                f"count from 1 in the order {', '.join(classes)} (write classes.txt for another one)"
            )
            found[number] = None
            continue
        found[number] = encoded(its)
    return found, root / CLASSES / f"{name}.png"
