"""`pretune check`: the contract of one term, backbone or view operation, tried in this process, in fresh ones, and in
two at once.

What a fresh process makes of the state after a few steps of training must equal, bit for bit, what this one makes
without a stop; and two processes that share a batch must make what one does.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pretune.request import usercode
from trainers import scratch
from trainers.config import TrialConfig
from trainers.terms import TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.contracts import Trial

Kind = Literal["term", "backbone", "view operation"]

RANKS = 2
ANSWER_S = 120.0
"""How long the processes may take: most of it is importing torch."""
TWO_WORKERS, RESUME = "two workers equal one", "exact resume"


class Asked(NamedTuple):
    """What is to be tried: the part called `mine` of this config, or its backbone."""

    label: str
    kind: Kind
    config: TrialConfig


@dataclass(frozen=True)
class Verdict:
    """One contract: whether it holds (None: not tried, as what comes before does not), and how well or why not."""

    contract: str
    holds: bool | None
    detail: str = ""


def ask(reference: str, settings: Mapping[str, Any], *, size: int, folder: Path) -> Asked:
    """What kind of part `reference` names, in a run with views of `size` pixels. RequestError where it names none, or
    does not take the settings."""
    from trainers.contracts import everything

    if reference.startswith("timm:"):
        options = {"options": dict(settings)}
        return Asked(reference, "backbone", _made({"model": {"backbone": {"kind": reference, **options}}}, size))
    thing, reference = usercode.part(reference, folder=folder)
    part = {"kind": reference, **settings}
    if isinstance(thing, type) and issubclass(thing, TermConfig):
        values = everything().model_dump(mode="json")
        values["objective"]["mine"] = part
        return Asked(usercode.where(thing), "term", usercode.completed(values))
    if usercode.parameters(thing)[:2] == ["images", "draws"]:
        return Asked(usercode.where(thing), "view operation", _made({}, size, operations={"mine": part}))
    return Asked(usercode.where(thing), "backbone", _made({"model": {"backbone": part}}, size))


def run(asked: Asked) -> Iterator[Verdict]:
    """Each contract as it is tried. RuntimeError where a process does not answer."""
    from trainers.contracts import INTERRUPTED_AFTER, STEPS

    trial = trial_of(asked)
    with _one_thread():
        sound = True
        for name, contract in trial.basic():
            verdict = _tried(name, contract) if sound else Verdict(name, None)
            sound = bool(verdict.holds)
            yield verdict
        if not sound:
            yield from (Verdict(name, None) for name in (*dict(trial.further()), TWO_WORKERS, RESUME))
            return
        with _Ranks(asked) as ranks:
            ranks.send(trial.steps(0, INTERRUPTED_AFTER, {}))  # they import what they need meanwhile
            yield from (_tried(name, contract) for name, contract in trial.further())
            alone, whole = trial.share(), trial.steps(0, STEPS, {})
            answers = ranks.answers()
        yield _compared_shares(answers, alone, trial.tolerance)
        yield _compared_steps(answers[0], whole)


def trial_of(asked: Asked) -> Trial:
    """What tries it."""
    from trainers.contracts import BackboneTrial, OperationTrial, TermTrial

    if asked.kind == "term":
        return TermTrial(asked.config.objective["mine"].loaded, asked.config)
    if asked.kind == "backbone":
        return BackboneTrial(asked.config)
    view = asked.config.views[0]
    return OperationTrial(view.operations["mine"].load(), view.operations["mine"].settings, view.size)


def _made(values: Mapping[str, Any], size: int, **view: Any) -> TrialConfig:
    views = [{"size": size, **view}, {"size": size}]
    return usercode.completed({"objective": {"alignment": {}}, "views": views, **values})


def _tried(name: str, contract: Any) -> Verdict:
    from trainers.contracts import BrokenError

    try:
        return Verdict(name, True, contract())
    except BrokenError as error:
        return Verdict(name, False, str(error))


def _compared_shares(answers: Sequence[_Answer], alone: Mapping[str, Tensor], tolerance: float) -> Verdict:
    """Whether each rank has one process' numbers, and its part of the rows."""
    import torch

    from trainers.contracts import differences

    for rank, answer in enumerate(answers):
        if answer.failed:
            return Verdict(TWO_WORKERS, False, f"rank {rank} of {len(answers)} failed: {answer.failed}")
    shares = [answer.share for answer in answers]
    rows = {name: torch.cat([share[name] for share in shares]) for name in alone if name.startswith("rows/")}
    worst = max(
        (difference.error, difference.name, rank)
        for rank, share in enumerate(shares)
        for difference in differences({**share, **rows}, alone)
    )
    error, name, rank = worst
    if error <= tolerance:
        return Verdict(TWO_WORKERS, True, f"{error:.1e} is the largest relative difference, at most {tolerance:g}")
    detail = (
        f"{name.removeprefix('rows/')} on rank {rank} of {len(shares)} differs by {error:.1e} from one process', more "
        f"than {tolerance:g}; it must be that of the global batch: gather or average with trainers.dist"
    )
    return Verdict(TWO_WORKERS, False, detail)


