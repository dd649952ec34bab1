"""The report on one or several sweeps: which sections it has and what they say. Whoever reads it has never heard of
this program, so each word of ours is explained where it first stands.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pretune.analysis import ablation, account, baselines
from pretune.analysis.account import MEMORY, Account, Setting
from pretune.analysis.differences import request_of
from pretune.core.errors import RequestError
from pretune.core.packing import Packing
from pretune.core.results import SweepResult, TrialResult
from pretune.display import ablation as ablation_table
from pretune.display import fastest, figures, forecast, format, packing, protocols, tables
from pretune.display.document import (
    MARK,
    Block,
    Code,
    Document,
    Facts,
    Figures,
    Points,
    Section,
    Table,
    Text,
    as_html,
    as_markdown,
    check_installed,
)
from trainers.files import why_not_writable, write_whole
from trainers.report import METRICS

__all__ = ["check_installed", "check_target", "default_path", "document", "markdown_path", "write"]

FILE = "report.html"
BEST, LISTED, REASONS, KINDS, SETTINGS = 10, 100, 50, 8, 60
"""So many trials are shown as the best, listed one by one, listed with what went wrong; kinds of reasons; settings."""


def check_target(path: Path) -> None:
    """RequestError where a report cannot be written to `path`, or a file that is no report would be lost."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"--out must name a file that ends in .html, but is {str(path)!r}; write --out {path}.html")
    if why := why_not_writable(path.parent):
        raise RequestError(f"{path} cannot be written, as {why}; name another place: --out FILE.html")
    for one in (path, markdown_path(path)):
        if one.is_dir() or (one.exists() and not _is_ours(one)):
            raise RequestError(
                f"{one} is there already and is no report that `pretune report` has written, so that it would be lost; "
                "name another file: --out FILE.html"
            )


def default_path(results: Sequence[SweepResult]) -> Path:
    """In the sweep's own folder; of several in this one, by their names."""
    if len(results) == 1:
        return results[0].folder / FILE
    return Path(f"report-{'-'.join(result.name for result in results)}"[:100] + ".html")


def markdown_path(path: Path) -> Path:
    """Where the Markdown lies, beside the page."""
    return path.with_suffix(".md")


