"""Numbers are cut where their error begins."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pretune.display import format


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.87123, 0.0123, "0.871 ± 0.012"),
        (0.87123, 0.00123, "0.8712 ± 0.0012"),
        (0.5, 0.22, "0.50 ± 0.22"),
        (0.87123, None, "0.871"),
        (1.0, 0.0, "1.000"),
        (None, None, "–"),
        (math.nan, 0.1, "nan"),
    ],
)
def test_a_score_has_as_many_digits_as_its_error(value: float | None, stderr: float | None, text: str) -> None:
    assert format.score(value, stderr) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert format.duration(seconds) == text


@pytest.mark.parametrize(("per_second", "text"), [(940.4, "940 img/s"), (41_300, "41.3k img/s"), (None, "– img/s")])
def test_rates(per_second: float | None, text: str) -> None:
    assert format.rate(per_second) == text


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"objective.mmd.kernel.kind": "rbf", "objective.mmd.kernel.width": 0.31234}, "kernel=rbf width=0.312"),
        ({"objective.mmd.weight": 1.0, "objective.alignment.weight": 2.5}, "mmd.weight=1 alignment.weight=2.5"),
        ({"a.kernel.coefficients.0": 0.5, "a.kernel.coefficients.2": 3.0}, "coefficients.0=0.5 coefficients.2=3"),
        ({"a.width": 1, "b.width": 2}, "a.width=1 b.width=2"),
        ({"norm": True, "teacher": None, "widths": [8, 8]}, "norm=yes teacher=– widths=[8, 8]"),
    ],
)
def test_settings_are_called_by_what_tells_them_apart(params: dict[str, Any], line: str) -> None:
    assert format.parameters(params) == line


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 bytes"), (2_980_000, "2.98 MB"), (999_700_000, "1 GB"), (2.1e13, "21 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert format.size(count) == text
