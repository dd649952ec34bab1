"""What a single run shows: a line an epoch, and its last epoch in full."""

from __future__ import annotations

from pretune.display.run import closing, line
from tests.pretune.display.screen import shown, words
from trainers.report import EpochReport


def test_a_line_of_an_epoch_has_the_probes_with_their_errors() -> None:
    metrics = {"probe/linear": 0.7, "probe/linear_stderr": 0.02, "loss/total": 0.5}
    assert line(EpochReport(epoch=2, metrics=metrics), 8) == "epoch 2 of 8: probe/linear 0.700 ± 0.020, loss 0.5"


def test_an_epoch_that_was_not_judged_has_a_line_without_probes() -> None:
    metrics = {"loss/total": 0.123456, "time/images_per_s": 1240.0}
    assert line(EpochReport(epoch=2, metrics=metrics), 8) == "epoch 2 of 8: loss 0.1235, 1,240 img/s"


def test_without_labels_the_rank_stands_in_the_place_of_the_probes() -> None:
    last = EpochReport(epoch=2, metrics={"loss/total": 0.5, "health/embedding/effective_rank": 12.34})
    assert line(last, 8) == "epoch 2 of 8: effective rank 12.3, loss 0.5"
    assert "accuracies" not in shown(closing(last))


def test_the_last_epoch_shows_every_probe_and_the_parts_of_the_loss() -> None:
    metrics = {
        "probe/linear": 0.7,
        "probe/linear_stderr": 0.02,
        "probe/full_linear": 0.9,
        "loss/total": 3.0,
        "loss/mmd": 2.0,
        "health/embedding/effective_rank": 12.34,
        "budget/seconds": 75.0,
    }
    last = EpochReport(epoch=2, metrics=metrics)
    lines = words(closing(last))
    assert ["linear", "probe,", "as", "in", "a", "search", "0.700", "±", "0.020"] in lines
    assert ["linear", "probe,", "all", "labels", "0.900"] in lines
    assert ["loss", "total", "3,", "mmd", "2"] in lines
    assert ["effective", "rank,", "embedding", "12.3"] in lines
    assert "training time" in shown(closing(last))
    assert "kNN" not in shown(closing(last)), "what was not measured has no row"
