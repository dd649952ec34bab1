"""What `pretune show` and a sweep's end print: the trials, the best against what it has to beat, the next commands."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.analysis.audit import CONFIDENCE, Audit, Share
from pretune.analysis.baselines import Comparison
from pretune.analysis.differences import differences
from pretune.analysis.label_free import Agreement
from pretune.analysis.selection import Column
from pretune.core import results
from pretune.core.notes import Note
from pretune.core.notes import tags as note_tags
from pretune.core.results import SweepResult, TrialResult
from pretune.display import format, screen
from pretune.display.screen import Rows

SHOWN = 100
"""So many trials `pretune show` lists one by one, unless it is told to list all."""

STYLES = {
    "COMPLETE": "",
    "PRUNED": "dim",
    "INFEASIBLE": "yellow",
    "FAIL": "red",
    "RUNNING": "cyan",
    "WAITING": "dim",
}


def trials(
    result: SweepResult, *, limit: int | None = None, only: Sequence[TrialResult] | None = None
) -> RenderableType:
    """The trials, best first, or `only` some in their order: state, epochs, probe with its standard error, settings,
    and why it ended early.

    Settings share one column, each trial showing those it sampled: a conditional space would need a column for each.
    """
    # Where epochs do not cost the same, they say little.
    seconds = ["trained"] if result.experiment.budget != "epochs" else []
    numbers = ["trial", "epochs", *seconds, result.metric]
    heads = ["trial", "state", *numbers[1:], "settings, and why it ended early"]
    table = Rows(heads, right=numbers, wraps=True)
    ranked = result.ranked() if only is None else only
    names = format.short_names(name for trial in ranked for name in trial.params)
    for trial in ranked[:limit]:
        style = "bold green" if trial.id == result.best else STYLES[trial.state]
        state = "unfinished" if trial.state == "RUNNING" and status(result) != "running" else trial.state
        trained = [format.duration(trial.last_metrics.get("budget/seconds", 0.0))] if seconds else []
        cells = [str(trial.id), state, str(trial.epochs), *trained, _score(result, trial)]
        cells.append(settings(result, trial, names))
        table.add(*cells, remark=_short_reason(trial.reason, result.metric), style=style)
    left_out = len(ranked) - len(ranked[:limit])
    if not left_out:
        return table
    whole = " --all" if len(ranked) > SHOWN else ""
    more = "" if only is not None else f": pretune show {_name(result)}{whole}"
    return Group(table, Text(f"… {left_out:,} more{more}", style="dim"))


def columns(found: Sequence[TrialResult], wanted: Sequence[Column], *, limit: int | None = None) -> RenderableType:
    """The columns that were asked for, of trials in their order."""
    numbers = [
        one.name for one in wanted if all(isinstance(one.of(trial), int | float | None) for trial in found[:limit])
    ]
    table = Rows([one.name for one in wanted], right=numbers, wraps=True)
    for trial in found[:limit]:
        table.add(*(format.number(one.of(trial)) for one in wanted), style=STYLES[trial.state])
    left_out = len(found) - len(found[:limit])
    return Group(table, Text(f"… {left_out:,} more: --all", style="dim")) if left_out else table


def settings(result: SweepResult, trial: TrialResult, names: Mapping[str, str]) -> str:
    """What was sampled; of a config that was handed in beside the space what it changes."""
    if not trial.enqueued:
        return format.parameters(trial.params, names=names)
    if trial.params or trial.config is None:
        return f"{format.parameters(trial.params, names=names)} (handed in)"
    changes = differences(result.experiment.base.model_dump(mode="json"), trial.config)
    return f"{format.parameters({one.path: one.second for one in changes})} (handed in)"


def families(result: SweepResult) -> RenderableType | None:
    """The best trial of each family, where the space has a parameter called `family`; best family first.

    Of a family without a completed trial, in brackets, what its best one had when it was stopped.
    """
    named: dict[str, list[TrialResult]] = {}
    for trial in result.ranked():
        if "family" in trial.params:
            named.setdefault(str(trial.params["family"]), []).append(trial)
    if not named:
        return None
    numbers = ["trials", "completed", f"best {result.metric}"]
    table = Rows(["family", *numbers], right=numbers)
    for family, members in named.items():
        complete = [trial for trial in members if trial.state == "COMPLETE"]
        best = _score(result, (complete or members)[0])
        stopped = f"({best} at {_epochs(members[0].epochs)})"
        table.add(family, str(len(members)), str(len(complete)), best if complete else stopped)
    return table


def summary(result: SweepResult) -> Text:
    """`kernels from sfrik_tiny on digits: 6 of 6 trials, 2 stopped early; finished`."""
    asked = result.experiment
    ended = sum(trial.state not in ("WAITING", "RUNNING") for trial in result.trials)
    stopped = sum(trial.state == "PRUNED" for trial in result.trials)
    infeasible = sum(trial.state == "INFEASIBLE" for trial in result.trials)
    failed = sum(trial.state == "FAIL" for trial in result.trials)
    counts = [f"{ended} of {result.asked} trials"]
    counts += [f"{stopped} stopped early"] if stopped else []
    counts += [f"{infeasible} infeasible"] if infeasible else []
    counts += [f"{failed} failed"] if failed else []
    reused = sum(trial.result_of is not None for trial in result.trials)
    counts += [f"{reused} not run again"] if reused else []
    recipe = f" from {asked.recipe}" if asked.recipe else ""
    text = Text.assemble(
        (f"{result.name}", "bold"), f"  {result.space}{recipe} on {asked.data or asked.base.data.path}: "
    )
    text.append(", ".join(counts))
    text.append(f"; {status(result)}")
    if result.detail:
        text.append(f" ({result.detail})", style="red")
    return text


def best(result: SweepResult, trial: TrialResult) -> Text:
    """`best, trial 3: 0.871 ± 0.012, kernel=rbf width=0.31`: it stays in sight below a long table."""
    names = format.short_names(name for one in result.trials for name in one.params)
    said = [_score(result, trial), settings(result, trial, names)]
    return Text.assemble((f"best, trial {trial.id}: ", "bold green"), ", ".join(filter(None, said)))


def front(result: SweepResult) -> RenderableType:
    """With several objectives: the trials that no other one beats, each with all its values."""
    names = [objective.metric for objective in result.experiment.objectives]
    table = Rows(["not beaten", *names, "settings"], right=["not beaten", *names], wraps=True)
    short = format.short_names(name for trial in result.trials for name in trial.params)
    for trial in result.front:
        cells = [format.score(value, None) if abs(value) < 10 else f"{value:,.0f}" for value in trial.values]
        table.add(str(trial.id), *cells, settings(result, trial, short))
    return table


def audit(found: Audit) -> Text:
    """`audit of early stopping: 5 of 41 condemned trials lived on; 0 beat all of 12 that were let live (0 %, …)`."""
    text = Text("audit of early stopping: ", style="bold")
    said = f"{found.audited} of {found.condemned} condemned trials lived on to their end"
    if found.winners is not None and found.better_half is not None:
        said += (
            f"; {_share(found.winners, found)} ended better than all {found.let_live} that were let live, "
            f"{_share(found.better_half, found)} in their better half ({CONFIDENCE:.0%} intervals of the shares)"
        )
    elif not found.condemned:
        said = "no trial was condemned"
    elif found.audited:
        said += "; none that was let live is complete yet, to compare with"
    return text.append(said, style="not bold")


def _share(share: Share, found: Audit) -> str:
    """`1 (20 %, 1 to 72)`."""
    return f"{share.count} ({100 * share.count / found.audited:.0f} %, {100 * share.low:.0f} to {100 * share.high:.0f})"


def status(result: SweepResult) -> str:
    """How its driver left it; `running`, or `killed` where it did not say."""
    if result.closed is None:
        return "running" if result.live else "killed"
    return results.how_it_ended(result.closed, result.experiment)


def comparison(found: Comparison) -> RenderableType:
    """The same encoder untrained and raw pixels, and how far from them the best trial is, in standard errors."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value, stderr in (
        ("same encoder, untrained", found.untrained, found.untrained_stderr),
        ("raw pixels", found.pixels, found.pixels_stderr),
    ):
        table.add_row(name, format.score(value, stderr), found.difference_text(value, stderr))
    note = f"{found.metric}, each ± its standard error over the {found.images} images it is scored on"
    return Group(table, Text(note, style="dim"))


