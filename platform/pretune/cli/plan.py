"""`pretune plan`: what a sweep would take. Nothing of it starts, nothing is written where sweeps lie."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pretune.cli.exits import checking, interrupted, note, print_json
from pretune.cli.options import Json
from pretune.cli.sweep import SweepRequest, sweep_request
from pretune.cli.taking import taking
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.plan import Plan


@taking(sweep_request, as_json=(Json, False))
def plan_command(console: Console, asked: SweepRequest, *, as_json: bool) -> None:
    """Say what a sweep would take: epochs, hours, memory and disk, from a few steps that are measured here."""
    from pretune.display import plan as display

    with checking():
        if asked.address is not None and asked.experiment.slots is None:
            raise RequestError(
                "--slots must say how many trials run at once on that cluster, which is not asked before a sweep "
                "starts; give it"
            )
        try:
            found = _planned(console, asked, quiet=as_json)
        except KeyboardInterrupt as error:
            interrupted("interrupted; what was measured is kept for the next plan", error)
    if as_json:
        print_json(_json(found))
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


def _json(found: Plan) -> dict[str, Any]:
    asked = found.experiment
    return {
        "space": asked.space,
        "recipe": asked.recipe,
        "images": found.images,
        "workers_per_trial": asked.workers_per_trial,
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