def _compared_steps(answer: _Answer, whole: Mapping[str, Tensor]) -> Verdict:
    """Whether going on in a fresh process came to the same as going on in this one."""
    import torch

    if answer.failed:
        return Verdict(RESUME, False, f"the fresh process failed: {answer.failed}")
    for name, numbers in whole.items():
        if not torch.equal(numbers, answer.steps[name]):
            detail = f"{name} differs after a stop and a start in a fresh process; keep state in what is saved alone"
            return Verdict(RESUME, False, detail)
    return Verdict(RESUME, True, f"{len(whole)} tensors are equal bit for bit, with and without a stop")


# ---- fresh processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """What one rank computed; or a traceback's last line, where it `failed`."""

    share: dict[str, Tensor]
    steps: dict[str, Tensor]
    failed: str = ""


class _Ranks:
    """Two fresh processes, which are ended with the block."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __enter__(self) -> _Ranks:
        self._stack = ExitStack()
        meeting = self._stack.enter_context(scratch.folder())
        context = multiprocessing.get_context("spawn")
        self._lines: list[Connection] = []
        self._processes = []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            arguments = (theirs, self._asked, rank, f"file://{meeting}/group")
            process = context.Process(target=_serve, args=arguments, name=f"rank-{rank}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)
        return self

    def send(self, state: dict[str, Tensor]) -> None:
        """What they go on from. Pickled here, as tensors would be shared through file descriptors."""
        for line in self._lines:
            line.send_bytes(pickle.dumps(state))

    def answers(self) -> list[_Answer]:
        """In rank order. RuntimeError where one does not answer in time."""
        deadline = time.monotonic() + ANSWER_S
        found: dict[int, _Answer] = {}
        while missing := [rank for rank in range(RANKS) if rank not in found]:
            ready = wait([self._lines[rank] for rank in missing], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError(f"rank {missing[0]} of {RANKS} gave no answer within {ANSWER_S:g} s")
            for rank in missing:
                if self._lines[rank] in ready:
                    try:
                        found[rank] = pickle.loads(self._lines[rank].recv_bytes())
                    except EOFError:
                        found[rank] = _Answer({}, {}, "its process died")
        return [found[rank] for rank in range(RANKS)]

    def __exit__(self, *exception: object) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._stack.close()


def _serve(line: Connection, asked: Asked, rank: int, meeting: str) -> None:
    """One fresh process."""
    import torch

    from pretune.execution import worker
    from trainers.contracts import INTERRUPTED_AFTER, STEPS

    torch.set_num_threads(1)
    try:
        trial = trial_of(asked)
        state = pickle.loads(line.recv_bytes())
        steps = trial.steps(INTERRUPTED_AFTER, STEPS, state)
        with worker.local_group(meeting, torch.device("cpu"), rank, RANKS, ANSWER_S / 2):
            share = trial.share()
        answer = _Answer(share, steps)
    except EOFError:  # nothing was asked for
        return
    except Exception as error:
        answer = _Answer({}, {}, worker.one_line(error))
    line.send_bytes(pickle.dumps(answer))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Float sums depend on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
