"""`pretune profile`: the arguments of `train`, a table or JSON, and a folder only where one is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import profile
from tests.pretune.cli.command import pretune
from tests.profiles import FIGURES
from trainers.config import TrialConfig
from trainers.profiling.figures import Figures


@pytest.fixture
def asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked to be measured; nothing is."""
    found: list[dict[str, Any]] = []

    def measured(config: TrialConfig, **more: Any) -> Figures:
        found.append({"config": config, **more})
        more["tell"]("training")
        return FIGURES

    monkeypatch.setattr(profile, "profile", measured)
    return found


def test_a_profile_is_printed_and_leaves_nothing(asked: list[dict[str, Any]]) -> None:
    found = pretune("profile", "sfrik_tiny", "--subset", "256", "--set", "batch_size=32", "--workers", "2")
    assert found.exit_code == 0, found.output
    assert "sfrik_tiny on" in found.stdout
    assert "compute-limited: the network's passes take" in found.stdout
    (one,) = asked
    assert (one["config"].batch_size, one["config"].data.subset, one["workers"], one["out"]) == (32, 256, 2, None)
    assert one["config"].data.manifest is not None
    assert os.listdir() == ["data"]


def test_json_has_all_figures_and_the_limit_and_nothing_else_is_printed(asked: list[dict[str, Any]]) -> None:
    found = pretune("profile", "sfrik_tiny", "--json", "--out", "kept")
    told = json.loads(found.stdout)
    assert told["recipe"] == "sfrik_tiny"
    assert told["limit"]["word"] == "compute-limited"
    assert told["real_s"]["median"] == FIGURES.real_s.median
    assert told["step"]["terms"]["mmd"]["backward"]["median"] == 0.004
    assert json.loads(Path("kept/profile.json").read_text()) == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sfrik_tinny", "did you mean 'sfrik_tiny'?"),
        ("sfrik_tiny --set optimizer.learning_rat=1", "did you mean 'optimizer.learning_rate'?"),
        ("sfrik_tiny --set batch_size=63 --workers 2", "must be a multiple of the 2 workers"),
        ("sfrik_tiny --data nowhere", "must be a folder that `pretune data` wrote"),
        ("sfrik_tiny --set batch_size=2000", "at most the 997 images"),
        ("sfrik_tiny --out data", "--out data must be a new or empty folder"),
        ("sfrik_tiny --out file", "--out file must be a new or empty folder"),
        ("sfrik_tiny --set precision=bf16", "precision bf16 needs a GPU, or a CPU that multiplies it"),
    ],
)
def test_what_train_refuses_is_refused(
    arguments: str, message: str, asked: list[dict[str, Any]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    (here / "file").touch()
    found = pretune("profile", *arguments.split())
    assert found.exit_code == 2, found.output
    assert message in found.stderr
    assert asked == []
    assert sorted(os.listdir()) == ["data", "file"]


def test_what_cannot_be_measured_ends_with_one(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Figures:
        raise profile.NotProfiledError("the run out of memory: GPU memory ran out")

    monkeypatch.setattr(profile, "profile", fails)
    found = pretune("profile", "sfrik_tiny", "--out", "kept")
    assert found.exit_code == 1
    assert "GPU memory ran out" in found.stderr
    assert not Path("kept").exists()
