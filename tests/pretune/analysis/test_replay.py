"""One trial again: what the journal says of it against what comes out now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import replay
from pretune.analysis.replay import EpochComparison
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Ended, Epoch, Opened, Started
from pretune.execution import launch
from pretune.request import request
from tests.pretune.cli.command import pretune
from trainers.config import TrialConfig
from trainers.report import EpochReport, Outcome

CONFIG = TrialConfig.model_validate({"objective": {"alignment": {}}, "epochs": 9})
TOLD = {1: {"probe/linear": 0.5, "time/epoch_s": 1.0}, 2: {"probe/linear": 0.75, "time/epoch_s": 2.0}}


def training(values: list[float]) -> Callable[..., Outcome]:
    """A stand-in for `launch.run` that reports `values`, one an epoch, for as long as it is told to go on."""

    def run(config: TrialConfig, *, report: Callable[[EpochReport], bool], **_: Any) -> Outcome:
        for epoch, value in enumerate(values, start=1):
            metrics = {"epoch": float(epoch), "probe/linear": value, "time/epoch_s": 7.0}
            if not report(EpochReport(epoch=epoch, metrics=metrics)):
                return Outcome(state="stopped", epochs=epoch)
        return Outcome(state="diverged", epochs=len(values))

    return run


def with_one_trial(here: Path, base: TrialConfig, *, sources: dict[str, str]) -> None:
    """The sweep `mine`, with a trial of one epoch that had 0.5. `sources` are hashes of the code that it ran on."""
    experiment = Experiment(name="mine", space="kernels", base=base, storage=str(here / "sweeps"))
    with Journal(experiment.folder, new=True) as journal:
        journal.append(Opened(experiment=experiment, sources=sources))
        journal.append(Asked(number=0, params={}, distributions={}, config=base.model_dump(mode="json")))
        journal.append(Started(number=0, attempt=0, epoch=0))
        journal.append(Epoch(number=0, epoch=1, metrics={"probe/linear": 0.5}))
        journal.append(Ended(number=0, state="COMPLETE", value=0.5))


@pytest.mark.parametrize("with_epoch", [True, False], ids=["as a sweep writes it", "as an older one did"])
def test_a_trial_is_run_as_far_as_the_journal_goes_and_times_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_epoch: bool
) -> None:
    monkeypatch.setattr(launch, "run", training([0.5, 0.75, 0.9]))
    told = {epoch: ({"epoch": float(epoch)} if with_epoch else {}) | metrics for epoch, metrics in TOLD.items()}
    compared, outcome = replay.run(CONFIG, told, tmp_path, workers=1)
    assert compared == [
        EpochComparison(1, {"probe/linear": 0.5}, {"probe/linear": 0.5}),
        EpochComparison(2, {"probe/linear": 0.75}, {"probe/linear": 0.75}),
    ]
    assert not any(one.different for one in compared)
    assert outcome.state == "stopped"


def test_the_last_bit_of_a_number_and_a_number_that_is_missing_are_differences() -> None:
    assert EpochComparison(1, {"a": 0.1 + 0.2, "b": 1.0}, {"a": 0.3, "b": 1.0}).different == ["a"]
    assert EpochComparison(1, {"a": 1.0}, {"b": 1.0}).different == ["a", "b"]


def test_a_trial_whose_weights_to_start_from_are_gone_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file.pth").write_bytes(b"weights")
    values = CONFIG.model_dump(mode="json") | {"data": {"path": "digits"}}
    values["model"]["backbone"] = {"kind": "resnet18", "init": {"path": str(here / "file.pth")}}
    base = TrialConfig.model_validate(values).completed()
    with_one_trial(here, base, sources={})
    monkeypatch.setattr(request, "open_data", lambda *arguments, **options: None)
    monkeypatch.setattr(launch, "run", training([0.5]))
    assert pretune("replay", "mine", "0").exit_code == 0
    (here / "file.pth").write_bytes(b"others")
    done = pretune("replay", "mine", "0")
    assert (done.exit_code, "must have sha256" in done.stderr) == (2, True)
    (here / "file.pth").unlink()
    done = pretune("replay", "mine", "0")
    assert (done.exit_code, "model.backbone.init: there is no file" in done.stderr) == (2, True)


def test_a_difference_is_told_with_the_files_that_have_changed_since(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A term's formula that was edited is the likeliest cause."""
    base = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"path": "digits"})})
    with_one_trial(here, base, sources={"trainers/terms/mmd.py": "0" * 12})
    monkeypatch.setattr(request, "open_data", lambda *arguments, **options: None)
    monkeypatch.setattr(launch, "run", training([0.625]))
    done = pretune("replay", "mine", "0")
    assert done.exit_code == 1
    assert "DIFFERENT from epoch 1 on, first in probe/linear" in done.stderr
    assert "since the sweep last ran these changed: trainers/terms/mmd.py" in done.stderr.lower()
