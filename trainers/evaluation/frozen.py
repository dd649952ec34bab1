"""What protocols on frozen features share: the features of what is fitted on and of what is scored, and a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from trainers.evaluation.features import PLAIN, Rows, View
from trainers.evaluation.protocol import Data, Integers, Protocol, ProtocolResult, Report, Score

if TYPE_CHECKING:
    import torch

    from trainers.evaluation.classification import Judged
    from trainers.evaluation.subject import Subject


@dataclass(frozen=True)
class Part:
    """Some rows of features."""

    rows: Rows
    ids: Integers

    @property
    def count(self) -> int:
        return len(self.ids)

    def take(self) -> NDArray[Any]:
        """All of them, [n, p]."""
        return self.rows.take(self.ids)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The same by parts that fit into memory."""
        return self.rows.chunks(self.ids)


def features(
    subject: Subject, data: Data, *, device: torch.device, report: Report, workers: int = 1, view: View = PLAIN
) -> tuple[Part, Part]:
    """(what may be fitted on, what is scored), from the store. ValueError where one is not finite."""

    def rows(file: Any, what: str) -> Rows:
        found = data.store.rows(
            subject,
            data.dataset,
            file,
            loaders=data.loaders,
            device=device,
            threads=data.threads,
            view=view,
            report=lambda done: report(f"features of {what}", done),
        )
        if not found.finite:
            raise ValueError(
                f"the features of {subject.name} must be finite, but some of {data.name} are not; the encoder has "
                "diverged: evaluate another checkpoint"
            )
        return found

    fit = rows("search", data.name)
    scored = fit if data.file == "search" else rows("report", f"{data.name}, report")
    return Part(fit, data.fit_ids), Part(scored, data.score_ids)


def result(
    protocol: Protocol,
    subject: Subject,
    data: Data,
    *,
    seeds: Sequence[int],
    scores: tuple[Score, ...],
    fitted: int,
    seconds: float,
    judged: Judged | None = None,
    chosen: tuple[dict[str, Any], ...] = (),
    notes: tuple[str, ...] = (),
) -> ProtocolResult:
    """With what every result says of its protocol, subject and data."""
    return ProtocolResult(
        protocol=protocol.model_dump(mode="json"),
        subject=subject.name,
        digest=subject.digest,
        data=data.name,
        manifest=data.dataset.manifest_hash,
        split=data.split,
        seeds=tuple(seeds),
        fitted=fitted,
        scores=scores,
        classes=() if judged is None else judged.classes,
        confusion=() if judged is None else judged.confusion,
        chosen=chosen,
        notes=notes,
        seconds=seconds,
    )
