"""What `pretune eval` takes a word for, and how it turns it into a request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pretune.analysis import evaluate, evaluating
from pretune.core.errors import RequestError
from tests.pretune.analysis.test_finalize import finished_sweep
from tests.trainers.evaluation import small
from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.evaluation.protocol import ProtocolResult, Score
from trainers.evaluation.protocols import PROTOCOLS
from trainers.report import Checkpoint
from trainers.terms import Alignment


@pytest.fixture
def sweep(tmp_path: Path, data: Path) -> Path:
    """A sweep of three trials on digits; the last one's checkpoint is gone."""
    dataset = datasets.open_dataset(data / "digits")
    place = {"path": str(dataset.folder), "manifest": dataset.manifest_hash}
    config = TrialConfig.model_validate({"objective": {"alignment": Alignment()}, "data": place})
    files = [tmp_path / f"epoch-000{number}.pt" for number in range(3)]
    for file in files[:2]:
        file.write_bytes(b"weights")
    checkpoints = [Checkpoint(path=str(file), sha256="x", epoch=1) for file in files]
    finished_sweep(tmp_path / "sweeps" / "mine", config, *checkpoints)
    return tmp_path / "sweeps" / "mine"


def test_a_sweep_means_its_best_trial_and_a_number_behind_it_another_one(sweep: Path) -> None:
    storage = str(sweep.parent)
    best, other = evaluate.find("mine", storage), evaluate.find("mine/1", storage)
    assert (best.name, best.trial, best.file) == ("mine/0", 0, str(sweep.parent.parent / "epoch-0000.pt"))
    assert (other.name, other.trial, other.sweep) == ("mine/1", 1, str(sweep))
    assert evaluate.find(f"{sweep}/1", "nowhere").trial == 1
    assert evaluate.find(best.file, storage)._replace(name="mine/0") == best._replace(
        checkpoint=None, config=None, sweep=None, trial=None, trust_code=False
    )


