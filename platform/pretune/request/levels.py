"""What an ablation varies: `--factor`, `--level` and `--leave-out` as the levels of a `Design`.

A level that cannot be built stays in the design, with the reason: the others are run. Where none can be built, or a
path leads nowhere, the request is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretune.core.design import SEED, Design, DesignLevel
from pretune.core.errors import RequestError
from pretune.core.experiment import MOST_TRIALS
from pretune.core.messages import describe, did_you_mean, validated
from pretune.request import overrides
from pretune.request.request import with_own_parts
from pretune.request.usercode import checked
from trainers.changes import value_at
from trainers.config import TrialConfig
from trainers.usercode import LostError

MOST_LEVELS = 1_000
"""Beyond this it is a slip of the hand."""
OBJECTIVE = "objective"
LEAVE_OUT = "--leave-out"
WITH, WITHOUT, BASE = "with", "without", "base"

Check = Callable[[TrialConfig], None]
"""RequestError where a config cannot be run here."""


@dataclass(frozen=True)
class Choice:
    """One level of a factor: `spelled` as it was typed, `name` empty where the changes say it all, `label` within its
    factor.
    """

    spelled: str
    name: str
    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Factor:
    """What varies at once; `base` is what the recipe's own level is called among the others."""

    name: str
    base: str
    choices: tuple[Choice, ...]


@dataclass
class _Row:
    """A level on its way into the design."""

    spelled: str
    name: str
    changes: dict[str, Any]
    cell: dict[str, str] = field(default_factory=dict)
    config: TrialConfig | None = None
    error: RequestError | None = None
    unknown: tuple[str, ...] = ()
    """Of its paths, those that lead nowhere."""

    def told(self) -> RequestError:
        why = str(self.error).removeprefix("--set ")
        if list(self.changes.values()) == [None] and self.spelled.startswith(LEAVE_OUT):
            (path,) = self.changes
            why = (
                f"without it the recipe is not valid ({why}); leave out a term, or a setting that may be null, or vary "
                f"it with --factor {path}=…"
            )
        return RequestError(f"{self.spelled}: {why}")


