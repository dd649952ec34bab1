"""Images that somebody names, in files, folders and archives: where the bytes of each one lie, what it is called, and
the folder it is in, which often is its class.

Letters: n = images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers.data.sources import broken
from trainers.data.sources.base import Blob, BrokenImageError, FileImages, existing, shown
from trainers.data.sources.listing import foreign_image, is_image_file, left_out, listing

_LISTED = 20
_CHUNK = 1024


class NamedImages(NamedTuple):
    """Images in the order in which they were named, those of a folder by their paths."""

    blobs: list[Blob]
    labels: NDArray[np.int64] | None
    """[n], the innermost folder of each image, where all of them are in a folder of what was named."""
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    """What was left out or is out of the ordinary, one sentence each."""

    @property
    def names(self) -> list[str]:
        """Each one's path; of a member of an archive `archive: member`. No two are equal."""
        return [blob.name for blob in self.blobs]


def collect(paths: Sequence[Path], scratch: Path) -> NamedImages:
    """The images at `paths`: image files, and those in folders, tars and zips (`sources.listing`).

    ValueError where there is none, a path does not exist, or an image is named twice. Nothing is decoded.
    """
    blobs: list[Blob] = []
    folders: list[str | None] = []
    notes: list[str] = []
    for path in paths:
        existing(path, "an image, folder or archive")
        if is_image_file(path):
            blobs.append(Blob(path, shown(path)))
            folders.append(None)
            continue
        if path.is_file() and (what := foreign_image(path.name)):
            raise ValueError(f"{shown(path)}: must be an image that is read here, but is a {what}")
        found = listing(path, scratch)
        blobs += [entry.blob for entry in found.entries]
        folders += [entry.folders[-1] if entry.folders else None for entry in found.entries]
        notes += found.notes
        if found.others:
            notes.append(f"{shown(path)}: {left_out(found.others)}")
    if not blobs:
        raise ValueError("there must be images, but none was named; name files, folders or archives")
    twice = [name for name, count in Counter(blob.name for blob in blobs).items() if count > 1]
    if twice:
        listed = "\n".join(f"  {name}" for name in twice[:_LISTED])
        more = f"\n  and {len(twice) - _LISTED:,} more" if len(twice) > _LISTED else ""
        raise ValueError(
            f"each image must have a name of its own, as its features are found by it, but {len(twice):,} of "
            f"{len(blobs):,} {'is' if len(twice) == 1 else 'are'} named twice; name each file once, and give those of "
            f"an archive other names:\n{listed}{more}"
        )
    if any(folder is None for folder in folders):
        return NamedImages(blobs, None, (), tuple(notes))
    class_names, labels = np.unique(np.array([shown(folder) for folder in folders]), return_inverse=True)
    return NamedImages(blobs, labels.astype(np.int64), tuple(map(str, class_names)), tuple(notes))


def check_headers(images: NamedImages, *, threads: int) -> None:
    """ValueError with all those that are no images by their first bytes; whether they decode is not known by that.

    Members of archives are left out: to read one's header is to read it whole.
    """
    files = FileImages([blob for blob in images.blobs if blob.size is None])
    errors: list[BrokenImageError] = []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(files), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(files)))
            errors += filter(None, pool.map(partial(broken.fault, files.shape), indices))
    if errors:
        raise broken.refusal(errors, len(images.blobs), bound=None)


def without_broken(images: NamedImages, *, percent: float, threads: int) -> tuple[NamedImages, list[str]]:
    """The images that decode, and the names of those that do not. All are decoded for it.

    ValueError where more than `percent` of them are broken.
    """
    found = broken.find(FileImages(images.blobs), threads=threads)
    if not found:
        return images, []
    if 100 * len(found) > percent * len(images.blobs) or len(found) == len(images.blobs):
        raise broken.refusal(list(found.values()), len(images.blobs), bound=percent)
    kept = [index for index in range(len(images.blobs)) if index not in found]
    labels = None if images.labels is None else images.labels[kept]
    sound = images._replace(blobs=[images.blobs[index] for index in kept], labels=labels)
    return sound, [images.blobs[index].name for index in found]


def all_broken(images: NamedImages, first: BrokenImageError, *, threads: int) -> ValueError:
    """What to say of the first broken image that was met: all there are, which takes decoding the others, too."""
    errors = list(broken.find(FileImages(images.blobs), threads=threads).values())
    return broken.refusal(errors or [first], len(images.blobs))
