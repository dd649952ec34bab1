"""`dense`: a class for each pixel from frozen patches, by a linear probe and by the nearest patches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainers.evaluation import protocol

if TYPE_CHECKING:
    import torch

    from trainers.evaluation.annotated import Parts
    from trainers.evaluation.patches import Patches
    from trainers.evaluation.regression import LinearProbe
    from trainers.evaluation.subject import Subject

MOST_CLASSES = 254
"""A pixel's class is a byte; one of them means none."""
GROUND = "ground"
"""What the class of pixels of no object is called."""


class Dense(protocol.Protocol):
    """Frozen maps, of a transformer its patch tokens: the linear probe of DINOv2 (arXiv 2304.07193, section 7.4), here
    as a convex regression on patches' shares of classes, and the nearest patches' vote (Balažević et al. 2023, arXiv
    2306.01667), on images stretched to `side` pixels. Class scores are brought to the image's size bilinearly.

    The regularization is the one with the lowest cross-entropy on a fifth of the images, never on those scored.
    """

    name: Literal["dense"] = "dense"
    version: Literal[1] = 1
    side: int | None = Field(None, ge=16, le=2048, description="of images in pixels; by default what it was trained at")
    regularizations: tuple[Annotated[float, Field(gt=0.0)], ...] = Field((1e-4, 1e-3, 1e-2, 1e-1), min_length=1)
    patches: int = Field(200_000, ge=1, description="that are fitted on, and that vote, at most")
    neighbors: int = Field(30, ge=1)
    temperature: float = Field(0.02, gt=0.0)
    skip: float = Field(0.0, ge=0.0, lt=1.0, description="share of images and objects that may be faulty and left out")

    draws: ClassVar[bool] = False
    annotated: ClassVar[Literal["several labels", "boxes", "masks"] | None] = "masks"

    def check_annotated(self, place: Path, split: protocol.Split) -> str:
        return self.parts(place, split).source.sha256

    def parts(self, place: Path | None, split: protocol.Split) -> Parts:
        """The images, divided. ValueError where they will not do."""
        from trainers.evaluation import annotated

        found = annotated.parts(place, split, masks=True, name=self.name, skip=self.skip)
        if found.class_count > MOST_CLASSES:
            raise ValueError(
                f"protocol {self.name!r} tells at most {MOST_CLASSES} classes of pixels, but {place} has "
                f"{found.class_count}; leave some out"
            )
        return found

    def check_subject(self, subject: Subject) -> None:
        from trainers.evaluation.stages import check_maps

        check_maps(subject.at(self.source))

    def run(self, subject: Subject, data: protocol.Data, **task: Unpack[protocol.Task]) -> protocol.ProtocolResult:
        """Scores `linear/miou`, `linear/pixels` (the share of pixels told right), `knn/miou`, `knn/pixels`; classes
        have the linear probe's intersection over union.
        """
        from torch.nn import functional

        from trainers.evaluation import annotated, patches, together
        from trainers.evaluation.regression import LinearProbe

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = subject.at(self.source)
        parts = self.parts(data.annotations, data.split)
        names = (GROUND, *parts.source.classes)
        side = self.side or looked.size
        fitted = patches.joined(
            list(
                together.divided(
                    patches.collect,
                    looked,
                    data,
                    device=device,
                    report=lambda done: report("features of patches", done),
                    images=parts.fit,
                    side=side,
                    class_count=len(names),
                    most=self.patches,
                )
            )
        )
        linear, chosen = self._fitted(fitted, device=device, report=report)
        scored = together.divided(
            patches.score,
            looked,
            data,
            device=device,
            report=lambda done: report("scoring pixels", done),
            images=parts.scored,
            side=side,
            linear=LinearProbe(*(values.cpu() for values in linear)),
            bank=fitted._replace(features=functional.normalize(fitted.features, dim=1)),
            neighbors=self.neighbors,
            temperature=self.temperature,
        )
        pixels = [of_image for batch in scored for of_image in batch]
        tables = {way: np.stack([of_image[way] for of_image in pixels]) for way in ("linear", "knn")}
        shares = patches.intersection_over_union(tables["linear"].sum(0))
        counts = tables["linear"].sum((0, 2))
        judged = protocol.Judged(
            tuple(score for way, table in tables.items() for score in _scores(way, table)),
            tuple(
                protocol.ClassScore(name=name, value=None if np.isnan(share) else float(share), count=int(count))
                for name, share, count in zip(names, shares, counts, strict=True)
            ),
        )
        return self.result(
            looked,
            data,
            judged,
            manifest=parts.source.sha256,
            seeds=seeds[:1],
            fitted=len(parts.fit),
            chosen=(chosen,),
            notes=(
                "each class's value is the linear probe's intersection over union, its count that of its pixels",
                f"fitted on {len(fitted.features):,} patches",
                *annotated.left_out(parts.source),
            ),
            seconds=time.monotonic() - began,
        )

    def _fitted(
        self, fitted: Patches, *, device: torch.device, report: protocol.Report
    ) -> tuple[LinearProbe, dict[str, Any]]:
        """The linear probe on all patches, and how its regularization was chosen: on every fifth image."""
        from trainers.evaluation import patches

        held = fitted.images % 5 == 4
        best, tried = self.regularizations[0], {}
        if len(self.regularizations) > 1 and bool(held.any()):
            part, rest = (patches.Patches(*(its[rows] for its in fitted)) for rows in (~held, held))
            for place, value in enumerate(self.regularizations):
                probe = patches.fit(part, regularization=value, device=device)
                tried[f"{value:g}"] = patches.cross_entropy(probe, rest)
                report("choosing the regularization", (place + 1) / len(self.regularizations))
            best = min(self.regularizations, key=lambda value: tried[f"{value:g}"])
        return (
            patches.fit(fitted, regularization=best, device=device),
            {"regularization": best, "cross_entropy": tried},
        )


def _scores(way: str, tables: NDArray[np.int64]) -> list[protocol.Score]:
    """From each image's pixels by (class, what they are taken for), [n, K, K]."""
    from trainers.evaluation.patches import intersection_over_union

    count, classes = tables.shape[:2]
    flat = tables.reshape(count, -1).astype(np.float64)

    def total(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        pixels: NDArray[np.float64] = np.bincount(rows, minlength=count) @ flat
        return pixels.reshape(classes, classes)

    def mean(rows: NDArray[np.int64]) -> float:
        return float(np.nanmean(intersection_over_union(total(rows))))

    def right(rows: NDArray[np.int64]) -> float:
        pixels = total(rows)
        return float(np.trace(pixels) / max(pixels.sum(), 1))

    return [
        protocol.joined(f"{way}/{name}", [of(np.arange(count))], count=count, images=protocol.bootstrapped(of, count))
        for name, of in (("miou", mean), ("pixels", right))
    ]
