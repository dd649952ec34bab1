"""Tables of images: which column holds what, parts, and everything that a row may lack."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from trainers.data import sources
from trainers.data.sources.base import Source

CLASSES = ["zebra", "ant"]  # not in the order of letters


def pixels(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0 to 11 in img/, and nothing else."""
    (tmp_path / "img").mkdir()
    (tmp_path / "scratch").mkdir()
    for index in range(12):
        (tmp_path / "img" / f"{index}.png").write_bytes(png(index))
    return tmp_path


def write(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def rows(form: str, count: int = 12) -> str:
    return "".join(form.format(i=index, label=index % 3) + "\n" for index in range(count))


def load(path: Path, columns: Mapping[str, str] | None = None, layout: str = "auto") -> Source:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return sources.load("images", [path], scratch=scratch, columns=columns or {}, layout=layout)


def refused(path: Path, columns: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        load(path, columns)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,label\n" + rows("img/{i}.png,{label}")),
        ("list.csv", "\ufeffFile_Name;Class\n" + rows("img/{i}.png;{label}")),
        ("list.tsv", "label\timage\n" + rows("{label}\timg/{i}.png")),
        ("list.csv", 'id,"target","image path"\n' + rows('{i},"{label}","img/{i}.png"')),
        ("list.csv", rows("img/{i}.png,{label}")),
    ],
    ids=["plain", "bom", "tsv", "quoted", "headless"],
)
def test_a_table_of_any_dialect_is_read_relative_to_itself(folder: Path, name: str, text: str) -> None:
    source = load(write(folder, text, name))
    assert source.class_names == ("0", "1", "2")
    assert source.train.labels.tolist() == [index % 3 for index in range(12)]
    assert np.array_equal(np.asarray(source.train.images.read(7).image), pixels(7))
    assert source.description == f"images: {name}"


def test_labels_that_are_numbers_come_by_their_value_and_words_by_letter(folder: Path) -> None:
    table = "path,label\n" + "".join(f"img/{i}.png,{(10, 9, 100)[i % 3]}\n" for i in range(12))
    assert load(write(folder, table)).class_names == ("9", "10", "100")
    assert load(write(folder, table.replace(",100", ",x"))).class_names == ("10", "9", "x")


