"""Numbers as people read them: as many digits as they deserve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def score(value: float | None, stderr: float | None = None) -> str:
    """A probe value with its standard error: `0.871 ± 0.012`; two digits of the error decide where the value is cut."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if stderr is None or not math.isfinite(stderr) or stderr <= 0.0:
        return f"{value:.3f}"
    digits = min(6, max(1, 1 - math.floor(math.log10(stderr))))
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def number(value: Any) -> str:
    """A setting: three significant digits for floats, whole numbers whole, everything else as its text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(number(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={number(item)}" for key, item in value.items()) + "}"
    return str(value)


def rate(per_second: float | None) -> str:
    """Images per second: `940 img/s`, `12.3k img/s`."""
    if per_second is None or not math.isfinite(per_second):
        return "– img/s"
    if per_second >= 10_000:
        return f"{per_second / 1000:.3g}k img/s"
    return f"{per_second:,.0f} img/s"


def duration(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(count: float) -> str:
    """Bytes: `3.1 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:  # above, three digits would need an exponent
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def run_name(number: int) -> str:
    """How TensorBoard and trackers name trial `number`; the number first, as their tables cut the end of a name."""
    return f"{number:04d}-trial"


def parameters(params: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Sampled numbers on one line, `kernel=rbf bandwidth=0.31`; a choice of None is `–`.

    `names` are what the parameters are called in the line; by default the shortest endings that tell them apart.
    """
    short = short_names(params) if names is None else names
    return " ".join(f"{short[name]}={number(value)}" for name, value in params.items())


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each dotted or slashed path with the shortest ending that no other has and that says something by itself.

    A final `kind` is left out; a `weight` or a position is of something, so what comes before is kept.
    """
    whole = list(dict.fromkeys(paths))
    parts = {path: path.replace("/", ".").removesuffix(".kind").split(".") for path in whole}
    short: dict[str, str] = {}
    for path in whole:
        least = 2 if parts[path][-1] == "weight" or parts[path][-1].isdigit() else 1
        for length in range(min(least, len(parts[path])), len(parts[path]) + 1):
            ending = parts[path][-length:]
            if sum(parts[other][-length:] == ending for other in whole) == 1 or length == len(parts[path]):
                short[path] = ".".join(ending)
                break
    return short