def parse(
    base: TrialConfig, *, factors: Sequence[str] = (), levels: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> list[Factor]:
    """What was typed, checked for its form.

    RequestError where it has another one, a path, a value or a name comes twice, a path is the seed's, a term to leave
    out is not there, or nothing was given.
    """
    found = [
        Factor(
            path,
            _label(_base_value(base, path)),
            tuple(Choice(f"--factor {path}={value}", "", _label(value), {path: value}) for value in values),
        )
        for path, values in parse_factors(factors).items()
    ]
    found += _parse_levels(levels)
    found += _parse_leave_out(base, leave_out)
    if not found:
        raise RequestError(
            "an ablation needs a factor; give one, for example --factor objective.brownian.weight=0,0.1, or "
            "--leave-out objective for each of its terms in turn"
        )
    return found


def parse_factors(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["a.b=0,0.1,1"]` as `{"a.b": [0, 0.1, 1]}`; a value is JSON where it parses as JSON, and a string otherwise.

    RequestError where there is no `=`, a path or a value comes twice, or a path is the seed's.
    """
    factors: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, listed = text.partition("=")
        path = path.strip()
        if not equals or not listed.strip() or not path or not all(path.split(".")):
            raise RequestError(
                f"--factor {text!r} must have the form a.b=v1,v2, for example objective.brownian.weight=0,0.1"
            )
        if path in factors:
            raise RequestError(f"--factor {path} is given twice; list all its values behind one '='")
        _check_path(path, spelled="--factor")
        items = [item.strip() for item in _split(listed)]
        if not all(items):
            raise RequestError(f'--factor {text!r} has an empty value; take a comma away, or write null or ""')
        values = [overrides.value(item, path) for item in items]
        for position, value in enumerate(values):
            if any(_same(value, other) for other in values[:position]):
                raise RequestError(f"--factor {path} has the value {value!r} twice; keep one")
        factors[path] = values
    return factors


def design(
    base: TrialConfig,
    factors: Sequence[Factor],
    *,
    grid: bool,
    seeds: int,
    max_seeds: int | None = None,
    smallest_effect: float | None = None,
    check: Check = lambda config: None,
    views_per_epoch: Callable[[TrialConfig], int] | None = None,
) -> Design:
    """The base and then each level: one factor at a time, or with `grid` all combinations.

    What the base has already is no change, so the base itself is run once per seed, listed as a level or not. In a grid
    a factor of one level has the base's as the other. With `views_per_epoch` each level gets as many epochs as make its
    views those of the base, to the nearest whole one.

    RequestError where a path leads nowhere, nothing would change, two levels are the same, or no level can be built.
    """
    check(base)
    rows = list(_cells(base, factors) if grid else _one_at_a_time(base, factors))
    if all(not row.changes for row in rows):
        named = ", ".join(factor.name for factor in factors)
        has = "have these values" if len(factors) > 1 else "has this value"
        raise RequestError(f"nothing would change: {named} {has} in the recipe; list others")
    for row in rows:
        if row.changes:
            _build(base, row, check, views_per_epoch)
    _refuse_unknown(rows)
    if all(row.config is None for row in rows if row.changes):
        told = "\n".join(str(row.told()) for row in rows if row.changes)
        raise RequestError(told if len(rows) <= 2 else f"none of the levels can be built:\n{told}")
    if not grid:
        _refuse_twins(rows)
    if rows[0].changes:
        rows.insert(0, _Row("", "", {}))
    if len(rows) * (max_seeds or seeds) > MOST_TRIALS:
        raise RequestError(
            f"{len(rows)} levels with {max_seeds or seeds} seeds each are more than {MOST_TRIALS} trials; lower "
            f"{'--max-seeds' if max_seeds else '--seeds'}"
        )
    values = {
        "levels": [
            DesignLevel(
                name=row.name,
                changes=row.changes,
                cell=row.cell,
                refused="" if row.error is None else "; ".join(str(row.error).removeprefix("--set ").splitlines()),
            )
            for row in rows
        ],
        "seeds": seeds,
        "max_seeds": max_seeds,
        "smallest_effect": smallest_effect,
    }
    return validated(Design, values)


# --- what was typed ---------------------------------------------------------------------------------------------------


def _parse_levels(texts: Sequence[str]) -> list[Factor]:
    """`[FACTOR/]NAME:path=v,path=v`: what shares a FACTOR is one in a grid."""
    groups: dict[str, list[Choice]] = {}
    names: set[str] = set()
    for text in texts:
        name, colon, listed = text.partition(":")
        name = "/".join(part.strip() for part in name.split("/"))
        form = (
            f"--level {text!r} must have the form [FACTOR/]NAME:a.b=v,c.d=w, for example "
            "sparse:model.masking.ratio=0.75,model.masking.mismatch=0.2"
        )
        if not colon or not listed.strip() or "=" in name or not all(name.split("/")) or name.count("/") > 1:
            raise RequestError(form)
        if name in names:
            raise RequestError(f"--level {name} is given twice; call one of them otherwise")
        if name.rpartition("/")[2] == BASE:
            raise RequestError(f"--level {name}: {BASE} is what the recipe itself is called; choose another name")
        names.add(name)
        changes: dict[str, Any] = {}
        for item in _split(listed):
            path, equals, value = item.partition("=")
            path = path.strip()
            if not equals or not value.strip() or not path or not all(path.split(".")):
                raise RequestError(f"{form}; {item.strip()!r} is no a.b=v (a value with a comma is a JSON list)")
            _check_path(path, spelled=f"--level {name}:")
            if path in changes:
                raise RequestError(f"--level {name} has {path} twice; keep one")
            changes[path] = overrides.value(value.strip(), path)
        group, _, label = name.rpartition("/")
        groups.setdefault(group or name, []).append(Choice(f"--level {name}", label, label, changes))
    return [Factor(name, BASE, tuple(choices)) for name, choices in groups.items()]


def _parse_leave_out(base: TrialConfig, texts: Sequence[str]) -> list[Factor]:
    """`objective` is each of its terms in turn; a term's weight becomes 0, anything else null."""
    terms = [f"{OBJECTIVE}.{name}" for name, term in base.objective.items() if term.weight > 0.0]
    found: dict[str, Factor] = {}
    for typed in itertools.chain(*(text.split(",") for text in texts)):
        path = typed.strip().removesuffix(".weight")
        _check_path(path, spelled="--leave-out")
        if not path or not all(path.split(".")):
            raise RequestError(f"--leave-out {typed!r} must be a path, for example objective, or objective.brownian")
        for one in terms if path == OBJECTIVE else [path]:
            if one in found:
                raise RequestError(f"--leave-out has {one} twice; keep one")
            if one.startswith(f"{OBJECTIVE}.") and one.count(".") == 1:
                if one not in terms:
                    raise RequestError(f"--leave-out {one}: the recipe has no such term; {did_you_mean(one, terms)}")
                change: dict[str, Any] = {f"{one}.weight": 0.0}
            else:
                change = {one: None}
            name = f"{WITHOUT} {one.rpartition('.')[2]}"
            found[one] = Factor(one, WITH, (Choice(f"{LEAVE_OUT} {one}", name, WITHOUT, change),))
    return list(found.values())


def _check_path(path: str, *, spelled: str) -> None:
    overrides.check_path(path, spelled=spelled)
    if path == SEED:
        raise RequestError(f"{spelled} seed is no factor: each level is run with the same seeds; use --seeds N")


def _split(text: str) -> list[str]:
    """At the commas that are in no list, object or quoted text."""
    parts, depth, quoted, begin = [], 0, False, 0
    for position, letter in enumerate(text):
        if letter == '"' and (position == 0 or text[position - 1] != "\\"):
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
            if letter == "," and depth <= 0:
                parts.append(text[begin:position])
                begin = position + 1
    return [*parts, text[begin:]]


def _same(value: Any, other: Any) -> bool:
    """Whether two values are one to a config: 1 and 1.0 are, 1 and true are not."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _base_value(base: TrialConfig, path: str) -> Any:
    try:
        return value_at(base, path)
    except ValueError:  # told of each level
        return "base"


# --- levels -----------------------------------------------------------------------------------------------------------


def _one_at_a_time(base: TrialConfig, factors: Sequence[Factor]) -> Iterator[_Row]:
    if sum(len(factor.choices) for factor in factors) > MOST_LEVELS:
        raise RequestError(f"an ablation may have {MOST_LEVELS} levels at most; list fewer values")
    yield _Row("", "", {})
    for factor in factors:
        for choice in factor.choices:
            if not _is_base(base, choice):
                yield _Row(choice.spelled, choice.name, dict(choice.changes))
            elif choice.name:
                raise RequestError(f"{choice.spelled} changes nothing: the recipe is like this already; leave it out")


def _cells(base: TrialConfig, factors: Sequence[Factor]) -> Iterator[_Row]:
    """The product of all factors, the base's own cell first, if it is one."""
    paths = [path for factor in factors for path in {path: 0 for one in factor.choices for path in one.changes}]
    for position, path in enumerate(paths):
        if path in paths[:position]:
            raise RequestError(f"--grid: {path} is in two factors; give it to one of them")
    options: list[list[Choice]] = []
    for factor in factors:
        own = [choice for choice in factor.choices if _is_base(base, choice)]
        others = [choice for choice in factor.choices if choice not in own]
        if own or len(others) == 1:
            others.insert(0, Choice("", "", own[0].label if own else factor.base, {}))
        options.append(others)
    if math.prod(map(len, options)) > MOST_LEVELS:
        raise RequestError(f"a grid may have {MOST_LEVELS} cells at most; vary fewer factors at a time")
    for chosen in itertools.product(*options):
        changes = {path: value for choice in chosen for path, value in choice.changes.items()}
        named = any(choice.name for choice in chosen)
        names = [
            choice.name or f"{'.'.join(factor.name.split('.')[-2:])}={choice.label}"
            for factor, choice in zip(factors, chosen, strict=True)
            if choice.changes
        ]
        yield _Row(
            spelled=", ".join(choice.spelled for choice in chosen if choice.spelled),
            name=", ".join(names) if named else "",
            changes=changes,
            cell={factor.name: choice.label for factor, choice in zip(factors, chosen, strict=True)},
        )


def _is_base(base: TrialConfig, choice: Choice) -> bool:
    """Whether `base` with these changes is `base`: 1 and 1.0 are one value to a config."""
    try:
        return checked(overrides.apply(base, choice.changes), Path.cwd()) == base
    except RequestError:
        return False


def _build(base: TrialConfig, row: _Row, check: Check, views_per_epoch: Callable[[TrialConfig], int] | None) -> None:
    """Its config, or why there is none; parts of one's own in it are also tried on a few random rows."""
    try:
        config = with_own_parts(checked(overrides.apply(base, row.changes), Path.cwd()))
        if views_per_epoch is not None:
            check(config)  # else it has no views to count
            if "epochs" in row.changes:
                raise RequestError("with --budget views the epochs follow from the views; leave them out")
            epochs = max(1, round(base.epochs * views_per_epoch(base) / views_per_epoch(config)))
            if epochs != config.epochs:
                row.changes["epochs"] = epochs
                config = checked(overrides.apply(base, row.changes), Path.cwd())
        check(config)
        row.config = config
    except ValueError as error:
        row.error = error if isinstance(error, RequestError) else RequestError(str(error))
        row.unknown = _unknown(row.changes, error.__cause__)


def _unknown(changes: Mapping[str, Any], cause: BaseException | None) -> tuple[str, ...]:
    """The paths that lead nowhere, where that is what is wrong."""
    if isinstance(cause, ValidationError):
        nowhere = [
            tuple(line.removeprefix("unknown key: '").partition("'")[0].split("."))
            for line in describe(cause, TrialConfig).splitlines()
            if line.startswith("unknown key: ")
        ]
        return tuple(path for path in changes if any(_begins(path.split("."), keys) for keys in nowhere))
    plain = isinstance(cause, ValueError) and not isinstance(cause, LostError)
    return tuple(path for path in changes if str(cause).startswith(path)) if plain else ()


def _begins(steps: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether a path, in which a `*` is any key, leads to or through `keys`."""
    return len(keys) <= len(steps) and all(step in ("*", key) for step, key in zip(steps, keys, strict=False))


def _refuse_unknown(rows: Sequence[_Row]) -> None:
    """A path that leads somewhere in another level is one that this level's `kind` does not have."""
    known = {path for row in rows if row.config is not None for path in row.changes}
    for row in rows:
        if any(path not in known for path in row.unknown):
            raise row.told() from row.error


def _refuse_twins(rows: Sequence[_Row]) -> None:
    for position, row in enumerate(rows):
        for other in rows[:position]:
            if row.config is not None and row.config == other.config:
                raise RequestError(f"{row.spelled} is the same config as {other.spelled}; keep one")
