"""An evaluation as it runs, in this process or divided among several: each result is written beside the checkpoint as
soon as it is there, and read where the same was asked before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from pretune.analysis import evaluate
from pretune.core.errors import RequestError
from pretune.execution.family import Family, Member, Returned
from trainers.data import report_reads
from trainers.data.report_reads import ReportRead
from trainers.evaluation.protocol import Protocol, ProtocolResult, digest

if TYPE_CHECKING:
    import torch

    from trainers.evaluation.protocol import Data
    from trainers.evaluation.subject import Subject

PULSE_S = 0.1
"""Shortest time between two signs of a worker's progress."""
WAIT_S = 7 * 24 * 3600.0
"""How long a worker waits for another one that solves alone; one that dies is noticed at once."""

Report = Callable[[str, float], None]
"""What is being done, and how much of it is done, from 0 to 1."""


def run(
    asked: evaluate.Request, report: Report = lambda what, done: None, *, recorded: bool = False
) -> Iterator[ProtocolResult]:
    """Each result as soon as it is there; one that was written before is read. `recorded`: that the report split is
    read was written down by the caller.

    ValueError where the checkpoint is damaged or has no such source; RequestError where a result that is there can not
    be read; of several workers WorkerFailedError where one dies or raises anything else.
    """
    if asked.workers > 1:
        # What the trial's config says was looked at; with terms of one's own it would not travel.
        work = _Work(replace(asked, target=asked.target._replace(config=None)), recorded)
        with Family(work, asked.workers, process_group_timeout_s=WAIT_S) as family:
            yield from _told(family, report)
        return

    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from _results(asked, *_opened(asked), device=device, report=report, recorded=recorded)


def _told(family: Family, report: Report) -> Iterator[ProtocolResult]:
    """What rank 0 tells. A rank may solve alone for long, without a sign of life."""
    for _, message in family.messages(hang_timeout_s=None):
        if isinstance(message, ProtocolResult):
            yield message
        elif isinstance(message, _Progressed):
            report(*message)
        elif isinstance(message, Returned) and message.value is not None:
            raise message.value


class _Progressed(NamedTuple):
    what: str
    done: float


@dataclass(frozen=True)
class _Work:
    """What each of several workers does: rank 0 as a process alone would, the others what it calls them to."""

    asked: evaluate.Request
    recorded: bool

    def __call__(self, member: Member) -> ValueError | None:
        """What is wrong with the request, if something is, for the parent to raise."""
        from trainers.evaluation import together

        told = 0.0

        def report(what: str, done: float) -> None:
            nonlocal told
            if time.monotonic() - told >= PULSE_S:
                told = time.monotonic()
                member.tell(_Progressed(what, done))

        try:
            subjects, data = _opened(self.asked)
            if member.rank > 0:
                together.serve(subjects, data, device=member.device)
                return None
            for made in _results(
                self.asked, subjects, data, device=member.device, report=report, recorded=self.recorded
            ):
                member.tell(made)
            together.over()
        except RequestError as error:
            return RequestError(str(error))
        except ValueError as error:
            return ValueError(str(error))
        return None


def _opened(asked: evaluate.Request) -> tuple[list[Subject], list[Data]]:
    """What is evaluated, the untrained network behind the trained one, and each data set."""
    import torch

    from trainers.data.loader import Loaders
    from trainers.evaluation import features
    from trainers.evaluation.protocol import Data

    torch.set_num_threads(asked.threads)
    subjects = [evaluate.load(asked.target)]
    if asked.untrained:
        subjects.append(evaluate.untrained(asked.target))
    store, loaders = features.Store(features.cache()), Loaders()
    data = [Data(on.dataset, on.name, asked.split, loaders, store, asked.threads, on.annotations) for on in asked.data]
    return subjects, data


def _results(
    asked: evaluate.Request,
    subjects: Sequence[Subject],
    data: Sequence[Data],
    *,
    device: torch.device,
    report: Report,
    recorded: bool,
) -> Iterator[ProtocolResult]:
    for protocol in asked.protocols:
        for one in subjects:
            protocol.check_subject(one)
    for on, images in zip(asked.data, data, strict=True):
        read = recorded
        for protocol in asked.protocols:
            seeds = tuple(range(asked.seeds if protocol.draws else 1))
            for place, one in enumerate(subjects):
                file = _file(asked, protocol, on.hashes[protocol.name], seeds, one, untrained=place > 0)
                known = evaluate.read_result(file)
                if known is not None and known.digest == one.digest:
                    yield known
                    continue
                if asked.split == "report" and on.dataset is not None and not read:
                    _record(asked.target, on)
                    read = True
                made = protocol.run(one, images, seeds=seeds, device=device, report=report)
                evaluate.write(file, made.model_dump_json(indent=1).encode() + b"\n")
                yield made


def _file(
    asked: evaluate.Request,
    protocol: Protocol,
    data_hash: str,
    seeds: Sequence[int],
    subject: Subject,
    *,
    untrained: bool,
) -> str:
    """Beside a checkpoint its own results; a folder that was named may have others' as well."""
    numbers = {
        **protocol.model_dump(mode="json"),
        "split": asked.split,
        "seeds": list(seeds),
        **({"untrained": True} if untrained else {}),
        **({} if asked.place == asked.target.place else {"subject": subject.digest}),
    }
    name = f"{protocol.name}-{data_hash[:8]}-{digest(numbers)[:8]}.json"
    return evaluate.join(asked.place, name)


def _record(target: evaluate.Target, on: evaluate.OnData) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    report_reads.record(on.place, ReportRead(time=now, sweep=target.sweep or target.file, trial=target.trial))
