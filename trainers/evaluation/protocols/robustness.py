"""`robustness`: what a linear classifier loses where images are shifted, blurred, gray or coarse."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal, Unpack

from pydantic import Field

from trainers.evaluation.protocol import Data, Judged, LabeledImages, ProtocolResult, Task, together
from trainers.evaluation.protocols.linear import REGULARIZATIONS, Positive, at_an_end, fit_chosen, held_out_key

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Robustness(LabeledImages):
    """The linear classifier of `linear` by `lbfgs`, scored on images as they are and on changed ones: moved right and
    down by `shifts` of their side (what comes in is mirrored), blurred by a Gaussian of `blurs` of
    their side, gray, and brought down to `resolutions` of their side and back.

    `fitted_on` `plain`: one classifier, fitted on images as they are, meets changed ones. `changed`: for each change
    another one is fitted on images with that change, which asks what features still hold.
    """

    name: Literal["robustness"] = "robustness"
    version: Literal[1] = 1
    shifts: tuple[Share, ...] = (0.125, 0.25)
    blurs: tuple[Share, ...] = (0.02, 0.05)
    gray: bool = True
    resolutions: tuple[Share, ...] = (0.5, 0.25)
    fitted_on: Literal["plain", "changed"] = "plain"
    held_out: float = Field(0.1, gt=0.0, le=0.5)
    regularizations: tuple[Positive, ...] = Field(REGULARIZATIONS, min_length=1)

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `plain/top1`, `shift0.125/top1`, `gray/top1`, …; classes and confusion of images as they are."""
        from trainers.evaluation import changed, classification, frozen

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = self.looked_at(subject)
        names = data.dataset.manifest.class_names
        views = changed.views(
            looked, shifts=self.shifts, blurs=self.blurs, gray=self.gray, resolutions=self.resolutions
        )
        judged: list[Judged] = []
        fits = []
        for place, view in enumerate(views):
            if place == 0 or self.fitted_on == "changed":
                fit, scored = frozen.features(looked, data, device=device, report=report, view=view)
                fits = [
                    fit_chosen(
                        fit,
                        data.fit_labels,
                        class_count=len(names),
                        regularizations=self.regularizations,
                        share=self.held_out,
                        key=held_out_key(data, seed),
                        device=device,
                    )
                    for seed in seeds
                ]
            else:
                scored = frozen.whole(frozen.rows(looked, data, data.split, device=device, report=report, view=view))
            found = [frozen.class_scores(one.probe, scored) for one in fits]
            judged.append(classification.judge(found, data.score_labels, names, prefix=f"{view.name}/"))
            if place == 0:
                chosen = tuple({"seed": seed, **one.said} for seed, one in zip(seeds, fits, strict=True))
        return self.result(
            looked,
            data,
            together(judged),
            seeds=seeds,
            fitted=fit.count,
            chosen=chosen,
            notes=at_an_end(chosen),
            seconds=time.monotonic() - began,
        )