def label_free(found: Sequence[Agreement]) -> Text | None:
    """One line: how the measures of features that take no labels rank the trials, against the probe."""
    shown = [one for one in found if one.measure.startswith("health/features/")]
    if not shown:
        return None
    told = ", ".join(
        f"{one.measure.rpartition('/')[2]} {one.correlation:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" for one in shown
    )
    text = f"rank correlation with {shown[0].probe} over {shown[0].trials:,} trials, of features: {told}"
    return Text(text, style="dim")


def next_commands(result: SweepResult) -> Text:
    """What to type now."""
    name = shlex.quote(_name(result))
    lines: dict[str, str] = {}
    if status(result) in ("interrupted", "failed", "killed"):
        lines[f"pretune resume {name}"] = "go on with it"
    best = results.best_config_path(result.folder)
    if best.is_file():
        lines[f"pretune train {shlex.quote(relative(best))}"] = "train the best again"
    lines[f"pretune show {name}"] = "this table"
    lines[f"tensorboard --logdir {shlex.quote(relative(curves_folder(result.folder)))}"] = "curves"
    if result.winner is not None:
        lines[f"pretune finalize {name}"] = "the winner on `report`, once"
    return commands(lines)


ALIGNED = 56
"""Columns of a command up to which its comment stands below those of the others."""


