"""A sweep decides as when each ask read all trials again, from wherever it is taken up, and reads few of them."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.core import generations, known, optuna_private
from pretune.core.history import History, TrialHistory
from pretune.core.records import Asked, Opened
from pretune.core.search import Search
from tests.pretune.core.decisions import SWEEPS, TRIALS, experiment, recorded, search


def history(name: str) -> History:
    return History([Opened(experiment=experiment(name))])


def check(made: Search, told: History, record: Asked) -> None:
    """Whether `made` asks what `record` says. Numbers may differ in their last digits, as processors do."""
    proposal = made.ask(told.trials)
    assert proposal is not None
    place = f"trial {record.number}"
    assert proposal.distributions == record.distributions, place
    assert list(proposal.params) == list(record.params), place
    for param, value in record.params.items():
        expected = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        assert proposal.params[param] == expected, f"{place}, {param}"
    assert (proposal.config is None) == (record.config is None), place
    assert (proposal.number, proposal.duplicate_of) == (record.number, record.duplicate_of)


@pytest.mark.parametrize("name", SWEEPS)
def test_each_decision_of_a_recorded_sweep_is_the_same_and_so_it_is_after_a_kill(name: str) -> None:
    """Of the later ones, which take longest, every third."""
    told, made = history(name), search(name)
    for record in recorded(name):
        if isinstance(record, Asked):
            if record.number < 100 or record.number % 3 == 0:
                check(made, told, record)
            if record.number % 43 == 42:
                # Another process, which has the journal only.
                check(search(name), told, record)
        told.apply(record)
    assert len(told.trials) == TRIALS


class Counting(known.Known):
    """Counts how often a trial is read."""

    def __init__(self, *arguments: Any) -> None:
        self.read = 0
        super().__init__(*arguments)

    def _add(self, trial: TrialHistory) -> None:
        self.read += 1
        super()._add(trial)

    def _change(self, trial: TrialHistory) -> None:
        self.read += 1
        super()._change(trial)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "cmaes"])
def test_an_ask_reads_the_trials_that_have_changed_since_the_last_one_and_no_other(sampler: str) -> None:
    made, told, asked = search(sampler), history(sampler), 0
    counting = made._known = Counting(made.experiment, made._draw_again)
    for record in recorded(sampler):
        if isinstance(record, Asked) and record.number % 50 == 0:
            made.ask(told.trials)
            before, asked = counting.read, asked + 1
            made.ask(told.trials)
            assert counting.read == before, "nothing has changed"
        told.apply(record)
    made.ask(told.trials)
    # Each trial once when it is asked and once when it ends.
    assert counting.read == 2 * TRIALS
    assert asked > 5


def test_cma_es_sees_a_generation_and_not_the_sweep() -> None:
    made, told, most = search("cmaes"), history("cmaes"), 0
    for record in recorded("cmaes"):
        told.apply(record)
        if isinstance(record, Asked) and record.number % 10 == 9:
            most = max(most, len(made._known.after(told.trials).seen()))
    # A generation of 9 trials, and what seven slots end meanwhile.
    assert 9 <= most <= 9 + 2 * 7 + 2


def test_cma_es_is_taken_up_in_one_pass_that_asks_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told = history("cmaes")
    for record in recorded("cmaes"):
        told.apply(record)
    drawn: list[int] = []
    learned = 0
    made = search("cmaes")
    draw_again, notes_after = made._draw_again, optuna_private.notes_after

    def counted(number: int, seen: Any) -> dict[str, Any]:
        drawn.append(number)
        return draw_again(number, seen)

    def learn(*arguments: Any, **settings: Any) -> dict[str, Any]:
        nonlocal learned
        learned += 1
        return notes_after(*arguments, **settings)

    monkeypatch.setattr(generations, "notes_after", learn)
    made._known = known.Known(made.experiment, counted)
    made.ask(told.trials)
    ends = sum(trial.state in ("COMPLETE", "PRUNED") for trial in told.trials)
    before_the_first_end = next(
        trial.number
        for trial in told.trials
        if trial.asked_at > min(one.ended_at or 0 for one in told.trials if one.state == "COMPLETE")
    )
    # Before the first end there is no space to speak of, and what is drawn then is drawn at random. Each generation is
    # begun by several trials, those that are asked before the first of them has ended; the state of one is needed.
    assert len(drawn) <= before_the_first_end + 1
    assert 10 < learned <= 1.5 * (ends // 9 + 1)
    assert generations._population(7) == 9


@pytest.mark.parametrize("name", ["cmaes", "cmaes-loss"])
def test_what_cma_es_has_learned_is_told_again_to_the_last_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told, made, compared = history(name), search(name), 0
    for record in recorded(name):
        told.apply(record)
    in_short = generations.Generations._noted_at

    def both(found: generations.Generations, beginning: generations._Beginning) -> generations.Notes:
        nonlocal compared
        compared += 1
        notes = in_short(found, beginning)
        assert notes == made._draw_again(beginning.number, beginning.seen)
        return notes

    monkeypatch.setattr(generations.Generations, "_noted_at", both)
    made._known.after(told.trials).seen()
    assert compared > 10


def test_cma_es_asks_again_where_ranges_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    told, made, drawn = history("cmaes"), search("cmaes"), []
    for record in recorded("cmaes"):
        told.apply(record)
    ended = [trial for trial in told.trials if trial.state == "COMPLETE"]
    wider = ended[0].distributions["a"].replace("-1.0", "-2.0")
    assert wider != ended[0].distributions["a"]
    for trial in told.trials[150:]:
        trial.distributions = {**trial.distributions, "a": wider}
    draw_again = made._draw_again

    def counted(number: int, seen: Any) -> dict[str, Any]:
        drawn.append(number)
        return draw_again(number, seen)

    made._known = known.Known(made.experiment, counted)
    made._known.after(told.trials).seen()
    assert any(number > 150 for number in drawn)
