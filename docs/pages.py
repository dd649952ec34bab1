"""Pages that are written from the program itself when the docs are built, so that they can not go stale.

mkdocs calls `on_files` (see `hooks` in mkdocs.yml). `python docs/pages.py` prints all pages.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY_FILES = {
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages that are files of the repository outside docs/."""


EXIT_CODES = (
    "Exit codes: 0 done, 1 the run failed, 2 the request was wrong, 143 after SIGTERM, 130 after Ctrl-C or where the "
    "terminal was closed."
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages; called by mkdocs."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> dict[str, str]:
    """Each generated page by its place below docs/, as Markdown."""
    found = {name: _as_page((ROOT / path).read_text()) for name, path in REPOSITORY_FILES.items()}
    return found | {
        "index.md": _as_page((ROOT / "README.md").read_text()),
        "guides/notebook.md": notebook(),
        "reference/commands.md": commands(),
        "reference/config.md": config_fields(),
        "reference/terms.md": terms(),
        "reference/recipes.md": recipes(),
        "reference/metrics.md": metrics(),
    }


def _as_page(text: str) -> str:
    """A file of the repository as a page: its links to docs/ and to the other files lead to pages."""
    for page, path in REPOSITORY_FILES.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(path)}(#[\w-]+)?\)", rf"]({page}\1)", text)
    text = text.replace("](docs/notebook.py)", "](guides/notebook.md)")
    return text.replace("](docs/", "](")


# --- the parts --------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options, from the command line's own definition."""
    import typer.main

    from pretune.cli.app import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        EXIT_CODES,
        "",
    ]
    for name, command in sorted(group.commands.items()):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        usage = " ".join(["pretune", name, *map(_shown, arguments), "[OPTIONS]"])
        lines += [f"## {name}", "", _sentence(command.help or ""), "", "```console", f"$ {usage}", "```", ""]
        rows = [(f"`{_shown(one)}`", one.help or "", "") for one in arguments]
        rows += [(_flags(one), one.help or "", _default(one.default)) for one in options if one.name != "help"]
        lines += _table(("", "", "default"), rows)
    return "\n".join(lines)


def config_fields() -> str:
    """Every setting of a run, by its path in `--set`, from the models."""
    from trainers.config import TrialConfig

    lines = [
        "# Config fields",
        "",
        "A run is one `TrialConfig`. Each field can be changed by its path: `--set model.backbone.kind=resnet18`; `*`",
        "stands for every item of a list (`--set 'views.*.size=32'`). Where a field has alternatives, `kind` chooses.",
        "",
        *_model(TrialConfig, ""),
    ]
    return "\n".join(lines)


def terms() -> str:
    """Every kind of term with its formula and fields."""
    from trainers.terms import Term

    lines = [
        "# Terms",
        "",
        "A term's name is its path: `objective.<name>.weight`; its kind defaults to the name. Weight 0 equals absence.",
        "",
    ]
    for member in _models(Term):
        kinds = get_args(member.model_fields["kind"].annotation)
        lines += [f"## {', '.join(kinds)}", "", *_docstring(member)]
        lines += _fields(member, "objective.<name>.", skip={"kind"})
    return "\n".join(lines)


def recipes() -> str:
    """Every recipe and space, with its docstring: command, cost, expected accuracy; and what recipes have beside what
    their sources have."""
    from search_spaces import RECIPES, SPACES

    lines = ["# Recipes and spaces", "", "## Spaces", ""]
    for name, space in SPACES.items():
        lines += [f"### {name}", "", *_docstring(space)]
    lines += ["## Recipes", "", "[What they have beside their sources](#recipes-and-their-sources)", ""]
    for name, recipe in RECIPES.items():
        lines += [f"### {name}", "", *_docstring(recipe)]
    return "\n".join([*lines, *_sources()])


def _sources() -> list[str]:
    """A table of each recipe's settings and its source's, read from the recipes and `search_spaces.recipes.sources`."""
    from search_spaces import RECIPES
    from search_spaces.recipes.sources import SOURCES, Settings, settings_of

    rows = []
    for name, recipe in RECIPES.items():
        ours, source = settings_of(recipe()), SOURCES[name]
        differing = source.differing(ours)
        pairs = zip(Settings._fields, ours, source.settings, strict=True)
        cells = [
            f"**{mine}** (source: {theirs})" if field in differing else mine or "" for field, mine, theirs in pairs
        ]
        rows.append([f"[{name}](#{name})", source.name, *cells, source.differences])
    return [
        "## Recipes and their sources",
        "",
        "Ours, and the source's in brackets where it has something else. A stem is what comes before the first block",
        "(`model.backbone.stem`), or the patches of a transformer; crops are views with the shares of an image's area",
        "that they show. A source named *ours* has no published setting to compare with.",
        "",
        *_table(("recipe", "source", *Settings._fields, "differences"), rows),
    ]


