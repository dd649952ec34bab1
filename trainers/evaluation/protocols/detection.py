"""`detection`: Faster R-CNN on a residual network, and `segmentation`: Mask R-CNN on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainers.evaluation.protocol import (
    ClassScore,
    Data,
    Judged,
    Protocol,
    ProtocolResult,
    Report,
    Score,
    Split,
    Task,
    around,
    check_batch,
    joined,
)

if TYPE_CHECKING:
    import torch

    from trainers.data.manifest import Dataset
    from trainers.evaluation.annotated import Parts
    from trainers.evaluation.average_precision import Found, Matches
    from trainers.evaluation.detector import Settings
    from trainers.evaluation.outcomes import Arrays
    from trainers.evaluation.subject import Subject

RESAMPLES = 200
"""Of the bootstrap over images; each computes all figures anew."""


class Detector(Protocol):
    """A region-based detector of torchvision's on the subject's residual network, in VOC's or COCO's format.

    By default as MoCo's authors have it on VOC (arXiv 1911.05722, section 4.2, and facebookresearch/moco/detection):
    the C4 neck (the last stage is the head's), fine-tuned whole, 24,000 steps of 16 images, shorter sides from 480 to
    800 pixels, rate 0.02 with drops at 3/4 and 11/12. Small images want small `sides`; anchors follow. What differs:
    batch norm keeps the statistics of pretraining unless `norm` is `batch`, as torchvision's detectors do.
    """

    neck: Literal["c4", "fpn"] = "c4"
    frozen: bool = Field(False, description="train what is new alone")
    norm: Literal["frozen", "batch"] = Field(
        "frozen", description="statistics of batch norm: of pretraining, or of each batch"
    )
    sides: tuple[Annotated[int, Field(ge=16, le=4096)], ...] = Field(
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        min_length=1,
        description="shorter sides in pixels that training draws from; the largest is the one of scoring",
    )
    longest: int = Field(1333, ge=16, le=8192, description="bound of the longer side in pixels")
    steps: int = Field(24_000, ge=1)
    batch_size: int = Field(16, ge=1, le=1024)
    learning_rate: float = Field(0.02, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(1e-4, ge=0.0)
    warmup: int = Field(100, ge=0, description="steps")
    drops: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (3 / 4, 11 / 12), description="shares of the steps"
    )
    flip: float = Field(0.5, ge=0.0, le=1.0)
    pyramid_width: int = Field(256, ge=8, le=1024, description="channels of the pyramid's maps")
    head_width: int = Field(1024, ge=8, le=8192, description="of the pyramid's head")
    samples: int = Field(512, ge=1, le=4096, description="regions of an image that the head is trained on")
    proposals: int = Field(
        2000,
        ge=2,
        le=100_000,
        description="regions of an image, from each map, to sample from; half as many in scoring",
    )
    skip: float = Field(0.0, ge=0.0, lt=1.0, description="share of images and objects that may be faulty and left out")

    def check_annotated(self, place: Path, split: Split) -> str:
        return self.parts(place, split).source.sha256

    def parts(self, place: Path | None, split: Split) -> Parts:
        """The images, divided. ValueError where they will not do."""
        from trainers.data.annotations.base import coco_masks
        from trainers.evaluation import annotated

        coco_masks()  # figures need it, too
        return annotated.parts(place, split, masks=self.annotated == "masks", name=self.name, skip=self.skip)

    def check_workers(self, workers: int, dataset: Dataset | None) -> None:
        """They must divide the batch."""
        check_batch(self.name, self.batch_size, workers)

    def check_subject(self, subject: Subject) -> None:
        from trainers.evaluation.stages import stages_of

        looked = subject.at(self.source)
        stages_of(looked)
        if not all(bool(numbers.isfinite().all()) for numbers in looked.network.state_dict().values()):
            raise ValueError(
                f"the weights of {subject.name} must be finite, but some are not; the encoder has diverged: evaluate "
                "another checkpoint"
            )

    def settings(self) -> Settings:
        """Its numbers, as the detector takes them."""
        from trainers.evaluation.detector import Settings

        numbers = {name: getattr(self, name) for name in Settings._fields if name != "masks"}
        return Settings(**numbers, masks=self.annotated == "masks")

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `ap`, `ap50`, `ap75` by COCO's rule, and on VOC's format `voc/ap50` (the area) and `voc/ap50_11`; of
        masks also `mask/ap`, …. Classes have `ap`, or of masks `mask/ap`.
        """
        from trainers.evaluation import annotated, average_precision

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = subject.at(self.source)
        parts = self.parts(data.annotations, data.split)
        found = [
            self._detected(
                looked,
                data,
                parts,
                seed=seed,
                device=device,
                report=report,
                said=f" (seed {place + 1} of {len(seeds)})" if len(seeds) > 1 else "",
            )
            for place, seed in enumerate(seeds)
        ]
        report("scoring", 0.0)
        coco = average_precision.coco_matches
        matches = {"": [coco(parts.scored, one, class_count=parts.class_count) for one in found]}
        if self.annotated == "masks":
            matches["mask/"] = [coco(parts.scored, one, class_count=parts.class_count, regions="segm") for one in found]
        if parts.source.format == "voc":
            matches["voc/"] = [
                average_precision.voc_matches(parts.scored, one, class_count=parts.class_count) for one in found
            ]
        shown = "mask/" if self.annotated == "masks" else ""
        said = f"each class's value is its {shown}ap, its count that of its objects"
        scores = scores_of(matches, len(parts.scored), report)
        return self.result(
            looked,
            data,
            Judged(tuple(scores), tuple(_by_class(matches[shown], parts.source.classes))),
            manifest=parts.source.sha256,
            seeds=seeds,
            fitted=len(parts.fit),
            notes=(said, *annotated.left_out(parts.source)),
            seconds=time.monotonic() - began,
        )

    def _detected(
        self,
        subject: Subject,
        data: Data,
        parts: Parts,
        *,
        seed: int,
        device: torch.device,
        report: Report,
        said: str,
    ) -> list[Found]:
        """What the detector that is trained from `seed` says of the scored images."""
        from trainers.evaluation import detector, together
        from trainers.evaluation.outcomes import outcome

        settings = self.settings()

        def make() -> Arrays:
            return _packed(
                together.divided(
                    detector.detected,
                    subject,
                    data,
                    device=device,
                    report=lambda done: report(f"training and asking the detector{said}", done),
                    settings=settings,
                    class_count=parts.class_count,
                    seed=seed,
                    fit=parts.fit,
                    scored=parts.scored,
                )
            )

        key = {
            "protocol": self.model_dump(mode="json"),
            "subject": subject.digest,
            "data": parts.source.sha256,
            "split": data.split,
            "seed": seed,
        }
        return _unpacked(outcome(data.store.folder / "outcomes", key, make), parts, masks=settings.masks)


class Detection(Detector):
    """Faster R-CNN (arXiv 1506.01497)."""

    name: Literal["detection"] = "detection"
    version: Literal[1] = 1

    annotated: ClassVar[Literal["several labels", "boxes", "masks"] | None] = "boxes"


class Segmentation(Detector):
    """Mask R-CNN (arXiv 1703.06870), with a feature pyramid and COCO's 1x schedule by default."""

    name: Literal["segmentation"] = "segmentation"
    version: Literal[1] = 1
    neck: Literal["c4", "fpn"] = "fpn"
    steps: int = Field(90_000, ge=1)
    sides: tuple[Annotated[int, Field(ge=16, le=4096)], ...] = Field((640, 672, 704, 736, 768, 800), min_length=1)
    drops: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = (2 / 3, 8 / 9)

    annotated: ClassVar[Literal["several labels", "boxes", "masks"] | None] = "masks"


# --- figures ---------------------------------------------------------------------------------------------------------


def _figures(
    matches: Mapping[str, Sequence[Sequence[Matches]]], weights: NDArray[np.float64] | None
) -> dict[str, list[float]]:
    """Each measure's value for each seed, of images that count so often."""
    from trainers.evaluation.average_precision import by_class, mean_of

    figures: dict[str, list[float]] = {}
    for prefix, seeds in matches.items():
        for its in seeds:
            if prefix == "voc/":
                found = {
                    "ap50": mean_of(by_class(its, "area", weights)),
                    "ap50_11": mean_of(by_class(its, "11", weights)),
                }
            else:
                table = by_class(its, "coco", weights)
                found = {"ap": mean_of(table), "ap50": mean_of(table[0]), "ap75": mean_of(table[5])}
            for measure, value in found.items():
                figures.setdefault(f"{prefix}{measure}", []).append(value)
    return figures


def scores_of(matches: Mapping[str, Sequence[Sequence[Matches]]], count: int, report: Report) -> list[Score]:
    """With intervals by a bootstrap over images, joined with that of seeds."""
    values = _figures(matches, None)
    generator = np.random.Generator(np.random.Philox(key=count))
    drawn: dict[str, list[float]] = {measure: [] for measure in values}
    for resample in range(RESAMPLES):
        weights = np.bincount(generator.integers(0, count, count), minlength=count).astype(np.float64)
        for measure, its in _figures(matches, weights).items():
            drawn[measure].append(float(np.mean(its)))
        report("intervals", (resample + 1) / RESAMPLES)
    scores = []
    for measure, per_seed in values.items():
        images = around(float(np.mean(per_seed)), drawn[measure], count)
        scores.append(joined(measure, per_seed, count=count, images=images))
    return scores


def _by_class(seeds: Sequence[Sequence[Matches]], names: Sequence[str]) -> list[ClassScore]:
    from trainers.evaluation.average_precision import by_class

    tables = [by_class(its, "coco").mean(axis=0) for its in seeds]
    values = np.mean(tables, axis=0)
    return [
        ClassScore(
            name=name, value=None if np.isnan(values[label]) else float(values[label]), count=int(its.objects.sum())
        )
        for label, (name, its) in enumerate(zip(names, seeds[0], strict=True))
    ]


# --- detections as arrays --------------------------------------------------------------------------------------------


def _packed(found: Sequence[Found]) -> Arrays:
    """All images' one after the other; masks as their codes' bytes."""
    masks = [mask.counts for one in found for mask in one.masks or ()]
    return {
        "counts": np.array([len(one.scores) for one in found]),
        "boxes": np.concatenate([one.boxes.reshape(-1, 4) for one in found]),
        "scores": np.concatenate([one.scores for one in found]),
        "labels": np.concatenate([one.labels for one in found]),
        "codes": np.frombuffer(b"".join(masks), np.uint8),
        "lengths": np.array([len(code) for code in masks], np.int64),
    }


def _unpacked(arrays: Arrays, parts: Parts, *, masks: bool) -> list[Found]:
    from trainers.data.annotations import Mask
    from trainers.evaluation.average_precision import Found

    ends = np.cumsum(arrays["counts"])
    codes, code_ends = arrays["codes"].tobytes(), np.cumsum(arrays["lengths"])
    found = []
    for image, start, end in zip(parts.scored, ends - arrays["counts"], ends, strict=True):
        own = None
        if masks:
            own = tuple(
                Mask(image.height, image.width, codes[code_ends[k] - arrays["lengths"][k] : code_ends[k]])
                for k in range(start, end)
            )
        rows = slice(start, end)
        found.append(Found(arrays["boxes"][rows], arrays["scores"][rows], arrays["labels"][rows], own))
    return found
