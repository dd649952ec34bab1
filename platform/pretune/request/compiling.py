"""What a request to compile trials cannot be, said before anything is measured or started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pretune.core.choices import Compile
from pretune.core.errors import RequestError
from pretune.request import request
from trainers import compiling
from trainers.config import TrialConfig

if TYPE_CHECKING:
    from pretune.core.experiment import Experiment
    from pretune.core.search import Space


def is_auto(compile: Compile | None, *, local: bool) -> bool:
    """Whether it is to be measured. RequestError where trials run elsewhere than on this machine."""
    if compile == "auto" and not local:
        raise RequestError(
            "--compile auto measures on this machine, but with --address trials run on others; choose --compile on or "
            "off, as `pretune train --compile auto` finds it there"
        )
    return compile == "auto"


def check_space(space: Space, base: TrialConfig) -> None:
    """RequestError where the space says itself which trials are compiled."""
    if request.varied_by_the_space(space, base, ["compile=off"]):
        raise RequestError(
            "--compile auto chooses compile for each trial, but the space sets it itself; leave --compile out, or take "
            "another space"
        )


def check_levels(levels: Iterable[Mapping[str, Any]]) -> None:
    """RequestError where the changes of a level say which trials are compiled."""
    if any("compile" in changes for changes in levels):
        raise RequestError(
            "--compile auto chooses compile for each trial, but a level of the ablation sets it; leave --compile out, "
            "or vary something else"
        )


def check_resumed(experiment: Experiment) -> None:
    """RequestError where trials of a sweep that goes on here are compiled, and this machine cannot do that."""
    compiled = sorted(experiment.compiles - {"off"})
    if compiled and (missing := compiling.why_not()):
        raise RequestError(
            f"trials of sweep {experiment.name!r} have compile={' or '.join(compiled)}, which needs {missing}, or go "
            "on where there is one"
        )