def metrics() -> str:
    """Every metric's name and meaning."""
    from trainers.report import METRICS

    rows = [(f"`{name}`", text) for name, text in METRICS.items()]
    about = "The names are part of the interface: in the journal, in TensorBoard, for `--metric`, in Python."
    return "\n".join(["# Metrics", "", about, "", *_table(("name", "what it is"), rows)])


def notebook() -> str:
    """`docs/notebook.py` as a page: its Markdown cells as text, its code cells as code."""
    path = ROOT / "docs" / "notebook.py"
    lines: list[str] = []
    for cell in re.split(r"^# %%", path.read_text(), flags=re.M)[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            lines += [re.sub(r"^# ?", "", line) for line in body.strip().splitlines()]
        else:
            lines += ["```python", body.strip(), "```"]
        lines.append("")
    return "\n".join(lines)


# --- how they are written ---------------------------------------------------------------------------------------------


def _shown(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    annotation = option.type_descriptor.annotation
    choices = "|".join(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ""
    return f"{names} {option.metavar or choices or getattr(annotation, '__name__', 'value').upper()}"


def _default(value: Any) -> str:
    return "" if value is None or value is False or callable(value) or value == () else f"`{value}`"


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [_row(head), _row(["---"] * len(head)), *map(_row, cells), ""]


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _docstring(thing: Callable[..., Any] | type) -> list[str]:
    """As it is: formulas are aligned by hand."""
    return ["```text", inspect.getdoc(thing) or "", "```", ""]


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without Annotated and None; what a mapping, list or tuple holds."""
    from pretune.core import messages

    for member in messages.members(annotation):
        origin = get_origin(member)
        if origin in (tuple, list):
            yield from _members(get_args(member)[0])
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            yield from _members(get_args(member)[1])
        else:
            yield member


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel

    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member


def _model(model: type[BaseModel], path: str) -> list[str]:
    """A heading, the docstring and the fields of a model, then those of the models inside it."""
    lines = [f"## {model.__name__}" + (f" (`{path.removesuffix('.')}`)" if path else ""), ""]
    lines += [*_docstring(model), *_fields(model, path)]
    for name, field in model.model_fields.items():
        if name == "objective":
            continue  # a page of its own
        several = get_origin(field.annotation) is tuple and any(_models(field.annotation))
        for inner in _models(field.annotation):
            lines += _model(inner, f"{path}{name}.{'*.' if several else ''}")
    return lines


def _fields(model: type[BaseModel], path: str, skip: Collection[str] = ()) -> list[str]:
    rows = [
        (f"`{path}{name}`", _rule(field), _value(field), field.description or "")
        if name != "objective"
        else ("`objective.<name>`", "a [term](terms.md)", "required", "")
        for name, field in model.model_fields.items()
        if name not in skip
    ]
    return _table(("path", "value", "default", ""), rows)


def _value(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    try:
        return f"`{json.dumps(default)}`"  # as it is typed behind `--set a.b=`
    except TypeError:  # a part with fields of its own
        return "see below"


def _rule(field: Any) -> str:
    """`a number, at least 0`: the type in words and its bounds."""
    annotation, bounds = field.annotation, list(field.metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        bounds += more
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    shown: list[str] = []
    for member in _flat(annotation, bounds):
        if get_origin(member) is Literal:
            shown += [f"`{value}`" for value in get_args(member)]
        elif member is type(None):
            shown.append("null")
        elif any(_models(member)):
            shown += [f"`{model.__name__}`" for model in _models(member)]
        elif get_origin(member) is tuple:
            shown.append("list")
        else:
            shown.append(words.get(member, str(getattr(member, "__name__", member))))
    limits = [
        f"{word} {getattr(bound, name):g}"
        for bound in _constraints(bounds)
        for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([" or ".join(dict.fromkeys(shown)), *dict.fromkeys(limits)])


def _constraints(bounds: list[Any]) -> Iterator[Any]:
    for bound in bounds:
        yield from getattr(bound, "metadata", None) or [bound]


def _flat(annotation: Any, bounds: list[Any]) -> Iterator[Any]:
    """The members of a union; bounds of what is annotated join `bounds`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        bounds += more
        yield from _flat(inner, bounds)
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _flat(member, bounds)
    else:
        yield annotation


if __name__ == "__main__":
    for name, content in pages().items():
        print(f"===== {name}\n{content}\n")
