"""`multilabel`: a linear classifier for each class on frozen features of images with several labels."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainers.data.sources import npz
from trainers.data.splits import keyed_ranks
from trainers.evaluation.protocol import (
    ClassScore,
    Data,
    Integers,
    Judged,
    Protocol,
    ProtocolResult,
    Score,
    Split,
    Task,
    bootstrapped,
    joined,
)
from trainers.evaluation.protocols.linear import REGULARIZATIONS, Positive, at_an_end

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.annotations import AnnotatedImage
    from trainers.evaluation.multilabel import Way
    from trainers.evaluation.subject import Subject

RESAMPLES = 200
_MEASURES: tuple[tuple[str, Literal["area", "11-point"]], ...] = (("map", "area"), ("map11", "11-point"))
KEYS = ("images", "labels", "test_images", "test_labels")


class Multilabel(Protocol):
    """Logistic regression of each class on standardized frozen features, scored by mean average precision (Goyal et al.
    2019, arXiv 1905.01235, section 4.1, has SVMs instead). The regularization is the one with the best mean average
    precision on the part of the training images that is `held_out`; then all are fitted again.
    """

    name: Literal["multilabel"] = "multilabel"
    version: Literal[1] = 1
    held_out: float = Field(0.2, gt=0.0, le=0.5)
    regularizations: tuple[Positive, ...] = Field(REGULARIZATIONS, min_length=1)
    skip: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of annotated images and objects that may be faulty and left out"
    )

    annotated: ClassVar[Literal["several labels", "boxes", "masks"] | None] = "several labels"

    def check_annotated(self, place: Path, split: Split) -> str:
        given = self.labeled(place, split)
        if len(given.fit) < 2:
            raise ValueError(
                f"protocol {self.name!r} needs two images or more to fit on, as a part of them is held out, but "
                f"{place} has {len(given.fit)}; add images"
            )
        return given.sha256

    def labeled(self, place: Path | None, split: Split) -> Labeled:
        """The images and their targets, of an .npz or of a folder in VOC's or COCO's format. ValueError where they will
        not do.
        """
        if place is not None and place.suffix == ".npz":
            return read(place, split)
        from trainers.evaluation import annotated

        parts = annotated.parts(place, split, masks=False, name=self.name, skip=self.skip)
        return Labeled(
            [image.path for image in parts.fit],
            _targets(parts.fit, parts.class_count),
            [image.path for image in parts.scored],
            _targets(parts.scored, parts.class_count),
            parts.source.classes,
            parts.source.sha256,
            annotated.left_out(parts.source),
        )

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `map` (area) and `map11` (11 points); classes have the area's average precision."""
        import torch

        from trainers.evaluation import embedding, together
        from trainers.evaluation.multilabel import mean_average_precision
        from trainers.evaluation.regression import fit_multilabel

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = subject.at(self.source)
        given = self.labeled(data.annotations, data.split)

        def features(images: Sequence[Any]) -> Tensor:
            found = together.divided(
                embedding.of_images_divided,
                looked,
                data,
                device=device,
                report=lambda done: report("features", done),
                images=images,
            )
            return torch.from_numpy(np.concatenate(list(found))).to(device)

        fit, scored = features(given.fit), features(given.scored)
        if not all(bool(rows.isfinite().all()) for rows in (fit, scored)):
            raise ValueError(
                f"the features of {looked.name} must be finite, but some are not; the encoder has diverged: "
                "evaluate another checkpoint"
            )
        targets = torch.from_numpy(given.fit_targets).to(device)
        said: list[NDArray[Any]] = []
        chosen: list[dict[str, Any]] = []
        for place, seed in enumerate(seeds):
            report(f"multilabel, seed {seed}", place / len(seeds))
            order = np.argsort(keyed_ranks(len(fit), f"evaluate/held-out/multilabel/{seed}"), kind="stable")
            count = max(1, round(self.held_out * len(fit)))
            held, inside = (torch.from_numpy(np.sort(one)).to(device) for one in np.split(order, [count]))
            accuracies = {}
            for strength in self.regularizations if len(self.regularizations) > 1 else ():
                probe = fit_multilabel(fit[inside], targets[inside], regularization=strength)
                accuracies[strength] = mean_average_precision(
                    probe.scores(fit[held]).cpu().numpy(), targets[held].cpu().numpy()
                )[0]
            best = max(
                accuracies,
                key=lambda one: (-1.0 if np.isnan(accuracies[one]) else accuracies[one], one),
                default=self.regularizations[0],
            )
            probe = fit_multilabel(fit, targets, regularization=best)
            said.append(probe.scores(scored).cpu().numpy())
            held_out = {str(one): accuracies[one] for one in sorted(accuracies)}
            chosen.append({"seed": seed, "chosen": best, "held_out": held_out, "images": len(held)})
        each = mean_average_precision(said[0], given.scored_targets)[1]
        judged = Judged(
            tuple(_score(measure, said, given.scored_targets, way) for measure, way in _MEASURES),
            tuple(
                ClassScore(
                    name=name, value=float(value) if np.isfinite(value) else None, count=int((column == 1).sum())
                )
                for name, value, column in zip(given.classes, each, given.scored_targets.T, strict=True)
            ),
        )
        return self.result(
            looked,
            data,
            judged,
            manifest=given.sha256,
            seeds=seeds,
            fitted=len(fit),
            chosen=chosen,
            notes=(*at_an_end(chosen), *given.notes),
            seconds=time.monotonic() - began,
        )


