"""`pretune show`: sweeps, and the trials of one, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import importance
from pretune.display import tables
from tests.pretune.cli.command import COMMAND, pretune, synthetic_sweep
from tests.pretune.display.searched import searched
from trainers import storage


def test_show_json_has_the_shape_that_is_promised(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    found = json.loads(pretune("show", "known", "--json").stdout)
    assert set(found) >= {"name", "space", "metric", "best", "trials"}
    assert (found["name"], found["space"], found["metric"], found["best"]) == ("known", "kernels", "probe/linear", 0)
    first, second, third = found["trials"]
    assert first == {
        "id": 0,
        "state": "COMPLETE",
        "epochs": 3,
        "value": 0.81,
        "params": {"objective.mmd.kernel": "rbf", "objective.mmd.kernel.gamma": 1.5},
        "reason": "",
        "last_value": 0.81,
        "last_stderr": 0.0123,
        "curve": [
            {"epoch": epoch, "value": value, "stderr": 0.0123} for epoch, value in enumerate([0.5, 0.7, 0.81], start=1)
        ],
        "seconds": 6.0,
        "probe_seconds": 1.5,
        "slot_bytes": 3e8,
    }
    assert (second["state"], second["epochs"]) == ("PRUNED", 1)
    assert (second["value"], second["last_value"]) == (None, 0.4)
    assert "not among the best" in second["reason"]
    assert third["state"] == "INFEASIBLE"
    assert (third["last_value"], third["curve"], third["seconds"], third["slot_bytes"]) == (None, [], None, None)
    assert found["commands"] == [COMMAND], "exactly as it was typed"


def test_show_says_what_was_typed_with_the_program_by_its_name(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    typed = "pretune sweep kernels --trials 3 --set 'views.0.crop_scale=[0.3, 1]'"
    assert f"typed: {typed}" in pretune("show", "known").stdout.splitlines()


def test_show_lists_sweeps(here: Path) -> None:
    assert json.loads(pretune("show", "--json").stdout) == []
    synthetic_sweep(here / "sweeps" / "known")
    synthetic_sweep(here / "sweeps" / "stopped", closed=None)
    found: list[dict[str, Any]] = json.loads(pretune("show", "--json").stdout)
    by_name = {entry["name"]: entry for entry in found}
    assert by_name["known"]["state"] == "finished"
    assert by_name["known"]["value"] == 0.81
    assert by_name["stopped"]["state"] == "killed"
    assert "known" in pretune("show").stdout


def test_show_prints_the_trials_best_first_and_what_to_type_next(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    text = pretune("show", "known").stdout
    lines = text.splitlines()
    rows = [line.split()[0] for line in lines if any(state in line for state in ("COMPLETE", "PRUNED", "INFEASIBLE"))]
    assert rows == ["0", "1", "2"]
    assert "0.810 ± 0.012" in text
    assert "kernel=rbf gamma=1.5" in text
    assert "not among best 1 of 2 at 1 epoch" in " ".join(text.split())
    assert "loss/mmd was not finite at step 3" in " ".join(text.split())
    assert "pretune finalize known" in text
    assert "tensorboard --logdir sweeps/known/tensorboard" in text
    # Where there is no terminal nothing is wrapped.
    assert any(line.endswith("kernel=rbf gamma=1.5") for line in lines)
    assert any(line.endswith("loss/mmd was not finite at step 3") for line in lines)


def test_an_interrupted_sweep_says_how_to_go_on(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known", closed="interrupted")
    assert "pretune resume known" in pretune("show", "known").stdout


def test_a_sweep_is_found_by_its_folder_too(here: Path) -> None:
    folder = synthetic_sweep(here / "elsewhere" / "known")
    assert pretune("show", str(folder)).exit_code == 0
    assert pretune("show", "known", "--storage", "elsewhere").exit_code == 0
    assert "pretune finalize elsewhere/known" in pretune("show", str(folder)).stdout


def test_show_draws_a_picture(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    assert pretune("show", "known", "--svg", "known.svg").exit_code == 0
    picture = (here / "known.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert "COMPLETE" in picture


def test_a_sweep_in_a_bucket_is_shown_where_its_folder_never_was(here: Path, bucket: str) -> None:
    synthetic_sweep(here / "elsewhere" / "known")
    lines = (here / "elsewhere" / "known" / "journal.jsonl").read_bytes()
    remote = storage.join(bucket, "known")
    storage.write(storage.join(remote, "journal", "00000001-00000000.jsonl"), lines)
    result = pretune("show", remote, "--json")
    assert result.exit_code == 0, result.output
    assert [trial["id"] for trial in json.loads(result.stdout)["trials"]] == [0, 1, 2]
    assert (here / "sweeps" / "known" / "journal.jsonl").read_bytes() == lines
    by_name = pretune("show", "known", "--storage", bucket, "--json")
    assert by_name.stdout == result.stdout
    missing = pretune("show", "nothing", "--storage", bucket)
    assert missing.exit_code == 2
    assert "it has no journal" in missing.stderr


def test_a_broken_journal_hides_no_other_sweep(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    broken = synthetic_sweep(here / "sweeps" / "broken") / "journal.jsonl"
    content = broken.read_bytes()
    broken.write_bytes(content[:-20] + bytes([content[-20] ^ 4]) + content[-19:])
    listed = pretune("show")
    assert listed.exit_code == 0
    assert "known" in listed.stdout
    assert "note: sweep broken cannot be shown: " in listed.stdout
    assert "is corrupt" in listed.stdout
    by_name = {entry["name"]: entry for entry in json.loads(pretune("show", "--json").stdout)}
    assert by_name["known"]["best"] == 0
    assert by_name["broken"]["state"] == "unreadable"
    assert "line 15 of 15 is corrupt" in by_name["broken"]["problem"]
    assert pretune("show", "broken").exit_code == 2
    assert pretune("show", "known").exit_code == 0


@pytest.mark.parametrize("left", ["journal.jsonl", "journal.lock"])
def test_a_sweep_that_died_before_its_first_record_is_listed_with_what_to_type(here: Path, left: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    (here / "sweeps" / "dead" / "logs").mkdir(parents=True)
    (here / "sweeps" / "dead" / left).touch()
    listed = pretune("show")
    assert listed.exit_code == 0
    assert "note: sweep dead cannot be shown: the sweep in " in listed.stdout
    assert "command again, with --name dead" in listed.stdout
    [entry] = [entry for entry in json.loads(pretune("show", "--json").stdout) if entry["name"] == "dead"]
    assert "was never started" in entry["problem"]
    named = pretune("show", "dead")
    assert named.exit_code == 2
    assert "ended before the first record, and what it said is in " in named.stderr
    assert "command again, with --name dead" in named.stderr


def test_infeasible_and_early_stopped_are_counted_apart(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    assert "3 of 3 trials, 1 stopped early, 1 infeasible; finished" in " ".join(pretune("show", "known").stdout.split())


def test_of_a_large_sweep_the_best_are_listed_and_all_where_all_are_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SHOWN", 2)
    synthetic_sweep(here / "sweeps" / "known")
    few, every = pretune("show", "known").stdout, pretune("show", "known", "--all").stdout
    assert "… 1 more: pretune show known --all" in few
    assert "gamma=2.5" in few
    assert "gamma=3.5" not in few
    assert "gamma=3.5" in every
    assert "more:" not in every
    assert len(json.loads(pretune("show", "known", "--json").stdout)["trials"]) == 3


def test_importance_is_a_table_of_parameters_with_intervals_and_advice(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "HALVES", 4)
    monkeypatch.setattr(importance, "HALVES_OF_FOREST", 2)
    searched(here / "sweeps" / "found", trials=14)
    printed = pretune("show", "found", "--importance")
    assert printed.exit_code == 0, printed.stderr
    assert "PED-ANOVA" in printed.stdout
    assert "trials that have it" in printed.stdout
    told = json.loads(pretune("show", "found", "--importance", "--json").stdout)
    assert sum(one["ped_anova"]["value"] for one in told["importance"]["parameters"]) == pytest.approx(1.0)


def test_importance_of_few_trials_says_why_there_is_none(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    printed = pretune("show", "known", "--importance")
    assert printed.exit_code == 0
    assert "too few trials to say what matters" in " ".join(printed.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["known", "--importance", "--csv"], "leave --state, --sort, --columns and --csv out"),
        (["known", "0", "--importance"], "leave TRIAL out"),
        (["--importance"], "pretune show SWEEP --importance"),
    ],
)
def test_importance_is_of_all_trials_of_one_sweep(here: Path, arguments: list[str], said: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    refused = pretune("show", *arguments)
    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.split())


def test_a_picture_replaces_no_file_that_is_none(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    (here / "notes.md").write_text("what I found")
    refused = pretune("show", "known", "--svg", "notes.md")
    assert refused.exit_code == 2
    assert "is no picture of `pretune show`" in " ".join(refused.stderr.split())
    assert (here / "notes.md").read_text() == "what I found"
    for _ in range(2):
        assert pretune("show", "known", "--svg", "known.svg").exit_code == 0