def commands(lines: Mapping[str, str]) -> Text:
    """Commands to type next, each with its purpose as a comment. Print with `soft_wrap`: they are there to be copied.

    After `make sweep` the shell does not know them yet: then the first one makes them known.
    """
    activate = Path(sys.prefix) / "bin" / "activate"
    if shutil.which("pretune") is None and activate.is_file():
        lines = {f"source {shlex.quote(relative(activate))}": "once per shell", **lines}
    # One long path must not push the comments of the others out of sight.
    width = max((len(command) for command in lines if len(command) <= ALIGNED), default=0)
    text = Text()
    for command, purpose in lines.items():
        text.append(f"{command:<{width}}", style="cyan").append(f"  # {purpose}\n", style="dim")
    text.rstrip()
    return text


def curves_folder(sweep: Path) -> Path:
    """Where the sweep's TensorBoard files lie."""
    return sweep / "tensorboard"


def sweeps(found: Sequence[SweepResult], tags: Mapping[str, Sequence[str]]) -> RenderableType:
    """All sweeps of a storage folder, newest first; `tags` by name, a column where there are any."""
    tagged = any(tags.values())
    heads = ["sweep", "space", "recipe", "trials", "best", "state", *(["tags"] if tagged else [])]
    table = Rows(heads, right=["trials", "best"])
    for result in found:
        best = result.best_trial
        ended = sum(trial.state not in ("WAITING", "RUNNING") for trial in result.trials)
        table.add(
            result.name,
            result.space,
            result.experiment.recipe,
            f"{ended} of {result.asked}",
            "–" if best is None else _score(result, best),
            status(result),
            *([", ".join(tags.get(result.name, ()))] if tagged else []),
        )
    return table


def notes(found: Sequence[Note]) -> Text | None:
    """What people said of a sweep, each with its day; None where nobody did."""
    lines = []
    if tagged := note_tags(found):
        lines.append(f"tags: {', '.join(tagged)}")
    for note in found:
        if note.text:
            lines.append(f"note of {time.strftime('%Y-%m-%d %H:%M', time.localtime(note.time))}: {note.text}")
    return Text("\n".join(lines)) if lines else None


def is_foreign(path: Path) -> bool:
    """Whether something lies at `path` that is no picture of `save_picture`: it is not written over."""
    if not path.is_file():
        return path.exists()
    with path.open("rb") as file:
        return not file.read(400).lstrip().startswith(b"<svg")


def save_picture(path: Path, title: str, parts: Sequence[RenderableType], *, width: int = 100) -> None:
    """The given renderables as an SVG picture of a terminal, `width` columns wide, for a README."""
    with path.open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor")
        screen.show(console, *parts)
    path.write_text(console.export_svg(title=title), encoding="utf-8")


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def _short_reason(reason: str, metric: str) -> str:
    """A rung's reason without the value, which stands beside it; any other reason as it is."""
    rule = r"\S+ at (.+) is not among the best (\d+) of (\d+)( in bracket \d+)?"
    found = re.fullmatch(rf"{re.escape(metric)} {rule}", reason)
    if found is None:
        return reason
    level = "1 epoch" if found[1] == "1 epochs" else found[1]
    return f"not among best {found[2]} of {found[3]} at {level}{found[4] or ''}"


def _score(result: SweepResult, trial: TrialResult) -> str:
    value = trial.last_metrics.get(result.metric) if trial.value is None else trial.value
    return format.score(value, trial.last_metrics.get(f"{result.metric}_stderr"))


def _name(result: SweepResult) -> str:
    """What `pretune show` needs to find it from here: its name under ./sweeps, else its folder."""
    return result.name if result.folder.parent == Path("sweeps").absolute() else relative(result.folder)


def relative(path: Path) -> str:
    """From here where it lies below, else whole."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
