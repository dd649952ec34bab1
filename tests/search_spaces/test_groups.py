"""Feasible by construction: the width follows from groups, sub-batch and ratio."""

from __future__ import annotations

import optuna
import pytest

from search_spaces import groups
from search_spaces.recipes.hosts import simclr_tiny
from search_spaces.recipes.whitening import cw_rgp_cifar10, cw_rgp_tiny
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms import BatchWhitening, ChannelWhitening

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("base", [cw_rgp_tiny(), cw_rgp_cifar10()], ids=["tiny", "cifar10"])
def test_no_draw_is_infeasible_and_the_ratio_is_what_it_says(base: TrialConfig, workers: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(400):
        trial = study.ask()
        config = groups.space(trial, base)
        term = config.objective["channel_whitening"]
        width = config.model.projector.widths[-1]
        assert isinstance(term, ChannelWhitening | BatchWhitening)
        assert term._problem(width, base.batch_size, workers) is None
        kinds.add(term.kind)
        channels = width / term.group_count
        if isinstance(term, ChannelWhitening):
            assert channels / term.sub_batch_size == trial.params["ratio"]
        else:
            assert base.batch_size / channels == trial.params["ratio"]
        assert width <= 4096
    assert kinds == {"channel_whitening", "batch_whitening"}


def test_a_recipe_without_whitening_and_a_batch_that_can_not_be_cut_are_refused() -> None:
    study = optuna.create_study()
    with pytest.raises(ValueError, match=r"varies a term of kind 'channel_whitening'.*choose another recipe"):
        groups.space(study.ask(), simclr_tiny())
    base = with_changes(cw_rgp_tiny(), {"batch_size": 48})
    with pytest.raises(ValueError, match="must be a multiple of 32, but is 48"):
        groups.space(optuna.trial.FixedTrial(CHANNEL), base)


CHANNEL = {
    "whitening": "channel_whitening",
    "group_count": 1,
    "ratio": 2,
    "factor": "zca",
    "shrink": "off",
    "sub_batch_size": 8,
}
