"""What limits a run, in one sentence: what takes most of an epoch of all that takes more than it should."""

from __future__ import annotations

import pytest

from pretune.analysis import limits
from tests.profiles import STEP, figures, spread, with_step
from trainers.profiling.figures import Figures, TermCost

SLOW_TERM = {**STEP.terms, "mmd": TermCost(forward=spread(0.02), backward=spread(0.021))}


@pytest.mark.parametrize(
    ("found", "word", "sentence", "remedy"),
    [
        (figures(), "compute-limited", "take 87 % of the step, at 40 % of the peak FLOP/s measured here", "a GPU"),
        (
            figures(real_s=spread(0.15), wait_s=spread(0.05), loader_s=spread(0.15)),
            "loader-limited",
            "33 % of a step a batch is waited for; the loader alone gives 427 images/s, and the model would take 640",
            "threads=4, now 2; 4 cores for 1 worker(s)",
        ),
        (
            figures(real_s=spread(0.15), wait_s=spread(0.05), threads=4),
            "loader-limited",
            "33 %",
            "more cores for each worker, or cheaper views",
        ),
        (figures(real_s=spread(0.16)), "limited by the cores", "takes 1.59 times what it takes alone: loader and", ""),
        (
            figures(real_s=spread(0.16), gpu_peak_bytes=1e9),
            "limited by what is around the step",
            "the host cannot keep up",
            "larger batches",
        ),
        (with_step(terms=SLOW_TERM), "limited by a term", "the term mmd takes 41 % of the step", "--leave-out objecti"),
        (with_step(optimizer=spread(0.03)), "limited by the optimizer", "takes 30 % of the step", "larger batches"),
        (with_step(sentinel=spread(0.03)), "limited by the sentinel", "take 30 % of the step", "sentinel.every"),
        (with_step(collectives=0.05), "limited by communication", "in 48 % of a step", "fewer workers"),
        (figures(probe_s=spread(8.0)), "limited by the probe", "takes 43 % of an epoch", "probe.every"),
        (figures(checkpoint_s=spread(8.0)), "limited by checkpoints", "take 41 % of an epoch", "checkpoint_every"),
        (
            figures(steps=1, boundary_s=spread(1.0), probe_s=spread(0.1)),
            "limited by short epochs",
            "has 1 step(s)",
            "more images",
        ),
    ],
)
def test_the_sentence_names_what_takes_most_and_what_helps(
    found: Figures, word: str, sentence: str, remedy: str
) -> None:
    limit = limits.limit(found)
    assert (limit.word, sentence in limit.sentence, remedy in limit.remedy) == (word, True, True), limit
    assert 0.0 < limit.share <= 1.0


def test_of_two_that_take_too_much_the_greater_one_is_named() -> None:
    both = figures(step=STEP.model_copy(update={"terms": SLOW_TERM}), probe_s=spread(8.0))
    assert limits.limit(both).word == "limited by the probe"
    assert limits.limit(both.model_copy(update={"probe_every": 8})).word == "limited by a term"


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"precision": "float32"}, "precision=bf16"),
        ({"precision": "bf16", "flops": 1e9}, "--pack auto"),
        ({"precision": "bf16", "flops": 6e9}, "nothing else is in the way"),
    ],
)
def test_on_a_gpu_what_helps_is_what_the_card_has_left(changes: dict[str, object], remedy: str) -> None:
    limit = limits.limit(figures(gpu_peak_bytes=1e9, published_peak=1e11, **changes))
    assert limit.word == "compute-limited"
    assert "stated for the card" in limit.sentence
    assert remedy in limit.remedy


def test_the_words_for_trainings_that_run_are_of_their_mean_share() -> None:
    assert limits.in_words([]) is None
    assert limits.in_words([float("nan")]) is None
    assert limits.in_words([0.02, 0.04]) == "compute-limited, waits 3 %"
    assert limits.in_words([0.1, 0.52]) == "loader-limited, waits 31 %"
