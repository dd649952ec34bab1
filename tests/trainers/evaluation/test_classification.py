"""What class scores are worth, against torchmetrics; and intervals that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import simulate_evaluate
from trainers.evaluation import classification, protocol

NAMES = tuple("abcdefgh")


def scores(seed: int = 0, count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(NAMES), (count,), generator=generator)
    made = torch.randn(count, len(NAMES), generator=generator)
    made[torch.arange(count), labels] += 1.5
    return made, labels


def test_measures_are_those_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    made, labels = scores()
    judged = classification.judge([made], labels.numpy(), NAMES, logits=True)
    found = {one.measure: one.value for one in judged.scores}
    for name, top in (("top1", 1), ("top5", 5)):
        theirs = metrics.multiclass_accuracy(made, labels, num_classes=8, top_k=top, average="micro")
        assert found[name] == pytest.approx(float(theirs), abs=1e-6)
    theirs = metrics.multiclass_accuracy(made, labels, num_classes=8, average="macro")
    assert found["mean_class"] == pytest.approx(float(theirs), abs=1e-6)
    theirs = metrics.multiclass_calibration_error(made.softmax(1), labels, num_classes=8, n_bins=classification.BINS)
    assert found["calibration_error"] == pytest.approx(float(theirs), abs=1e-6)
    table = np.zeros((8, 8), dtype=int)
    for true, taken, count in judged.confusion:
        table[true, taken] = count
    assert np.array_equal(table, metrics.multiclass_confusion_matrix(made, labels, num_classes=8).numpy())
    assert [one.value for one in judged.classes] == pytest.approx(list(table.diagonal() / table.sum(1)))


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 12.0])
def test_calibration_error_is_torchmetrics_where_nothing_is_certain(sharpness: float) -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    made, labels = scores(seed=1)
    probabilities = (made.double() * sharpness).softmax(1)
    probabilities = probabilities[probabilities.max(1).values < 1.0]
    labels = labels[: len(probabilities)]
    theirs = metrics.multiclass_calibration_error(probabilities, labels, num_classes=8, n_bins=classification.BINS)
    assert classification.calibration_error(probabilities, labels) == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_error_has_certainty_and_edges_in_the_bins_of_the_paper() -> None:
    certain = [(1.0, True), (1.0, False), (0.95, True), (14 / 15, False), (0.6, True), (3 / 5, False)]
    probabilities = torch.tensor([[confidence, 1 - confidence] for confidence, _ in certain], dtype=torch.float64)
    labels = torch.tensor([0 if right else 1 for _, right in certain])
    wanted = 0.0
    for number in range(classification.BINS):
        low, high = number / classification.BINS, (number + 1) / classification.BINS
        own = [(confidence, right) for confidence, right in certain if low < confidence <= high]
        wanted += abs(sum(confidence - right for confidence, right in own)) / len(certain)
    assert classification.calibration_error(probabilities, labels) == pytest.approx(wanted, abs=1e-12)


def test_a_class_without_images_has_no_accuracy_and_does_not_count_in_the_mean() -> None:
    judged = classification.judge([torch.eye(3)[[0, 1, 1]]], np.array([0, 1, 0]), ("a", "b", "c"))
    assert [one.value for one in judged.classes] == [0.5, 1.0, None]
    assert {one.measure: one.value for one in judged.scores} == {"top1": pytest.approx(2 / 3), "mean_class": 0.75}


def test_an_interval_is_wider_where_seeds_differ_and_never_empty() -> None:
    sure = protocol.share("top1", np.ones((1, 50), dtype=bool))
    assert sure.interval is not None
    assert sure.interval[0] < 0.95
    assert sure.interval[1] == pytest.approx(1.0)
    equal = np.tile(np.arange(100) < 60, (3, 1))
    other = np.stack([np.arange(100) < 50, np.arange(100) < 60, np.arange(100) < 70])
    narrow, wide = protocol.share("top1", equal).interval, protocol.share("top1", other).interval
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < 0.6 < narrow[1] < wide[1]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    for what, _, seen, of in simulate_evaluate.rows(300, seed=1):
        assert float(seen.rstrip("%")) > 91.0, (what, of)  # of 300, 95 % has a standard error of 1.3 %
