"""What a run takes, part by part, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pretune.analysis.limits import Limit
from pretune.display import format
from pretune.display.screen import Rows
from trainers.profiling.figures import Figures, Spread

UNSTEADY = 1.5
"""Windows that differ more than by this factor saw something else on the machine."""


def whole(found: Figures, limit: Limit, *, recipe: str, data: str) -> list[RenderableType]:
    """Speeds, then the step, then what lies around it, and last the sentence."""
    title = (
        f"{recipe} on {data}: {found.images:,} images in batches of {found.batch_size}, {found.views} views each, "
        f"on {_place(found)}, {found.precision}"
    )
    facts = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in _facts(found):
        facts.add_row(name, value)
    return [Text(title, style="bold"), _speeds(found), _step(found), facts, *_last(found, limit)]


def _place(found: Figures) -> str:
    count = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    if found.gpu_peak_bytes is None:
        return f"a CPU of {found.cores} cores, {count} of {threads}"
    return f"{found.device}, {count} of {threads}, {found.cores} cores"


def _speeds(found: Figures) -> RenderableType:
    alone = found.synthetic_s.median
    table = Rows(["speed", "img/s", "least to most", "of the model alone"], right=["img/s", "of the model alone"])
    for name, seconds in (
        ("loader alone", found.loader_s),
        ("model alone, views on the device", found.synthetic_s),
        ("both together: training", found.real_s),
    ):
        rate = found.rate(seconds)
        spread = f"{_whole(rate.least)} to {_whole(rate.most)}"
        table.add(name, _whole(rate.median), spread, f"{alone / seconds.median:.2f}")
    return table


def _step(found: Figures) -> RenderableType:
    step = found.step
    numbers = ["forward", "backward", "ms", "of the step"]
    table = Rows(["in the step", *numbers, "least to most"], right=numbers)

    def add(name: str, seconds: float, spread: str, forward: str = "", backward: str = "", share: bool = True) -> None:
        part = f"{100 * seconds / step.whole.median:.1f} %" if share else ""
        table.add(name, forward, backward, _ms(seconds), part, spread)

    for name, term in step.terms.items():
        both = term.forward.median + term.backward.median
        spread = _spread(
            Spread(
                median=both,
                least=term.forward.least + term.backward.least,
                most=term.forward.most + term.backward.most,
                count=term.forward.count,
            )
        )
        add(f"term {name}", both, spread, _ms(term.forward.median), _ms(term.backward.median))
    add("optimizer", step.optimizer.median, _spread(step.optimizer))
    if step.sentinel is not None:
        add("sentinel", step.sentinel.median, _spread(step.sentinel))
    add("network, the rest", step.network, "")
    add("all of it", step.whole.median, _spread(step.whole))
    if step.collectives is not None:
        add("communication, meanwhile", step.collectives, "")
    return table


def _facts(found: Figures) -> Iterator[tuple[str, str]]:
    yield (
        "waiting for a batch",
        f"{_ms(found.wait_s.median)} ms of a step of {_ms(found.real_s.median)} ms, {100 * found.wait_share:.0f} %",
    )
    yield (
        "an epoch",
        f"about {_seconds(found.epoch_s)}: {found.steps:,} steps, {_seconds(found.boundary_s.median)} to begin, "
        f"probe {_seconds(found.probe_s.median)}{_every(found.probe_every)}, checkpoint "
        f"{_seconds(found.checkpoint_s.median)}{_every(found.checkpoint_every)}",
    )
    yield "at the end", f"{_seconds(found.full_probe_s)} more for the full probes"
    parts = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in found.startup_s.items())
    yield "start-up", f"{_seconds(sum(found.startup_s.values()))}: {parts}"
    gpu = "" if found.gpu_peak_bytes is None else f", GPU {format.size(found.gpu_peak_bytes)}"
    yield "memory of a worker", f"host {format.size(found.host_peak_bytes)}{gpu} at most"
    yield "checkpoint", format.size(found.checkpoint_bytes)
    for name, seconds in (("model alone", found.synthetic_s.median), ("training", found.real_s.median)):
        yield f"FLOP/s, {name}", f"{_flops(found.flops / seconds)}, {_of_peak(found, seconds)}"


def _of_peak(found: Figures, seconds: float) -> str:
    reached = found.flops / seconds
    told = f"{100 * reached / found.measured_peak:.0f} % of the {_flops(found.measured_peak)} of a large product here"
    if found.published_peak is None:
        return told
    stated = f"{100 * reached / found.published_peak:.0f} % of the {_flops(found.published_peak)} stated for the card"
    return f"{stated}, {told}"


def _last(found: Figures, limit: Limit) -> Iterator[RenderableType]:
    yield Text("")
    if found.unsteadiness > UNSTEADY:
        told = (
            f"note: windows of the same work differ by a factor of {found.unsteadiness:.1f}: something else runs "
            "on this machine, and these figures are not to be relied on; measure again when it is quiet"
        )
        yield Text(told, style="yellow")
    yield Text.assemble((f"{limit.word}: {limit.sentence}", "bold"))
    yield Text(f"what helps: {limit.remedy}")


def _every(epochs: int) -> str:
    return "" if epochs == 1 else f" each {epochs} epochs"


def _whole(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1.0 else f"{1e3 * seconds:,.0f}"


def _spread(seconds: Spread) -> str:
    return f"{_ms(seconds.least)} to {_ms(seconds.most)}"


def _seconds(seconds: float) -> str:
    """`12 ms`, `1.3 s`, `2 min 05 s`."""
    if seconds < 1.0:
        return f"{_ms(seconds)} ms"
    return f"{seconds:.2g} s" if seconds < 9.95 else format.duration(seconds)


def _flops(per_second: float) -> str:
    """`41.2 GFLOP/s`."""
    power = min(5, max(0, math.floor(math.log10(max(1.0, per_second)) / 3)))
    return f"{per_second / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}FLOP/s"
