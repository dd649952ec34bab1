"""The folder of one `pretune train`: written as epochs end, gone on with after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.core.errors import RequestError
from pretune.execution import run_folder
from search_spaces import RECIPES
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport

CONFIG = RECIPES["sfrik_tiny"]()


def epoch(number: int, folder: Path) -> EpochReport:
    path = folder / "checkpoints" / f"epoch-{number:04d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"state")
    checkpoint = Checkpoint(path=str(path), sha256="0" * 64, epoch=number)
    metrics = {"probe/linear": 0.5 + 0.1 * number, "probe/linear_stderr": 0.02, "loss/total": 1.0 / number}
    return EpochReport(epoch=number, metrics=metrics, checkpoint=checkpoint)


def written(folder: Path, epochs: int) -> None:
    with run_folder.RunLog(folder, CONFIG, resume=None) as record:
        for number in range(1, epochs + 1):
            record.add(epoch(number, folder))


def test_each_epoch_is_a_line_with_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 3)
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2, 3]
    assert TrialConfig.model_validate_json((folder / "config.json").read_text()) == CONFIG
    last = run_folder.last_checkpoint(folder)
    assert last is not None
    assert last.epoch == 3


def test_a_torn_last_line_is_the_end_of_a_run_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "metr')
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "?", lines[2]]) + "\n")
    with pytest.raises(RequestError, match="line 2"):
        run_folder.read(folder)


def test_going_on_drops_epochs_after_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 3)
    (folder / "checkpoints" / "epoch-0003.pt").unlink()
    checkpoint = run_folder.last_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.epoch == 2
    with run_folder.RunLog(folder, CONFIG, resume=checkpoint) as record:
        record.add(epoch(3, folder))
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2, 3]


@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_was_moved_goes_on_from_where_it_lies_now(old: bool, tmp_path: Path) -> None:
    written(tmp_path / "out", 2)
    metrics = tmp_path / "out" / "metrics.jsonl"
    assert str(tmp_path) not in metrics.read_text()
    if old:  # as older versions wrote it
        metrics.write_text(metrics.read_text().replace('"path":"', f'"path":"{tmp_path}/out/'))
        assert str(tmp_path) in metrics.read_text()
    (tmp_path / "out").rename(tmp_path / "my run (copy)")
    folder = tmp_path / "my run (copy)"
    checkpoint = run_folder.last_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.path == str(folder / "checkpoints" / "epoch-0002.pt")
    with run_folder.RunLog(folder, CONFIG, resume=checkpoint) as record:
        record.add(epoch(3, folder))
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2, 3]
    assert str(tmp_path) not in (folder / "metrics.jsonl").read_text()


def test_a_run_without_any_of_its_checkpoints_does_not_start_anew_silently(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 1)
    (folder / "checkpoints" / "epoch-0001.pt").unlink()
    with pytest.raises(RequestError, match="is gone"):
        run_folder.last_checkpoint(folder)


def test_a_request_that_turns_out_wrong_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 2)
    before = {path.name: path.read_text() for path in folder.glob("*.json*")}
    other = CONFIG.model_copy(update={"batch_size": 32})
    with run_folder.RunLog(folder, other, resume=run_folder.last_checkpoint(folder)) as record:
        record.undo()
    assert {path.name: path.read_text() for path in folder.glob("*.json*")} == before
    with run_folder.RunLog(tmp_path / "new", CONFIG, resume=None) as record:
        record.undo()
    assert not (tmp_path / "new").exists()
