"""Journals of other versions: the format's number, and the steps that bring an older record up to date.

A journal's lines are never rewritten: their checksums build on each other, and a copy may lie in a bucket. So a sweep
that a later version takes up goes on in that version's format. `opened`, the first record, and each `resumed` say in
which format they and what follows are written; a record is of the format that was said last.

What raises the number: a key, a setting or a kind of record that is renamed, removed or means something else. What is
only added does not, if it has a default that does what was done before: an older version passes over it and says so.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from trainers.upgrade import kind_at, upgrade_changes, upgrade_config, upgrade_path, upgrade_value

FORMAT = 3
"""What this version writes. It reads this one and every older one."""

Values = dict[str, Any]


def upgrade(record: Values, *, written_in: int, space: str) -> Values:
    """`record`, parsed from a journal of format `written_in`, as `FORMAT` has it. `space` is that of the sweep."""
    for number in range(written_in, FORMAT):
        record = STEPS[number](record, space)
    return record


def this_version() -> str:
    """Of pretune, as it is installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("pretune")
    return "unknown"


def _settings_renamed(record: Values, space: str) -> Values:
    """1 -> 2: settings have other names (`trainers.upgrade.RENAMES`), and so have the parameters of a shipped space,
    which are named after what they set; a user's own space names its parameters as it likes. `resumed` says a format.
    """
    match record["kind"]:
        case "opened":
            experiment = record["experiment"]
            base = experiment["base"]
            points = [upgrade_changes(point, base) for point in experiment.get("points", ())]
            return {**record, "experiment": {**experiment, "base": upgrade_config(base), "points": points}}
        case "asked":
            config = record["config"]
            upgraded = {**record, "config": None if config is None else upgrade_config(config)}
            own_names = ":" in space
            return upgraded if own_names else upgraded | _renamed_parameters(record, config or {})
        case "extended":
            return {**record, "config": upgrade_config(record["config"])}
        case "resumed":
            return {**record, "format": 1}
    return record


def _renamed_parameters(asked: Values, config: Values) -> Values:
    """`params` and `distributions` of an `asked` record; an ablation's may be whole objects."""
    params: Values = asked["params"]
    names = {name: upgrade_path(name, kind_at(name, params, config)) for name in params}
    return {
        "params": {names[name]: upgrade_value(name, value) for name, value in params.items()},
        "distributions": {
            names.get(name, name): _with_choices(name, text) for name, text in asked["distributions"].items()
        },
    }


def _with_choices(name: str, distribution: str) -> str:
    """Optuna's JSON of a distribution, with its choices upgraded like the values chosen from them."""
    parsed = json.loads(distribution)
    choices = parsed.get("attributes", {}).get("choices", ())
    upgraded = [upgrade_value(name, choice) for choice in choices]
    if upgraded == list(choices):
        return distribution
    return json.dumps({**parsed, "attributes": {**parsed["attributes"], "choices": upgraded}})


def _paths_relative(record: Values, space: str) -> Values:
    """2 -> 3: a checkpoint's path is relative to the sweep's folder. Where that is now the reader knows, and it takes a
    path of either kind (`core.place`): nothing is to be done here.
    """
    return record


STEPS: dict[int, Callable[[Values, str], Values]] = {1: _settings_renamed, 2: _paths_relative}
"""From each format to the next one; a step changes nothing in place."""
