"""What may be searched for: known before anything starts, by the name that a run reports."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pretune.core import metrics
from pretune.core.errors import RequestError
from search_spaces import RECIPES
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.report import METRICS, is_metric
from trainers.terms import SHIPPED_TERMS, Alignment, KernelMMD, OwnTerm, TermConfig

BASE = TrialConfig(objective={"alignment": Alignment(), "spread": KernelMMD(), "off": Alignment(weight=0.0)})


def test_every_name_that_may_be_searched_for_is_one_that_runs_report() -> None:
    for recipe in RECIPES.values():
        found = metrics.names(recipe())
        assert [name for name in found if not is_metric(name)] == []
        assert len(found) == len(set(found))


def test_every_metric_is_searched_for_or_left_out_for_a_reason() -> None:
    once = {"time/first_step_s", "time/group_start_s", "memory/slot_bytes"}
    no_worth = {"epoch", "probe/<probe>_stderr", "probe/full_train_images", "report/<probe>", "report/<probe>_stderr"}
    no_worth |= {"report/health/<kind>/<measure>", "eval/<protocol>_stderr"}
    patterned = {name for name in METRICS if "<" in name} - no_worth
    plain = set(METRICS) - once - no_worth - patterned
    config = with_changes(RECIPES["dilemma_mocov3_tiny"](), {"probe.protocols": ("knn20",)})
    found = set(metrics.names(config))
    assert plain <= found
    for pattern in patterned:
        assert any(name.startswith(pattern.partition("<")[0]) for name in found), pattern


def test_what_shipped_terms_tell_beyond_their_value_is_known() -> None:
    telling = {
        kind: inspect.getsource(term.metrics)
        for term in SHIPPED_TERMS
        if term.metrics is not TermConfig.metrics
        for kind in [term.model_fields["kind"].default]
    }
    assert telling.keys() == metrics.MEASURES.keys()
    for kind, source in telling.items():
        assert all(f'"{measure}":' in source for measure in metrics.MEASURES[kind])


@pytest.mark.parametrize(
    "metric", ["probe/linear", "probe/full_knn", "loss/total", "loss/spread", "health/embedding/cosine", "budget/views"]
)
def test_a_metric_that_each_trial_reports_is_accepted(metric: str) -> None:
    metrics.check(metric, [BASE])


@pytest.mark.parametrize(
    ("metric", "nearest"),
    [
        ("probe/linaer", "probe/linear"),
        ("probe_linear", "probe/linear"),
        ("Probe/Linear", "probe/linear"),
        ("knn", "probe/knn"),
        ("loss/spred", "loss/spread"),
        ("spread", "loss/spread"),
        ("loss", "loss/total"),
        ("effective_rank", "health/features/effective_rank"),
    ],
)
def test_a_mistyped_metric_is_answered_with_the_nearest(metric: str, nearest: str) -> None:
    with pytest.raises(RequestError, match=f"--metric '{metric}' .*did you mean '{nearest}'"):
        metrics.check(metric, [BASE])


@pytest.mark.parametrize(
    "metric",
    ["loss/off", "loss/mmd", "epoch", "report/linear", "probe/linear_stderr", "health/spread/information", "", "loss/"],
)
def test_a_metric_that_a_trial_would_never_report_is_refused(metric: str) -> None:
    with pytest.raises(RequestError, match="never reports it"):
        metrics.check(metric, [BASE])


def test_a_metric_that_only_some_trials_report_is_refused() -> None:
    alone = TrialConfig(objective={"alignment": Alignment()})
    metrics.check("loss/alignment", [BASE, alone])
    with pytest.raises(RequestError, match="one whose objective has alignment never reports it"):
        metrics.check("loss/spread", [BASE, alone])


def test_what_a_term_of_ones_own_tells_is_for_its_code_to_know(tmp_path: Path) -> None:
    own = TrialConfig(objective={"mine": OwnTerm(kind=f"{tmp_path}/mine.py:Mine")})
    metrics.check("health/mine/anything", [own])
    with pytest.raises(RequestError, match="never reports it"):
        metrics.check("health/other/anything", [own])


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("probe/linear", "maximize"),
        ("health/features/effective_rank", "maximize"),
        ("time/images_per_s", "maximize"),
        ("loss/total", "minimize"),
        ("loss/spread", "minimize"),
        ("time/epoch_s", "minimize"),
        ("budget/seconds", "minimize"),
        ("memory/host_peak_bytes", "minimize"),
    ],
)
def test_losses_and_what_is_spent_are_minimized_where_nobody_says(metric: str, direction: str) -> None:
    assert metrics.direction(metric) == direction


def test_memory_of_gpus_is_searched_for_where_there_are_gpus() -> None:
    metrics.check(metrics.GPU_MEMORY, [BASE])
    metrics.check_gpus(metrics.GPU_MEMORY, 0.25)
    metrics.check_gpus("probe/linear", 0.0)
    with pytest.raises(RequestError, match="told by workers with a GPU alone, but gpus_per_worker is 0"):
        metrics.check_gpus(metrics.GPU_MEMORY, 0.0)


def test_alpha_req_is_searched_for_with_a_direction_only_and_the_other_measures_are_maximized() -> None:
    for place in ("features", "embedding"):
        with pytest.raises(RequestError, match="needs --direction, as it is best near 1"):
            metrics.direction(f"health/{place}/alpha_req")
        assert metrics.direction(f"health/{place}/rankme") == metrics.direction(f"health/{place}/lidar") == "maximize"
        metrics.check(f"health/{place}/alpha_req", [BASE])


def test_a_protocol_is_told_where_the_config_asks_for_it_and_its_weight_is_said() -> None:
    asking = with_changes(BASE, {"probe.protocols": ("knn20",)})
    metrics.check("eval/knn20", [asking])
    for metric, config in (("eval/knn20", BASE), ("eval/linear_lbfgs", asking)):
        with pytest.raises(RequestError, match="never reports it"):
            metrics.check(metric, [config])
    assert metrics.direction("eval/knn20") == "maximize"
    assert metrics.protocol("probe/knn") is None
    assert metrics.weight("probe/knn") == ""
    assert "six to seven times what probe/linear takes" in metrics.weight("eval/linear_lbfgs")
    with pytest.raises(RequestError, match="did you mean 'linear_lbfgs'"):
        metrics.protocol("eval/linear_bfgs")
    with pytest.raises(RequestError, match="takes no labels"):
        metrics.check_labels("eval/knn20", asking, "there", 0)
