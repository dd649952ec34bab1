"""What every kind of source becomes: images that can be read one by one, their labels, and names for error messages."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError, features

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".webp",
        ".tif",
        ".tiff",
    ]  # what Pillow reads everywhere
)
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})  # a phone's photographs, with the extra `heic`
AVIF_SUFFIXES = frozenset({".avif"})  # where Pillow was built with it, as its wheels are
WHITE = 65535  # the value of 16-bit gray that is white
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = frozenset({5, 6, 7, 8})  # orientations that swap height and width
# What Pillow's decoders raise on bytes that are not what they claim to be.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, NotImplementedError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of images that are read here, in lower case. What reads them is known to Pillow from then on."""
    found = IMAGE_SUFFIXES
    if features.check("avif"):
        found |= AVIF_SUFFIXES
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
        found |= HEIF_SUFFIXES
    return found


class BrokenImageError(ValueError):
    """An image that cannot be read. `name` is its file, `reason` says why, `broken` that its bytes are at fault."""

    def __init__(self, name: str, reason: str, *, broken: bool = True) -> None:
        self.name, self.reason = name, reason
        super().__init__(
            f"{name}: broken image, every file must decode completely ({reason}); replace or remove the file"
            if broken
            else f"{name}: the image cannot be read ({reason}); check that it exists and who may read it"
        )


class Shape(NamedTuple):
    """Known from an image's header alone. `jpeg`: the size in bytes of its file, where that is a JPEG that can stay
    as it is. `wide`: gray values of more than 8 bits.
    """

    height: int
    width: int
    jpeg: int | None
    wide: bool = False


class Raster(NamedTuple):
    """One decoded image, mode RGB, upright. `jpeg`: its bytes in the source, where they are a JPEG that says just
    this.
    """

    image: Image.Image
    jpeg: bytes | None


class Branch(NamedTuple):
    """A line of the tree that says what a source was understood as, and the lines below it."""

    text: str
    below: tuple[Branch, ...] = ()


class Images(ABC):
    """A sequence of images that can be read in any order, from any thread."""

    uniform: tuple[int, int] | None = None
    """(height, width) where all images are known to share one size."""
    outline: tuple[Branch, ...] = ()
    """Where they were found, as a tree with counts."""
    notes: tuple[str, ...] = ()
    """What is out of the ordinary in them, one sentence each."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error message calls this image."""

    @abstractmethod
    def shape(self, index: int) -> Shape:
        """Read the header. Raises BrokenImageError, naming the file, where it is not an image."""

    @abstractmethod
    def read(self, index: int, white: int = WHITE) -> Raster:
        """Decode. `white`: the value of wide gray that becomes white. Raises BrokenImageError, naming the file, where
        the image is broken.
        """

    def brightest(self, index: int) -> int:
        """The largest value of an image whose gray is wide. Raises as `read` does."""
        return WHITE


class ArrayImages(Images):
    """Rows of an array [n, height, width, 3], uint8, RGB."""

    def __init__(self, pixels: NDArray[np.uint8], origin: str) -> None:
        self._pixels = pixels
        self._origin = origin
        self.uniform = (int(pixels.shape[1]), int(pixels.shape[2]))

    def __len__(self) -> int:
        return len(self._pixels)

    def name(self, index: int) -> str:
        return f"image {index} of {self._origin}"

    def shape(self, index: int) -> Shape:
        return Shape(int(self._pixels.shape[1]), int(self._pixels.shape[2]), None)

    def read(self, index: int, white: int = WHITE) -> Raster:
        return Raster(Image.fromarray(np.ascontiguousarray(self._pixels[index])), None)


@dataclass(frozen=True)
class Blob:
    """A file, or a part of one (a member of a tar)."""

    path: Path
    name: str
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.size is None else self.size)


