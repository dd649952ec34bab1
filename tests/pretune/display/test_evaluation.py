"""Tables of `pretune eval`, and the confusion matrix as a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pretune.display import evaluation, screen
from trainers.evaluation.protocol import ClassScore, ProtocolResult, Score


def result(data: str = "digits", value: float = 0.5, **changes: object) -> ProtocolResult:
    made = ProtocolResult(
        protocol={"name": "transfer", "version": 1, "source": "mean", "held_out": 0.1},
        subject="best & first",
        digest="d",
        data=data,
        manifest="m",
        split="select",
        seeds=(0, 1),
        fitted=1000,
        scores=(
            Score(measure="top1", value=value, per_seed=(value, value), interval=(value - 0.1, value + 0.1), count=500),
            Score(measure="calibration_error", value=0.01, per_seed=(0.01,), count=500),
        ),
        classes=(ClassScore(name="a", value=1.0, count=2), ClassScore(name="b", value=None, count=0)),
        confusion=((0, 0, 1), (0, 1, 1)),
    )
    return made.model_copy(update=changes)


def test_a_table_says_each_number_with_its_interval_and_what_it_is_of() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    screen.show(console, evaluation.table([result(), result("cifar10", 0.7)]))
    text = console.export_text()
    assert "0.4000 to 0.6000" in text
    assert "transfer (mean)" in text
    assert "transfer version 1: held_out 0.1" in text
    assert "fitted on 1,000 images" in text
    (line,) = [line for line in text.splitlines() if "transfer (mean): top1" in line]
    assert line.split()[-3:] == ["0.500", "0.700", "0.600"]  # one table over data sets, and the mean


def test_one_data_set_has_no_table_over_data_sets() -> None:
    assert evaluation.across([result()])[1] == []


def test_results_of_one_protocol_with_other_numbers_are_told_apart_in_rows_tables_and_pictures() -> None:
    by_sgd = {"name": "transfer", "version": 1, "source": "mean", "held_out": 0.2}
    both = [result(), result("cifar10", 0.7), result(protocol=by_sgd, value=0.1)]
    assert [row[3] for row in evaluation.rows(both) if row[3]] == [
        "transfer (mean), held_out 0.1",
        "transfer (mean), held_out 0.1",
        "transfer (mean), held_out 0.2",
    ]
    assert [line[-1] for line in evaluation.across(both)[1]] == ["0.600"]  # of the first alone
    names = {evaluation.picture_name(one) for one in (*both, result(digest="e"), result(seeds=(0,)))}
    assert len(names) == 5
    assert all(name.startswith("best-first-transfer-") for name in names)


def test_latex_escapes_what_it_would_take_for_its_own() -> None:
    text = evaluation.latex([result()])
    assert r"best \& first" in text
    assert r"calibration\_error" in text
    assert text.count(r"\\") == 3
    assert evaluation.markdown([result()]).splitlines()[0].startswith("| subject | data |")


def test_a_confusion_matrix_is_a_picture_that_is_equal_for_equal_numbers() -> None:
    pytest.importorskip("matplotlib")
    drawn = evaluation.confusion(result())
    assert drawn == evaluation.confusion(result())
    assert Image.open(io.BytesIO(drawn)).width > 200


def test_nothing_of_a_confusion_matrix_is_cut_off_however_long_its_names_are() -> None:
    pytest.importorskip("matplotlib")
    long = result(subject="a sweep whose name has many words in it, and more/12, untrained", data="some images, " * 3)
    classes = (ClassScore(name="W" * 70, value=1.0, count=2), ClassScore(name="猫", value=None, count=0))
    with Image.open(io.BytesIO(evaluation.confusion(long.model_copy(update={"classes": classes})))) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[:, [0, -1]] == 255).all()