def write(document: Document, path: Path) -> None:
    """The page, and the Markdown beside it."""
    page = as_html(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    write_whole(markdown_path(path), as_markdown(document))


def document(accounts: Sequence[Account], *, now: float | None = None) -> Document:
    """The report on one sweep, or on several side by side. `now` is when it is made, Unix seconds."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now))
    running = [one.result.name for one in accounts if one.result.live]
    warnings = [
        f"{', '.join(running)} {'was' if len(running) == 1 else 'were'} still running when this was made, at {moment}: "
        "numbers may change until the end."
    ] * bool(running)
    warnings += [
        f"{one.result.name}: {line}" for one in accounts if one.result.later for line in one.result.later.notices()
    ]
    made = f"Made at {moment} by pretune {version('pretune')} from the journals of the sweeps named here."
    if len(accounts) == 1:
        [one] = accounts
        return Document(
            title=f"{'Ablation' if one.result.experiment.points else 'Sweep'} {one.result.name}",
            lead=_lead(one),
            made=made,
            warnings=warnings,
            sections=_sections(one),
        )
    sections = [Section("Side by side", _side_by_side(accounts))]
    for one in accounts:
        inner = [Section(part.title, part.blocks, level=3) for part in _sections(one)]
        sections += [Section(one.result.name, [Text(line) for line in _lead(one)]), *inner]
    return Document(
        title=f"{len(accounts)} sweeps: {', '.join(one.result.name for one in accounts)}",
        lead=["What was searched in each, how their best compare, and in what they differ; then each by itself."],
        made=made,
        warnings=warnings,
        sections=sections,
    )


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(200)


# --- the whole --------------------------------------------------------------------------------------------------------


def _lead(one: Account) -> list[str]:
    """The answer, in two sentences."""
    result, asked = one.result, one.result.experiment
    ended = sum(trial.state not in ("WAITING", "RUNNING") for trial in result.trials)
    recipe = f" of the recipe {asked.recipe}" if asked.recipe else ""
    data = Path(asked.data or asked.base.data.path).name or asked.base.data.path
    if asked.points:
        return [
            f"Single settings{recipe} were changed, one set of levels after another under the same seeds, to see what "
            f"each does to {result.metric} on {data}. {ended} of {result.asked} runs have ended."
        ]
    sought = "highest" if asked.maximize else "lowest"
    first = (
        f"This search tried variants{recipe} on {data}, looking for the {sought} {result.metric}. "
        f"{ended} of {result.asked} trials have ended."
    )
    best = result.winner
    if best is None:
        return [first, _no_best(result)]
    names = format.short_names(best.params)
    said = tables.settings(result, best, names) or "the recipe as it is"
    return [first, f"Best: trial {best.id} with {_score(one, best)}{_between(one, best)}: {said}."]


def _no_best(result: SweepResult) -> str:
    states = Counter(trial.state for trial in result.trials)
    if not result.trials:
        return "No trial was started yet, so there is no best one."
    if states["INFEASIBLE"] == len(result.trials):
        return "No trial could be completed: all were infeasible (they diverged, collapsed or did not fit in memory)."
    return "No trial was completed, so there is no best one: those stopped early were judged on fewer epochs."


def _sections(one: Account) -> list[Section]:
    result = one.result
    found = [
        Section("The question", _question(one)),
        Section("The levels", _levels(one)) if result.experiment.points else Section("The best trials", _best(one)),
        Section("How trials learned, and which were stopped", _curves(one)),
    ]
    if not result.experiment.points:
        names = _names(one)
        found.append(Section("What the settings do", _settings(one, names)))
        found.append(Section("What matters", _importance(one)))
    found.append(Section("What went wrong", _wrong(result)))
    found.append(Section("What it cost", _cost(one)))
    if one.forecast is not None:
        head = ["", "forecast", "fact" if one.forecast.over else "so far", "off"]
        blocks: list[Block] = [Text("What was expected before the start, and what came.")]
        blocks.append(Table(head, forecast.rows(one.forecast), right=(1, 2, 3)))
        found.append(Section("Forecast and fact", blocks))
    if result.packing is not None:
        found.append(Section("How many trials at once", _packing(result.packing)))
    if result.experiment.fastest is not None:
        found.append(Section("Which networks are compiled", fastest.blocks(result.experiment.fastest)))
    if one.evaluations:
        found.append(Section("By the papers' protocols", protocols.blocks(one.evaluations)))
    if result.winner is not None and result.winner.config is not None:
        found.append(Section("The winner's config", _winner(one, result.winner)))
    found.append(Section("To do it again", _again(one)))
    return found


# --- sections ---------------------------------------------------------------------------------------------------------


def _packing(found: Packing) -> list[Block]:
    told: list[Block] = [Text(f"{packing.line(found)}.")]
    if found.tried:
        told.append(Table(packing.head(found), packing.rows(found), right=(0, 1, 2, 3)))
    return told


def _question(one: Account) -> list[Block]:
    result, asked = one.result, one.result.experiment
    facts = [
        ("what is varied", "the levels below" if asked.points else f"the space {asked.space}"),
        ("recipe: what is varied from", asked.recipe or "a config of its own"),
        ("data set", asked.data or asked.base.data.path),
        ("images to pretrain on", "all of `train`" if asked.base.data.subset is None else str(asked.base.data.subset)),
        ("metric", f"{result.metric}, {'higher' if asked.maximize else 'lower'} is better"),
        ("epochs of a whole run", str(asked.base.epochs)),
        ("how trials are proposed", "the levels, one after another" if asked.points else asked.sampler),
        ("early stopping", _stopping(one)),
        ("state", tables.status(result) + (f" ({result.detail})" if result.detail else "")),
    ]
    if one.begun is not None:
        facts.append(("begun", time.strftime("%Y-%m-%d %H:%M %z", time.localtime(one.begun))))
    meaning = _meaning(result.metric)
    blocks: list[Block] = [
        Text(
            "Each trial pretrains one network without labels, with settings of its own, and is judged while it learns. "
            "A sweep is all trials of one question."
        ),
        Facts(facts),
    ]
    if meaning:
        blocks.append(Text(f"{result.metric}: {meaning}.", tone="note"))
    return blocks


def _stopping(one: Account) -> str:
    asked = one.result.experiment
    if asked.points or not asked.stopping.enabled:
        return "none"
    factor = f"the best one in {asked.stopping.reduction_factor:g} goes on"
    if one.rungs:
        return f"after {', '.join(f'{level:g}' for level in one.rungs)} epochs {factor}"
    return f"by {asked.budget}: {factor}"


def _meaning(metric: str) -> str:
    """What METRICS says of it, also of a name with a term's or a probe's name in it."""
    for pattern, said in METRICS.items():
        if re.fullmatch(re.sub(r"<\w+>", "[^/]+", re.escape(pattern).replace(r"\<", "<").replace(r"\>", ">")), metric):
            return said.partition(": what a search")[0]
    return ""


def _best(one: Account) -> list[Block]:
    result = one.result
    ranked = [trial for trial in result.ranked() if trial.state == "COMPLETE"][:BEST]
    if not ranked:
        return [Text(_no_best(result)), *_all(one)]
    names = format.short_names(name for trial in ranked for name in trial.params)
    rows = []
    for trial in ranked:
        stderr = one.curves[trial.id].stderr if trial.id in one.curves else None
        ends = None if trial.value is None else account.interval(trial.value, stderr)
        interval = "–" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
        cells = [str(trial.id), _score(one, trial), interval, str(trial.epochs), tables.settings(result, trial, names)]
        rows.append(cells)
    blocks: list[Block] = [
        Text("Completed trials, best first. Those that were stopped early do not compare and are not among them."),
        Table(["trial", result.metric, "95 % interval", "epochs", "settings"], rows, right=(0, 1, 2, 3), strong=(0,)),
    ]
    if any(row[2] != "–" for row in rows):
        blocks.append(
            Text(
                "The interval is what the finite number of images that were scored leaves open. It does not hold the "
                "spread between seeds, nor that the best of many trials looks a little better than it is: `pretune "
                "finalize` measures the winner on images that no search has seen.",
                tone="note",
            )
        )
    final = {name: value for name, value in one.final.items() if name.startswith("report/") and "_stderr" not in name}
    if final:
        rows = [[name, format.score(value, one.final.get(f"{name}_stderr"))] for name, value in final.items()]
        blocks.append(
            Text("On images that no search has seen (`report`, read once by `pretune finalize`), the winner has:")
        )
        blocks.append(Table(["metric", "value"], rows, right=(1,)))
    blocks += _compared(result)
    progress = figures.progress([one])
    return [*blocks, *([progress] if progress is not None else []), *_all(one)]


def _compared(result: SweepResult) -> list[Block]:
    """The best against the same encoder untrained and raw pixels, where a sweep's end has measured them."""
    try:
        found = baselines.read(result)
    except RequestError as error:
        return [Text(str(error), tone="note")]
    if found is None:
        return []
    rows = [
        ["the best trial", format.score(found.best, found.best_stderr), ""],
        ["the same network, untrained", format.score(found.untrained, found.untrained_stderr),
         found.difference_text(found.untrained, found.untrained_stderr)],
        ["raw pixels, no network", format.score(found.pixels, found.pixels_stderr),
         found.difference_text(found.pixels, found.pixels_stderr)],
    ]  # fmt: skip
    table = Table(["what it has to beat", found.metric, "difference"], rows, right=(1,), strong=(0,))
    if found.difference(found.untrained, found.untrained_stderr) < 2.0:
        claim = "The best trial is not clearly above the same network untrained: pretraining has not shown a use yet."
        return [table, Text(claim, tone="warning")]
    return [table]


def _all(one: Account) -> list[Block]:
    """The trials as a table: what the figures show, for who cannot see them."""
    ranked = one.result.ranked()
    if not ranked:
        return []
    names = format.short_names(name for trial in ranked for name in trial.params)
    rows = [
        [str(trial.id), _state(one.result, trial), str(trial.epochs), _score(one, trial),
         tables.settings(one.result, trial, names), trial.reason]
        for trial in ranked[:LISTED]
    ]  # fmt: skip
    more = f", the first {LISTED} of {len(ranked):,}" if len(ranked) > LISTED else ""
    head = ["trial", "state", "epochs", one.result.metric, "settings", "why it ended"]
    return [Table(head, rows, right=(0, 2, 3), folded=f"All trials as a table{more}")]


def _levels(one: Account) -> list[Block]:
    found = ablation.collect(one.result)
    head, rows = ablation_table.level_cells(found)
    figure = figures.levels(
        [row[0] for row in rows], [list(level.values.values()) for level in found.levels], found.metric
    )
    blocks: list[Block] = [
        Text("Each level changes the settings named; the base is the recipe itself. All were run with the same seeds."),
        Table(head, rows, right=tuple(range(1, len(head))), strong=(0,)),
        Text(ablation_table.legend(found), tone="note"),
    ]
    remarks = ablation_table.remarks(found)
    blocks += [Points(remarks)] if remarks else []
    return [*blocks, *([figure] if figure is not None else []), *_all(one)]


def _curves(one: Account) -> list[Block]:
    figure = figures.curves(one)
    if figure is None:
        return [Text(f"No trial has reported {one.result.metric} yet.")]
    stopped = sum(trial.state == "PRUNED" for trial in one.result.trials)
    if one.result.experiment.points or not one.result.experiment.stopping.enabled:
        return [figure]
    rule = (
        f"{stopped:,} of {len(one.result.trials):,} trials were stopped early, because others were better after as "
        "much training. A stopped trial might have caught up: what it would have become is not known."
    )
    return [Text(rule), figure]


def _settings(one: Account, names: Sequence[str]) -> list[Block]:
    if not names:
        return [Text("No setting varies among the trials, so there is nothing to compare.")]
    slices = figures.slices(one, names)
    if not slices:
        return [Text("Too few trials have a value to show what the settings do.")]
    blocks: list[Block | None] = [figures.parallel(one, names), figures.contour(one, names)]
    said = f"One picture per setting: up is a higher {one.result.metric}, and what rises or falls to the right matters."
    left_out = len(names) - len(slices)
    more = f" The {len(slices)} that matter most are shown, of {len(names)}." if left_out > 0 else ""
    return [*(block for block in blocks if block is not None), Text(said + more), Figures(slices)]


def _importance(one: Account) -> list[Block]:
    found = one.importance
    part = " (of these a part, drawn at random)" if found.looked_at < found.complete + found.stopped else ""
    counted = (
        f"Looked at: {found.looked_at:,} trials, {found.complete:,} completed and {found.stopped:,} stopped early"
        f"{part}. Left out: "
        f"{found.infeasible:,} infeasible, {found.failed:,} failed, {found.reused:,} that were not run again."
    )
    figure = figures.importance(found)
    if figure is None:
        return [Text(f"Nothing is said here: {found.problem}."), Text(counted, tone="note")]
    rows = [
        [
            parameter.name,
            f"{parameter.trials} of {parameter.of}",
            _interval(parameter.ped_anova),
            "–" if parameter.fanova is None else _interval(parameter.fanova),
        ]
        for parameter in found.parameters
    ]
    conditional = any(parameter.conditional for parameter in found.parameters)
    blocks: list[Block] = [figure]
    if found.advice:
        blocks.append(Points([f"{text[0].upper()}{text[1:]}." for text in found.advice]))
    head = ["parameter", "trials that have it", "PED-ANOVA", "fANOVA"]
    blocks.append(Table(head, rows, right=(1, 2, 3), folded="The same as a table"))
    blocks.append(
        Text(
            f"PED-ANOVA: how differently the best {found.best_share:.0%} of the trials and all of them are spread over "
            "a parameter, as a share of all parameters. fANOVA: the share of the variance of ranks that the parameter "
            "explains by itself. A trial that was stopped early ranks behind all that were completed, by how far it "
            "got and its last value. Intervals (95 %) come from random halves of the trials."
            + (
                " A parameter that not all trials have is judged by those that do: fANOVA's share is of the variance "
                "among them."
                if conditional
                else ""
            ),
            tone="note",
        )
    )
    return [*blocks, Text(counted, tone="note")]


def _wrong(result: SweepResult) -> list[Block]:
    wrong = [trial for trial in result.trials if trial.state in ("INFEASIBLE", "FAIL")]
    retried = [trial for trial in result.trials if trial.failures and trial.state != "FAIL"]
    again = (
        [Text(f"{len(retried):,} trials went on after a failure of a machine or worker, from their last checkpoint.")]
        if retried
        else []
    )
    if not wrong:
        return [Text("No trial diverged, collapsed or failed."), *again]
    kinds = Counter(_kind(trial) for trial in wrong)
    said = {_kind(trial): trial.reason or "no reason was told" for trial in reversed(wrong)}
    counts = [
        f"{count:,} {_ENDS[state]}{', such as' if count > 1 else ''}: {said[state, reason]}"
        for (state, reason), count in kinds.most_common(KINDS)
    ]
    names = format.short_names(name for trial in wrong for name in trial.params)
    rows = [
        [str(trial.id), trial.state, str(trial.epochs), trial.reason, tables.settings(result, trial, names)]
        for trial in wrong[:REASONS]
    ]
    more = f", the first {REASONS} of {len(wrong):,}" if len(wrong) > REASONS else ""
    return [
        Text(
            f"{len(wrong):,} of {len(result.trials):,} trials. An infeasible one is a result: its settings diverge, "
            "collapse or do not fit in memory. A failed one says nothing of its settings: a machine or a program broke."
        ),
        Points(counts),
        Table(["trial", "state", "epochs", "why", "settings"], rows, right=(0, 2), folded=f"Each of them{more}"),
        *again,
    ]


_ENDS = {"INFEASIBLE": "infeasible", "FAIL": "failed"}


def _kind(trial: TrialResult) -> tuple[str, str]:
    """How it ended, and why but for the numbers in it."""
    return trial.state, re.sub(r"[-+]?\d[\d.e+-]*", "0", trial.reason)


def _cost(one: Account) -> list[Block]:
    spent = one.cost
    if spent.whole <= 0.0:
        return [Text("The journal tells no times.")]
    facts = [
        ("time from start to end", format.duration(spent.wall)),
        ("trials at once, at most", str(spent.slots)),
        ("training, all trials", format.duration(spent.training)),
        ("probing, all trials", format.duration(spent.probing)),
        ("starting workers", format.duration(spent.starting)),
        ("waiting and the rest", format.duration(spent.other)),
    ]
    facts += [(f"{MEMORY[name]}, at most", format.size(count)) for name, count in spent.memory.items()]
    figure = figures.cost(one)
    return [Facts(facts), *([figure] if figure is not None else [])]


def _winner(one: Account, winner: TrialResult) -> list[Block]:
    assert winner.config is not None
    differ = f"Trial {winner.id} is the recipe as it is."
    if one.changed:
        count = f"{len(one.changed)} setting{'s' * (len(one.changed) > 1)}"
        differ = f"Trial {winner.id} differs from the recipe in {count}."
    blocks: list[Block] = [Text(differ)]
    if one.changed:
        blocks.append(_difference(["setting", "recipe", "winner"], one.changed))
    return [
        *blocks,
        Code(json.dumps(winner.config, indent=2), folded="The whole config, as a recipe for `pretune train`"),
    ]


def _again(one: Account) -> list[Block]:
    result = one.result
    manifest = result.experiment.base.data.manifest
    facts = [
        ("SHA-256 of the journal", one.journal_sha256[:16] + "…"),
        *([("hash of the data set's manifest", manifest[:16] + "…")] if manifest else []),
        ("seed", str(result.experiment.seed)),
    ]
    if result.winner is not None and result.winner.config is not None:
        facts.append(("SHA-256 of the winner's config", account.config_sha256(result.winner.config)[:16] + "…"))
    if one.machine:
        facts.append(("machine", one.machine))
    exact = [("SHA-256 of the journal", one.journal_sha256), *([("manifest", manifest)] if manifest else [])]
    rows = [[name, text] for name, text in (*exact, *one.versions.items())]
    rows += [[f"source {name}", text] for name, text in one.sources.items()]
    typed: list[Block] = (
        [Text("What was typed:"), Code(one.command)]
        if one.command is not None
        else [Text("The journal does not say what was typed.", tone="note")]
    )
    return [*typed, Facts(facts), Table(["", ""], rows, folded="Versions and hashes, whole")]


# --- several sweeps ---------------------------------------------------------------------------------------------------


def _side_by_side(accounts: Sequence[Account]) -> list[Block]:
    rows = []
    for one in accounts:
        result, best = one.result, one.result.winner
        states = Counter(trial.state for trial in result.trials)
        rows.append(
            [
                result.name,
                "ablation" if result.experiment.points else result.space,
                result.experiment.recipe or "–",
                f"{sum(states.values()) - states['WAITING'] - states['RUNNING']} of {result.asked}",
                result.metric,
                "–" if best is None else _score(one, best) + _between(one, best),
                "–" if best is None else str(best.id),
                format.duration(one.cost.wall),
                tables.status(result),
            ]
        )
    head = ["sweep", "space", "recipe", "trials", "metric", "best", "trial", "time", "state"]
    blocks: list[Block] = [Table(head, rows, right=(3, 5, 6))]
    metrics = {(one.result.metric, one.result.experiment.maximize) for one in accounts}
    manifests = {one.result.experiment.base.data.manifest for one in accounts}
    if len(manifests) > 1:
        blocks.append(Text("The sweeps are on different data, so their values do not compare.", tone="warning"))
    if len(metrics) > 1:
        blocks.append(Text("The sweeps look for different metrics, so their values do not compare.", tone="warning"))
    else:
        found = [figures.winners(accounts), figures.progress(accounts)]
        blocks += [figure for figure in found if figure is not None]
    names = [one.result.name for one in accounts]
    requests = account.differences([request_of(one.result.experiment) for one in accounts])
    bases = account.differences([one.result.experiment.base.model_dump(mode="json") for one in accounts])
    if not requests and not bases:
        return [*blocks, Text("All were asked with the same settings.")]
    blocks.append(Text("In what they differ, of what was asked and of the recipe that is varied from:"))
    return [*blocks, _difference(["setting", *names], (*requests, *bases))]


# --- parts ------------------------------------------------------------------------------------------------------------


def _names(one: Account) -> list[str]:
    """Parameters that vary, by how much they matter where that is known."""
    ranked = [parameter.parameter for parameter in one.importance.parameters]
    values: dict[str, set[str]] = {}
    for trial in one.result.trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(account.as_text(value))
    varying = [name for name, met in values.items() if len(met) > 1 and name in one.axes]
    return [*dict.fromkeys(name for name in ranked if name in varying), *(n for n in varying if n not in ranked)]


def _difference(head: Sequence[str], settings: Sequence[Setting]) -> Table:
    rows = [[setting.path, *(_setting(value) for value in setting.values)] for setting in settings[:SETTINGS]]
    if len(settings) > SETTINGS:
        rows.append([f"… {len(settings) - SETTINGS} more", *[""] * (len(head) - 1)])
    return Table(head, rows)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping) or (isinstance(value, float) and not math.isfinite(value)):
        return json.dumps(value)
    return format.number(value)


def _score(one: Account, trial: TrialResult) -> str:
    curve = one.curves.get(trial.id)
    value = trial.value if trial.value is not None else curve.values[-1] if curve is not None else None
    return format.score(value, None if curve is None else curve.stderr)


def _between(one: Account, trial: TrialResult) -> str:
    """` (95 % interval 0.847 to 0.895)`."""
    curve = one.curves.get(trial.id)
    ends = None if trial.value is None or curve is None else account.interval(trial.value, curve.stderr)
    return "" if ends is None else f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"


def _interval(found: Any) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _state(result: SweepResult, trial: TrialResult) -> str:
    return "unfinished" if trial.state == "RUNNING" and tables.status(result) != "running" else trial.state
