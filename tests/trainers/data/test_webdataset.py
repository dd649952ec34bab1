"""WebDataset shards: labels beside the images, parts by the shards' names, patterns; each image with its own label."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.data import sources
from trainers.data.sources.base import Source


def pixels(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def shard(path: Path, indices: range, beside: Mapping[str, Any], *, prefix: str = "", mode: str = "w") -> Path:
    """A tar of images with files of their names; of a value that can be called, what it makes of the index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for index in indices:
            buffer = io.BytesIO()
            Image.fromarray(pixels(index)).save(buffer, "PNG")
            files = {"png": buffer.getvalue()}
            files |= {ext: str(make(index) if callable(make) else make).encode() for ext, make in beside.items()}
            for ext, data in files.items():
                member = tarfile.TarInfo(f"{prefix}{index - indices[0]:06}.{ext}")  # keys of each shard begin anew
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def load(path: Path, columns: Mapping[str, str] | None = None) -> Source:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return sources.load("images", [path], scratch=scratch, columns=columns or {})


def number(index: int) -> int:
    return (2, 10, 7)[index % 3]


def agrees(source: Source, start: int = 0) -> bool:
    """Whether each image has its own pixels and label."""
    return all(
        np.array_equal(np.asarray(source.train.images.read(row).image), pixels(start + row))
        and source.class_names[int(label)] == str(number(start + row))
        for row, label in enumerate(source.train.labels)
    )


@pytest.mark.parametrize(
    ("name", "mode", "prefix"), [("a.tar", "w", ""), ("a.tar.gz", "w:gz", "./"), ("a.tar", "w", "part/x.y/")]
)
def test_a_shards_labels_are_those_of_the_same_name(tmp_path: Path, name: str, mode: str, prefix: str) -> None:
    source = load(shard(tmp_path / name, range(9), {"cls": number, "txt": "a caption"}, mode=mode, prefix=prefix))
    assert source.class_names == ("2", "7", "10")
    assert agrees(source)
    assert any("9 .txt files" in note for note in source.notes)


def test_labels_in_json_are_found_by_their_key_or_asked_for(tmp_path: Path) -> None:
    plain = shard(tmp_path / "a.tar", range(6), {"json": lambda i: json.dumps({"width": 8, "label": number(i)})})
    assert agrees(load(plain))
    other = shard(tmp_path / "b.tar", range(6), {"json": lambda i: json.dumps({"width": 8, "species": number(i)})})
    with pytest.raises(
        ValueError, match=r"which of its keys is the label, but they are 'width', 'species'; .* --colum"
    ):
        load(other)
    assert agrees(load(other, {"label": "species"}))
    assert load(other, {"label": ""}).class_names == ()
    both = shard(tmp_path / "c.tar", range(6), {"cls": 1, "json": lambda i: json.dumps({"label": number(i)})})
    assert agrees(load(both, {"label": "label"})), "what is asked for goes before .cls"


def test_an_unpacked_shard_is_read_and_class_folders_with_facts_stay_what_they_are(tmp_path: Path) -> None:
    with tarfile.open(shard(tmp_path / "a.tar", range(6), {"cls": number})) as tar:
        tar.extractall(tmp_path / "a", filter="data")
    assert agrees(load(tmp_path / "a"))
    for name in ("cat", "dog"):
        (tmp_path / "b" / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(pixels(index)).save(tmp_path / "b" / name / f"{index}.png")
            (tmp_path / "b" / name / f"{index}.json").write_text('{"label": "x"}')
    assert load(tmp_path / "b").class_names == ("cat", "dog")


def test_shards_of_a_folder_are_parts_by_their_names(tmp_path: Path) -> None:
    for index in range(3):
        shard(tmp_path / "in" / f"toy-train-{index:06}.tar", range(6 * index, 6 * index + 6), {"cls": number})
    shard(tmp_path / "in" / "toy-val-000000.tar", range(18, 24), {"cls": number})
    source = load(tmp_path / "in")
    assert agrees(source)
    assert source.test is not None
    assert (len(source.train.images), len(source.test.images)) == (18, 6)
    assert len(sources.load_unlabeled(tmp_path / "in", scratch=tmp_path)) == 24


@pytest.mark.parametrize(
    "pattern", ["t-{000..002}.tar", "t-*.tar", "t-{000,001,002}.tar", "t-00{2..0}.tar", "t-???.tar"]
)
def test_a_pattern_names_shards(tmp_path: Path, pattern: str) -> None:
    for index in range(3):
        shard(tmp_path / f"t-{index:03}.tar", range(6 * index, 6 * index + 6), {"cls": number})
    source = load(tmp_path / pattern)
    assert len(source.train.images) == 18
    assert pattern == "t-00{2..0}.tar" or agrees(source)
    assert len(sources.load_unlabeled(tmp_path / pattern, scratch=tmp_path)) == 18


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("t-{000..003}.tar", r"but 3 of 4 are not there, such as .*t-001\.tar"),
        ("x*.tar", "but 1 of 1 are not there"),
        ("{0..999999999}.tar", "at most 100,000 files"),
        ("{0..999}{0..999}.tar", "at most 100,000 files, but names 1,000,000"),
    ],
)
def test_what_a_pattern_names_must_exist(tmp_path: Path, pattern: str, said: str) -> None:
    shard(tmp_path / "t-000.tar", range(3), {"cls": number})
    with pytest.raises(ValueError, match=said):
        load(tmp_path / pattern)


def test_what_a_shard_lacks_is_said(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        shard(tmp_path / "in" / f"{name}.tar", range(3), {})
    with pytest.raises(
        ValueError, match=r"n01440764\.tar: tars of one source must be WebDataset .* give it by --unlabe"
    ):
        load(tmp_path / "in")
    lacking = shard(tmp_path / "b.tar", range(6), {"cls": lambda i: "" if i == 4 else number(i)})
    with pytest.raises(ValueError, match=r"1 of 6 have none, such as .*b\.tar: 000004\.png; remove"):
        load(lacking)
    with pytest.raises(ValueError, match=r"000000\.json: must be JSON, but is not"):
        load(shard(tmp_path / "c.tar", range(6), {"json": "{"}))
