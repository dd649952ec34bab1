"""DINO: the student's views should sort an image to the prototypes to which the teacher sorts its global views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainers.terms.base import Outputs, TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.config import TrialConfig


class Dino(TermConfig):
    """Cross-entropy between the teacher's centered, sharpened softmax over M prototypes and the student's.

    q_i = softmax((t_i - c) / τ_t) of the teacher's view i, p_j = softmax(s_j / τ_s) of the student's view j, c = the
    model's center before this step. The value is the mean over images and over all pairs i ≠ j of -Σ q_i log p_j:
    2 (V - 1) pairs with two global views of V. ln M where both are uniform.

    τ_t goes linearly from `warmup_temperature` to `teacher_temperature` over the first `warmup_steps` optimizer steps.

    Source: Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021 (arXiv 2104.14294),
    and facebookresearch/dino. The head, its center and the first steps without it moving are `model.prototypes`.
    """

    kind: Literal["dino"] = "dino"
    student_temperature: Annotated[float, Field(gt=0.0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0.0)] = 0.04
    warmup_temperature: Annotated[float, Field(gt=0.0)] = 0.04
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        if outputs.scores is None or outputs.target_scores is None or outputs.center is None:
            raise ValueError(
                "dino needs the scores of student and teacher, but the outputs have none; set model.teacher and "
                "model.prototypes"
            )
        scores, targets, center = (
            [x.to(torch.promote_types(x.dtype, torch.float32)) for x in rows]
            for rows in (outputs.scores, outputs.target_scores, [outputs.center])
        )
        temperature = self.temperature(outputs.step)
        wanted = [((rows - center[0]) / temperature).softmax(dim=1) for rows in targets]
        logs = [(rows / self.student_temperature).log_softmax(dim=1) for rows in scores]
        costs = [-(q * log_p).sum(1).mean() for i, q in enumerate(wanted) for j, log_p in enumerate(logs) if i != j]
        return dist.mean_over_ranks(torch.stack(costs).mean())

    def temperature(self, step: int) -> float:
        """τ_t at optimizer step `step`."""
        if step >= self.warmup_steps:
            return self.teacher_temperature
        share = step / self.warmup_steps
        return self.warmup_temperature + share * (self.teacher_temperature - self.warmup_temperature)

    def check(self, name: str, config: TrialConfig) -> None:
        if config.model.teacher is None or config.model.prototypes is None or len(config.views) < 2:
            raise ValueError(
                f"objective.{name} (dino) needs model.teacher, model.prototypes and at least 2 views, but they are "
                f"{config.model.teacher!r}, {config.model.prototypes!r} and {len(config.views)} views; set them, for "
                f"example model.prototypes.count=1024, or objective.{name}.weight=0"
            )
