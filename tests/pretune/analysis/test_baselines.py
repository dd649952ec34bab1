"""The best trial against what it has to beat, and one real sweep from the command line to its closing screen."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pretune.analysis import baselines
from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
from pretune.execution import run_folder
from search_spaces import RECIPES
from tests.pretune.found import COMPARED
from trainers.config import TrialConfig


def sweep_with_best(folder: Path, value: float) -> results.SweepResult:
    config = RECIPES["sfrik_tiny"]()
    with Journal(folder, new=True) as journal:
        journal.append(Opened(experiment=Experiment(name=folder.name, space="kernels", base=config, trials=1)))
        journal.append(Asked(number=0, params={}, distributions={}, config=config.model_dump(mode="json")))
        journal.append(Started(number=0, attempt=0, epoch=0))
        journal.append(Epoch(number=0, epoch=1, metrics={"probe/linear": value, "probe/linear_stderr": 0.03}))
        journal.append(Ended(number=0, state="COMPLETE", value=value))
        journal.append(Closed(reason="finished"))
    return results.read(folder)


def test_a_difference_is_counted_in_its_own_standard_errors() -> None:
    # sqrt(0.03^2 + 0.04^2) = 0.05
    assert COMPARED.difference(COMPARED.untrained, COMPARED.untrained_stderr) == pytest.approx(6.0)
    assert COMPARED.difference_text(0.6, 0.04) == "best is 6.0 standard errors above"
    assert COMPARED.difference_text(0.95, 0.04) == "best is 1.0 standard errors below"
    sure = COMPARED.model_copy(update={"best_stderr": 0.0})
    assert math.isinf(sure.difference(0.6, 0.0))
    assert sure.difference_text(0.6, 0.0) == "best is above"
    assert sure.difference(sure.best, 0.0) == 0.0
    assert sure.difference_text(sure.best, 0.0) == "best is equal"


def test_a_comparison_is_computed_once_and_belongs_to_one_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {f"{who}/linear{what}": 0.5 for who in ("untrained", "pixels") for what in ("", "_stderr")}
    calls: list[TrialConfig] = []

    def measure(config: TrialConfig) -> tuple[dict[str, float], int]:
        calls.append(config)
        return measured, 500

    monkeypatch.setattr(baselines, "_measure", measure)
    result = sweep_with_best(tmp_path / "one", 0.9)
    assert baselines.read(result) is None
    first = baselines.compare(result)
    assert first is not None
    assert (first.best, first.untrained, first.images) == (0.9, 0.5, 500)
    assert baselines.compare(result) == first == baselines.read(result)
    assert len(calls) == 1
    other = sweep_with_best(tmp_path / "two", 0.8)
    (tmp_path / "two" / baselines.FILE).write_text((tmp_path / "one" / baselines.FILE).read_text())
    assert baselines.read(other) is None, "it was measured beside another best"


def test_a_damaged_comparison_is_named(tmp_path: Path) -> None:
    result = sweep_with_best(tmp_path / "one", 0.9)
    (tmp_path / "one" / baselines.FILE).write_text("{}")
    with pytest.raises(RequestError, match=r"baselines\.json"):
        baselines.read(result)


@pytest.mark.ray
@pytest.mark.ffcv
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_one_command_sweeps_and_its_best_config_replays_to_the_same_accuracy(tmp_path: Path) -> None:
    def pretune(*arguments: str) -> str:
        command = [sys.executable, "-m", "pretune", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    settings = ["model.backbone.width=8", "views.*.size=8"]
    options = [part for setting in settings for part in ("--set", setting)]
    text = pretune("sweep", "kernels", "--trials", "2", "--epochs", "1", "--slots", "1", "--name", "small", *options)
    folder = tmp_path / "sweeps" / "small"
    result = results.read(folder)
    assert [trial.state for trial in result.trials] == ["COMPLETE", "COMPLETE"]
    assert "2 of 2 done, 0 running" in text, "plain lines while it runs"
    assert "small  kernels from sfrik_tiny on digits: 2 of 2 trials; finished" in " ".join(text.split(" \n"))
    assert "same encoder, untrained" in text
    assert "raw pixels" in text
    assert "pretune train sweeps/small/best.json" in text
    assert "Traceback" not in text
    assert len(list((folder / "tensorboard").glob("*/events.*"))) == 2
    shown = json.loads(pretune("show", "small", "--json"))
    assert shown["best"] == result.best

    assert "EQUAL: every number of every epoch" in pretune("replay", "small", "0")

    pretune("train", "sweeps/small/best.json", "--out", "again")
    best = result.best_trial
    assert best is not None
    replayed = run_folder.read(tmp_path / "again")[-1].metrics
    for name in ("probe/linear", "probe/knn", "loss/total"):
        assert replayed[name] == best.last_metrics[name]
