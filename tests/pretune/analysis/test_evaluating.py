"""An evaluation divided among processes: as one alone would have it, and what one that is killed leaves."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import evaluate, evaluating
from pretune.execution.family import WorkerFailedError

pytestmark = [pytest.mark.ffcv, pytest.mark.slow, pytest.mark.usefixtures("one_thread", "own_cache")]

FINE = [
    'low-labels-finetune.shares=["10%"]',
    "low-labels-finetune.epochs=2",
    "low-labels-finetune.rates=[0.03]",
    "low-labels-finetune.batch_size=32",
    "low-labels-finetune.regularization=10",  # small weights of the head, which make little of a rounding
]


def asked(made: Path, out: Path, workers: int, **more: Any) -> evaluate.Request:
    target = evaluate.find(str(made / "epoch-0003.pt"), "nowhere")
    given: dict[str, Any] = {"protocols": ["knn", "low-labels-finetune"], "assignments": FINE, "untrained": True}
    return evaluate.check(target, out=out, workers=workers, **given | more)


def test_two_workers_find_what_one_finds_and_each_takes_the_others_results(
    made: Path, tmp_path: Path, own_cache: Path
) -> None:
    said: list[str] = []
    two = list(evaluating.run(asked(made, tmp_path / "two", 2), lambda what, done: said.append(what)))
    assert list(evaluating.run(asked(made, tmp_path / "two", 1))) == two
    assert {"features of digits, train", "fine-tuning on all labels, 10% of labels"} <= set(said)
    shutil.rmtree(own_cache)
    one = list(evaluating.run(asked(made, tmp_path / "one", 1)))
    assert list(evaluating.run(asked(made, tmp_path / "one", 2))) == one
    assert len(one) == 4
    for mine, other in zip(one, two, strict=True):
        assert (mine.name, mine.subject, mine.digest) == (other.name, other.subject, other.digest)
        for score in mine.scores:
            tolerance = 1e-12 if mine.name == "knn" else 0.0041  # of fine-tuning two of 500 images by rounding
            assert other.score(score.measure).value == pytest.approx(score.value, abs=tolerance)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_killed_ends_the_evaluation_and_leaves_nothing_half_written(
    made: Path, tmp_path: Path, own_cache: Path, rank: int
) -> None:
    def kill(what: str, done: float) -> None:
        for child in multiprocessing.active_children():
            if child.name == f"rank-{rank}":
                child.kill()

    fine = [line.replace("epochs=2", "epochs=1000") for line in FINE]
    request = asked(made, tmp_path / "out", 2, protocols=["low-labels-finetune"], assignments=fine)
    with pytest.raises(WorkerFailedError, match=r"rank . (died|raised)"):
        list(evaluating.run(request, kill))
    assert not multiprocessing.active_children()
    assert not (tmp_path / "out").exists()
    assert not [path for path in own_cache.rglob("*") if path.is_file() and path.name[0] != "."]


def test_what_a_worker_cannot_evaluate_is_refused_as_one_process_would(made: Path, tmp_path: Path) -> None:
    request = asked(made, tmp_path / "out", 2, protocols=["knn"], assignments=[], source="teacher")
    with pytest.raises(ValueError, match="source must be one of features, embedding"):
        list(evaluating.run(request))
