"""The evaluation's benchmark: what it compares has to be the same on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluate import Contest, usual_knn
from trainers.evaluation.features import Store
from trainers.evaluation.protocols.knn import Knn


@pytest.mark.ffcv
def test_both_sides_fit_on_and_score_the_same_images_and_knn_finds_the_same(tmp_path: Path) -> None:
    contest = Contest(tmp_path, None, 200, 1)
    counts = contest._dataset.manifest.counts
    assert (counts.train + counts.select, counts.report) == (200, 100)
    np.testing.assert_array_equal(contest._dataset.report_labels(), contest.images.test_labels)
    ours = contest._judged(Knn(neighbors=(20,)), "knn20/top1", Store(tmp_path / "features"))
    assert ours.accuracy == pytest.approx(usual_knn(contest._subject, contest.images), abs=0.011)