def _score(measure: str, said: Sequence[NDArray[Any]], targets: Integers, way: Way) -> Score:
    from trainers.evaluation.multilabel import mean_average_precision

    per_seed = [mean_average_precision(scores, targets, way)[0] for scores in said]
    images = bootstrapped(
        lambda ids: mean_average_precision(said[0][ids], targets[ids], way)[0], len(targets), resamples=RESAMPLES
    )
    return joined(measure, per_seed, count=len(targets), images=images)


# --- images with several labels ---------------------------------------------------------------------------------------


class Labeled(NamedTuple):
    """Images with targets [n, C] of 1, 0 and -1 (not known), to fit on and to score."""

    fit: Sequence[Any]
    fit_targets: Integers
    scored: Sequence[Any]
    scored_targets: Integers
    classes: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...] = ()


def _targets(images: Sequence[AnnotatedImage], class_count: int) -> Integers:
    """[n, C]: 1 where an object of the class is on the image, -1 where ignored ones alone are, else 0."""
    found = np.zeros((len(images), class_count), dtype=np.int64)
    for row, image in zip(found, images, strict=True):
        for each in image.instances:
            row[each.label] = 1 if not each.ignored else row[each.label] or -1
    return found


def read(place: Path, split: Split) -> Labeled:
    """An npz with `images` [n, height, width, 3] bytes, `labels` [n, C] of 1, 0 and -1 (not known), the same as
    `test_images` and `test_labels`, and perhaps `class_names` [C].

    `select` scores a fifth of `images`, by a keyed draw; `report` scores `test_images`. ValueError where it is none.
    """
    try:
        with npz.opened(place) as file:
            found: dict[str, Any] = {name: file[name] for name in (*KEYS, "class_names") if name in file.files}
    except npz.ERRORS as error:
        raise ValueError(f"{place}: must be an .npz of plain arrays, but cannot be read ({error})") from error
    if missing := [name for name in KEYS if name not in found]:
        raise ValueError(f"{place}: must have the arrays {', '.join(KEYS)}, but lacks {', '.join(missing)}")
    for pixels, labels in (KEYS[:2], KEYS[2:]):
        _check(place, pixels, found[pixels], labels, found[labels])
    count = found["labels"].shape[1]
    if found["test_labels"].shape[1] != count:
        raise ValueError(
            f"{place}: labels and test_labels must be of the same classes, but are of {count} and "
            f"{found['test_labels'].shape[1]}; correct the file"
        )
    names = tuple(map(str, found.get("class_names", np.arange(count))))
    if len(names) != count:
        raise ValueError(f"{place}: class_names must have a name for each of {count} classes, but has {len(names)}")
    sha = hashlib.sha256(repr(names).encode())
    for name in KEYS:
        sha.update(np.ascontiguousarray(found[name]).tobytes())
    images, targets = found["images"], found["labels"].astype(np.int64)
    if split == "report":
        parts = images, targets, found["test_images"], found["test_labels"].astype(np.int64)
    else:
        order = np.argsort(keyed_ranks(len(images), "evaluate/multilabel/select"), kind="stable")
        held, inside = (np.sort(one) for one in np.split(order, [len(images) // 5]))
        parts = images[inside], targets[inside], images[held], targets[held]
    if not len(parts[2]):
        raise ValueError(
            f"{place}: some images must be left to score on `{split}`, but of {len(images)} none is; add images"
        )
    if empty := [repr(name) for name, column in zip(names, parts[1].T, strict=True) if not (column == 1).any()]:
        raise ValueError(
            f"{place}: each class must be on an image that is fitted on, but {', '.join(empty[:5])} is on none; leave "
            "it out, or add images"
        )
    if not (parts[3] == 1).any():
        raise ValueError(
            f"{place}: a class must be on an image that is scored, but on the {len(parts[2])} of `{split}` is none; "
            "add images"
        )
    return Labeled(*parts, names, sha.hexdigest())


def _check(place: Path, images: str, pixels: NDArray[Any], labels: str, targets: NDArray[Any]) -> None:
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape[1:]:
        raise ValueError(
            f"{place}: {images} must be bytes [n, height, width, 3], but is {pixels.dtype} {list(pixels.shape)}"
        )
    fits = targets.ndim == 2 and len(targets) == len(pixels) and targets.shape[1] > 0
    if not fits or targets.dtype.kind not in "biuf" or not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError(
            f"{place}: {labels} must be [{len(pixels)}, classes] of 1, 0 and -1 (not known), but is {targets.dtype} "
            f"{list(targets.shape)} with values {np.unique(targets)[:5].tolist()}"
        )
