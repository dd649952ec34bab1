"""`pretune show SWEEP` with filters, and `pretune show SWEEP TRIAL`: one trial's whole story."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pretune.core.journal import FILE, Journal, read
from pretune.core.records import Asked, Attempt, Ended, Epoch, Opened, Started
from pretune.display.story import sparkline
from tests.pretune.cli.command import pretune, synthetic_sweep


def ids(text: str) -> list[str]:
    states = ("COMPLETE", "PRUNED", "INFEASIBLE")
    return [line.split()[0] for line in text.splitlines() if any(state in line for state in states)]


def test_trials_are_filtered_by_state_and_ordered_by_any_column(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    assert ids(pretune("show", "known", "--state", "pruned").stdout) == ["1"]
    assert ids(pretune("show", "known", "--state", "PRUNED", "--state", "INFEASIBLE").stdout) == ["1", "2"]
    assert ids(pretune("show", "known", "--sort", "-gamma").stdout) == ["2", "1", "0"]
    assert ids(pretune("show", "known", "--sort", "value").stdout) == ["1", "0", "2"], "what has none comes last"
    assert ids(pretune("show", "known", "--sort", "-value").stdout) == ["0", "1", "2"]
    told = json.loads(pretune("show", "known", "--state", "PRUNED", "--json").stdout)
    assert [trial["id"] for trial in told["trials"]] == [1]
    assert told["trials"][0]["curve"]


def test_columns_are_parameters_metrics_and_what_a_trial_is(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    text = pretune("show", "known", "--columns", "trial,value,gamma,time/epoch_s").stdout
    head, first = (line.split() for line in text.splitlines() if line[:5] in ("trial", "    0"))
    assert head == ["trial", "value", "gamma", "time/epoch_s"]
    assert first == ["0", "0.81", "1.5", "2"]
    told = json.loads(pretune("show", "known", "--columns", "trial,kernel", "--json").stdout)
    assert told["trials"][0] == {"trial": 0, "kernel": "rbf"}


def test_csv_has_every_trial_with_numbers_to_their_last_digit(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    result = pretune("show", "known", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["probe/linear"] == "0.81"
    assert rows[1]["objective.mmd.kernel.gamma"] == "2.5"
    assert rows[1]["reason"] == "probe/linear 0.4 at 1 epochs is not among the best 1 of 2"
    assert rows[2]["probe/linear"] == ""
    assert pretune("show", "known", "--csv", "--columns", "trial,state").stdout.splitlines()[1] == "0,COMPLETE"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["known", "--state", "DONE"], "--state must be one of WAITING, RUNNING"),
        (["known", "--sort", "gama"], "--sort 'gama' is no column"),
        (["known", "--columns", "trial,nothing"], "--columns 'nothing' is no column"),
        (["known", "--columns", ","], "must name one column or more"),
        (["known", "--csv", "--json"], "keep one"),
        (["--csv"], "are of the trials of one sweep"),
        (["known", "7"], "TRIAL must be one of sweep 'known' (0 to 2), but is 7"),
        (["known", "1", "--csv"], "leave TRIAL out"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(here: Path, arguments: list[str], said: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    result = pretune("show", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def with_a_story(folder: Path) -> None:
    """A sweep whose one trial differs from its base, failed once, and was stopped by the rungs."""
    synthetic_sweep(folder.parent / "other")
    opened = read(folder.parent / "other")[0]
    assert isinstance(opened, Opened)
    config = opened.experiment.base.model_dump(mode="json")
    config["optimizer"]["learning_rate"] = 0.125
    config["objective"]["mmd"]["kernel"] = {"kind": "rbf", "gamma": 2.0}
    ticks = iter(range(1000, 2000, 60))
    with Journal(folder, new=True, clock=lambda: float(next(ticks))) as journal:
        journal.append(opened)
        journal.append(Asked(number=0, params={"gamma": 2.0}, distributions={}, config=config))
        journal.append(Started(number=0, attempt=0, epoch=0))
        journal.append(Attempt(number=0, failures=1, reason="node gone"))
        journal.append(Started(number=0, attempt=1, epoch=0))
        for epoch in range(1, 4):
            metrics = {"probe/linear": 0.1 * epoch, "probe/linear_stderr": 0.01, "time/epoch_s": 60.0}
            journal.append(Epoch(number=0, epoch=epoch, metrics=metrics))
        journal.append(Ended(number=0, state="PRUNED", reason="not among the best 1 of 3"))
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "trials" / "0000" / "log.txt").write_text("".join(f"line {line}\n" for line in range(40)))


def test_one_trials_story_says_what_it_changed_how_it_went_and_why_it_ended(here: Path) -> None:
    with_a_story(here / "sweeps" / "mine")
    text = pretune("show", "mine", "0").stdout
    assert "mine, trial 0  PRUNED, probe/linear 0.300 ± 0.010 after 3 epochs, 3 min 00 s of training" in text
    assert "why it ended: not among the best 1 of 3" in text
    assert "▁" in text
    assert "0.100 (epoch 1) to 0.300 (epoch 3)" in text
    lines = [line.split() for line in text.splitlines()]
    assert any(line[:1] == ["optimizer.learning_rate"] and line[-1] == "0.125" for line in lines)
    assert any(line[:1] == ["objective.mmd.kernel"] for line in lines), "another kind is another whole"
    assert "failure 1: node gone" in text
    assert "attempt 2 starts" in text
    assert "line 39" in text
    assert "line 29" not in text, "ten lines"
    assert text.splitlines()[-1] == "pretune replay mine 0"


def test_the_story_as_json_has_config_events_and_log(here: Path) -> None:
    with_a_story(here / "sweeps" / "mine")
    told = json.loads(pretune("show", "mine", "0", "--json").stdout)
    assert told["state"] == "PRUNED"
    assert [event["kind"] for event in told["events"]] == ["started", "attempt", "started", "ended"]
    assert {change["path"] for change in told["changes"]} == {"optimizer.learning_rate", "objective.mmd.kernel"}
    assert told["config"]["optimizer"]["learning_rate"] == 0.125
    assert (told["asked"], told["started"]) == (1060.0, 1120.0)
    assert told["log_tail"][-1] == "line 39"
    assert [one["epoch"] for one in told["curve"]] == [1, 2, 3]


def test_a_trial_of_another_version_is_told_as_well(here: Path) -> None:
    stored = Path(__file__).parents[2] / "stored" / "sweeps"
    for folder in stored.iterdir():
        if (folder / FILE).is_file():
            assert pretune("show", str(folder), "0").exit_code == 0


def test_a_sparkline_has_a_bar_for_each_value_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁!█"
    assert sparkline([2.0, 2.0]) == "▅▅"
    assert sparkline([]) == ""
    assert sparkline([float("inf")]) == "!"
    assert sparkline([0.0, 1.0], unicode=False) == "_@"
    assert len(sparkline([float(value) for value in range(10_000)])) == 60
