"""`pretune eval` on images with boxes and masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import evaluate, evaluating
from pretune.core.errors import RequestError
from tests.annotated import pictures, write_coco, write_voc
from trainers.evaluation.protocols import PROTOCOLS
from trainers.evaluation.protocols.detection import Detection

SMALL = ["detection.sides=[64]", "detection.steps=1", "detection.batch_size=2", "detection.neck=fpn",
         "detection.pyramid_width=16", "detection.head_width=32"]  # fmt: skip


@pytest.fixture
def target(tmp_path: Path) -> evaluate.Target:
    return evaluate.Target(name="net", file=str(tmp_path / "net.pt"))


def check(target: evaluate.Target, protocols: list[str], *data: Path, **more: Any) -> evaluate.Request:
    return evaluate.check(target, protocols=protocols, data=[str(place) for place in data], **more)


def test_annotated_images_are_given_to_the_protocols_that_look_at_them(target: evaluate.Target, tmp_path: Path) -> None:
    place = write_voc(tmp_path / "voc", pictures(4), pictures(2, seed=1))
    asked = check(target, ["detection", "dense"], place, assignments=SMALL)
    (one,) = asked.data
    assert (one.name, one.annotations) == ("voc", place)
    assert one.hashes["detection"] != one.hashes["dense"]
    detection, _ = asked.protocols
    assert isinstance(detection, Detection)
    assert detection.sides == (64,)


@pytest.mark.parametrize("protocol", sorted(name for name, kind in PROTOCOLS.items() if kind.annotated))
def test_without_annotated_images_the_request_is_refused(protocol: str, target: evaluate.Target) -> None:
    with pytest.raises(RequestError, match=f"'{protocol}' needs images with (several labels|boxes|masks).*--data"):
        check(target, [protocol])


def test_faults_of_annotations_are_told_before_anything_runs(target: evaluate.Target, tmp_path: Path) -> None:
    place = write_coco(tmp_path / "coco", pictures(4), pictures(2, seed=1))
    path = place / "annotations" / "instances_train.json"
    values = json.loads(path.read_text())
    values["annotations"][0]["bbox"] = [60, 60, 30, 30]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="must lie in the image of 64 x 64 pixels"):
        check(target, ["detection"], place)
    assert check(target, ["detection"], place, assignments=["detection.skip=0.2"]).data
    assert not Path(target.place).exists()


def test_a_result_is_written_beside_the_checkpoint_and_read_where_it_is_asked_again(
    target: evaluate.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.trainers.evaluation.test_detection import subject

    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "load", lambda target: subject())
    place = write_voc(tmp_path / "voc", pictures(4), pictures(2, seed=1))
    asked = check(target, ["detection"], place, assignments=SMALL)
    (made,) = evaluating.run(asked)
    (file,) = Path(target.place).glob("detection-*.json")
    assert made.manifest[:8] in file.name
    monkeypatch.setattr(PROTOCOLS["detection"], "run", None)
    assert list(evaluating.run(asked)) == [made]


def test_a_transformer_is_refused_before_another_protocol_runs(
    target: evaluate.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.trainers.evaluation.test_detection import VIT, subject

    monkeypatch.setattr(evaluate, "load", lambda target: subject(**VIT))
    place = write_voc(tmp_path / "voc", pictures(4), pictures(2, seed=1))
    with pytest.raises(ValueError, match="needs a residual network"):
        list(evaluating.run(check(target, ["dense", "detection"], place)))
    assert not Path(target.place).exists()
