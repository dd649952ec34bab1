"""A profile is measured in processes of its own and leaves nothing but what was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import profile
from pretune.analysis.profile import NotProfiledError
from pretune.core.errors import RequestError
from pretune.execution import family, launch
from pretune.request import request
from search_spaces import RECIPES
from tests.profiles import TINY, figures, runs_end
from tests.trainers.profiling.test_measure import SHORT
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.report import Outcome


@pytest.fixture
def tiny(here: Path) -> TrialConfig:
    bound, _ = request.with_data(with_changes(RECIPES["sfrik_tiny"](), TINY), "digits", root=here / "data")
    return bound


@pytest.mark.slow
@pytest.mark.ffcv
@pytest.mark.timeout(900)
def test_two_workers_measure_together_and_say_what_they_tell_each_other(tiny: TrialConfig, here: Path) -> None:
    stages: list[str] = []
    found = profile.profile(tiny, workers=2, out=here / "out", tell=stages.append, extent=SHORT)
    assert found.workers == 2
    assert found.step.collectives is not None
    assert found.step.collectives > 0.0
    assert next(iter(found.startup_s)) == profile.BEGUN
    assert stages[0] == "start-up"
    assert sorted(path.name for path in (here / "out").iterdir()) == ["tensorboard", "trace.json.gz"]
    traces = sorted(path.name.split(".")[0] for path in (here / "out" / "tensorboard").iterdir())
    assert traces == ["rank-0", "rank-1"]
    assert sorted(os.listdir()) == ["data", "out"]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (Outcome(state="out_of_memory", reason="can't allocate memory", epochs=0), "out of memory: can't allocate"),
        (family.WorkerFailedError("rank 0 died with exit code -9"), "exit code -9"),
        (family.HungError("rank 0 hung: no sign of life for 90 s"), "hung"),
    ],
)
def test_what_cannot_be_profiled_says_why(
    tiny: TrialConfig, ends: Outcome | Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_end(monkeypatch, ends)
    with pytest.raises(NotProfiledError, match=said):
        profile.profile(tiny, out=Path("out"))
    assert not Path("out").exists()


def test_a_trace_is_kept_only_where_it_was_asked_for(tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(config: TrialConfig, *, folder: Path, progress: Any, make_train: Any, **more: Any) -> Outcome:
        trace, _ = make_train.args
        asked.append((more["workers"], more["apart"]))
        progress(0, 0)
        (folder / profile.FIGURES).write_text(figures(startup_s={"first step": 1.0}).model_dump_json())
        if trace is not None:
            trace.mkdir()
            (trace / "trace.json.gz").write_bytes(b"steps")
        return Outcome(state="complete", epochs=1)

    monkeypatch.setattr(launch, "run", run)
    found = profile.profile(tiny)
    assert os.listdir() == ["data"]
    assert list(found.startup_s) == [profile.BEGUN, "first step"]
    profile.profile(tiny, workers=2, out=Path("some/where"))
    assert Path("some/where/trace.json.gz").read_bytes() == b"steps"
    assert asked == [(1, True), (2, True)]


def test_bf16_is_refused_where_no_processor_has_it(tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    rounded = tiny.model_copy(update={"precision": "bf16"})
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    profile.check_device(rounded, 1)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False})
    profile.check_device(tiny, 1)
    with pytest.raises(RequestError, match="precision bf16 needs a GPU, or a CPU that multiplies it"):
        profile.check_device(rounded, 1)