class FileImages(Images):
    """Image files, in a folder or inside a tar."""

    def __init__(self, blobs: Sequence[Blob]) -> None:
        self._blobs = tuple(blobs)
        image_suffixes()  # so that Pillow opens all of them

    def __len__(self) -> int:
        return len(self._blobs)

    def name(self, index: int) -> str:
        return self._blobs[index].name

    def shape(self, index: int) -> Shape:
        blob = self._blobs[index]
        try:
            # A whole file is opened lazily: only its header is read. A tar's member is small and read at once.
            stream = blob.path if blob.size is None else io.BytesIO(blob.read())
            with Image.open(stream) as image:
                width, height = image.size
                # Pillow turns a TIFF upright by itself, and gives its upright size from the start.
                if image.format != "TIFF" and _orientation(image) in _SIDEWAYS:
                    width, height = height, width
                keeps, wide = _is_plain_jpeg(image), image.mode.startswith("I")
            size = blob.path.stat().st_size if blob.size is None else blob.size
            return Shape(height, width, size if keeps else None, wide)
        except _DECODE_ERRORS as error:
            raise _broken(blob.name, error) from error

    def read(self, index: int, white: int = WHITE) -> Raster:
        blob = self._blobs[index]
        try:
            data = blob.read()
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                # Without its end mark a JPEG is incomplete even where all pixels could be decoded.
                keeps = _is_plain_jpeg(image) and data.rstrip(b"\0\r\n").endswith(b"\xff\xd9")
                return Raster(upright_rgb(image, white), data if keeps else None)
        except _DECODE_ERRORS as error:
            raise _broken(blob.name, error) from error

    def brightest(self, index: int) -> int:
        blob = self._blobs[index]
        try:
            with Image.open(io.BytesIO(blob.read())) as image:
                return int(np.asarray(image).max())
        except _DECODE_ERRORS as error:
            raise _broken(blob.name, error) from error


class ChainedImages(Images):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = tuple(part for part in parts if len(part))
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        sizes = {part.uniform for part in self._parts}
        self.uniform = sizes.pop() if len(sizes) == 1 else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _locate(self, index: int) -> tuple[Images, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part], index - int(self._starts[part])

    def name(self, index: int) -> str:
        part, inner = self._locate(index)
        return part.name(inner)

    def shape(self, index: int) -> Shape:
        part, inner = self._locate(index)
        return part.shape(inner)

    def read(self, index: int, white: int = WHITE) -> Raster:
        part, inner = self._locate(index)
        return part.read(inner, white)

    def brightest(self, index: int) -> int:
        part, inner = self._locate(index)
        return part.brightest(inner)


class SelectedImages(Images):
    """Some of a sequence's images: those at `indices`."""

    def __init__(self, images: Images, indices: Sequence[int]) -> None:
        self._images = images
        self._indices = tuple(indices)
        self.uniform = images.uniform
        self.outline, self.notes = images.outline, images.notes

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._images.name(self._indices[index])

    def shape(self, index: int) -> Shape:
        return self._images.shape(self._indices[index])

    def read(self, index: int, white: int = WHITE) -> Raster:
        return self._images.read(self._indices[index], white)

    def brightest(self, index: int) -> int:
        return self._images.brightest(self._indices[index])


class Part(NamedTuple):
    """Images and their labels, [n] int64, 0 to classes - 1."""

    images: Images
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Images with their labels; without classes, where all labels are -1. `test` is its own test part, if it has one.
    `description` has no absolute path: it enters the manifest.
    """

    description: str
    class_names: tuple[str, ...]
    train: Part
    test: Part | None
    skipped: int = 0
    """Files in the source that are no images, or that lie beside the recognized folders."""
    outline: tuple[Branch, ...] = ()
    """How its folders were understood, where that had to be told from their names."""
    notes: tuple[str, ...] = ()
    """What is out of the ordinary in it, one sentence each."""


def no_labels(count: int) -> str:
    """What to say of images of which nobody says what is on them."""
    return (
        f"{count:,} images without labels: a probe can not judge what is trained on them; search for what needs none, "
        f"such as --metric health/embedding/effective_rank"
    )


def shown(text: object) -> str:
    """A name or path as text that can be printed and stored: bytes that are no UTF-8 become escapes, as in caf\\xe9."""
    try:
        return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair that JSON may escape: it is of no name in a file system
        return str(text).encode("utf-8", "backslashreplace").decode()


Channels = Literal["auto", "channels-first", "channels-last"]
"""Which axis of an array [n, …] holds the channels; `auto`: told from the shape, refused where that leaves a doubt."""
CHANNELS: tuple[Channels, ...] = get_args(Channels)


def as_pixels(
    array: NDArray[np.generic], origin: str, channels: Channels = "channels-last", *, asked_by: str = ""
) -> NDArray[np.uint8]:
    """Check an array of images and give it the shape [n, h, w, 3]; gray ([n, h, w] or [n, h, w, 1]) is repeated.

    `asked_by`: the option by which a user says which axis holds the channels, for messages.
    """
    if array.dtype != np.uint8:
        raise ValueError(
            f"{origin}: images must be uint8 (0 to 255), but are {array.dtype}; convert them before saving"
        )
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if channels == "auto" and first and last:
            ways = f"{asked_by} channels-first or {asked_by} channels-last" if asked_by else "an array without doubt"
            raise ValueError(
                f"{origin}: it must be clear which axis holds the channels, but in the shape {list(array.shape)} it "
                f"may be the second or the last; say which with {ways}"
            )
        if channels == "channels-first" and first:
            array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape[1:]:
        remedy = f"put the channels last{f', or say {asked_by} channels-first' if asked_by else ''}"
        if array.ndim == 4 and 4 in (array.shape[1], array.shape[3]):
            remedy = "a fourth channel is no color: leave it out, images[..., :3]"
        raise ValueError(
            f"{origin}: images must have the shape [n, height, width, 3] or [n, height, width], but have "
            f"{list(array.shape)}; {remedy}"
        )
    pixels: NDArray[np.uint8] = array.astype(np.uint8, copy=False)
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def as_labels(array: NDArray[np.generic], count: int, origin: str, *, classes: int | None = None) -> NDArray[np.int64]:
    """Check labels ([n], or [n, 1]) against the number of images and classes, as int64 [n]."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(
            f"{origin}: labels must be integers of shape [n], but are {array.dtype} {list(array.shape)}; "
            f"{_renumbering(array)}"
        )
    if len(array) != count:
        raise ValueError(
            f"{origin}: labels don't match the images: {len(array)} labels for {count} images; give one for each"
        )
    if count and (int(array.min()) < 0 or (classes is not None and int(array.max()) >= classes)):
        top = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"{origin}: labels must be numbered from 0{top}, but range from {array.min()} to {array.max()}; "
            f"renumber them"
        )
    return array.astype(np.int64)


