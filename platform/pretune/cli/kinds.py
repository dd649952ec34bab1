"""What commands do otherwise for an ablation than for a search: where trials come from, what is shown and written."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pretune.analysis.baselines import Comparison
    from pretune.core.experiment import Experiment
    from pretune.core.results import SweepResult
    from pretune.core.search import Space


class Kind(Protocol):
    """One kind of sweep."""

    def space(self, experiment: Experiment) -> Space:
        """What a sweep that was begun goes on with. RequestError where it cannot be found any more."""

    def why_no_more(self, result: SweepResult) -> str:
        """Why no trials can be added to it; empty where they can."""

    def screen(
        self, result: SweepResult, compared: Comparison | None, *, limit: int | None = None
    ) -> list[RenderableType]:
        """What is shown of it at its end and by `pretune show`, at most `limit` trials one by one."""

    def as_json(self, result: SweepResult) -> dict[str, Any]:
        """The object that `pretune show SWEEP --json` prints."""

    def write(self, result: SweepResult) -> tuple[list[Path], list[str]]:
        """Writes what the driver has not written, at its end. Returns where what came out lies, if anything did, and in
        words what could not be written.
        """


def of(experiment: Experiment) -> Kind:
    """The kind of sweep that `experiment` is."""
    return _Ablation() if experiment.points else _Search()


class _Search:
    """A space is searched for its best setting."""

    def space(self, experiment: Experiment) -> Space:
        from pretune.request import lookup

        return lookup.space(experiment.space).function

    def why_no_more(self, result: SweepResult) -> str:
        return ""

    def screen(
        self, result: SweepResult, compared: Comparison | None, *, limit: int | None = None
    ) -> list[RenderableType]:
        """A line on the whole, the trials, the families, the best one, the comparison."""
        from pretune.display import tables

        parts: list[RenderableType] = [tables.summary(result), tables.trials(result, limit=limit)]
        families = tables.families(result)
        if families is not None:
            parts.append(families)
        if result.winner is not None:
            parts.append(tables.best(result, result.winner))
        if compared is not None:
            parts.append(tables.comparison(compared))
        return parts

    def as_json(self, result: SweepResult) -> dict[str, Any]:
        from pretune.analysis import measured

        return measured.as_json(result)

    def write(self, result: SweepResult) -> tuple[list[Path], list[str]]:
        """The driver has written the winner's config already."""
        from pretune.core import results

        return [results.best_config_path(result.folder)], []


class _Ablation:
    """Levels of a factor are compared under equal seeds."""

    def space(self, experiment: Experiment) -> Space:
        from pretune.core import points

        return points.unvaried

    def why_no_more(self, result: SweepResult) -> str:
        if result.closed == "exhausted":
            return (
                f"ablation {result.name!r} is decided, with {len(result.trials)} trials; look at it with `pretune show "
                f"{shlex.quote(result.name)}`, or run a new `pretune ablate` with other levels"
            )
        return (
            f"sweep {result.name!r} is an ablation of {result.asked} trials, each a level and a seed; "
            "leave --trials out, or run a new `pretune ablate` with more --seeds"
        )

    def screen(
        self, result: SweepResult, compared: Comparison | None, *, limit: int | None = None
    ) -> list[RenderableType]:
        """A line on the whole, the levels."""
        from pretune.display import ablation, tables

        return [tables.summary(result), ablation.table(result)]

    def as_json(self, result: SweepResult) -> dict[str, Any]:
        from pretune.analysis import ablation, measured

        return measured.as_json(result) | {"ablation": ablation.collect(result, bootstrap=True).model_dump(mode="json")}

    def write(self, result: SweepResult) -> tuple[list[Path], list[str]]:
        from pretune.display import ablation_files

        return ablation_files.write(result)
