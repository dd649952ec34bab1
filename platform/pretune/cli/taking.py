"""Commands that take the same arguments: written down once, by the function that makes a checked request of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pretune.cli.exits import checking, note
from pretune.display import screen


def taking(request: Callable[..., Any], **more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command that takes the arguments of `request`, and its own options `more` (name to annotation and default).

    It is called as `command(console, asked, **own)` with what `request` returned, whose `notes` have been printed. A
    RequestError of `request` ends it with code 2.
    """
    signature = inspect.signature(request)
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in more.items()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def typed(**arguments: Any) -> None:
            console = screen.console()
            options = {name: arguments.pop(name) for name in more}
            with checking():
                asked = request(**arguments)
            for line in asked.notes:
                note(console, line)
            command(console, asked, **options)

        # typer asks for both: the names and defaults, and the types, which are those of the request's own module.
        hints = inspect.get_annotations(request, eval_str=True)
        named = {name: hints[name] for name in signature.parameters}
        parameters = [parameter.replace(annotation=named[name]) for name, parameter in signature.parameters.items()]
        del typed.__wrapped__
        typed.__signature__ = signature.replace(parameters=[*parameters, *own], return_annotation=None)  # type: ignore[attr-defined]
        typed.__annotations__ = {**named, **{name: annotation for name, (annotation, _) in more.items()}}
        return typed

    return decorate
