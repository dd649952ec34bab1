"""A checkpoint is whole or absent, read only if its bytes are the ones written, and goes on only with its own run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checkpoint
from trainers.config import TrialConfig
from trainers.report import Checkpoint


def config(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"objective": {"alignment": {}, "mmd": {}}, **changes})


def state(**changes: Any) -> dict[str, Any]:
    return {"config": config().model_dump(mode="json"), "manifest": "abc", **changes}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    weight = torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last)
    saved = checkpoint.save(
        tmp_path / "new" / "checkpoints",
        {
            "model": OrderedDict(weight=weight),
            "counters": {"step": 7, "seconds": 1.5},
            "config": {"views": [{"size": 3}]},
        },
        epoch=3,
    )
    path = tmp_path / "new" / "checkpoints" / "epoch-0003.pt"
    assert saved == Checkpoint(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), epoch=3)
    loaded = checkpoint.load(saved)
    assert torch.equal(loaded["model"]["weight"], weight)
    assert loaded["model"]["weight"].stride() == weight.stride()
    assert loaded["counters"] == {"step": 7, "seconds": 1.5}
    assert loaded["config"] == {"views": [{"size": 3}]}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    before = checkpoint.save(tmp_path, {"x": 1}, epoch=1)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="the disk is full"):
        checkpoint.save(tmp_path, {"x": 2}, epoch=1)
    assert names(tmp_path) == ["epoch-0001.pt", "epoch-0001.pt.json"]
    assert checkpoint.load(before)["x"] == 1


def test_a_damaged_missing_or_foreign_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, {"x": torch.zeros(1000)}, epoch=12)
    path = Path(saved.path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"epoch-0012\.pt must have sha256 .* damaged or was replaced"):
        checkpoint.load(saved)
    path.write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"epoch-0012\.pt must have sha256"):
        checkpoint.load(saved)
    path.unlink()
    with pytest.raises(ValueError, match=r"epoch-0012\.pt must be a file, but is missing"):
        checkpoint.load(saved)
    torch.save({"x": 1}, path)
    foreign = Checkpoint(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), epoch=12)
    with pytest.raises(ValueError, match=r"epoch-0012\.pt must have format 1, but has None"):
        checkpoint.load(foreign)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "epoch-0001.pt"
    torch.save({"format": 1, "trap": Trap()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(Checkpoint(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), epoch=1))
    assert not (tmp_path / "sprung").exists()


def test_the_two_newest_and_what_is_named_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 8, 9, 10, 11):
        checkpoint.save(tmp_path, {"x": epoch}, epoch=epoch)
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.retain(tmp_path, epoch=10, kept={2, 9, 77})
    # 11 is of another, later attempt: not ours to judge.
    kept = [f"epoch-{epoch:04d}.pt{end}" for epoch in (2, 9, 10, 11) for end in ("", ".json")]
    assert names(tmp_path) == [*kept, "notes.txt"]
    checkpoint.retain(tmp_path, epoch=11, count=0, kept={9})
    assert names(tmp_path) == ["epoch-0009.pt", "epoch-0009.pt.json", "notes.txt"]


def test_earlier_checkpoints_are_told_by_their_manifests_newest_first(tmp_path: Path) -> None:
    saved = [checkpoint.save(tmp_path / "a", {"x": epoch}, epoch=epoch) for epoch in (1, 2, 3, 4)]
    (tmp_path / "a" / "epoch-0002.pt.json").unlink()  # killed between the two
    assert checkpoint.earlier(tmp_path / "a", than=4) == [saved[2], saved[0]]
    (tmp_path / "a").rename(tmp_path / "b")
    assert [checkpoint.load(one)["x"] for one in checkpoint.earlier(tmp_path / "b", than=3)] == [1]


def test_a_manifest_names_no_folder_and_one_that_does_is_read_where_it_lies(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path / "a", {"x": 1}, epoch=1)
    manifest = Path(saved.manifest)
    assert json.loads(manifest.read_text())["path"] == "epoch-0001.pt"
    remote = checkpoint.save(f"file://{tmp_path}/r", {"x": 1}, epoch=1)
    assert json.loads((tmp_path / "r" / "epoch-0001.pt.json").read_text())["path"] == "epoch-0001.pt"
    assert checkpoint.find(remote.path) == remote
    manifest.write_text(saved.model_dump_json())  # as older versions wrote it
    (tmp_path / "a").rename(tmp_path / "b")
    found = checkpoint.find(tmp_path / "b" / "epoch-0001.pt")
    assert found.path == str(tmp_path / "b" / "epoch-0001.pt")
    assert checkpoint.load(found)["x"] == 1


def test_a_full_disk_is_told_with_what_is_needed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = checkpoint.save(tmp_path, {"x": 1}, epoch=1)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(checkpoint.DiskFullError, match=r"a checkpoint in .* needs 4\.0 MB, .* are free"):
        checkpoint.save(tmp_path, {"model": {"w": torch.zeros(1_000_000)}}, epoch=2)
    assert names(tmp_path) == ["epoch-0001.pt", "epoch-0001.pt.json"]
    assert checkpoint.load(saved)["x"] == 1


def test_of_checkpoints_within_an_epoch_the_newest_is_found_wherever_the_folder_lies_now(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    assert checkpoint.newest_within(folder, epoch=0) is None
    for epoch, step in ((1, 9), (1, 10), (0, 99)):
        checkpoint.save(folder, {"x": step}, epoch=epoch, step=step)
    whole = checkpoint.save(folder, {"x": -1}, epoch=1)
    torn = folder / "epoch-0001-step-0000011.pt"  # its manifest was never written
    torn.write_bytes(b"half of it")
    folder = folder.rename(tmp_path / "there")
    found = checkpoint.newest_within(folder, epoch=1)
    assert found is not None
    assert (Path(found.path).name, found.epoch) == ("epoch-0001-step-0000010.pt", 1)
    assert checkpoint.load(found)["x"] == 10
    assert checkpoint.newest_within(folder, epoch=2) is None

    checkpoint.remove_within(folder, but=found)
    within = ["epoch-0001-step-0000010.pt", "epoch-0001-step-0000010.pt.json"]
    assert names(folder) == [*within, "epoch-0001.pt", "epoch-0001.pt.json"]
    checkpoint.remove_within(folder)
    assert names(folder) == [Path(whole.path).name, f"{Path(whole.path).name}.json"]


def test_what_does_not_change_the_run_may_differ_when_it_goes_on() -> None:
    changed = config(
        epochs=40, threads=2, checkpoint_every=5, probe={"neighbors": 3}, data={"path": "/elsewhere", "manifest": "abc"}
    )
    checkpoint.check_resumable(state(), changed, "abc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"seed: 0 -> 4"),
        ({"batch_size": 64}, r"batch_size: 256 -> 64"),
        ({"data": {"subset": 100}}, r"data\.subset: None -> 100"),
        ({"objective": {"alignment": {"weight": 2.0}, "mmd": {}}}, r"objective\.alignment\.weight: 1\.0 -> 2\.0"),
        ({"optimizer": {"kind": "lars", "clip_norm": 1.0}}, r"optimizer\.clip_norm: None -> 1\.0; optimizer\.kind"),
        (
            {"views": [{"flip_probability": 0.5}, {"flip_probability": 0.0}]},
            r"views\.1\.flip_probability: 0\.5 -> 0\.0",
        ),
        ({"schedule": {"kind": "cosine"}}, r"schedule\.kind: 'constant' -> 'cosine'"),
    ],
)
def test_a_changed_setting_is_refused_by_name_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.check_resumable(state(), config(**changes), "abc")


def test_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"manifest abc, but the data at digits has manifest xyz"):
        checkpoint.check_resumable(state(), config(), "xyz")
