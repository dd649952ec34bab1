"""The best trials run again from other seeds: what is run, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.analysis import reseeding
from pretune.analysis.candidates import Candidate
from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.points import unvaried
from pretune.core.records import Closed, Opened
from search_spaces import RECIPES
from tests import toys
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.report import Checkpoint

NOWHERE = Checkpoint(path="/c", sha256="h", epoch=1)


def candidates(*rates: float) -> list[Candidate]:
    made = []
    for number, rate in enumerate(rates):
        config = with_changes(toys.BASE, {"optimizer.learning_rate": rate})
        made.append(Candidate(number, toys.score(config, 6), config, NOWHERE))
    return made


def search(storage: Path) -> results.SweepResult:
    with Journal(storage / "mine", new=True) as journal:
        journal.append(Opened(experiment=Experiment(name="mine", space="x", base=toys.BASE, storage=str(storage))))
        journal.append(Closed(reason="finished"))
    return results.read(storage / "mine")


@pytest.mark.parametrize("other", ["msbreg_tiny", "cw_rgp_tiny", "dilemma_mocov3_tiny", "vicreg_tiny", "sfrik_tiny"])
def test_any_config_is_reached_by_the_difference_from_any_other(other: str) -> None:
    base = RECIPES["sfrik_tiny"]()
    wanted = with_changes(RECIPES[other](), {"views.*.hue": 0.05, "seed": 7})
    found = with_changes(base, {**reseeding.difference(base, wanted), "seed": 7})
    assert found == wanted
    assert list(found.objective) == list(wanted.objective), "terms are summed in their order"


def test_a_difference_names_what_differs_and_no_more() -> None:
    base = RECIPES["sfrik_tiny"]()
    other = with_changes(base, {"objective.mmd.weight": 7.5, "views.1.hue": 0.03, "seed": 4})
    assert reseeding.difference(base, other) == {"objective.mmd.weight": 7.5, "views.1.hue": 0.03}
    assert reseeding.difference(base, base) == {}


def test_each_of_the_best_runs_once_from_each_seed_that_none_of_them_had(tmp_path: Path) -> None:
    found = reseeding.experiment(search(tmp_path), candidates(0.1, 0.2, 0.4), 2)
    assert found.name == "mine-top3-seeds2"
    assert [(point["seed"], point.get("optimizer.learning_rate")) for point in found.points] == [
        (1, None),
        (1, 0.2),
        (1, 0.4),
        (2, None),
        (2, 0.2),
        (2, 0.4),
    ]
    assert (found.trials, found.stopping.enabled, found.folder) == (6, False, tmp_path / "mine-top3-seeds2")


@pytest.mark.parametrize("name", ["my sweep (copy)", "(x)", "a" * 100, "_b", "été"])
def test_its_name_is_one_that_a_sweep_may_have(name: str) -> None:
    made = Experiment(name=reseeding.name(name, 3, 5), space="x", base=toys.BASE)
    assert made.name.endswith("-top3-seeds5")


def test_its_runs_are_taken_together_by_trial_and_it_goes_on_where_it_was(tmp_path: Path) -> None:
    chosen = candidates(0.1, 8.0, 0.4)  # the second diverges
    wanted = reseeding.experiment(search(tmp_path), chosen, 2)
    assert reseeding.begun(wanted) is None
    conductor = toys.begin(wanted.folder, wanted, unvaried)
    executor = toys.Executor(conductor, slots=2, seed=0)
    executor.fill()
    conductor.close("interrupted")
    conductor._journal.close()
    half = reseeding.begun(wanted)
    assert half is not None
    assert not reseeding.is_whole(half)

    conductor = toys.again(wanted.folder, unvaried)
    toys.Executor(conductor, slots=2, seed=0).run()
    conductor.close("finished")
    conductor._journal.close()
    whole = reseeding.begun(wanted)
    assert whole is not None
    assert reseeding.is_whole(whole)
    first, second, third = reseeding.collect(whole, chosen)
    assert first.values == pytest.approx([toys.score(chosen[0].config, 6)] * 2)
    assert third.mean == pytest.approx(toys.score(chosen[2].config, 6))
    assert (second.values, second.mean) == ((), None)
    assert "INFEASIBLE" in second.reason


def test_runs_of_other_trials_are_not_taken_for_these(tmp_path: Path) -> None:
    result = search(tmp_path)
    made = reseeding.experiment(result, candidates(0.1, 0.2), 1)
    toys.begin(made.folder, made, unvaried)._journal.close()
    assert reseeding.begun(made) is not None
    with pytest.raises(RequestError, match="has got more trials since; move it away"):
        reseeding.begun(reseeding.experiment(result, candidates(0.1, 0.3), 1))


def test_what_ran_is_the_candidates_config_but_for_the_seed(tmp_path: Path) -> None:
    chosen = candidates(0.1, 0.2)
    wanted = reseeding.experiment(search(tmp_path), chosen, 1)
    conductor = toys.begin(wanted.folder, wanted, unvaried)
    handed = [conductor.next(), conductor.next()]
    conductor._journal.close()
    for handout, one in zip(handed, chosen, strict=True):
        assert handout is not None
        config = TrialConfig.model_validate(handout.config)
        assert config.model_copy(update={"seed": one.config.seed}) == one.config