def test_a_runs_folder_means_its_newest_checkpoint_and_half_an_export_is_no_sweep(sweep: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for name in ("epoch-0001.pt", "epoch-0002.pt"):
        (run / "checkpoints" / name).write_bytes(b"weights")
    lines = []
    for epoch in (1, 2, 3):
        saved = Checkpoint(path=f"checkpoints/epoch-000{epoch}.pt", sha256="x", epoch=epoch)
        lines.append({"epoch": epoch, "metrics": {}, "checkpoint": saved.model_dump()})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate.find(str(run), "nowhere")
    assert (found.name, found.file) == ("a", str(run / "checkpoints" / "epoch-0002.pt"))  # the third is gone
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RequestError, match="has no checkpoint"):
        evaluate.find(str(run), "nowhere")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RequestError, match=r"but has no encoder\.safetensors"):
        evaluate.find(str(run), "nowhere")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("yours", "there is no sweep 'yours'"),
        ("mine/2", "epoch-0002.pt is gone"),
        ("mine/7", "trial must be 0 to 2"),
        ("mine/x", "there is no sweep 'mine/x'"),
    ],
)
def test_a_word_that_names_nothing_is_refused(sweep: Path, word: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        evaluate.find(word, str(sweep.parent))


def checked(sweep: Path, **asked: Any) -> evaluate.Request:
    target = evaluate.find("mine", str(sweep.parent))
    return evaluate.check(target._replace(live=asked.pop("live", False)), **{"protocols": ["knn"], **asked})


def test_the_data_are_those_it_was_trained_on_unless_others_are_named(sweep: Path, data: Path) -> None:
    asked = checked(sweep, assignments=["knn.neighbors=[3]"], source="teacher")
    assert [on.name for on in asked.data] == ["digits"]
    assert asked.place.endswith("epoch-0000.evaluations")
    assert asked.protocols[0].model_dump()["neighbors"] == (3,)
    assert asked.protocols[0].source == "teacher"
    digits = str(data / "digits")
    with pytest.raises(RequestError, match="comes twice"):
        checked(sweep, data=[digits, digits])


def test_a_folder_that_is_named_may_hold_the_results_of_several_checkpoints(sweep: Path, tmp_path: Path) -> None:
    def file(digest: str, **asked: Any) -> str:
        request = checked(sweep, **asked)
        subject: Any = SimpleNamespace(digest=digest)
        return evaluating._file(request, request.protocols[0], "data", (0,), subject, untrained=False)

    out = tmp_path / "all"
    assert file("a", out=out) != file("b", out=out)
    assert file("a") == file("b")  # what stood beside another checkpoint of that name is made again


def test_files_that_differ_in_their_ending_alone_have_results_of_their_own(tmp_path: Path) -> None:
    names = ("epoch-0003.pt", "a.pth", "a.safetensors", "a.pth.tar", "encoder.safetensors")
    places = [Path(evaluate.Target(name="a", file=str(tmp_path / name)).place).name for name in names]
    assert places == [
        "epoch-0003.evaluations",
        "a.pth.evaluations",
        "a.safetensors.evaluations",
        "a.pth.tar.evaluations",
        "encoder.evaluations",
    ]


def test_a_uri_that_says_more_of_its_storage_names_a_checkpoint_too() -> None:
    asked = "?endpoint_override=http%3A%2F%2F127.0.0.1%3A9000&region=us-east-1"
    found = evaluate.find(f"s3://bucket/runs/epoch-0003.pt{asked}", "nowhere")
    assert (found.name, found.is_weights) == ("epoch-0003", False)
    assert found.place == f"s3://bucket/runs/epoch-0003.evaluations{asked}"
    assert evaluate.find(f"s3://bucket/runs/mine.safetensors{asked}", "nowhere").is_weights


@pytest.mark.parametrize("name", sorted(name for name, kind in PROTOCOLS.items() if kind.annotated is None))
def test_images_without_labels_of_one_class_or_with_an_empty_one_are_refused(name: str) -> None:
    digits, protocol = small.Digits(), cast(Any, PROTOCOLS[name])()
    counts = {"class_counts": {"train": [0, *[100] * 9]}}
    for change, message in (
        ({"has_labels": False}, "needs labels, but the images of digits have none"),
        ({"class_count": 1}, "needs two classes or more, but all images of digits are of one"),
        ({"manifest": SimpleNamespace(**vars(digits.manifest) | counts)}, "of each class in `train`, .* none of '0'"),
    ):
        dataset: Any = SimpleNamespace(**vars(digits) | change)
        with pytest.raises(ValueError, match=f"protocol '{name}' needs .*{message.removeprefix('needs ')}"):
            protocol.check(dataset)


def test_report_is_not_read_while_the_search_goes_on(sweep: Path) -> None:
    with pytest.raises(RequestError, match="must not depend on `report`"):
        checked(sweep, split="report", live=True)
    assert checked(sweep, live=True).split == "select"


def knn_result(subject: str, value: float, **changes: Any) -> ProtocolResult:
    """Of kNN on the digits; `changes` are numbers of the protocol."""
    return ProtocolResult(
        protocol={"name": "knn", "version": 1, **changes},
        subject=subject,
        digest="d",
        data="digits",
        manifest="m",
        split="select",
        seeds=(0,),
        fitted=1,
        scores=(Score(measure="top1", value=value, per_seed=(value,), count=2),),
    )


def test_results_that_are_there_are_found_and_what_a_later_version_adds_is_passed_over(tmp_path: Path) -> None:
    result = knn_result("s", 0.5)
    evaluate.write(str(tmp_path / "knn-1.json"), result.model_dump_json().encode())
    (tmp_path / "knn-2.json").write_text(result.model_dump_json().replace("{", '{"later": 1, ', 1))
    (tmp_path / "other.json").write_text("{}")
    assert evaluate.stored(str(tmp_path)) == [result, result]
