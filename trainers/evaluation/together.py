"""How several ranks judge one encoder: rank 0 runs a protocol, as a process alone would, and calls the others to what
can be divided (a pass over images, a training); everything else it does alone while they wait.

So a protocol, its files and what it chooses know no ranks, and what is called by `divided` finds its part of the work
with `trainers.dist`. Without a process group a call is a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from trainers import dist

if TYPE_CHECKING:
    import torch

    from trainers.evaluation.protocol import Data
    from trainers.evaluation.subject import Subject

T = TypeVar("T")


class _Work(NamedTuple):
    """What all ranks are to do at once. Subject and data are named: each rank has its own."""

    function: Callable[..., Any]
    digest: str
    source: str
    crop_pct: float
    data: str
    arguments: dict[str, Any]


def divided(
    function: Callable[..., T],
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    **arguments: Any,
) -> T:
    """`function(subject, data, device=…, report=…, **arguments)` on all ranks at once; what it gives on rank 0, which
    alone may call this. `function` is at its file's top level, and `arguments` pickle.

    An iterator has to be exhausted before the next call. `report` is called on rank 0.
    """
    if dist.world_size() > 1:
        dist.broadcast_object(_Work(function, subject.digest, subject.source, subject.crop_pct, data.name, arguments))
    return function(subject, data, device=device, report=report, **arguments)


def serve(subjects: Sequence[Subject], data: Sequence[Data], *, device: torch.device) -> None:
    """On each other rank: does its part of all that rank 0 calls the ranks to, until that is `over`."""
    of_digest = {one.digest: one for one in subjects}
    of_name = {one.name: one for one in data}
    while (work := dist.broadcast_object(_NOTHING)) is not None:
        subject = of_digest[work.digest].at(work.source, crop_pct=work.crop_pct)
        found = work.function(subject, of_name[work.data], device=device, report=_silent, **work.arguments)
        if isinstance(found, Iterator):
            for _ in found:
                pass


def over() -> None:
    """Rank 0 calls the others to nothing more."""
    dist.broadcast_object(_NOTHING)


_NOTHING: _Work | None = None


def _silent(done: float) -> None:
    """Rank 0 tells of progress."""
