"""What follows from the figures of a profile."""

from __future__ import annotations

import pytest

from tests.profiles import FIGURES, STEP, figures, spread, with_step
from trainers.profiling.figures import Figures, Spread


def test_a_spread_is_its_middle_and_both_ends() -> None:
    found = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert found == Spread(median=2.5, least=1.0, most=10.0, count=4)
    assert found.times(2.0) == Spread(median=5.0, least=2.0, most=20.0, count=4)


def test_a_rate_is_greatest_where_its_seconds_are_least() -> None:
    rate = Spread(median=2.0, least=1.0, most=4.0, count=3).per(8.0)
    assert rate == Spread(median=4.0, least=2.0, most=8.0, count=3)


def test_the_parts_of_a_step_add_up_to_it() -> None:
    parts = STEP.optimizer.median + 0.0001 + sum(t.forward.median + t.backward.median for t in STEP.terms.values())
    assert STEP.network + parts == pytest.approx(STEP.whole.median)
    assert with_step(optimizer=spread(1.0)).step.network == 0.0, "parts that took turns may take more than the whole"


def test_an_epoch_has_its_steps_its_beginning_and_its_share_of_probe_and_checkpoint() -> None:
    assert FIGURES.epoch_s == pytest.approx(100 * 0.104 + 0.04 + 1.0 + 0.05)
    assert figures(probe_every=4, checkpoint_every=5).epoch_s == pytest.approx(100 * 0.104 + 0.04 + 0.25 + 0.01)


def test_a_step_beside_its_waiting_and_its_work_takes_the_rest() -> None:
    assert FIGURES.wait_share == pytest.approx(0.001 / 0.104)
    assert FIGURES.beside_s == pytest.approx(0.003)
    assert figures(real_s=spread(0.09)).beside_s == 0.0


def test_flops_are_set_against_what_is_stated_for_the_card_where_that_is_known() -> None:
    assert FIGURES.peak == 1e11
    assert figures(published_peak=2e12).peak == 2e12


def test_figures_survive_json() -> None:
    assert Figures.model_validate_json(FIGURES.model_dump_json()) == FIGURES
