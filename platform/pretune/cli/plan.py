"""`pretune plan`: what a sweep or an ablation would take. Nothing of it starts, nothing is written where sweeps lie.

It takes the arguments of both commands. Which one is meant is told by --factor, --level and --leave-out.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pretune.cli.ablate import ablation_request
from pretune.cli.exits import checking, interrupted, note, print_json
from pretune.cli.options import Json
from pretune.cli.packing import packed
from pretune.cli.running import compiled
from pretune.cli.sweep import SweepRequest, sweep_request
from pretune.cli.taking import taking
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.plan import Plan
    from pretune.core.packing import Packing


_VARIED = ("factors", "levels", "leave_out")
"""What an ablation has at least one of, and a search none."""


def plan_request(**typed: Any) -> SweepRequest:
    """The search or the ablation that was typed. RequestError as of its own command, and where options of the other
    one stand beside it.
    """
    ablation = any(typed[name] for name in _VARIED)
    own, other = (_ABLATION, _SWEEP) if ablation else (_SWEEP, _ABLATION)
    for name, parameter in other.items():
        if name not in own and name not in ("space", "recipe") and typed[name] != parameter.default:
            raise RequestError(_belongs(name, ablation=ablation))
    if not ablation:
        return sweep_request(**{name: typed[name] for name in own})
    if typed["recipe"] is not None:
        raise RequestError(
            f"--recipe {typed['recipe']} is for a sweep of a space; of an ablation the first argument is the recipe: "
            f"pretune plan {typed['recipe']} …"
        )
    one = {name: _only(name, typed[name]) for name in ("metric", "direction")}
    budget = {"budget": typed["budget"] or _ABLATION["budget"].default}
    rest = {name: typed[name] for name in own if name not in ("recipe", *one, *budget)}
    return ablation_request(recipe=typed["space"], **rest, **one, **budget)


def _belongs(name: str, *, ablation: bool) -> str:
    option = f"--{name.replace('_', '-')}"
    if ablation:
        return f"{option} is of a search; an ablation (--factor, --level, --leave-out) has its own trials: leave it out"
    return f"{option} is of an ablation; say what it varies with --factor, --level or --leave-out, or leave it out"


def _only(name: str, given: Any) -> Any:
    """An ablation is judged by one metric."""
    if given is not None and len(given) > 1:
        raise RequestError(f"--{name} is given {len(given)} times, but an ablation is judged by one metric; keep one")
    return given[0] if given else None


def _parameters(request: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    hints = inspect.get_annotations(request, eval_str=True)
    signature = inspect.signature(request)
    return {name: parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()}


_SWEEP, _ABLATION = _parameters(sweep_request), _parameters(ablation_request)
_BOTH = {name: parameter for name, parameter in {**_ABLATION, **_SWEEP}.items() if name != "space"}
plan_request.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_SWEEP["space"], *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in _BOTH.values())]
)
plan_request.__annotations__ = {name: one.annotation for name, one in {"space": _SWEEP["space"], **_BOTH}.items()}


@taking(plan_request, as_json=(Json, False))
def plan_command(console: Console, asked: SweepRequest, *, as_json: bool) -> None:
    """Say what a sweep or an ablation would take: epochs, hours, memory, disk, from a few steps measured here."""
    from pretune.display import plan as display

    with checking():
        if asked.address is not None and asked.experiment.slots is None:
            raise RequestError(
                "--slots must say how many trials run at once on that cluster, which is not asked before a sweep "
                "starts; give it"
            )
    experiment = asked.experiment
    if asked.auto_compile:
        experiment = compiled(console, experiment, asked.space, auto_gpus=asked.may_have_gpus, quiet=as_json)
    experiment, packing = packed(console, experiment, asked.packing, asked.space, quiet=as_json)
    asked = replace(asked, experiment=experiment)
    with checking():
        try:
            found = _planned(console, asked, quiet=as_json)
        except KeyboardInterrupt as error:
            interrupted("interrupted; what was measured is kept for the next plan", error)
    if as_json:
        print_json(_json(found, packing))
        return
    screen.show(console, *display.whole(found))
    if asked.address is not None:
        note(console, "measured on this machine: those of the cluster may be faster, and have more memory or less")


def _planned(console: Console, asked: SweepRequest, *, quiet: bool) -> Plan:
    from pretune.analysis import plan

    experiment, local = asked.experiment, asked.address is None
    slots, gpus = plan.slots_here(experiment, auto_gpus=asked.auto_gpus)
    configs = plan.configs_of(experiment, asked.space)
    at_once = slots if local else 1
    found: list[plan.Measured] = []
    with nullcontext() if quiet else console.status("looking at the space") as status:

        def tell(words: str) -> None:
            if status is not None:
                status.update(f"measuring {len(found) + 1}, at most {plan.MOST_SHAPES}: {words}")

        for one in plan.measured(
            experiment, configs, slots=at_once, gpus_per_worker=gpus, clock=time.monotonic, tell=tell
        ):
            plan.check_fits(experiment, one, slots=at_once)
            found.append(one)
    return plan.plan(experiment, configs, found, slots=slots)


def _json(found: Plan, packing: Packing | None) -> dict[str, Any]:
    asked = found.experiment
    return {
        "space": asked.space,
        "recipe": asked.recipe,
        "images": found.images,
        "workers_per_trial": asked.workers_per_trial,
        "packing": None if packing is None else packing.model_dump(mode="json"),
        "fastest": None if asked.fastest is None else asked.fastest.as_json(),
        **found.forecast.model_dump(mode="json", exclude={"measured"}),
        "shapes": [
            {
                "words": one.words,
                "share": one.share,
                "known": one.known,
                "problem": one.problem,
                "measured": None if one.found is None else one.found.model_dump(mode="json"),
            }
            for one in found.shapes
        ],
    }
