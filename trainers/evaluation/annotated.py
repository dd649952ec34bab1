"""What protocols on annotated images share: which images are fitted on and which are scored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from trainers.data.annotations import AnnotatedImage, Annotations, read
from trainers.evaluation.protocol import Split


class Parts(NamedTuple):
    """Annotated images, divided."""

    source: Annotations
    fit: tuple[AnnotatedImage, ...]
    scored: tuple[AnnotatedImage, ...]

    @property
    def class_count(self) -> int:
        return len(self.source.classes)


def parts(place: Path | None, split: Split, *, masks: bool, name: str, skip: float = 0.0) -> Parts:
    """The images at `place`. ValueError where there are none, or no object of a class to fit on.

    `name` is the protocol's, for messages; `skip` as of `trainers.data.annotations.read`.
    """
    if place is None:
        raise ValueError(
            f"protocol {name!r} needs images with boxes{' and masks' if masks else ''}, in VOC's or COCO's format; "
            "name their folder with --data"
        )
    found = read(place, masks=masks, skip=skip)
    fit, scored = ([found.images[number] for number in its] for its in found.divided(split))
    counts = Counter(each.label for image in fit for each in image.instances if not each.ignored)
    if empty := [repr(one) for label, one in enumerate(found.classes) if not counts[label]]:
        raise ValueError(
            f"protocol {name!r} needs an object of each class in the {len(fit):,} images that are fitted on, but "
            f"{place} has none of {', '.join(empty[:5])}; leave such classes out of the annotations"
        )
    if not any(not each.ignored for image in scored for each in image.instances):
        raise ValueError(
            f"protocol {name!r} needs an object in the {len(scored):,} images that are scored, but {place} has none "
            "there; add images"
        )
    if shared := {image.path.resolve() for image in fit} & {image.path.resolve() for image in scored}:
        raise ValueError(
            f"{place}: no image may be both fitted on and scored, but {min(shared)} is; correct the lists of images"
        )
    return Parts(found, tuple(fit), tuple(scored))


def left_out(source: Annotations) -> tuple[str, ...]:
    """What a reader has to know of faults that were allowed, if there were any."""
    faults = source.left_out
    what = "image or object was" if len(faults) == 1 else "images and objects were"
    return (f"{len(faults):,} faulty {what} left out, such as {faults[0]}",) if faults else ()
