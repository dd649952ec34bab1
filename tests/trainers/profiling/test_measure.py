"""A profile of a tiny run, whole, on the built-in digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import RECIPES
from tests.profiles import TINY
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.data.datasets import Dataset
from trainers.data.loader import Loaders
from trainers.profiling.figures import STAGES
from trainers.profiling.measure import EndedEarlyError, Extent, measure
from trainers.report import Outcome

SHORT = Extent(windows=2, window_s=0.02, turns=2, traced=2, matrix_side=64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("data"))


def tiny(**changes: Any) -> TrialConfig:
    return with_changes(RECIPES["sfrik_tiny"](), TINY | changes)


@pytest.mark.ffcv
@pytest.mark.parametrize("changes", [{}, {"data.subset": 20, "probe.labels_per_class": 2}])
def test_every_part_of_a_run_is_measured(digits: Dataset, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    stages: list[int] = []
    found = measure(
        config,
        dataset=digits,
        loaders=Loaders(),
        folder=tmp_path / "run",
        device=CPU,
        tell=stages.append,
        startup_s={"before": 1.0},
        trace=tmp_path / "trace",
        extent=SHORT,
    )
    assert set(stages) == set(range(len(STAGES)))
    assert found.images == config.data.subset or found.images == 997
    assert found.steps == found.images // 16
    for part in (found.loader_s, found.first_batch_s, found.synthetic_s, found.real_s):
        assert 0.0 < part.least <= part.median <= part.most < 5.0
        assert part.count == 2
    assert 0.0 <= found.wait_share < 1.0
    assert found.step.terms.keys() == {"alignment", "mmd"}
    assert 0.0 < found.step.network < found.step.whole.median
    assert found.step.collectives is None
    assert next(iter(found.startup_s)) == "before"
    assert all(seconds > 0.0 for seconds in found.startup_s.values())
    assert found.probe_s.median > 0.0
    assert found.checkpoint_s.median > 0.0
    assert found.checkpoint_bytes > 1e4
    assert found.host_peak_bytes > 1e8
    assert found.gpu_peak_bytes is None
    assert found.flops > 1e6
    assert found.measured_peak > 1e6
    assert (tmp_path / "trace" / "trace.json.gz").is_file()


def test_a_run_that_ends_by_itself_is_no_profile(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Outcome(state="out_of_memory", reason="GPU memory ran out", epochs=0)
    monkeypatch.setattr("trainers.profiling.measure.train", lambda *_, **__: ended)
    with pytest.raises(EndedEarlyError, match="out of memory: GPU memory ran out") as raised:
        measure(
            tiny(),
            dataset=digits,
            loaders=Loaders(),
            folder=tmp_path,
            device=CPU,
            tell=lambda stage: None,
            extent=replace(SHORT, windows=1),
        )
    assert raised.value.outcome == ended