def _renumbering(array: NDArray[np.generic]) -> str:
    """How labels that are no integers of shape [n] become such."""
    if array.ndim == 2:
        return "of one row per image with a 1 at its class, take labels.argmax(axis=1)"
    if array.ndim == 1 and array.dtype.kind in "bf":
        return "convert them, labels.astype(int)"
    if array.ndim == 1 and array.dtype.kind in "SU":
        return "number them, class_names, labels = np.unique(labels, return_inverse=True), and save both"
    return "give each image one"


def existing(path: Path, what: str) -> Path:
    """The path itself; ValueError where nothing lies there."""
    if not path.exists():
        raise ValueError(f"{path}: {what} must exist, but nothing is there; check the path")
    return path


def one_folder(sources: Sequence[Path], kind: str, layout: str) -> Path:
    """The single folder that a kind of source wants."""
    if len(sources) != 1:
        raise ValueError(f"{kind} needs exactly one --source, {layout}, but got {len(sources)}; name that folder")
    folder = existing(sources[0], f"the source of {kind}")
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: the source of {kind} must be {layout}, but is a file; unpack it and name the folder"
        )
    return folder


def target_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """(height, width) after the longer side is brought down to `max_side`; the shape is kept, nothing is enlarged."""
    longer = max(height, width)
    if max_side is None or longer <= max_side:
        return height, width
    return max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))


def _broken(name: str, error: BaseException) -> BrokenImageError:
    if isinstance(error, FileNotFoundError | PermissionError):
        return BrokenImageError(name, str(error.strerror), broken=False)
    if isinstance(error, UnidentifiedImageError):
        return BrokenImageError(name, "it begins as no image does")  # Pillow's own words name a stream in memory
    return BrokenImageError(name, str(error).replace("\n", " "))


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether every decoder reads this file as the same upright RGB image: three components, usual subsampling."""
    return (
        isinstance(image, JpegImagePlugin.JpegImageFile)
        and image.format == "JPEG"
        and image.mode == "RGB"
        and _orientation(image) == 1
        and JpegImagePlugin.get_sampling(image) in (0, 1, 2)
    )


def upright_rgb(image: Image.Image, white: int = WHITE) -> Image.Image:
    """RGB on a white ground where the image is transparent; wide gray is scaled so that `white` becomes 255, and what
    is above it, too. ValueError: pixels are no integers.
    """
    return _rgb(image if _orientation(image) == 1 else ImageOps.exif_transpose(image), white)


def stored_rgb(path: Path) -> Image.Image:
    """The same of a file whose image is not turned upright. Raises BrokenImageError, naming the file, where it is
    broken.
    """
    try:
        with Image.open(path) as image:
            return _rgb(image, WHITE)
    except _DECODE_ERRORS as error:
        raise _broken(shown(path), error) from error


def _rgb(image: Image.Image, white: int) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are floating point, but must be integers; save it as an 8-bit image")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(
                f"gray values must be 0 to 65535, but range from {wide.min()} to {wide.max()}; save it with 8 bits"
            )
        scaled = np.minimum((wide * 510 + white) // (2 * white), 255)  # rounded to the nearest
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
