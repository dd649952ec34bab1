"""The command line in this process, and a sweep for it to speak of, told by its journal alone."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from pretune.cli.app import app
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Record, Started
from search_spaces import RECIPES

COMMAND = "'/opt/my tools/bin/pretune' sweep kernels --trials 3 --set 'views.0.crop_scale=[0.3, 1]'"


def pretune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="pretune")


def synthetic_sweep(folder: Path, *, closed: str | None = "finished") -> Path:
    """A sweep of three trials as its journal tells it: one whole, one stopped early, one infeasible."""
    base = RECIPES["sfrik_tiny"]()
    experiment = Experiment(
        name=folder.name,
        space="kernels",
        recipe="sfrik_tiny",
        base=base,
        data="digits",
        trials=3,
        storage=str(folder.parent),
    )
    config = base.model_dump(mode="json")

    def trial(number: int, values: list[float], state: str, reason: str = "") -> list[Record]:
        params = {"objective.mmd.kernel": "rbf", "objective.mmd.kernel.gamma": 1.5 + number}
        epochs = [
            Epoch(
                number=number,
                epoch=epoch,
                metrics={
                    "probe/linear": value,
                    "probe/linear_stderr": 0.0123,
                    "time/epoch_s": 2.0,
                    "time/probe_s": 0.5,
                    **({"memory/slot_bytes": 3e8} if epoch == 1 else {}),
                },
            )
            for epoch, value in enumerate(values, start=1)
        ]
        value = values[-1] if state == "COMPLETE" else None
        end = Ended.model_validate({"number": number, "state": state, "value": value, "reason": reason})
        asked = Asked(number=number, params=params, distributions={}, config=config)
        return [asked, Started(number=number, attempt=0, epoch=0), *epochs, end]

    with Journal(folder, new=True) as journal:
        records: list[Record] = [
            Opened(experiment=experiment, host={"command": COMMAND}),
            *trial(0, [0.5, 0.7, 0.81], "COMPLETE"),
            *trial(1, [0.4], "PRUNED", "probe/linear 0.4 at 1 epochs is not among the best 1 of 2"),
            *trial(2, [], "INFEASIBLE", "loss/mmd was not finite at step 3"),
        ]
        if closed is not None:
            records.append(Closed.model_validate({"reason": closed}))
        for record in records:
            journal.append(record)
    return folder
