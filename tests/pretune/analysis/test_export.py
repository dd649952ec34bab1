"""`pretune export` writes whole folders with a model card, from sweeps and checkpoints, and overwrites nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune.analysis import evaluate, export
from pretune.analysis.finalize import Read, ReportReads
from pretune.core.errors import RequestError
from tests.imports import imported
from tests.pretune.analysis.test_evaluate import knn_result
from tests.pretune.analysis.test_finalize import finished_sweep, on
from tests.pretune.cli.command import pretune
from trainers import checkpoint
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.model import build_model
from trainers.report import Checkpoint
from trainers.weights.opening import opened


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("export") / "data")


def left(folder: Path, config: TrialConfig, dataset: datasets.Dataset) -> Checkpoint:
    """What a run would leave behind."""
    names = ("mean", "std", "gray_white", "max_side")
    state = {
        "config": config.model_dump(mode="json"),
        "model": build_model(config).state_dict(),
        "normalization": {name: getattr(dataset.manifest, name) for name in names},
        "manifest": dataset.manifest_hash,
    }
    return checkpoint.save(folder, state, epoch=1)


@pytest.fixture
def sweep(tmp_path: Path, data: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two complete trials, `known`, below `sweeps` of the folder that commands work in."""
    monkeypatch.chdir(tmp_path)
    folder, config = tmp_path / "sweeps" / "known", on(data)
    saved = [left(folder / "trials" / f"{number:04d}" / "checkpoints", config, data) for number in (0, 1)]
    return finished_sweep(folder, config, *saved).folder


def refusing(command: str, folder: Path, refused: Iterable[tuple[str, str]]) -> str:
    """A program that types each of these arguments in `folder`, and wants code 2 and the message."""
    return (
        "import os\n"
        f"os.chdir({str(folder)!r})\n"
        "from typer.testing import CliRunner\nfrom pretune.cli.app import app\n"
        f"for arguments, message in {tuple(refused)!r}:\n"
        f"    done = CliRunner().invoke(app, [{command!r}, *arguments.split()])\n"
        "    assert done.exit_code == 2, (arguments, done.output)\n"
        "    assert message in ' '.join(done.output.split()), (arguments, done.output)\n"
    )


def head(card: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.read_text().split("---\n")[1])
    return found


