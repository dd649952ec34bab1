"""Whether measures without labels rank trials as the probe does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks import simulate_label_free
from pretune.analysis import label_free
from pretune.core import results
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Ended, Epoch, Opened, Started
from pretune.display import tables
from tests.toys import BASE


def sweep(folder: Path, trials: int, *, metric: str = "probe/linear", labels: bool = True) -> results.SweepResult:
    """RankMe agrees with the probe, LiDAR is its opposite, alpha-ReQ is farther above 1 the worse it is."""
    with Journal(folder, new=True) as journal:
        asked = Experiment(name=folder.name, space="mine", base=BASE, trials=trials, metric=metric)
        journal.append(Opened(experiment=asked))
        for number in range(trials + 2):
            score = number / 100 if number < trials else 0.9 - number / 10
            journal.append(Asked(number=number, params={}, distributions={}, config=BASE.model_dump(mode="json")))
            journal.append(Started(number=number, attempt=0, epoch=0))
            metrics = {
                "health/features/rankme": 5 + score,
                "health/features/lidar": 9 - score,
                "health/features/alpha_req": 2 - score,
                "health/features/effective_rank": 4.0,
                **({"probe/linear": score} if labels else {}),
            }
            journal.append(Epoch(number=number, epoch=1, metrics=metrics))
            if number < trials:
                journal.append(Ended(number=number, state="COMPLETE", value=metrics[metric]))
            else:
                journal.append(Ended(number=number, state="PRUNED", reason="weak"))
    return results.read(folder)


def test_measures_are_compared_with_the_probe_over_complete_trials(tmp_path: Path) -> None:
    result = sweep(tmp_path / "s", 12)
    found = {one.measure.rpartition("/")[2]: one for one in label_free.agreements(result)}
    assert {name: one.correlation for name, one in found.items()} == pytest.approx(
        {"rankme": 1.0, "lidar": -1.0, "alpha_req": 1.0}
    ), "effective_rank does not differ between trials"
    assert all((one.probe, one.trials) == ("probe/linear", 12) for one in found.values())
    assert 0.8 < found["rankme"].low < found["rankme"].high < 1.0
    line = tables.label_free(list(found.values()))
    assert line is not None
    assert "with probe/linear over 12 trials, of features: rankme +1.00 [+0." in line.plain


def test_a_search_for_a_measure_is_compared_with_the_linear_probe(tmp_path: Path) -> None:
    found = label_free.agreements(sweep(tmp_path / "s", 8, metric="health/features/rankme"))
    assert {one.probe for one in found} == {"probe/linear"}


def test_too_few_trials_and_data_without_labels_have_nothing_to_compare(tmp_path: Path) -> None:
    assert label_free.agreements(sweep(tmp_path / "few", label_free.FEWEST - 1)) == []
    unlabeled = sweep(tmp_path / "unlabeled", 9, metric="health/features/rankme", labels=False)
    assert label_free.agreements(unlabeled) == []
    assert tables.label_free([]) is None


def test_the_rank_correlation_is_scipys_with_ties_too() -> None:
    rng = np.random.default_rng(0)
    for high in (3, 5, 1000):
        x, y = rng.integers(0, high, 30).tolist(), rng.integers(0, high, 30).tolist()
        assert label_free.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert label_free.spearman([1.0, 1.0], [1.0, 2.0]) is None


def test_the_interval_covers_the_truth_of_simulated_pairs() -> None:
    for name, _, seen, _ in simulate_label_free.rows(150, 0, bootstrap=False):
        assert 90.0 <= float(seen.rstrip("%")) <= 99.4, name
