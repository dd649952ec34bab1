"""What is wrong with a config, in words: each pydantic error becomes one line with path, value, rule and remedy."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from pretune.core.errors import RequestError
from trainers.config import TrialConfig
from trainers.usercode import FORMS, SettingsError

Model = TypeVar("Model", bound=BaseModel)

_OTHER_FORMS = {"own": f"or {FORMS} of your own", "timm": "or timm:NAME"}
"""What else a `kind` may be, by the tag of the form."""


def in_words(error: Exception) -> str:
    """What is wrong with a trial's config, or with the settings of a part of one's own in it."""
    if isinstance(error, SettingsError):
        return describe(error.error, error.model, below=error.path)
    return describe(error, TrialConfig) if isinstance(error, ValidationError) else str(error)


def validated(model: type[Model], values: Mapping[str, Any]) -> Model:
    """`values` as a `model`. RequestError, a line per complaint, where they are none."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError(describe(error, model)) from error


def describe(error: ValidationError, model: type[BaseModel], *, below: str = "") -> str:
    """All complaints of `error`, one per line; `model` is the class whose validation failed, at the path `below`."""
    problems = error.errors(include_url=False)
    # A list whose items are wrong is also reported as too short: its items' complaints say enough.
    inner = {problem["loc"] for problem in problems}
    told = [problem for problem in problems if problem["type"] != "too_short" or not _begins_any(problem["loc"], inner)]
    return "\n".join(dict.fromkeys(_line(problem, model, below) for problem in told))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A remedy to append: the closest known name and all of them, in their order."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"known: {', '.join(known)}{guess}"


def known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys allowed at `path` (as pydantic's `loc`) below `model`; empty where any key goes."""
    keys: dict[str, None] = {}
    for kind in _kinds(_follow(model, path)[0]):
        keys.update(dict.fromkeys(kind.model_fields))
    return list(keys)


def _line(problem: ErrorDetails, model: type[BaseModel], below: str) -> str:
    location = problem["loc"]
    annotation, shown = _follow(model, location)
    shown = [*below.split("."), *shown] if below else shown
    path, value = ".".join(shown), problem["input"]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            known = known_keys(model, location[:-1])
            close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
            guess = f"; did you mean {'.'.join((*shown[:-1], close[0]))!r}?" if close else ""
            return f"unknown key: {path!r}; known keys{_below(shown[:-1])}: {', '.join(known)}{guess}"
        case "missing":
            return f"{path!r} is missing; give it a value"
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
            tag = str(context["tag"])
            others = [_OTHER_FORMS[form] for form in _forms(_follow(model, location[:-1])[0]) if form in _OTHER_FORMS]
            forms = ", ".join(["", *others])
            return f"{path + '.kind'!r} is {tag!r}, which is not known; {did_you_mean(tag, tags)}{forms}"
        case "union_tag_not_found":
            return f"{path + '.kind'!r} is missing; known: {', '.join(_tags(_follow(model, location)[0]))}"
        case "model_attributes_type" | "model_type":
            return f"{path!r} is {_short(value)}, but must be an object with {_object(annotation, path, value)}"
        case "value_error":
            text = str(context.get("error", problem["msg"]))
            return f"{path}: {text}" if path and not text.startswith(path) else text
    rule = re.sub(r"^\w+ should ", "must ", problem["msg"]).removesuffix(" after validation, not 0")
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    rule = rule.replace("a valid tuple", "a list")  # as it is typed
    return f"{path!r} is {_short(value)}, but {rule[:1].lower()}{rule[1:]}; change it"


def _object(annotation: Any, path: str, value: object) -> str:
    """What the object at `path` has, where there is no object; often its kind was meant."""
    tags = _tags(annotation)
    if not tags:
        keys = [key for kind in _kinds(annotation) for key in kind.model_fields]
        return f"some of these keys: {', '.join(keys)}; set one of them, as {path}.{keys[0]}=…"
    known = f"a kind (known: {', '.join(tags)})"
    close = difflib.get_close_matches(value, tags, n=1, cutoff=0.6) if isinstance(value, str) else []
    if isinstance(value, str) and ":" in value:  # a part of one's own, or timm's
        close = [value]
    return f"{known}; did you mean {path}.kind={close[0]}?" if close else f"{known}; set it, as {path}.kind={tags[0]}"


def _begins_any(location: Sequence[str | int], others: Collection[tuple[str | int, ...]]) -> bool:
    return any(tuple(location) == other[: len(location)] for other in others if len(other) > len(location))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _below(shown: Sequence[str]) -> str:
    return f" of {'.'.join(shown)!r}" if shown else ""


def _follow(model: type[BaseModel], location: Sequence[str | int]) -> tuple[Any, list[str]]:
    """The annotation at `location`, and the location as a user writes it: without pydantic's union tags."""
    annotation: Any = model
    shown: list[str] = []
    for part in location:
        forms = _forms(annotation)
        if part in forms:
            annotation = forms[str(part)]
            continue
        kinds = _kinds(annotation)
        tagged = [kind for kind in kinds if part in _tags(kind)]
        if len(kinds) > 1 and tagged:
            annotation = tagged[0]
            continue
        shown.append(str(part))
        fields = next((kind.model_fields for kind in kinds if part in kind.model_fields), None)
        annotation = fields[str(part)].annotation if fields is not None else _item(annotation)
    return annotation, shown


def members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without Annotated and None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    elif annotation is not type(None):
        yield annotation


def _forms(annotation: Any) -> dict[str, Any]:
    """The alternatives of a union that are told apart by a function, by their tags."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return {}
    return {
        mark.tag: member
        for member in get_args(annotation)
        if get_origin(member) is Annotated
        for mark in member.__metadata__
        if isinstance(mark, Tag)
    }


def _kinds(annotation: Any) -> list[type[BaseModel]]:
    return [member for member in members(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]


def _tags(annotation: Any) -> list[str]:
    """The values of `kind` that choose among the models of a union."""
    tags: list[str] = []
    for kind in _kinds(annotation):
        if "kind" in kind.model_fields and get_origin(kind.model_fields["kind"].annotation) is Literal:
            tags.extend(get_args(kind.model_fields["kind"].annotation))
    return tags


def _item(annotation: Any) -> Any:
    """What a mapping, list or tuple holds; None where that is not known."""
    for member in members(annotation):
        arguments = get_args(member)
        origin = get_origin(member)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return arguments[1]
        if isinstance(origin, type) and issubclass(origin, Sequence) and arguments:
            return arguments[0]
    return None
