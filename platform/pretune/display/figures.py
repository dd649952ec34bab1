"""The figures of a report, as plotly's JSON. Each says in one sentence what it shows and what to see.

Colors are names of the page's own (`document.Figure`). Of many trials so many are drawn that the page stays usable, the
best always; numbers are cut to five digits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretune.analysis.account import Account, Axis, as_text, interval
from pretune.analysis.importance import Importance
from pretune.analysis.surface import smoothed
from pretune.core.results import SweepResult, TrialResult
from pretune.display import format
from pretune.display.document import Figure, label

CURVES = 200
"""So many curves are drawn one by one."""
CURVE_POINTS = 40
DRAWN = 1_000
"""So many trials the other figures draw."""
TOLD = 100
"""Up to so many trials each dot tells the trial's settings."""
PARAMETERS = 8
"""So many parameters have a slice and an axis."""
FEWEST_FOR_SURFACE = 8
COLORS = ("--accent", "--second", "--third", "--fourth", "--fifth")
SCALE = [[0.0, "--low"], [0.5, "--middle"], [1.0, "--high"]]

Layout = dict[str, Any]


def curves(account: Account) -> Figure | None:
    """The metric by epoch, with where trials were stopped."""
    result = account.result
    drawn = [trial for trial in _sample(result, CURVES) if trial.id in account.curves]
    if not drawn:
        return None
    best = result.winner
    groups: dict[str, list[TrialResult]] = {"stopped early or not finished": [], "completed": []}
    for trial in drawn:
        if best is None or trial.id != best.id:
            groups["completed" if trial.state == "COMPLETE" else "stopped early or not finished"].append(trial)
    data = []
    for name, members in groups.items():
        if members:
            x, y, text = _lines(account, members)
            color = "--accent" if name == "completed" else "--faint"
            opacity = 1.0 if len(members) < 20 else 0.55
            marker = {"size": 3, "color": color}
            data.append(
                _trace(x, y, name, color, text=text, mode="lines+markers", width=1.2, marker=marker, opacity=opacity)
            )
    stopped = [trial for trial in drawn if trial.state == "PRUNED"]
    if stopped:
        data.append(
            _trace(
                [account.curves[trial.id].epochs[-1] for trial in stopped],
                [_round(account.curves[trial.id].values[-1]) for trial in stopped],
                "stopped here",
                "--soft",
                text=_texts(stopped),
                mode="markers",
                marker={"symbol": "x-thin", "size": 7, "color": "--soft", "line": {"width": 1.5, "color": "--soft"}},
            )
        )
    if best is not None and best.id in account.curves:
        x, y, text = _lines(account, [best])
        data.append(_trace(x, y, f"best, trial {best.id}", "--best", text=text, mode="lines+markers", width=3))
    rungs = ", ".join(f"{level:g}" for level in account.rungs)
    thinned = f" Of {len(account.curves):,} trials {len(drawn)} are drawn." if len(drawn) < len(account.curves) else ""
    stopping = (
        f" At the dotted lines (after {rungs} epochs) only the better trials were allowed to go on."
        if account.rungs
        else ""
    )
    says = f"Each line is one trial, epoch by epoch.{stopping}{thinned} See how far the best is above the others."
    return Figure(
        title="Learning curves",
        says=says if result.experiment.maximize else says.replace("above", "below"),
        alt=f"Curves of {result.metric} by epoch of {len(drawn)} trials, {len(stopped)} of which were stopped early.",
        data=data,
        layout={
            "xaxis": {"title": "epoch", "rangemode": "tozero"},
            "yaxis": {"title": label(result.metric)},
            "shapes": [
                {
                    "type": "line", "x0": level, "x1": level, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": "--soft", "width": 1, "dash": "dot"},
                }
                for level in account.rungs
            ],
        },
        height=420,
    )  # fmt: skip


