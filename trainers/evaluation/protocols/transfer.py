"""`transfer`: how good features are on other data sets than the one that they were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

import numpy as np
from pydantic import Field

from trainers.evaluation.protocol import Data, LabeledImages, ProtocolResult, Task
from trainers.evaluation.protocols.linear import Linear, Positive

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject

REGULARIZATIONS = tuple(float(f"{value:.3g}") for value in np.logspace(-5, 1, 25))


class Transfer(LabeledImages):
    """Logistic regression on frozen features of each data set that is named, after Kornblith et al. 2019 (arXiv
    1805.08974, appendix A.3): by L-BFGS, without augmentation, the regularization chosen on held-out training images
    from a fine grid in logarithm (theirs has 45 values of another scale: features are standardized here).
    """

    name: Literal["transfer"] = "transfer"
    version: Literal[1] = 1
    held_out: float = Field(0.1, gt=0.0, le=0.5)
    regularizations: tuple[Positive, ...] = Field(REGULARIZATIONS, min_length=1)

    elsewhere: ClassVar[bool] = True

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores of one data set: `top1`, `top5`, `mean_class`, `calibration_error`."""
        numbers = self.model_dump(include={"source", "crop_pct", "held_out", "regularizations"})
        linear = Linear.model_validate(numbers)
        found = linear.run(subject, data, **task)
        return found.model_copy(update={"protocol": self.model_dump(mode="json")})