def test_columns_of_other_names_are_asked_for_and_a_path_may_be_put_together(folder: Path) -> None:
    path = write(folder, "id,breed\n" + rows("{i},b{label}"))
    assert refused(path) == (
        f"{path}: a column must hold the path, but none of 'id', 'breed' is called so; say which with --column "
        f"path=COLUMN"
    )
    assert "none of 'id', 'breed' is called so; say which with --column label=COLUMN" in refused(path, {"path": "id"})
    asked = {"path": "img/{id}.png", "label": "breed"}
    assert load(path, asked).class_names == ("b0", "b1", "b2")
    assert load(path, {**asked, "label": ""}).class_names == ()
    assert "12 of 12 are not there" in refused(path, {"path": "{id}.jpg", "label": "breed"})
    assert "but names 'it'" in refused(path, {"path": "{it}.jpg", "label": "breed"})
    assert "must name one of path, label, split, but names colour" in refused(path, {"colour": "id"})
    with pytest.raises(ValueError, match="--column is for tables of the kind images, but the kind is npz"):
        sources.load("npz", [path], scratch=folder, columns=asked)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path,file,label\n" + rows("img/{i}.png,img/{i}.png,1"),
            "it may be 'path' or 'file'; say which with --column",
        ),
        ("path,path\n" + rows("img/{i}.png,1"), "each column must have a name of its own, but 'path' comes twice"),
        ("path,label\n" + rows("img/{i}.png,1,2"), "row 2 must have 2 values, as the first has, but has 3"),
        ("path,label\n" + rows("img/{i}.png,1") + "img/3.png,2\n", "img/3.png is that of row 4 as well"),
        ("path,label\n" + rows("img/{i}.png,1") + "img/x.png,2\n", "1 of 13 are not there, such as"),
        ("path,label\nhttps://a.b/c.png,1\n", "images must be files here, but this is the address https://a.b/c.png"),
        ("path,label\n" + rows("img/{i}.png,1", 5) + "img/5.png,\n", "but 1 of 6 have none, such as"),
        ("path,label\n,1\n", "row 1: must name an image, but is empty"),
        ("path,label\n", "must have a row for each image, but has none"),
        ("", "must have a row for each image, but is empty"),
        (
            "path,label,split\n" + rows("img/{i}.png,{label},{label}"),
            "one part must be called train, but the parts are",
        ),
        (
            "path,label,split\n" + rows("img/{i}.png,1,train", 4) + "img/8.png,1,test\nimg/9.png,1,holdout\n",
            "'holdout' and 'test' may both be",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_row_and_a_remedy(folder: Path, text: str, said: str) -> None:
    assert said in refused(write(folder, text))


def test_a_column_of_parts_makes_them_and_validation_is_left_out_beside_a_test_part(folder: Path) -> None:
    parts = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    text = "path,label,split\n" + "".join(f"img/{i}.png,{i % 3},{part}\n" for i, part in enumerate(parts))
    source = load(write(folder, text))
    assert source.test is not None
    assert (len(source.train.images), len(source.test.images), source.skipped) == (6, 3, 3)
    assert [branch.text for branch in source.outline[0].below] == [
        "train  train: 6 images, 3 classes",
        "test  test: 3 images, 3 classes",
        "val  left out, there is a test part: 3 images",
    ]
    source = load(write(folder, text.replace(",test", ",train")))
    assert source.test is not None
    assert len(source.test.images) == 3
    source = load(write(folder, text), {"split": ""})
    assert (len(source.train.images), source.test) == (12, None)


def test_a_table_beside_images_without_folders_is_pointed_at(folder: Path) -> None:
    write(folder / "img", "path,label\n")
    assert "but a CSV file lies beside them; name that file with --source" in refused(folder / "img")


def test_a_table_may_give_unlabeled_images_and_a_test_part_as_a_source_of_its_own(folder: Path) -> None:
    table = write(folder, "path,species,site\n" + rows("img/{i}.png,{label},1"))
    assert len(sources.load_unlabeled(table, scratch=folder)) == 12
    one = write(folder, "path,label\n" + rows("img/{i}.png,{label}", 9), "train.csv")
    two = write(folder, "path,label\n" + "".join(f"img/{i}.png,{i % 3}\n" for i in range(9, 12)), "test.csv")
    source = sources.load("images", [one, two], scratch=folder)
    assert source.test is not None
    assert (len(source.train.images), len(source.test.images)) == (9, 3)


# ---- Parquet and Arrow


def hub(indices: range, label: Any = None, *, names: bool = True) -> pyarrow.Table:
    """A table as on the hub: images in themselves, numbered classes with names."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": png(index), "path": f"{index}.png"} for index in indices], kind)
    labels = pyarrow.array([index % 2 if label is None else label for index in indices], pyarrow.int64())
    features = {"image": {"_type": "Image"}, "label": {"names": [*CLASSES, "unused"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else {}
    return pyarrow.table({"image": images, "label": labels}).replace_schema_metadata(metadata)


def test_parquet_files_of_a_folder_are_parts_by_name_with_named_classes(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, indices in (("train-00000-of-00002", range(5)), ("train-00001-of-00002", range(5, 8))):
        parquet.write_table(hub(indices), tmp_path / "hub" / "data" / f"{name}.parquet")
    parquet.write_table(hub(range(8, 11)), tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    parquet.write_table(hub(range(3), -1), tmp_path / "hub" / "data" / "eval-00000-of-00001.parquet")
    source = load(tmp_path / "hub")
    assert source.test is not None
    assert source.class_names == ("zebra", "ant")
    assert source.train.labels.tolist() == [index % 2 for index in range(8)]
    assert np.array_equal(np.asarray(source.train.images.read(6).image), pixels(6))
    assert np.array_equal(np.asarray(source.test.images.read(0).image), pixels(8))
    assert source.outline[0].below[-1].text == "eval  left out, no labels: 3 images"


def test_a_parquet_file_may_hold_bytes_or_paths(folder: Path) -> None:
    table = hub(range(4), names=False)
    plain = pyarrow.table({"content": table["image"].combine_chunks().field("bytes"), "label": table["label"]})
    parquet.write_table(plain, folder / "plain.parquet")
    assert np.array_equal(np.asarray(load(folder / "plain.parquet").train.images.read(2).image), pixels(2))
    paths = {"file": [f"img/{i}.png" for i in range(4)], "label": [float(i % 2) for i in range(4)]}
    parquet.write_table(pyarrow.table(paths), folder / "paths.parquet")
    assert load(folder / "paths.parquet").class_names == ("0", "1")


def test_what_save_to_disk_wrote_is_read_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    for split, indices in (("train", range(6)), ("test", range(6, 10))):
        (tmp_path / "saved" / split).mkdir(parents=True)
        for name, part in (("data-00000-of-00001.arrow", indices), ("cache-1.arrow", range(100, 200))):
            table = hub(part)
            with pyarrow.ipc.new_stream(str(tmp_path / "saved" / split / name), table.schema) as stream:
                stream.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        write(tmp_path / "saved" / split, json.dumps(state), "state.json")
    write(tmp_path / "saved", json.dumps({"splits": ["train", "test"]}), "dataset_dict.json")
    source = load(tmp_path / "saved")
    assert source.test is not None
    assert (source.class_names, len(source.train.images), len(source.test.images)) == (("zebra", "ant"), 6, 4)
    assert np.array_equal(np.asarray(source.test.images.read(3).image), pixels(9))
    assert len(load(tmp_path / "saved" / "test").train.images) == 4
    write(tmp_path / "saved" / "train", json.dumps({**state, "_indices_files": [{"filename": "i"}]}), "state.json")
    assert "save it again after `flatten_indices()`" in refused(tmp_path / "saved")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.parquet"
    parquet.write_table(hub(range(20)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    assert f"{path}: not a complete Parquet file" in refused(path)
