"""Ablations that end as they are told to, for what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretune.analysis import ablation
from pretune.core import results
from pretune.core.experiment import Experiment
from pretune.core.history import History
from pretune.core.journal import Asked, Closed, Ended, Epoch, Journal, Opened, Record, Started
from pretune.core.points import FixedPoints
from trainers.config import TrialConfig
from trainers.terms import Alignment, Variance

BASE = TrialConfig(
    objective={"alignment": Alignment(weight=1.0), "variance": Variance(weight=25.0)}, epochs=3, batch_size=64
)


def experiment(folder: Path, points: tuple[ablation.Point, ...], **changes: Any) -> Experiment:
    settings = {"name": folder.name, "space": ablation.SPACE, "recipe": "mine", "base": BASE, "points": points}
    settings |= {"trials": len(points), "storage": str(folder.parent), "stopping": {"enabled": False}}
    return Experiment(**(settings | changes))


def run(folder: Path, points: tuple[ablation.Point, ...], values: list[float | None]) -> results.SweepResult:
    """An ablation whose trials end with `values`; None diverges."""
    asked = experiment(folder, points)
    proposer, history = FixedPoints(asked), History()
    with Journal(folder, new=True) as journal:

        def write(record: Record) -> None:
            history.apply(journal.append(record))

        write(Opened(experiment=asked))
        for number, value in enumerate(values):
            proposal = proposer.ask(history.trials)
            assert proposal is not None
            assert proposal.config is not None
            config = proposal.config.model_dump(mode="json")
            write(Asked(number=number, params=proposal.params, distributions=proposal.distributions, config=config))
            write(Started(number=number, attempt=0, epoch=0))
            if value is None:
                write(Ended(number=number, state="INFEASIBLE", reason="diverged: loss/total"))
                continue
            write(Epoch(number=number, epoch=3, metrics={"probe/linear": value}))
            write(Ended(number=number, state="COMPLETE", value=value))
        write(Closed(reason="finished"))
    return results.read(folder)
