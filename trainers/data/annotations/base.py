"""What every format of annotated images becomes: a frozen value, checked as a whole."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.manifest import quick_hash
from trainers.data.sources.base import shown, stored_rgb

if TYPE_CHECKING:
    from types import ModuleType

Item = TypeVar("Item")
Found = TypeVar("Found")

_LISTED = 50
_READERS = 8
_WHOLE = 1 << 22
SLACK = 1.0
"""Pixels by which a box may leave its image: published files are rounded. It is cut off."""


class Box(NamedTuple):
    """Corners in pixels; the left edge of the first pixel is 0 and the right edge of the last one the width."""

    left: float
    top: float
    right: float
    bottom: float


class Mask(NamedTuple):
    """Which pixels are an object's, in COCO's run-length code."""

    height: int
    width: int
    counts: bytes

    def pixels(self) -> NDArray[np.bool_]:
        """[height, width]."""
        runs = runs_of(self.counts.decode())
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape(self.width, self.height).T

    @property
    def area(self) -> int:
        """In pixels."""
        return sum(runs_of(self.counts.decode())[1::2])


def runs_of(counts: str) -> list[int]:
    """How many pixels in a row, down one column after the other, are not the object's, are, are not, …

    A run is written in groups of five bits from the lowest, each plus 48 as a character, with bit 5 where more follow
    and the sign in bit 4 of the last; from the fourth run on, what is written is the difference to the run before last
    (maskApi.c of cocodataset/cocoapi). ValueError where the text is no such code.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("no run-length code")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("no run-length code")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("no run-length code")
    return runs


def encoded(pixels: NDArray[np.bool_]) -> Mask:
    """The mask of pixels [height, width]."""
    code = coco_masks().encode(np.asfortranarray(pixels.astype(np.uint8)))
    return Mask(pixels.shape[0], pixels.shape[1], code["counts"])


def mask_fault(mask: Mask, box: Box) -> str:
    """What is wrong with an object's mask; empty where it has pixels, and some in the object's box."""
    code = {"size": [mask.height, mask.width], "counts": mask.counts}
    left, top, width, height = coco_masks().toBbox(code).tolist()
    if not width or not height:
        return "its mask must have pixels, but has none"
    if left >= box.right or top >= box.bottom or left + width <= box.left or top + height <= box.top:
        return (
            f"its mask must lie in its box of {_numbers(box)}, but lies outside of it, in that of "
            f"{_numbers((left, top, left + width, top + height))}"
        )
    return ""


def coco_masks() -> ModuleType:
    """pycocotools' `mask`. ValueError where it is not installed."""
    try:
        from pycocotools import mask  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            "masks and COCO's figures need the package pycocotools, which is not installed; "
            "pip install 'pretune[evaluate]'"
        ) from error
    found: ModuleType = mask
    return found


class Instance(NamedTuple):
    """One object on an image."""

    label: int
    """Its class, a place in `Annotations.classes`."""
    box: Box
    area: float
    """In pixels: of its mask where the format says so, else of its box. COCO's sizes go by it."""
    ignored: bool = False
    """Neither to be found nor a mistake if it is: VOC's `difficult`, COCO's `iscrowd` (many objects in one box).
    Nothing is trained on it.
    """
    mask: Mask | None = None


class AnnotatedImage(NamedTuple):
    name: str
    path: Path
    height: int
    width: int
    instances: tuple[Instance, ...]
    classes_of_pixels: Path | None = None
    """VOC's picture with a class for each pixel: 0 ground, k the k-th class, 255 none."""

    def pixels(self) -> NDArray[np.uint8]:
        """The image, [height, width, 3], RGB, as it lies in its file: annotations do not know EXIF's orientation.

        ValueError, naming the file, where it does not decode: its header alone was looked at before.
        """
        return np.asarray(stored_rgb(self.path)).copy()

    def class_map(self) -> NDArray[np.uint8]:
        """A class for each pixel, [height, width]: 0 ground, k the k-th class, 255 none.

        Without a picture of classes, from the masks: smaller objects are over larger ones, and pixels of ignored ones
        alone have none.
        """
        if self.classes_of_pixels is not None:
            return indexed(self.classes_of_pixels)
        found = np.zeros((self.height, self.width), dtype=np.uint8)
        masked = [instance for instance in self.instances if instance.mask is not None]
        for instance in sorted(masked, key=lambda each: (not each.ignored, -each.area)):
            if instance.mask is not None:
                found[instance.mask.pixels()] = VOID if instance.ignored else instance.label + 1
        return found


VOID = 255
"""The class of a pixel that has none."""


def indexed(path: Path) -> NDArray[np.uint8]:
    """The numbers of a picture with a palette, [height, width]. ValueError where it has colors instead."""
    with Image.open(path) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"its pixels must be numbers (a palette or 8-bit gray), but are {image.mode}")
        return np.asarray(image).copy()


