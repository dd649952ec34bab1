"""DINO: the student's views should sort an image to the prototypes to which the teacher sorts its global views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from trainers.terms import swapped
from trainers.terms.base import Facts, Head, Outputs, TermConfig, wide

if TYPE_CHECKING:
    from torch import Tensor


class Dino(TermConfig):
    """Cross-entropy between the teacher's centered, sharpened softmax over M prototypes and the student's.

    q_i = softmax((t_i - c) / τ_t) of the teacher's view i, p_j = softmax(s_j / τ_s) of the student's view j, c = the
    model's center before this step. The value is the mean over images and over all pairs i ≠ j of -Σ q_i log p_j:
    2 (V - 1) pairs with two global views of V. ln M where both are uniform.

    τ_t goes linearly from `warmup_temperature` to `teacher_temperature` over the first `warmup_steps` optimizer steps.

    Source: Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021 (arXiv 2104.14294),
    and facebookresearch/dino. The head, its center and the first steps without it moving are `model.prototypes`.
    """

    reads_heads: ClassVar[frozenset[Head]] = frozenset({"prototypes", "center"})

    kind: Literal["dino"] = "dino"
    student_temperature: Annotated[float, Field(gt=0.0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0.0)] = 0.04
    warmup_temperature: Annotated[float, Field(gt=0.0)] = 0.04
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    def __call__(self, outputs: Outputs) -> Tensor:
        if outputs.scores is None:
            raise ValueError(
                "dino needs the scores of student and teacher, but the outputs have none; set model.teacher and "
                "model.prototypes"
            )
        logs = [(wide(rows) / self.student_temperature).log_softmax(dim=1) for rows in outputs.scores]
        return swapped.cross_entropy(self._answers(outputs), logs, term=self.kind)

    def metrics(self, outputs: Outputs) -> dict[str, Tensor]:
        """`information`: nats that the teacher's answer tells of an image (`swapped.information`); 0 where all are
        sorted alike, into one prototype or evenly into all: the two ways in which DINO collapses (section 3.1).
        """
        return {"information": swapped.information(self._answers(outputs))}

    def _answers(self, outputs: Outputs) -> list[Tensor]:
        """q of each of the teacher's views, [n, M]."""
        if outputs.target_scores is None or outputs.center is None:
            raise ValueError(
                "dino needs the scores of the teacher and a center, but the outputs have none; set model.teacher and "
                "model.prototypes"
            )
        center, temperature = wide(outputs.center), self.temperature(outputs.step)
        return [((wide(rows) - center) / temperature).softmax(dim=1) for rows in outputs.target_scores]

    def temperature(self, step: int) -> float:
        """τ_t at optimizer step `step`."""
        if step >= self.warmup_steps:
            return self.teacher_temperature
        share = step / self.warmup_steps
        return self.warmup_temperature + share * (self.teacher_temperature - self.warmup_temperature)

    def check(self, name: str, facts: Facts) -> None:
        if facts.model.teacher is None or facts.model.prototypes is None or len(facts.views) < 2:
            raise ValueError(
                f"objective.{name} (dino) needs model.teacher, model.prototypes and at least 2 views, but they are "
                f"{facts.model.teacher!r}, {facts.model.prototypes!r} and {len(facts.views)} views; set them, for "
                f"example model.prototypes.count=1024, or objective.{name}.weight=0"
            )