def test_a_sweeps_name_alone_is_its_best_trial_with_card_recipe_and_preprocessing(
    sweep: Path, tmp_path: Path, data: datasets.Dataset
) -> None:
    done = pretune("export", "known", "--format", "timm", "--out", "out", "--license", "cc-by-4.0", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["files"] == ["README.md", "config.json", "encoder.safetensors", "model.py", "recipe.json"]
    assert told["difference"] < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trial 0 of the sweep known after 1 epochs" in card
    assert "the best of 2 complete trials by `probe/linear` on `select`" in card
    assert "the report split was never read" in card
    assert "| linear probe | select | 0.5000 | 0.4" in card
    assert data.manifest_hash in card
    assert told["encoder"]["encoder_sha256"] in card
    assert str(tmp_path) not in card
    assert head(tmp_path / "out" / "README.md")["license"] == "cc-by-4.0"
    (row,) = head(tmp_path / "out" / "README.md")["model-index"][0]["results"]
    assert (row["dataset"]["name"], row["metrics"]) == ("digits", [{"type": "accuracy", "value": 0.5}])
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe["data"]["path"] == "digits"
    assert TrialConfig.model_validate(recipe).seed == on(data).seed
    assert opened(tmp_path / "out").description.mean == data.manifest.mean


def test_the_first_read_of_report_is_told_with_its_count(sweep: Path, tmp_path: Path) -> None:
    saved = Checkpoint(path="trials/0000/checkpoints/epoch-0001.pt", sha256="0" * 64, epoch=1)
    read = Read(
        time="then",
        trial=0,
        checkpoint=saved,
        manifest="m",
        metrics={"report/linear": 0.44, "report/linear_stderr": 0.0254},
    )
    reads = ReportReads(sweep="known", metric="probe/linear", searched_value=0.5, report_reads=2, reads=(read, read))
    (sweep / "finalize.json").write_text(reads.model_dump_json())
    assert pretune("export", "known/0", "--format", "timm", "--out", "first").exit_code == 0
    card = (tmp_path / "first" / "README.md").read_text()
    assert "| linear probe | report | 0.4400 | " in card
    assert "read 2 time(s); the figures are of the first." in card
    assert pretune("export", "known/1", "--format", "timm", "--out", "second").exit_code == 0
    other = (tmp_path / "second" / "README.md").read_text()
    assert "| report |" not in other
    assert "first read for trial 0, not for this one" in other


def test_the_card_has_the_figures_of_its_own_network_and_of_no_other(sweep: Path, tmp_path: Path) -> None:
    place = sweep / "trials" / "0000" / "checkpoints" / "epoch-0001.evaluations"
    for number, (subject, source, value) in enumerate(
        [("known/0", "features", 0.61), ("known/0, untrained", "features", 0.62), ("known/0", "teacher", 0.63)]
    ):
        result = knn_result(subject, value, source=source)
        evaluate.write(str(place / f"knn-{number}.json"), result.model_dump_json().encode())
    assert pretune("export", "known/0", "--format", "timm", "--out", "own").exit_code == 0
    rows = [line for line in (tmp_path / "own" / "README.md").read_text().splitlines() if line.startswith("| knn")]
    assert rows == ["| knn, top1 (digits) | select | 0.6100 | – | 2 |"]


def test_a_checkpoint_by_itself_is_exported_and_a_damaged_or_foreign_one_is_not(sweep: Path, tmp_path: Path) -> None:
    file = sweep / "trials" / "0001" / "checkpoints" / "epoch-0001.pt"
    assert pretune("export", str(file), "--format", "torchvision").exit_code == 0
    assert "a checkpoint after 1 epochs" in (tmp_path / "exports" / "epoch-0001-torchvision" / "README.md").read_text()
    file.write_bytes(file.read_bytes()[:-1])
    import torch

    torch.save({"weight": torch.zeros(2)}, tmp_path / "theirs.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for path, message in (
        (file, "it is damaged or was replaced"),
        (tmp_path / "theirs.pt", "`pretune import` makes a folder"),
        (tmp_path / "text.pt", "nothing in it was run"),
    ):
        done = pretune("export", str(path), "--format", "timm", "--out", "no")
        assert (done.exit_code, message in done.output) == (2, True), done.output
        assert not (tmp_path / "no").exists()


def test_what_is_there_is_never_overwritten_and_half_an_export_is_none(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    done = pretune("export", "known", "--format", "timm", "--out", "full")
    assert (done.exit_code, (tmp_path / "full" / "mine.txt").read_text()) == (2, "mine")
    assert "nothing is overwritten: name another with --out, or move it away" in done.output
    asked = export.check(evaluate.find("known", "sweeps"), layout="timm", out=tmp_path / "late")

    from trainers.weights import exporting

    write = exporting.write

    def slow(folder: Path, given: Any) -> Any:
        found = write(folder, given)
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs.txt").write_text("theirs")
        return found

    monkeypatch.setattr(exporting, "write", slow)
    with pytest.raises(RequestError, match="made by somebody else meanwhile"):
        export.run(asked)
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["theirs.txt"]
    assert not list(tmp_path.glob(".late.*"))

    def fails(folder: Path, given: Any) -> Any:
        write(folder, given)
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write", fails)
    asked = export.check(evaluate.find("known", "sweeps"), layout="timm", out=tmp_path / "half")
    with pytest.raises(KeyboardInterrupt):
        export.run(asked)
    assert not (tmp_path / "half").exists()
    assert not list(tmp_path.glob(".half.*"))
    # What a killed one leaves is no export, and goes with the next.
    killed = tmp_path / ".half.01234567.part"
    killed.mkdir()
    (killed / "encoder.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is an export that was not finished"):
        opened(killed)
    monkeypatch.setattr(exporting, "write", write)
    export.run(asked)
    assert not killed.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_or_read_only_is_one_message(
    sweep: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.weights import exporting

    def fails(folder: Path, given: Any) -> Any:
        (folder / "encoder.safetensors").write_bytes(b"half")
        raise OSError(number, os.strerror(number))  # as of a write to an open file, which names none

    monkeypatch.setattr(exporting, "write", fails)
    done = pretune("export", "known", "--format", "timm", "--out", "out")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'out'} cannot be used ({os.strerror(number)})")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))


def test_a_network_that_has_diverged_is_told_and_not_kept(sweep: Path, tmp_path: Path) -> None:
    state = checkpoint.load(checkpoint.find(sweep / "trials" / "0000" / "checkpoints" / "epoch-0001.pt"))
    for tensor in state["model"].values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    saved = checkpoint.save(tmp_path / "diverged", state, epoch=1)
    done = pretune("export", saved.path, "--format", "torchvision", "--out", "out")
    assert (done.exit_code, "features must be finite" in done.stderr) == (2, True), done.output
    assert not list(tmp_path.glob("*out*"))


def test_the_folder_that_one_is_in_is_not_replaced(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out in (".", "../empty"):
        done = pretune("export", str(sweep / "trials/0000/checkpoints/epoch-0001.pt"), "--format", "timm", "--out", out)
        assert (done.exit_code, "name a folder in it with --out" in done.stderr) == (2, True), done.output
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    with pytest.raises(RequestError, match="is a file system of its own, and would have to be replaced"):
        export.check_folder(tmp_path / "volume")


REFUSED = (
    ("timms --format torchvision", "take --format timm or onnx"),
    ("known --format timm --branch teacher", "model.teacher is null in its config; take --branch student"),
    ("known/7 --format timm", "trial must be 0 to 0"),
    ("unknown --format timm", "there is no sweep 'unknown'"),
    ("known --format keras", "is not one of"),
    ("known --format timm --out sweeps", "must be a new or an empty folder"),
    ("known --format timm --out sweeps/known/journal.jsonl/x", "is a file"),
)


def test_a_wrong_request_is_refused_before_torch_is_imported(tmp_path: Path, data: datasets.Dataset) -> None:
    for name, changes in (("known", {}), ("timms", {"model.backbone.kind": "timm:regnety_002"})):
        folder = tmp_path / "sweeps" / name
        finished_sweep(folder, with_changes(on(data), changes), checkpoint.save(folder, {}, epoch=1))
    assert imported(refusing("export", tmp_path, REFUSED), "torch ray timm torchvision") == []


def test_a_missing_package_is_named(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    done = pretune("export", "known", "--format", "onnx")
    assert done.exit_code == 2
    assert "needs onnxruntime; run: pip install 'pretune[export]'" in done.output