@dataclass(frozen=True)
class Annotations:
    """A data set of annotated images."""

    place: Path
    format: str
    """`voc` or `coco`."""
    classes: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    parts: Mapping[str, tuple[int, ...]]
    """`train`, `val`, …: places in `images`. An image may be in several; empty where the source names none."""
    sha256: str
    """Of the images' bytes, the annotations and the parts: names the data set wherever it lies."""
    left_out: tuple[str, ...] = ()
    """Faults that were allowed, one sentence each: what has them isn't here."""

    def divided(self, split: Literal["select", "report"]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Places of the images that are fitted on, and of those that are scored; no image is in both.

        `report` scores the published test part (`test…`, without one `val…`) and fits on all other images; where there
        is neither, a fifth of the images is that part, by the hash of their names. `select` never looks at that part:
        it scores `val…` where there is a `test…`, else a fifth of the others, and fits on the rest. ValueError where
        nothing is left.
        """
        listed = sorted({place for its in self.parts.values() for place in its}) or list(range(len(self.images)))
        test, val = (
            sorted({place for name, its in self.parts.items() if name.startswith(prefix) for place in its})
            for prefix in ("test", "val")
        )
        held = test or val or self._fifth(listed)
        others = sorted(set(listed) - set(held))
        if split == "report":
            fit, scored = others, held
        else:
            scored = sorted(set(val) - set(held)) if test else []
            scored = scored or self._fifth(others)
            fit = sorted(set(others) - set(scored))
        if not fit or not scored:
            raise ValueError(
                f"{self.place}: some images must be left to fit on and some to score on `{split}`, but of its "
                f"{len(self.images):,} images there are {len(fit):,} to fit on and {len(scored):,} to score, as those "
                "of its test part are never fitted on; add images, or correct the lists of its parts"
            )
        return tuple(fit), tuple(scored)

    def _fifth(self, places: Sequence[int]) -> list[int]:
        """Of a hash of the images' names, in an order that does not follow from theirs."""
        order = sorted(places, key=lambda place: hashlib.sha256(f"part/{self.images[place].name}".encode()).digest())
        return sorted(order[: len(order) // 5 or min(1, len(order) - 1)])

    @property
    def has_masks(self) -> bool:
        """Whether objects were read with their masks."""
        return any(instance.mask is not None for image in self.images for instance in image.instances)


@dataclass
class Faults:
    """What is wrong with a data set, gathered so that all of it is told at once."""

    place: Path
    found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.found.append(text)

    def refuse_if_any(self, total: int, allowed: float = 0.0) -> tuple[str, ...]:
        """ValueError with all of them where they are more than the share `allowed` of `total` objects and images."""
        count = len(self.found)
        if not count or count <= allowed * total:
            return tuple(self.found)
        listed = [f"  {shown(text)}" for text in self.found[:_LISTED]]
        more = [f"  and {count - _LISTED:,} more"] if count > _LISTED else []
        rule = (
            "every image, box and class must be right" if not allowed else f"at most {allowed:.3g} of it may be wrong"
        )
        raise ValueError(
            "\n".join(
                [
                    f"{shown(self.place)}: {rule}, but {count:,} {'is' if count == 1 else 'are'} not, of {total:,} "
                    f"images and objects; correct the files, or leave such objects out (skip={_share(count, total)}):",
                    *listed,
                    *more,
                ]
            )
        )


def _share(count: int, total: int) -> str:
    return f"{min(1.0, math.ceil(1000 * count / max(total, 1)) / 1000):g}"


def within(box: Sequence[float], height: int, width: int) -> Box | str:
    """The box, cut to its image, or what is wrong with it."""
    left, top, right, bottom = box
    if not all(math.isfinite(number) for number in box):
        return f"its box must have finite numbers, but is {_numbers(box)}"
    if right < left or bottom < top:
        return f"its box must have left < right and top < bottom, but is inverted: {_numbers(box)}"
    if right == left or bottom == top:
        return f"its box must have an area, but is empty: {_numbers(box)}"
    if left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
        return f"its box must lie in the image of {width} x {height} pixels, but is {_numbers(box)}"
    cut = Box(max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if cut.right <= cut.left or cut.bottom <= cut.top:
        return f"its box must lie in the image of {width} x {height} pixels, but is {_numbers(box)}"
    return cut


def _numbers(box: Sequence[float]) -> str:
    return f"left {box[0]:g}, top {box[1]:g}, right {box[2]:g}, bottom {box[3]:g}"


class Header(NamedTuple):
    height: int
    width: int
    sha256: str
    """Of the file, or of parts of a large one."""


def headers(paths: Sequence[Path]) -> list[Header | str]:
    """Of each image file its size, or what is wrong with it."""

    def look(path: Path) -> Header | str:
        try:
            with Image.open(path) as image:
                width, height = image.size
                if image.mode == "F":
                    return "the image must have integers as pixels, but has floating point; save it with 8 bits"
            return Header(height, width, _hash(path))
        except FileNotFoundError:
            return "the image is missing"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"the image cannot be read ({str(error).replace(str(path), path.name)})"

    return in_threads(look, paths)


def _hash(path: Path) -> str:
    """Of all bytes of a file of usual size; of its size, its ends and blocks of a large one."""
    if path.stat().st_size > _WHOLE:
        return quick_hash(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_threads(look: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """`look` at each of `items`, in their order."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(look, items))


def digest(
    classes: Sequence[str],
    images: Sequence[AnnotatedImage],
    parts: Mapping[str, Sequence[int]],
    hashes: Sequence[str],
) -> str:
    """A name for what is in a data set, wherever it lies; `hashes` are those of the images' bytes."""
    sha = hashlib.sha256(repr((tuple(classes), sorted((name, tuple(ids)) for name, ids in parts.items()))).encode())
    for image, own in zip(images, hashes, strict=True):
        pixels = "" if image.classes_of_pixels is None else _hash(image.classes_of_pixels)
        sha.update(repr((image.name, image.height, image.width, image.instances, pixels, own)).encode())
    return sha.hexdigest()


def as_number(value: Any) -> float | None:
    """A finite number as it is written in JSON or XML; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def text_of(path: Path) -> str:
    """A text file. ValueError, without its path, where it cannot be read."""
    try:
        return io.TextIOWrapper(io.BytesIO(path.read_bytes()), encoding="utf-8-sig").read()
    except FileNotFoundError as error:
        raise ValueError("is missing") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError("must be UTF-8 text, but is not") from error
