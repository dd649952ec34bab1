"""Two sweeps or trials beside each other, and the best of all sweeps on one data set."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import simulate_compare
from pretune.analysis import compare
from pretune.analysis.differences import differences
from pretune.core import journal, journal_remote, results
from pretune.core.journal import Journal, read
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened
from tests.pretune.cli.command import pretune, synthetic_sweep


def made(folder: Path, values: list[float], *, stderr: float | None = 0.01, base: dict[str, Any] | None = None) -> Path:
    """A sweep with a trial for each value."""
    if not (folder.parent / "template").exists():
        synthetic_sweep(folder.parent / "template")
    opened = read(folder.parent / "template")[0]
    assert isinstance(opened, Opened)
    changed = opened.experiment.base.model_copy(update={"seed": 0, **(base or {})})
    experiment = opened.experiment.model_copy(update={"base": changed, "name": folder.name})
    with Journal(folder, new=True) as journal:
        journal.append(opened.model_copy(update={"experiment": experiment}))
        for number, value in enumerate(values):
            config = {**changed.model_dump(mode="json"), "seed": number}
            journal.append(Asked(number=number, params={"seed": number}, distributions={}, config=config))
            error = {} if stderr is None else {"probe/linear_stderr": stderr}
            journal.append(Epoch(number=number, epoch=3, metrics={"probe/linear": value, **error}))
            journal.append(Ended(number=number, state="COMPLETE", value=value))
        journal.append(Closed(reason="finished"))
    return folder


def test_two_trials_of_one_sweep_are_told_apart_by_more_than_noise_or_not(here: Path) -> None:
    made(here / "sweeps" / "mine", [0.80, 0.81, 0.90])
    close = json.loads(pretune("compare", "mine/0", "mine/1", "--json").stdout)
    assert not close["more_than_noise"]
    assert close["difference"] == pytest.approx(-0.01)
    assert close["interval"] == pytest.approx([-0.01 - 1.96 * 0.01414, -0.01 + 1.96 * 0.01414], abs=1e-4)
    assert [one["path"] for one in close["changes"]] == ["seed"]
    far = pretune("compare", "mine/2", "mine/0").stdout
    assert "mine/2 is better by more than noise" in far
    assert "seed" in far


def test_two_sweeps_are_compared_by_their_best_with_the_luck_of_choosing_among_many(here: Path) -> None:
    made(here / "sweeps" / "many", [0.80] * 19 + [0.835])
    made(here / "sweeps" / "one", [0.80], base={"batch_size": 128})
    told = json.loads(pretune("compare", "many", "one", "--json").stdout)
    assert (told["first"]["chosen_among"], told["second"]["chosen_among"]) == (20, 1)
    assert not told["more_than_noise"], "the best of twenty is 0.019 too good on average"
    assert json.loads(pretune("compare", "many/19", "one/0", "--json").stdout)["more_than_noise"]
    assert "batch_size" in [one["path"] for one in told["changes"]]
    assert [one["path"] for one in told["asked"]] == []


def test_what_does_not_compare_is_said_and_its_differences_are_shown_all_the_same(here: Path) -> None:
    folder = made(here / "sweeps" / "mine", [0.8])
    other = results.read(folder)
    losses = other.experiment.model_copy(update={"metric": "loss/total", "maximize": False})
    one, two = compare.sweep(other), compare.trial(other, 0)
    elsewhere = replace(two, result=replace(other, experiment=losses))
    assert "their metrics differ" in compare.compare(one, elsewhere, trials=False).verdict
    synthetic_sweep(here / "sweeps" / "known")
    text = pretune("compare", "mine", "known/2").stdout
    assert "known/2 (INFEASIBLE) has no value" in text
    assert "known/0 was judged after 3 epochs and known/1 after 1" in pretune("compare", "known/0", "known/1").stdout
    made(here / "sweeps" / "bare", [0.8], stderr=None)
    assert "has no standard error" in pretune("compare", "mine", "bare").stdout
    assert pretune("compare", "mine", "nothing").exit_code == 2
    refused = pretune("compare", "mine/7", "mine")
    assert refused.exit_code == 2
    assert "TRIAL must be one of sweep 'mine' (0 to 0), but is 7" in refused.stderr


def test_lower_is_better_where_it_is_minimized() -> None:
    low, high = compare.interval(-0.1, (0.01, 0.01), (30, 1), maximize=False)
    assert high < 0.0, "0.1 lower is more than luck"
    assert high - -0.1 > -0.1 - low, "luck makes the first lower than it is"


def test_differences_are_settings_by_path_and_another_kind_is_another_whole() -> None:
    first = {"a": 1, "b": {"kind": "x", "c": 2}, "d": [{"e": 1}, {"e": 2}], "f": True, "same": {"g": 1}}
    second = {"a": 1, "b": {"kind": "y", "h": 2}, "d": [{"e": 1}, {"e": 3}], "f": 1, "same": {"g": 1}, "new": 4}
    assert [tuple(one) for one in differences(first, second)] == [
        ("b", {"kind": "x", "c": 2}, {"kind": "y", "h": 2}),
        ("d.1.e", 2, 3),
        ("f", True, 1),
        ("new", "absent", 4),
    ]


def test_simulated_claims_are_wrong_in_at_most_a_twentieth() -> None:
    for what, wanted, seen, _ in simulate_compare.rows(200, seed=1):
        share = float(seen.rstrip("%")) / 100.0
        if wanted.startswith("at most"):
            assert share <= 0.05 + 0.031, what  # two standard errors of 200 draws
        elif wanted.startswith("at least"):
            assert share >= 0.95 - 0.031, what


def test_the_leaderboard_ranks_sweeps_on_the_same_images_with_what_was_read_of_report(here: Path) -> None:
    made(here / "sweeps" / "good", [0.7, 0.9])
    made(here / "sweeps" / "fair", [0.8])
    elsewhere = results.read(here / "sweeps" / "good").experiment.base.data.model_copy(update={"manifest": "f" * 64})
    made(here / "sweeps" / "other", [0.99], base={"data": elsewhere})
    reads = {"reads": [{"trial": 1, "metrics": {"report/linear": 0.85, "report/linear_stderr": 0.02}}]}
    (here / "sweeps" / "good" / "finalize.json").write_text(json.dumps(reads))
    (here / "sweeps" / "fair" / "finalize.json").write_text("{broken")
    boards = json.loads(pretune("leaderboard", "--json").stdout)
    assert [[entry["sweep"] for entry in board["entries"]] for board in boards] == [
        ["good", "template", "fair"],
        ["other"],
    ]
    assert boards[0]["entries"][0] | {"folder": ""} == {
        "sweep": "good",
        "folder": "",
        "trial": 1,
        "recipe": "sfrik_tiny",
        "space": "kernels",
        "epochs": 3,
        "value": 0.9,
        "stderr": 0.01,
        "report": 0.85,
        "report_stderr": 0.02,
        "params": {"seed": 1},
    }
    text = pretune("leaderboard", "--each", "2").stdout
    assert "0.850 ± 0.020" in text
    assert [line.split()[1] for line in text.splitlines() if line.strip()[:1].isdigit()][:4] == [
        "good",
        "template",
        "fair",
        "good",
    ]
    assert "has a complete trial" in pretune("leaderboard", "--metric", "loss/total").stdout
    assert pretune("leaderboard", "--data", "digits").exit_code == 0
    assert pretune("leaderboard", "--data", "nowhere").exit_code == 2


def test_logs_of_a_trial_are_its_last_lines_or_where_else_to_look(here: Path) -> None:
    folder = synthetic_sweep(here / "sweeps" / "known")
    for trial, name in (("0000", "log.txt"), ("0000", "log.rank-1.txt"), ("0001", "log.txt")):
        (folder / "trials" / trial).mkdir(parents=True, exist_ok=True)
        (folder / "trials" / trial / name).write_text("".join(f"{name} {line}\n" for line in range(500)))
    one = pretune("logs", "known", "1", "-n", "2")
    assert one.stdout == "log.txt 498\nlog.txt 499\n"
    both = pretune("logs", "known", "0", "-n", "1").stdout.splitlines()
    assert [line for line in both if "==>" not in line] == ["log.rank-1.txt 499", "log.txt 499"]
    (folder / "logs").mkdir()
    (folder / "logs" / "ray.tar.gz").touch()
    none = pretune("logs", "known", "2")
    assert none.exit_code == 2
    assert "logged nothing; Ray's own logs are in" in none.stderr
    assert pretune("logs", "known", "3").exit_code == 2
    assert pretune("logs", "known", "1", "--follow", "-n", "1").stdout == "log.txt 499\n", "nothing runs: it ends"


def test_the_leaderboard_ranks_sweeps_behind_a_uri(here: Path) -> None:
    bucket = f"file://{here / 'bucket'}"
    for name in ("one", "other"):
        made(here / "made" / name, [0.5, 0.7])
        place = here / "bucket" / name / journal_remote.FOLDER
        place.mkdir(parents=True)
        shutil.copy(here / "made" / name / journal.FILE, place / "00000001-00000000.jsonl")
    (here / "bucket" / "broken" / journal_remote.FOLDER).mkdir(parents=True)
    (here / "bucket" / "broken" / journal_remote.FOLDER / "00000001-00000000.jsonl").write_text("x\n")
    (here / "bucket" / "something else").mkdir()
    told = pretune("leaderboard", "--storage", bucket, "--json")
    assert told.exit_code == 0, told.output
    (board,) = json.loads(told.stdout)
    assert [entry["sweep"] for entry in board["entries"]] == ["one", "other"]
    assert "sweep broken is left out" in " ".join(pretune("leaderboard", "--storage", bucket).output.split())
    nowhere = pretune("leaderboard", "--storage", f"file://{here / 'nowhere'}")
    assert "has a complete trial" in nowhere.stdout