def progress(accounts: Sequence[Account]) -> Figure | None:
    """The best value so far, by how many trials had ended; of several sweeps one line each."""
    data = []
    for position, account in enumerate(accounts):
        trials = {trial.id: trial for trial in account.result.trials}
        better = max if account.result.experiment.maximize else min
        x, y, best = [], [], None
        for count, number in enumerate(account.ended, start=1):
            value = trials[number].value
            if value is not None and math.isfinite(value):
                improved = best is None or better(value, best) != best
                best = value if best is None else better(value, best)
                if improved:
                    x.append(count)
                    y.append(_round(best))
        if y:
            x.append(len(account.ended))
            y.append(y[-1])
            color = COLORS[position % len(COLORS)]
            dash = ("solid", "dash", "dot", "dashdot")[position // len(COLORS) % 4]
            line = {"shape": "hv", "color": color, "width": 2.5, "dash": dash}
            data.append(_trace(x, y, account.result.name, color, mode="lines+markers", line=line))
    if not data:
        return None
    metric = accounts[0].result.metric
    return Figure(
        title="Progress of the search",
        says="The best value so far, by how many trials had ended. A line that is flat for long says that more trials "
        "of the same kind would bring little.",
        alt=f"Best {metric} so far by the number of trials that had ended.",
        data=data,
        layout={
            "xaxis": {"title": "trials ended", "rangemode": "tozero"},
            "yaxis": {"title": label(f"best {metric}")},
            "showlegend": len(data) > 1,
        },
        height=300,
    )


def parallel(account: Account, names: Sequence[str]) -> Figure | None:
    """Each trial as a line over the parameters; drawn by ourselves, as plotly's own has no place for a parameter that a
    trial does not have.
    """
    shown = list(names[:PARAMETERS])
    trials = _valued(account, shown)
    if len(shown) < 2 or len(trials) < 2:
        return None
    count = max(1, round(len(trials) / 10))
    data = []
    said = dict(zip((trial.id for trial in trials), _texts(trials), strict=True))
    groups = (("the others", trials[count:], "--faint", 1.0), ("the best tenth", trials[:count], "--accent", 1.6))
    for name, members, color, width in (*groups, ("the best", trials[:1], "--best", 3.0)):
        x: list[Any] = []
        y: list[Any] = []
        text: list[str | None] = []
        for trial in members:
            for position, parameter in enumerate(shown):
                x.append(position)
                there = parameter in trial.params
                y.append(_round(account.axes[parameter].place(trial.params[parameter])) if there else -0.15)
                text.append(said[trial.id])
            x.append(None)
            y.append(None)
            text.append(None)
        if members:
            opacity = 0.45 if name == "the others" and len(members) > 60 else 1.0
            data.append(_trace(x, y, name, color, text=text, mode="lines", width=width, opacity=opacity))
    short = format.short_names(shown)
    ends = [_ends(account, name) for name in shown]
    notes = [
        {"x": position, "y": at, "text": label(text), "showarrow": False, "yanchor": anchor, "font": {"size": 10}}
        for position, (low, high) in enumerate(ends)
        for at, text, anchor in ((-0.02, low, "top"), (1.02, high, "bottom"))
    ]
    absent = any(parameter not in trial.params for trial in trials for parameter in shown)
    return Figure(
        title="All trials at once",
        says="Each line is one trial and crosses every parameter's axis at the value that it had. Where colored lines "
        "run together, good trials agree."
        + (" A line at the very bottom means that the trial does not have this parameter." if absent else ""),
        alt=f"Parallel coordinates of {len(trials)} trials over {', '.join(shown)}.",
        data=data,
        layout={
            "xaxis": {
                "tickvals": list(range(len(shown))), "ticktext": [label(_cut(short[name])) for name in shown],
                "gridcolor": "--line", "range": [-0.4, len(shown) - 0.6],
            },
            "yaxis": {"visible": False, "range": [-0.22, 1.12]},
            "annotations": notes,
        },
        height=420,
    )  # fmt: skip


def slices(account: Account, names: Sequence[str]) -> list[Figure]:
    """The value over each parameter by itself."""
    short = format.short_names(names)
    found = []
    for name in names[:PARAMETERS]:
        trials = _valued(account, [name])
        if len(trials) < 2:
            continue
        along = account.axes[name]
        data = []
        for state, symbol, color, said in (
            ("PRUNED", "circle-open", "--soft", "stopped early"),
            ("COMPLETE", "circle", "--accent", "completed"),
        ):
            members = [trial for trial in trials if trial.state == state]
            if members:
                data.append(
                    _trace(
                        [_at(trial.params[name], along) for trial in members],
                        [_round(_value(account, trial)) for trial in members],
                        said,
                        color,
                        text=_texts(members),
                        mode="markers",
                        marker={"size": 7, "symbol": symbol, "color": color, "opacity": 0.8},
                    )
                )
        axis: Layout = {"title": label(short[name])}
        if along.choices:
            count = len(along.choices)
            axis |= {"tickvals": list(range(count)), "ticktext": [label(_cut(one, 24)) for one in along.choices]}
            axis |= {"range": [-0.5, count - 0.5]}
        elif along.logarithmic:
            ticks = _ticks(along.low, along.high)
            axis |= {"type": "log", "tickvals": ticks, "ticktext": [format.number(tick) for tick in ticks]}
        found.append(
            Figure(
                title=_cut(short[name], 60),
                says="Full dots were completed, open ones stopped early.",
                alt=f"{account.result.metric} of {len(trials)} trials over {name}.",
                data=data,
                layout={"xaxis": axis, "yaxis": {"title": label(account.result.metric)}, "showlegend": False},
                height=270,
            )
        )
    return found


def contour(account: Account, names: Sequence[str]) -> Figure | None:
    """The smoothed value over the two numbers that matter most, of those that enough trials have together."""
    numbers = [name for name in names if not account.axes[name].choices]
    for first, second in [(a, b) for position, a in enumerate(numbers) for b in numbers[position + 1 :]]:
        trials = [trial for trial in _valued(account, [first, second]) if {first, second} <= trial.params.keys()]
        x = np.array([account.axes[first].place(trial.params[first]) for trial in trials])
        y = np.array([account.axes[second].place(trial.params[second]) for trial in trials])
        if len(trials) < FEWEST_FOR_SURFACE or min(len(set(x)), len(set(y))) < 3:
            continue
        grid, mean = smoothed(x, y, np.array([_value(account, trial) for trial in trials]))
        places = [_round(value) for value in grid]
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
        short = format.short_names([first, second])
        axes = {
            axis: {
                "title": label(short[name]), "tickvals": ticks, "range": [-0.03, 1.03],
                "ticktext": [format.number(account.axes[name].value(tick)) for tick in ticks],
            }
            for axis, name in (("xaxis", first), ("yaxis", second))
        }  # fmt: skip
        best = trials[0]
        metric = account.result.metric
        return Figure(
            title="The two numbers that matter most, together",
            says=f"Color is the mean {metric} of the trials near each point, dots are trials, the large one the best. "
            "Blank is where no trial was; a slope across both axes means that the two must be set together.",
            alt=f"Contours of {metric} over {first} and {second}; the best trial, {best.id}, lies at "
            f"{format.number(best.params[first])} and {format.number(best.params[second])}.",
            data=[
                {
                    "type": "contour", "x": places, "y": places, "colorscale": SCALE, "connectgaps": False,
                    "z": [[None if math.isnan(value) else _round(value) for value in row] for row in mean.tolist()],
                    "line": {"width": 0.5, "color": "--paper"}, "ncontours": 12, "hoverinfo": "skip",
                    "colorbar": {"thickness": 12, "outlinewidth": 0, "tickfont": {"color": "--soft"}},
                },
                _trace(
                    [_round(value) for value in x[1:]], [_round(value) for value in y[1:]], "trials", "--ink",
                    text=_texts(trials[1:]), mode="markers",
                    marker={"size": 5, "color": "--ink", "line": {"width": 1, "color": "--paper"}},
                ),
                _trace(
                    [_round(x[0])], [_round(y[0])], "best", "--best", text=[_told(best)], mode="markers",
                    marker={"size": 13, "color": "--best", "line": {"width": 2, "color": "--paper"}},
                ),
            ],
            layout={**axes, "showlegend": False},
            height=440,
        )  # fmt: skip
    return None


def importance(found: Importance) -> Figure | None:
    """Both methods' shares with their intervals."""
    if not found.parameters:
        return None
    ranked = list(reversed(found.parameters))
    short = format.short_names([parameter.name for parameter in ranked])
    heights = {parameter.name: place for place, parameter in enumerate(ranked)}
    data = []
    for name, method, color, shift, symbol in (
        ("variance explained (fANOVA)", "fanova", "--second", -0.14, "diamond"),
        ("what sets the best apart (PED-ANOVA)", "ped_anova", "--accent", 0.14, "circle"),
    ):
        members = [one for one in ranked if getattr(one, method) is not None]
        intervals = [getattr(one, method) for one in members]
        if members:
            error = {
                "type": "data", "symmetric": False, "color": color, "thickness": 2, "width": 0,
                "array": [_round(one.high - one.value) for one in intervals],
                "arrayminus": [_round(one.value - one.low) for one in intervals],
            }  # fmt: skip
            trace = _trace(
                [_round(one.value) for one in intervals],
                [heights[one.name] + shift for one in members],
                name,
                color,
                text=[f"{label(one.name)}: {_share(getattr(one, method))}" for one in members],
                mode="markers",
                marker={"size": 9, "color": color, "symbol": symbol},
            )
            data.append({**trace, "error_x": error})
    return Figure(
        title="Importance",
        says="The farther to the right, the more a parameter matters; the bar is the 95 % interval. One whose bars "
        "both end near 0 can be fixed, and bars that overlap say that the order is not sure.",
        alt="Importances: " + "; ".join(f"{one.name} {_share(one.ped_anova)}" for one in found.parameters) + ".",
        data=data,
        layout={
            "xaxis": {"title": "share", "tickformat": ".0%", "range": [-0.02, 1.02]},
            "yaxis": {
                "tickvals": list(range(len(ranked))), "ticktext": [label(_cut(short[one.name])) for one in ranked],
                "range": [-0.6, len(ranked) - 0.4],
            },
        },
        height=110 + 46 * len(ranked),
    )  # fmt: skip


def levels(names: Sequence[str], values: Sequence[Sequence[float]], metric: str) -> Figure | None:
    """An ablation's levels: a dot per seed and the mean."""
    rows = [(name, list(found)) for name, found in zip(names, values, strict=True) if found]
    if not rows:
        return None
    rows.reverse()
    return Figure(
        title="Levels",
        says="Each small dot is one seed, the large one the mean of a level. A level differs from the base at the top "
        "only where its dots lie apart from the base's.",
        alt="; ".join(f"{name}: mean {sum(found) / len(found):.3f}" for name, found in rows),
        data=[
            _trace(
                [_round(value) for _, found in rows for value in found],
                [place for place, (_, found) in enumerate(rows) for _ in found],
                "one seed", "--soft", mode="markers", marker={"size": 7, "color": "--soft", "symbol": "circle-open"},
            ),
            _trace(
                [_round(sum(found) / len(found)) for _, found in rows], list(range(len(rows))),
                "mean", "--accent", mode="markers", marker={"size": 12, "color": "--accent"},
            ),
        ],
        layout={
            "xaxis": {"title": label(metric)},
            "yaxis": {
                "tickvals": list(range(len(rows))), "ticktext": [label(_cut(name, 34)) for name, _ in rows],
                "range": [-0.6, len(rows) - 0.4],
            },
        },
        height=110 + 34 * len(rows),
    )  # fmt: skip


def winners(accounts: Sequence[Account]) -> Figure | None:
    """The best of each sweep with its interval."""
    rows = []
    for account in reversed(accounts):
        best = account.result.winner
        if best is not None and best.value is not None:
            stderr = account.curves[best.id].stderr if best.id in account.curves else None
            rows.append((account.result.name, best.value, interval(best.value, stderr)))
    if len(rows) < 2:
        return None
    error = {
        "type": "data", "symmetric": True, "color": "--accent", "thickness": 2, "width": 0,
        "array": [0.0 if ends is None else _round(ends[1] - value) for _, value, ends in rows],
    }  # fmt: skip
    dots = _trace(
        [_round(value) for _, value, _ in rows],
        list(range(len(rows))),
        "best trial",
        "--accent",
        mode="markers",
        marker={"size": 10, "color": "--accent"},
    )
    metric = accounts[0].result.metric
    return Figure(
        title="The best of each sweep",
        says="The dot is the best trial, the bar the 95 % interval from the images that it was scored on. Bars that "
        "overlap say that the order may be luck.",
        alt="; ".join(f"{name}: {value:.4f}" for name, value, _ in rows),
        data=[{**dots, "error_x": error}],
        layout={
            "xaxis": {"title": label(metric)},
            "yaxis": {
                "tickvals": list(range(len(rows))), "ticktext": [label(_cut(name, 34)) for name, _, _ in rows],
                "range": [-0.6, len(rows) - 0.4],
            },
            "showlegend": False,
        },
        height=100 + 40 * len(rows),
    )  # fmt: skip


def cost(account: Account) -> Figure | None:
    """Where the slots' time went, in one bar."""
    spent = account.cost
    parts = (
        ("training", spent.training, "--accent"),
        ("probing", spent.probing, "--third"),
        ("start-up", spent.starting, "--second"),
        ("waiting and the rest", spent.other, "--faint"),
    )
    if spent.whole <= 0.0:
        return None
    shares = {name: seconds / spent.whole for name, seconds, _ in parts}
    return Figure(
        title="Where the time went",
        says="All time of all slots, split into what it was spent on; what is blue trained networks.",
        alt=", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
        data=[
            {
                "type": "bar", "orientation": "h", "name": name, "x": [_round(shares[name])], "y": [""],
                "marker": {"color": color, "line": {"width": 0}}, "text": [f"{shares[name]:.0%}"],
                "textposition": "inside", "insidetextanchor": "middle", "constraintext": "inside",
                "hovertext": [f"{name}: {format.duration(seconds)}"], "hoverinfo": "text",
            }
            for name, seconds, color in parts
        ],
        layout={
            "barmode": "stack", "bargap": 0.2, "xaxis": {"tickformat": ".0%", "range": [0, 1]},
            "yaxis": {"visible": False},
            "legend": {"traceorder": "normal", "orientation": "h", "y": 1.05, "yanchor": "bottom"},
        },
        height=170,
    )  # fmt: skip


# --- parts ------------------------------------------------------------------------------------------------------------


def _trace(
    x: Sequence[Any],
    y: Sequence[Any],
    name: str,
    color: str,
    *,
    text: Sequence[str | None] = (),
    mode: str,
    width: float = 1.4,
    **more: Any,
) -> dict[str, Any]:
    """A trace of plotly's scatter."""
    hover = {"text": list(text), "hovertemplate": "%{text}<extra></extra>"} if text else {}
    line = {"color": color, "width": width}
    return (
        {"type": "scatter", "x": list(x), "y": list(y), "name": label(name), "mode": mode, "line": line} | hover | more
    )


def _lines(account: Account, trials: Sequence[TrialResult]) -> tuple[list[Any], list[Any], list[str | None]]:
    """Curves as one broken line, each thinned to its ends and what lies evenly between."""
    x: list[Any] = []
    y: list[Any] = []
    text: list[str | None] = []
    for trial in trials:
        curve = account.curves[trial.id]
        kept = np.unique(np.linspace(0, len(curve.epochs) - 1, CURVE_POINTS).round().astype(int)).tolist()
        x += [*(curve.epochs[position] for position in kept), None]
        y += [*(_round(curve.values[position]) for position in kept), None]
        text += [*([f"trial {trial.id}"] * len(kept)), None]
    return x, y, text


def _sample(result: SweepResult, most: int) -> list[TrialResult]:
    """All trials, or the best half of so many and others at random, always the same."""
    ranked = result.ranked()
    if len(ranked) <= most:
        return ranked
    others = random.Random(0).sample(range(most // 2, len(ranked)), most - most // 2)
    return [*ranked[: most // 2], *(ranked[position] for position in sorted(others))]


def _valued(account: Account, names: Sequence[str]) -> list[TrialResult]:
    """Trials that have a value and one of the parameters at least, best first; of many as many as are drawn."""
    drawn = [
        trial
        for trial in _sample(account.result, DRAWN)
        if trial.state in ("COMPLETE", "PRUNED") and trial.id in account.curves
    ]
    return [trial for trial in drawn if math.isfinite(_value(account, trial)) and set(names) & trial.params.keys()]


def _value(account: Account, trial: TrialResult) -> float:
    return account.curves[trial.id].values[-1] if trial.value is None else trial.value


def _at(value: Any, along: Axis) -> Any:
    if along.choices:
        return along.choices.index(as_text(value))
    return _round(value) if isinstance(value, float) else value


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers along a logarithmic axis: decades, or 1, 2 and 5 of each where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0,) if len(decades) > 3 else (1.0, 2.0, 5.0)
    every = max(1, len(decades) // 6)
    found = [step * 10.0**decade for decade in decades[::every] for step in steps]
    return [float(f"{tick:.3g}") for tick in found if low * 0.99 <= tick <= high * 1.01]


def _ends(account: Account, name: str) -> tuple[str, str]:
    """What stands at the two ends of a parameter's axis: of choices the first and the last."""
    along = account.axes[name]
    if along.choices:
        return _cut(along.choices[0], 12), _cut(along.choices[-1], 12)
    return format.number(along.low), format.number(along.high)


def _texts(trials: Sequence[TrialResult]) -> list[str]:
    """What is read where the pointer rests; of many trials their numbers, or the page would be mostly that."""
    return [_told(trial) if len(trials) <= TOLD else f"trial {trial.id}" for trial in trials]


def _told(trial: TrialResult) -> str:
    lines = [f"trial {trial.id}, {trial.epochs} epochs"]
    short: Mapping[str, str] = format.short_names(trial.params)
    lines += [
        f"{_cut(short[name], 28)}={_cut(format.number(value), 28)}" for name, value in list(trial.params.items())[:9]
    ]
    return "<br>".join(map(label, lines))


def _share(found: Any) -> str:
    return f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def _cut(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _round(value: float) -> float | None:
    """Five digits are more than a pixel. What is not finite has no place in a figure."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
