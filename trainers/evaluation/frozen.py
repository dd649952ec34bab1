"""What protocols on frozen features share: the features of what is fitted on and of what is scored, and a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainers.evaluation.features import PLAIN, Part, Rows, View
from trainers.evaluation.protocol import Data, Integers, Protocol, ProtocolResult, Report, Score

if TYPE_CHECKING:
    import torch

    from trainers.evaluation.classification import Judged
    from trainers.evaluation.subject import Subject


@dataclass(frozen=True)
class Features:
    """Some images' features, from the files of one or two splits. `ids` are rows of these, one after another."""

    files: tuple[Rows, ...]
    ids: Integers

    @property
    def count(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        return self.files[0].width

    def some(self, places: Integers) -> Features:
        """Those at `places` among these."""
        return Features(self.files, self.ids[places])

    def take(self) -> NDArray[Any]:
        """All of them, [n, p]."""
        found = np.empty((self.count, self.width), self.files[0].dtype)
        place = 0
        for part in self.chunks():
            found[place : place + len(part)] = part
            place += len(part)
        return found

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The same by parts that fit into memory, in the order of `ids`, which ascend."""
        start = 0
        for file in self.files:
            here = self.ids[(self.ids >= start) & (self.ids < start + file.count)]
            yield from file.chunks(here - start)
            start += file.count


def features(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Report,
    workers: int = 1,
    view: View = PLAIN,
) -> tuple[Features, Features]:
    """(what may be fitted on, what is scored), from the store, in the order of `data.fit_ids` and `data.score_ids`.
    ValueError where one is not finite.
    """
    fitted: tuple[Part, ...] = ("train",) if data.split == "select" else ("train", "select")
    parts = {part: rows(subject, data, part, device=device, report=report, view=view) for part in fitted}
    fit = tuple(parts.values())
    scored = rows(subject, data, data.split, device=device, report=report, view=view)
    return whole(*fit), whole(scored)


def whole(*files: Rows) -> Features:
    """All features of these files."""
    return Features(files, np.arange(sum(file.count for file in files), dtype=np.int64))


def rows(subject: Subject, data: Data, part: Part, *, device: torch.device, report: Report, view: View = PLAIN) -> Rows:
    """Features of one split. ValueError where one is not finite."""
    found = data.store.rows(
        subject,
        data.dataset,
        part,
        loaders=data.loaders,
        device=device,
        threads=data.threads,
        view=view,
        report=lambda done: report(f"features of {data.name}, {part}", done),
    )
    if not found.finite:
        raise ValueError(
            f"the features of {subject.name} must be finite, but some of {data.name} are not; the encoder has "
            "diverged: evaluate another checkpoint"
        )
    return found


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
