"""Ablations that end as they are told to, for what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pretune.analysis import ablation
from pretune.core import points, results
from pretune.core.design import Design
from pretune.core.experiment import Experiment
from pretune.core.history import History
from pretune.core.journal import Journal
from pretune.core.outcomes import Places
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Record, Started
from pretune.core.results import SweepResult
from pretune.core.search import Proposal
from pretune.request import levels
from trainers.config import TrialConfig
from trainers.terms import Alignment, Variance

BASE = TrialConfig(
    objective={"alignment": Alignment(weight=1.0), "variance": Variance(weight=25.0)}, epochs=3, batch_size=64
)


def asked(*factors: str, **options: Any) -> Design:
    """The design of `--factor …`; `options` are those of `levels.parse` and of `levels.design`."""
    typed = {name: options.pop(name) for name in ("levels", "leave_out") if name in options}
    base = options.pop("base", BASE)
    return levels.design(base, levels.parse(base, factors=factors, **typed), **({"grid": False, "seeds": 2} | options))


def experiment(folder: Path, design: Design, **changes: Any) -> Experiment:
    points = design.points(changes.get("base", BASE).seed)
    settings = {"name": folder.name, "space": ablation.SPACE, "recipe": "mine", "base": BASE, "points": points}
    settings |= {"design": design, "trials": len(points), "storage": str(folder.parent)}
    return Experiment(**(settings | {"stopping": {"enabled": False}} | changes))


Value = float | None
"""Of a trial; None diverges."""


def run(
    folder: Path, design: Design, values: Sequence[Value] | Callable[[int, int], Value], **changes: Any
) -> SweepResult:
    """An ablation whose trials end with `values`, in their order or by level and seed. What has none is not run."""
    wanted = experiment(folder, design, **changes)
    proposer, history, places = points.proposer(wanted, points.unvaried), History(), Places(design)
    with Journal(folder, new=True) as journal:

        def write(record: Record) -> None:
            history.apply(journal.append(record))

        write(Opened(experiment=wanted))
        while (proposal := proposer.ask(history.trials)) is not None:
            number = len(history.trials)
            assert isinstance(proposal, Proposal)
            if not callable(values) and number == len(values):
                break
            assert proposal.config is not None
            config = proposal.config.model_dump(mode="json")
            value = values(*places.of(proposal.params)) if callable(values) else values[number]
            write(Asked(number=number, params=proposal.params, distributions=proposal.distributions, config=config))
            write(Started(number=number, attempt=0, epoch=0))
            if value is None:
                write(Ended(number=number, state="INFEASIBLE", reason="diverged: loss/total"))
                continue
            write(Epoch(number=number, epoch=3, metrics={wanted.metric: value}))
            write(Ended(number=number, state="COMPLETE", value=value))
        write(Closed(reason="finished" if proposal is None else "interrupted"))
    return results.read(folder)
