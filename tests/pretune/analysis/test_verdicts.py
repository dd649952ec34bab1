"""Whether verdicts are true, in studies whose truth is known: a small part of what the benchmark counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import simulate_ablation
from benchmarks.simulate_ablation import EFFECT, LEVELS, study


@pytest.mark.parametrize("options", [{"seeds": 4}, {"seeds": 2, "max_seeds": 8}])
def test_what_does_nothing_hardly_ever_helps_or_hurts(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    wrong = sum(bool({"helps", "hurts"} & set(study(rng, [0.0] * LEVELS, **options).verdicts)) for _ in range(200))
    # Of 200, 18 or more are seen in one of 200 times at most if the truth is 5 %.
    assert wrong < 18


def test_intervals_cover_a_known_effect_and_more_seeds_see_it_more_often() -> None:
    rng = np.random.default_rng(1)
    studies = [study(rng, [EFFECT], seeds=8) for _ in range(200)]
    assert 181 <= sum(map(simulate_ablation._covers, studies)) <= 199
    few = sum(study(rng, [EFFECT], seeds=3).verdicts == ["helps"] for _ in range(100))
    assert few < sum(one.verdicts == ["helps"] for one in studies[:100])


def test_looking_early_takes_fewer_seeds_for_a_large_effect() -> None:
    rng = np.random.default_rng(2)
    looks = [study(rng, [0.08], seeds=3, max_seeds=20).standings[1] for _ in range(30)]
    assert {standing.finding for standing in looks} == {"helps"}
    assert np.mean([standing.look for standing in looks]) < 9


def test_the_benchmark_says_what_is_wanted_and_seen() -> None:
    rows = list(simulate_ablation.rows(2, 0))
    assert all(len(row) == 4 for row in rows)
    assert {wanted for _, wanted, _, _ in rows} == {"at most 5 %", "at most 2.5 %", "93 to 97 %", "printed"}
