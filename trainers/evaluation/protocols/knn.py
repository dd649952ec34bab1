"""`knn`: the votes of the nearest images of the training part. Nothing is fitted, so seeds change nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Unpack

from pydantic import Field

from trainers.evaluation.protocol import Data, LabeledImages, ProtocolResult, Task, together

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject


class Knn(LabeledImages):
    """k nearest neighbors by cosine, k being each of `neighbors`; a vote weighs exp(cosine / `temperature`) (instance
    discrimination, arXiv 1805.01978; DINO, arXiv 2104.14294), and 1.
    """

    name: Literal["knn"] = "knn"
    version: Literal[1] = 1
    neighbors: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 20, 200), min_length=1)
    temperature: float = Field(0.07, gt=0.0)
    weightings: tuple[Literal["similarity", "none"], ...] = Field(("similarity", "none"), min_length=1)

    draws: ClassVar[bool] = False

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `knn<k>/top1` of weighted votes and `knn<k>/unweighted/top1`, and `top5`; classes of the first one."""
        import torch

        from trainers.evaluation import classification, frozen
        from trainers.evaluation.neighbors import nearest, votes

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = self.looked_at(subject)
        fit, scored = frozen.features(looked, data, device=device, report=report)
        labels = torch.from_numpy(data.fit_labels).to(device)
        queries = torch.from_numpy(scored.take()).to(device, torch.float32)
        parts = (torch.from_numpy(part) for part in fit.chunks())
        found = nearest(parts, queries, neighbors=max(self.neighbors))
        names = data.dataset.manifest.class_names
        judged = []
        for k in self.neighbors:
            for weighting in self.weightings:
                counted = votes(
                    found,
                    labels,
                    class_count=len(names),
                    neighbors=k,
                    weighting=weighting,
                    temperature=self.temperature,
                )
                prefix = f"knn{k}/" if weighting == "similarity" else f"knn{k}/unweighted/"
                judged.append(classification.judge([counted], data.score_labels, names, prefix=prefix))
        return self.result(
            looked,
            data,
            together(judged),
            seeds=seeds[:1],
            fitted=fit.count,
            notes=self._too_many(fit.count),
            seconds=time.monotonic() - began,
        )

    def _too_many(self, count: int) -> tuple[str, ...]:
        """A note where some k are more than the images that are fitted on, which all vote then."""
        over = ", ".join(str(k) for k in self.neighbors if k > count)
        return (f"with k = {over} all {count:,} images vote, as there are no more",) if over else ()
