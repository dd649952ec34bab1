"""What an earlier version stored still opens and goes on: sweeps, checkpoints, data. No code rewrites `tests/stored`.

Where possible this is asked on the command line: what lies in the packages may move, what a user types may not.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.core import journal
from pretune.core.history import History, TrialHistory
from trainers import checkpoint
from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.data.loader import Loaders
from trainers.encoder import load_encoder
from trainers.report import EpochReport
from trainers.train import train

STORED = Path(__file__).resolve().parent.parent / "stored"
PLACE = Path("/tmp/pretune-stored")
"""Where the sweeps were run: their journals hold absolute paths, and each line has a checksum."""
SWEEPS = PLACE / "sweeps"
NAMES = ("complete", "interrupted", "ablation")
ENDS = {
    "complete": ["INFEASIBLE", "COMPLETE", "PRUNED", "COMPLETE", "PRUNED", "PRUNED", "PRUNED"],
    "interrupted": ["COMPLETE", "RUNNING"],
    "ablation": ["COMPLETE"] * 8,
}
SUMMARIES = {
    "complete": "7 of 7 trials, 4 stopped early, 1 infeasible; finished",
    "interrupted": "1 of 4 trials; killed",
    "ablation": "8 of 8 trials; finished",
}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh copy of everything that is stored, where it was written and we work; other processes wait their turn."""
    with PLACE.with_name(f"{PLACE.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        try:
            shutil.copytree(STORED / "sweeps", SWEEPS)
            with tarfile.open(STORED / "data" / "digits.tar.gz") as archive:
                archive.extractall(PLACE / "data", filter="data")
            monkeypatch.chdir(PLACE)
            yield PLACE
        finally:
            shutil.rmtree(PLACE, ignore_errors=True)


def pretune(*arguments: str) -> str:
    """What `pretune …` prints, run in this process, which has imported what it needs; it must end with 0."""
    done = CliRunner().invoke(app, list(arguments), prog_name="pretune", env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.stdout


def as_typed(*arguments: str) -> str:
    """What it prints in a process of its own, as somebody types it."""
    typed = [sys.executable, "-m", "pretune", *arguments]
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(typed, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def shown(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pretune("show", name, "--json", "--storage", str(SWEEPS)))
    return found


def lines(name: str, root: Path = SWEEPS) -> list[dict[str, Any]]:
    """The journal's records as they lie on the disk."""
    text = (root / name / "journal.jsonl").read_text()
    return [json.loads(line)["record"] for line in text.splitlines()]


def trials(name: str) -> list[TrialHistory]:
    return History(journal.read(SWEEPS / name)).trials


def as_told_then(new: Any, old: Any) -> Any:
    """`new` as far as `old` tells it, at any depth: more may be told by now, and a parameter may have another name."""
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: as_told_then(value, old[key]) for key, value in named(new, old).items() if key in old}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [as_told_then(item, other) for item, other in zip(new, old, strict=True)]
    return new


def named(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """`new`, its `params` by the names that `old` has; they keep their order."""
    if "params" not in old or "params" not in new or len(new["params"]) != len(old["params"]):
        return new
    return {**new, "params": dict(zip(old["params"], new["params"].values(), strict=True))}


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_the_stored_sweeps_have_every_kind_of_record_and_end() -> None:
    records = {name: lines(name, STORED / "sweeps") for name in NAMES}
    kinds = {record["kind"] for found in records.values() for record in found}
    assert kinds == {"opened", "asked", "started", "epoch", "attempt", "ended", "extended", "resumed", "closed"}
    states = {record.get("state") for found in records.values() for record in found}
    assert states >= {"COMPLETE", "PRUNED", "INFEASIBLE"}
    for found in records.values():
        assert (found[0]["kind"], found[0]["format"], found[0]["versions"]["pretune"]) == ("opened", 1, "0.1.0")
    left = records["interrupted"]
    assert left[-1]["kind"] == "epoch", "its driver was killed"
    asked = sum(record["kind"] == "asked" for record in left)
    assert asked < left[0]["experiment"]["trials"], "and had not asked for all of its trials"


def test_what_is_stored_is_small_and_names_no_machine() -> None:
    contents = {path.name: path.read_bytes() for path in STORED.rglob("*") if path.is_file()}
    assert sum(len(content) for content in contents.values()) < 1_500_000
    with tarfile.open(STORED / "data" / "digits.tar.gz") as archive:
        contents |= {member.name: file.read() for member in archive if (file := archive.extractfile(member))}
        assert {(member.uid, member.uname) for member in archive} == {(0, "")}
    places = [str(Path.home() / "x")[:-1], f"{STORED.parent.parent}/"]
    foreign = [*(place.encode() for place in places), b"site-packages", b"127.0.0.1"]
    assert [(name, text) for name, content in contents.items() for text in foreign if text in content] == []
    hosts = [record["host"] for name in NAMES for record in lines(name, STORED / "sweeps") if "host" in record]
    assert {(host["node"], host["command"]) for host in hosts} == {("node", "pretune")}


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_sweep_is_shown_as_it_was(place: Path, name: str) -> None:
    expected = json.loads((STORED / "shown" / f"{name}.json").read_text())
    expected.pop("ablation", None)  # the next test's
    history = trials(name)
    assert [trial.state for trial in history] == ENDS[name]
    assert [trial.value for trial in history] == [trial["value"] for trial in expected["trials"]]
    found = shown(name)
    assert as_told_then(found, expected) == expected
    text = pretune("show", name, "--storage", str(SWEEPS))
    assert SUMMARIES[name] in " ".join(text.split())


def test_a_stored_ablation_has_the_table_that_it_had(place: Path) -> None:
    expected = json.loads((SWEEPS / "ablation" / "ablation.json").read_text())["levels"]
    found = shown("ablation")["ablation"]["levels"]
    for name in ("settings", "values", "seeds", "mean", "difference", "difference_stderr", "pairs"):
        assert [level[name] for level in found] == [level[name] for level in expected], name
    text = pretune("show", "ablation", "--storage", str(SWEEPS))
    assert all(level in text for level in ("mmd.weight=2", "widths=[32, 16]", "0.335", "+0.020", "not enough seeds"))


def test_stored_sweeps_are_listed(place: Path) -> None:
    found = {entry["name"]: entry for entry in json.loads(as_typed("show", "--json", "--storage", str(SWEEPS)))}
    assert {name: entry["state"] for name, entry in found.items()} == {
        "complete": "finished",
        "interrupted": "killed",
        "ablation": "finished",
    }


def test_a_stored_data_set_opens_and_every_byte_is_as_its_manifest_says(place: Path) -> None:
    dataset = datasets.open_dataset(place / "data" / "digits")
    datasets.verify(dataset)
    assert dataset.manifest_hash == lines("complete")[0]["experiment"]["base"]["data"]["manifest"]
    assert (dataset.train_count, dataset.select_count, dataset.report_count, dataset.class_count) == (997, 500, 300, 10)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.ffcv
def test_the_winner_of_a_stored_sweep_is_finalized(place: Path) -> None:
    found = shown("complete")
    value = found["trials"][found["best"]]["value"]
    record = json.loads(pretune("finalize", "complete", "--json", "--storage", str(SWEEPS)))
    assert (record["report_reads"], record["searched_value"]) == (1, value)
    metrics = record["reads"][0]["metrics"]
    # The stored encoder, probed again: what the search saw, but for what another CPU rounds otherwise.
    assert metrics["probe/linear"] == pytest.approx(value, abs=0.03)
    assert 0.2 < metrics["report/linear"] < 1.0


def test_a_stored_checkpoint_is_an_encoder(place: Path) -> None:
    best = trials("complete")[shown("complete")["best"]]
    assert best.checkpoint is not None
    encoder = load_encoder(best.checkpoint.path)
    with torch.no_grad():
        features = encoder(torch.zeros(2, 3, 8, 8))
    assert features.shape == (2, 32)


@pytest.mark.ffcv
def test_training_goes_on_from_a_stored_checkpoint(place: Path) -> None:
    trial = trials("interrupted")[-1]
    assert trial.checkpoint is not None
    begun = trial.checkpoint.epoch
    assert checkpoint.load(trial.checkpoint)["counters"]["epoch"] == begun == trial.last_epoch
    config = TrialConfig.model_validate(trial.config)
    told: list[EpochReport] = []

    def report(epoch: EpochReport) -> bool:
        told.append(epoch)
        return True

    outcome = train(
        config,
        dataset=datasets.open_dataset(Path(config.data.path), expected_hash=config.data.manifest),
        loaders=Loaders(),
        folder=place / "run",
        report=report,
        resume=trial.checkpoint,
        device=torch.device("cpu"),
    )
    assert outcome.state == "complete"
    assert [epoch.epoch for epoch in told] == list(range(begun + 1, config.epochs + 1))
    # It counts on: 4 steps an epoch of 32 images in two views each.
    assert told[-1].metrics["budget/views"] == 4 * 32 * 2 * config.epochs
    assert told[-1].metrics["loss/total"] < trial.epochs[1]["loss/total"]


@pytest.mark.ffcv
def test_the_best_config_of_a_stored_sweep_trains(place: Path) -> None:
    best = str(SWEEPS / "complete" / "best.json")
    text = pretune("train", best, "--epochs", "1", "--subset", "64", "--out", str(place / "run"))
    assert "epoch 1 of 1: probe/linear" in text


@pytest.mark.ray
def test_a_stored_sweep_whose_driver_was_killed_goes_on_to_its_end(place: Path) -> None:
    before, known = shown("interrupted"), (SWEEPS / "interrupted" / "journal.jsonl").read_bytes()
    text = as_typed("resume", "interrupted", "--accept-changes", "--storage", str(SWEEPS))
    for line in ("same encoder, untrained", "raw pixels", "/interrupted/best.json"):
        assert line in text, "it closes as any sweep does"
    after = shown("interrupted")
    assert (SWEEPS / "interrupted" / "journal.jsonl").read_bytes().startswith(known), "nothing is rewritten"
    assert len(after["trials"]) == lines("interrupted")[0]["experiment"]["trials"]
    assert {trial["state"] for trial in after["trials"]} <= {"COMPLETE", "PRUNED"}
    finished, unfinished = before["trials"]
    assert after["trials"][0] == finished
    assert (after["trials"][1]["params"], after["trials"][1]["epochs"] > unfinished["epochs"]) == (
        unfinished["params"],
        True,
    )
    starts = [line["epoch"] for line in lines("interrupted") if line["kind"] == "started" and line["number"] == 1]
    assert starts == [0, unfinished["epochs"]], "it went on from its checkpoint"


@pytest.mark.ray
@pytest.mark.slow
def test_trials_are_added_to_a_stored_sweep(place: Path) -> None:
    before = shown("complete")["trials"]
    as_typed("resume", "complete", "--trials", str(len(before) + 1), "--accept-changes", "--storage", str(SWEEPS))
    *same, added = shown("complete")["trials"]
    assert same == before
    assert added["epochs"] > 0
