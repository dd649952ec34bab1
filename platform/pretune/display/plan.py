"""What a sweep would take, in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pretune.display import forecast, format
from pretune.display.screen import Rows

if TYPE_CHECKING:
    from pretune.analysis.plan import Measured, Plan


def whole(plan: Plan) -> list[RenderableType]:
    """What it would run and what that takes, then what was measured."""
    said, asked = plan.forecast, plan.experiment
    recipe = f" from {asked.recipe}" if asked.recipe else ""
    title = f"{asked.space}{recipe} on {asked.data or asked.base.data.path}: {plan.images:,} images to pretrain on"
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in _facts(plan):
        table.add_row(name, value)
    parts: list[RenderableType] = [Text(title, style="bold"), table]
    if plan.shapes:
        parts.append(_shapes(plan))
    if said.seconds is None:
        parts.append(Text("nothing could be measured, so no hours and no memory are known", style="yellow"))
    return parts


def _facts(plan: Plan) -> list[tuple[str, str]]:
    said, asked = plan.forecast, plan.experiment
    facts = [("trials", f"{said.trials:,} at most"), ("epochs", forecast.epochs(said))]
    if asked.design is not None and asked.design.max_seeds is not None:
        first = sum(not level.refused for level in asked.design.levels) * asked.design.seeds
        facts[0] = ("trials", f"{first:,} at first, {said.trials:,} at most, where no comparison is decided before")
    if said.seconds is not None:
        start = f"of which {format.duration(plan.cold_s)} until the first step; Ray's own start comes before"
        facts.append(
            (
                "time",
                f"about {format.duration(said.seconds)} in {forecast.slots(said, asked.workers_per_trial)}, {start}",
            )
        )
    if said.host_bytes is not None:
        all_of = said.host_bytes * (said.slots or 1) * asked.workers_per_trial
        facts.append(("memory", f"{format.size(said.host_bytes)} a worker at most, {format.size(all_of)} in all"))
    if said.gpu_bytes is not None:
        facts.append(("GPU memory", f"{format.size(said.gpu_bytes)} a worker at most"))
    facts.append(("disk", forecast.disk(said, asked)))
    return facts


def _shapes(plan: Plan) -> RenderableType:
    numbers = ["trials like it", "step", "probe", "memory", "checkpoint"]
    gpu = any(one.found is not None and one.found.gpu_bytes for one in plan.shapes)
    numbers += ["GPU memory"] if gpu else []
    table = Rows([f"measured, of {plan.distinct} shapes", *numbers, "note"], right=numbers, wraps=True)
    for one in plan.shapes:
        table.add(one.words or "all", f"{100 * one.share:.0f} %", *_numbers(one, gpu=gpu), _note(one))
    return table


def _numbers(one: Measured, *, gpu: bool) -> list[str]:
    found = one.found
    if found is None:
        return ["–"] * (5 if gpu else 4)
    cells = [
        f"{1e3 * found.step_s:.3g} ms",
        f"{found.probe_s:.2g} s",
        format.size(found.host_bytes),
        "–" if found.checkpoint_bytes is None else format.size(found.checkpoint_bytes),
    ]
    return [*cells, "–" if found.gpu_bytes is None else format.size(found.gpu_bytes)] if gpu else cells


def _note(one: Measured) -> str:
    return one.problem or ("known from before" if one.known else "")
