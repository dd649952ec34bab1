"""What commands do otherwise for an ablation than for a search: where trials come from, what is shown and written."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pretune.core.errors import RequestError

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
        """A line on the whole, the trials, the families, the best one, the audit of what stopped the others, the
        comparison.
        """
        from pretune.analysis import audit
        from pretune.display import tables

        parts: list[RenderableType] = [tables.summary(result), tables.trials(result, limit=limit)]
        families = tables.families(result)
        if families is not None:
            parts.append(families)
        parts += _told(result)
        if result.winner is not None:
            parts.append(tables.best(result, result.winner))
        if result.front:
            parts.append(tables.front(result))
        audited = audit.of(result)
        if audited is not None:
            parts.append(tables.audit(audited))
        if compared is not None:
            parts.append(tables.comparison(compared))
        return parts

    def as_json(self, result: SweepResult) -> dict[str, Any]:
        from pretune.analysis import audit, measured

        audited = audit.of(result)
        found = measured.as_json(result) | _told_json(result)
        return found | ({} if audited is None else {"audit": audited.as_json()})

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

        return [tables.summary(result), ablation.table(result), *_told(result)]

    def as_json(self, result: SweepResult) -> dict[str, Any]:
        from pretune.analysis import ablation, measured

        told = {"ablation": ablation.collect(result, bootstrap=True).model_dump(mode="json")}
        return measured.as_json(result) | told | _told_json(result)

    def write(self, result: SweepResult) -> tuple[list[Path], list[str]]:
        from pretune.display import ablation_files

        return ablation_files.write(result)


def _told(result: SweepResult) -> list[RenderableType]:
    """Whether label-free measures agree with the probe, and what `pretune finalize` found; as far as there is any."""
    from pretune.analysis import label_free
    from pretune.display import tables

    lines = [tables.label_free(label_free.agreements(result))]
    if not result.reads_file.is_file():  # most are not finalized, and need not wait for what that knows
        return [line for line in lines if line is not None]

    from pretune.analysis import finalize
    from pretune.display import finalize as display

    try:
        found = finalize.stored(result)
        lines.append(None if found is None else display.summary(found))
    except RequestError as error:  # the sweep can be shown all the same
        lines.append(display.unreadable(error))
    return [line for line in lines if line is not None]


def _told_json(result: SweepResult) -> dict[str, Any]:
    """The same: `label_free`, and `finalized`, each where there is something to say."""
    from pretune.analysis import finalize, label_free

    agreements, found = label_free.agreements(result), None
    with suppress(RequestError):
        found = finalize.stored(result)
    return {
        **({"label_free": [one.model_dump(mode="json") for one in agreements]} if agreements else {}),
        **({} if found is None else {"finalized": found.model_dump(mode="json")}),
    }
