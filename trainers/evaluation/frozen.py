"""What protocols on frozen features share: the features of what is fitted on and of what is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainers import dist
from trainers.data.splits import stratified_order
from trainers.encoder import BATCH_SIZE
from trainers.evaluation import together
from trainers.evaluation.features import PLAIN, Part, Rows, View, rows_of
from trainers.evaluation.protocol import Data, Integers, Report

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.evaluation.regression import LinearProbe, Parts
    from trainers.evaluation.subject import Subject

HELD_BYTES = 2**30
"""Features that are held in memory to be fitted on; more are read by parts, at every pass."""


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

    @property
    def largest(self) -> float:
        return max(file.largest for file in self.files)

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
        batches=lambda: together.divided(
            _encoded, subject, data, device=device, report=lambda done: None, part=part, view=view
        ),
        view=view,
        report=lambda done: report(f"features of {data.name}, {part}", done),
    )
    if not found.finite:
        raise ValueError(
            f"the features of {subject.name} must be finite, but some of {data.name} are not; the encoder has "
            "diverged: evaluate another checkpoint"
        )
    return found


def _encoded(
    subject: Subject, data: Data, *, device: torch.device, report: Callable[[float], None], part: Part, view: View
) -> Iterator[NDArray[Any]]:
    """Features [m, p] of a split's images, batch by batch; ranks take turns."""
    import torch

    file: Literal["search", "report"] = "report" if part == "report" else "search"
    ids = rows_of(data.dataset, part)
    own_ids = dist.own_batches(ids, BATCH_SIZE)
    subject.to(device)

    def own() -> Iterator[NDArray[Any]]:
        for images, _ in subject.images(data.dataset, own_ids, loaders=data.loaders, file=file, threads=data.threads):
            changed = images if view.change is None else view.change(images)
            yield subject.encode(changed.to(device, torch.get_default_dtype())).cpu().numpy()

    return dist.in_order(own(), -(-len(ids) // BATCH_SIZE))


def matrix(found: Features, device: torch.device) -> Tensor | Parts:
    """Features to fit on, on the device: held there up to `HELD_BYTES`, else read by parts."""
    import torch

    from trainers.evaluation.regression import LARGEST, Parts

    dtype = torch.float64 if found.largest > LARGEST else torch.float32
    if found.count * found.width * dtype.itemsize <= HELD_BYTES:
        return torch.from_numpy(found.take()).to(device, dtype)
    return Parts(
        lambda: (torch.from_numpy(part) for part in found.chunks()),
        found.count,
        found.width,
        device=device,
        dtype=dtype,
    )


def class_scores(probe: LinearProbe, found: Features) -> Tensor:
    """What a linear probe says of features, [n, C], on the CPU."""
    import torch

    weight = probe.weight
    parts = (torch.from_numpy(part).to(weight.device, weight.dtype) for part in found.chunks())
    return torch.cat([probe.scores(part).cpu() for part in parts])


def held_out(labels: Integers, share: float, key: str) -> tuple[Integers, Integers]:
    """(places that are fitted on, places that are held out) of `labels` [n], stratified, both ascending: a share of
    each class, and of none with so few images that it would have to be rounded up. Empty where all have too few.
    """
    order = stratified_order(labels, key)
    count = int(len(labels) * share)
    return np.sort(order[count:]), np.sort(order[:count])
