"""Weights to start from are held by path and hash; an export's folder stands for the file in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from trainers.init_file import InitFile
from trainers.settings import ResNetConfig
from trainers.usercode import ChangedError


def test_a_path_is_enough_and_is_completed_with_its_hash_from_the_folder_where_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(b"weights")
    config = ResNetConfig.model_validate({"kind": "resnet18", "init": "file.pth"})
    assert config.init == InitFile(path="file.pth")
    complete = config.init.completed(tmp_path)
    assert complete == InitFile(path=str(tmp_path / "file.pth"), sha256=hashlib.sha256(b"weights").hexdigest())
    assert complete.completed() == complete
    with pytest.raises(ValueError, match="must be a whole path here"):
        config.init.completed()
    (tmp_path / "file.pth").write_bytes(b"other weights")
    with pytest.raises(ChangedError, match="put the file back, or begin a new run"):
        complete.completed()
    (tmp_path / "file.pth").unlink()
    with pytest.raises(ChangedError, match="there is no file"):
        complete.completed()


def test_a_folder_stands_for_the_file_in_it_and_half_an_export_for_none(tmp_path: Path) -> None:
    whole, half = tmp_path / "export", tmp_path / ".export.01234567.part"
    for folder in (whole, half):
        folder.mkdir()
        (folder / "encoder.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"must be a whole export, but has no config\.json"):
        InitFile(path=str(whole)).completed()
    (whole / "config.json").write_text("{}")
    assert InitFile(path=str(whole)).completed().path == str(whole / "encoder.safetensors")
    for place, message in (
        (half, "an export that was not finished; write it again"),
        (tmp_path, r"but has no encoder\.safetensors; name the file of weights itself"),
        (tmp_path / "none", "there is no file"),
        ("s3://bucket/file.pth", "is a URI; copy it to a shared folder"),
    ):
        with pytest.raises(ValueError, match=message):
            InitFile(path=str(place)).completed()
