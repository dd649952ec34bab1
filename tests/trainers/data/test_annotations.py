from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.annotated import CLASSES, pictures, write_coco, write_voc
from trainers.data.annotations import VOID, Box, read
from trainers.data.annotations.base import encoded, runs_of

TRAIN, TEST = pictures(3), pictures(2, seed=1)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", TRAIN, TEST)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco", TRAIN, TEST)


@pytest.mark.parametrize(("write", "test"), [(write_voc, "test"), (write_coco, "val")])
@pytest.mark.parametrize("masks", [False, True])
def test_both_formats_give_what_was_drawn(write: Callable[..., Path], test: str, masks: bool, tmp_path: Path) -> None:
    found = read(write(tmp_path / "set", TRAIN, TEST), masks=masks)
    assert found.classes == CLASSES
    assert {name: len(ids) for name, ids in found.parts.items()} == {"train": 3, test: 2}
    assert found.has_masks == masks
    for part, drawn in (("train", TRAIN), (test, TEST)):
        for place, picture in zip(found.parts[part], drawn, strict=True):
            image = found.images[place]
            np.testing.assert_array_equal(image.pixels(), picture.pixels)
            assert [found.classes[each.label] for each in image.instances] == list(picture.names)
            assert [each.box for each in image.instances] == [Box(*map(float, box)) for box in picture.boxes]
            if not masks:
                continue
            wanted = np.zeros(picture.pixels.shape[:2], np.uint8)
            for each, name, mask in zip(image.instances, picture.names, picture.masks, strict=True):
                assert each.mask is not None
                np.testing.assert_array_equal(each.mask.pixels(), mask)
                assert each.area == mask.sum()
                wanted[mask] = CLASSES.index(name) + 1
            np.testing.assert_array_equal(image.class_map(), wanted)


def test_the_folder_above_a_vocdevkit_and_a_single_file_of_coco_are_found_too(tmp_path: Path) -> None:
    write_voc(tmp_path / "data" / "VOCdevkit" / "VOC2007", TRAIN, TEST)
    assert len(read(tmp_path / "data").images) == 5
    write_coco(tmp_path / "coco", TRAIN, TEST)
    alone = read(tmp_path / "coco" / "annotations" / "instances_val.json")
    assert (len(alone.images), dict(alone.parts)) == (2, {})
    write_voc(tmp_path / "data" / "VOCdevkit" / "VOC2012", TRAIN, TEST)
    with pytest.raises(ValueError, match=r"one VOC data set, but holds .*VOC2007, .*VOC2012; name one"):
        read(tmp_path / "data")


def test_the_hash_follows_what_is_there_and_not_where_it_lies(tmp_path: Path) -> None:
    first, second = (read(write_coco(tmp_path / name, TRAIN, TEST)) for name in "ab")
    assert first.sha256 == second.sha256
    image = tmp_path / "b" / "val" / "001.png"
    Image.fromarray(255 - TEST[1].pixels).save(image)
    assert read(tmp_path / "b").sha256 != first.sha256


def test_difficult_objects_and_crowds_are_marked(voc: Path, coco: Path) -> None:
    path = voc / "Annotations" / "train_000.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    instances = read(voc).images[-3].instances
    assert [each.ignored for each in instances] == [True, False]

    def crowded(values: dict[str, Any]) -> None:
        values["annotations"][0]["iscrowd"] = 1

    _edit(coco, crowded)
    found = read(coco, masks=True).images[0]
    assert [each.ignored for each in found.instances] == [True, False]
    mask = found.instances[0].mask
    assert mask is not None
    assert (found.class_map()[mask.pixels()] == VOID).all()


def test_a_box_that_leaves_its_image_by_a_rounding_is_cut_off(coco: Path) -> None:
    _edit(coco, lambda values: values["annotations"][0].update(bbox=[-0.4, 0, 64.9, 64.6]))
    assert read(coco).images[0].instances[0].box == Box(0, 0, 64, 64)


def _edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "annotations" / "instances_train.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


COCO_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "out": (lambda v: v["annotations"][0].update(bbox=[50, 50, 30, 10]), "must lie in the image of 64 x 64 pixels"),
    "inverted": (lambda v: v["annotations"][0].update(bbox=[50, 50, -30, 10]), "is inverted"),
    "empty": (lambda v: v["annotations"][0].update(bbox=[50, 50, 0, 10]), "is empty"),
    "box of text": (lambda v: v["annotations"][0].update(bbox=["1", 2, 3, 4]), "must be four numbers"),
    "no box": (lambda v: v["annotations"][0].pop("bbox"), "must be four numbers"),
    "unknown class": (lambda v: v["annotations"][0].update(category_id=5), "category 5 is not among the categories"),
    "no class": (lambda v: v["annotations"][0].pop("category_id"), "the label, is missing"),
    "no such image": (lambda v: v["annotations"][0].update(image_id=99), "its image 99 is not among the images"),
    "no labels": (
        lambda v: v.pop("annotations"),
        "'annotations' must be a list of objects, but is missing: the labels",
    ),
    "twice": (lambda v: v["annotations"][1].update(id=1), "annotation 1 is there 2 times"),
    "image twice": (lambda v: v["images"][1].update(id=10), "image 10 is there twice"),
    "size": (lambda v: v["images"][0].update(width=65), "its size must be the file's, 64 x 64, but is 65 x 64"),
    "image missing": (lambda v: v["images"][0].update(file_name="x.png"), r"\(x.png\): the image is missing"),
    "elsewhere": (lambda v: v["images"][0].update(file_name="../x.png"), "must lie in the data set"),
    "crowd": (lambda v: v["annotations"][0].update(iscrowd=2), "iscrowd must be 0 or 1"),
    "categories": (lambda v: v["categories"][0].update(name="cube"), "categories must be those of"),
    "number without end": (lambda v: v["annotations"][0].update(bbox=[10**400, 5, 10, 5]), "must be four numbers"),
    "area without end": (lambda v: v["annotations"][0].update(area=10**400), "must be a number of pixels"),
    "size of text": (lambda v: v["images"][0].update(height="64"), "64 x 64, but is 64 x '64'"),
    "file twice": (lambda v: v["images"][1].update(file_name="000.png"), "image 11: 000.png is image 10, too"),
    "name too long": (lambda v: v["images"][0].update(file_name="a" * 300), "the image cannot be read"),
    "half a character": (lambda v: v["images"][0].update(file_name="\ud800.png"), r"must be a text, but is '\\ud800"),
    "id of half a character": (lambda v: v["annotations"][0].update(id="\ud800", bbox=[]), r"annotation \\ud800"),
}


@pytest.mark.parametrize("fault", sorted(COCO_FAULTS))
def test_faults_of_coco_are_told(fault: str, coco: Path) -> None:
    change, message = COCO_FAULTS[fault]
    _edit(coco, change)
    with pytest.raises(ValueError, match=message):
        read(coco)


SEGMENTATIONS: dict[str, tuple[Any, str]] = {
    "polygon of two": ([[1, 2, 3, 4]], "three points or more"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "three points or more"),
    "outside": ([[1, 2, 3, 4, 70, 6]], "must lie in the image"),
    "none": ([], "must have a polygon"),
    "missing": (None, "must be polygons or a run-length code"),
    "size": ({"size": [32, 64], "counts": [2048]}, r"must be \[64, 64\]"),
    "short": ({"size": [64, 64], "counts": [10, 20]}, "must cover 4096 pixels"),
    "long": ({"size": [64, 64], "counts": [10, 2**40]}, "must cover 4096 pixels"),
    "negative": ({"size": [64, 64], "counts": [-4, 4100]}, "must cover 4096 pixels"),
    "compressed": ({"size": [64, 64], "counts": "PPPPPPPPPPPP"}, "must cover 4096 pixels"),
    "no text": ({"size": [64, 64], "counts": 5}, "must cover 4096 pixels"),
    "no pixel": ({"size": [64, 64], "counts": [4096]}, "its mask must have pixels, but has none"),
    "a line": ([[5, 5, 10, 5, 20, 5]], "its mask must have pixels, but has none"),
    "without end": ([[10**400, 5, 10, 5, 20, 9]], "must be x, y, x, y"),
    "another place": ([[0, 60, 4, 60, 4, 64, 0, 64]], "its mask must lie in its box of .*, but lies outside of it"),
}


@pytest.mark.parametrize("fault", sorted(SEGMENTATIONS))
def test_faults_of_masks_are_told_where_masks_are_asked_for(fault: str, coco: Path) -> None:
    segmentation, message = SEGMENTATIONS[fault]
    _edit(coco, lambda values: values["annotations"][0].update(segmentation=segmentation))
    read(coco)
    with pytest.raises(ValueError, match=message):
        read(coco, masks=True)


def test_compressed_codes_are_read_as_pycocotools_writes_them() -> None:
    draw = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        pixels = draw.random((37, 91)) < share
        mask = encoded(pixels)
        np.testing.assert_array_equal(mask.pixels(), pixels)
        assert mask.area == pixels.sum()
        assert sum(runs_of(mask.counts.decode())) == 37 * 91


def test_all_faults_of_a_voc_set_are_told_at_once(voc: Path) -> None:
    xml = voc / "Annotations"
    (xml / "train_000.xml").write_text("<annotation><object>")
    text = (xml / "train_001.xml").read_text()
    (xml / "train_001.xml").write_text(text.replace("<xmin>", "<xmin>9", 1))
    (xml / "train_002.xml").unlink()
    (voc / "JPEGImages" / "test_000.png").unlink()
    (voc / "JPEGImages" / "test_001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="5 are not") as told:
        read(voc)
    for words in (
        "train_000.xml: must be XML, but is broken",
        "train_001.xml: object 1",
        "its labels Annotations/train_002.xml are missing",
        "Annotations/test_000.xml: its image JPEGImages/test_000.jpg is missing",
        "test_001.png: the image cannot be read",
    ):
        assert words in str(told.value)


VOC_FAULTS = {
    "xmin of zero": ("<xmin>", "<xmin>-5</xmin><xmin>", "must lie in the image"),
    "no box": ("bndbox>", "box>", "must have four numbers"),
    "no class": ("<name>", "<name></name><name>", "its <name>, the class, is missing"),
    "difficult": ("<difficult>0", "<difficult>maybe", "must be 0 or 1"),
    "size": ("<width>64", "<width>65", "its size must be the image's"),
    "root": ("annotation>", "image>", "must hold <annotation>, but holds <image>"),
    "encoding": ("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>', "must be XML, but is broken"),
}


@pytest.mark.parametrize("fault", sorted(VOC_FAULTS))
def test_faults_of_an_xml_are_told(fault: str, voc: Path) -> None:
    old, new, message = VOC_FAULTS[fault]
    path = voc / "Annotations" / "train_000.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read(voc)


def test_nothing_outside_of_an_xml_is_read(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("square")
    path = voc / "Annotations" / "train_000.xml"
    entity = f'<!DOCTYPE a [<!ENTITY secret SYSTEM "{tmp_path / "secret"}">]>'
    path.write_text(entity + path.read_text().replace("<name>disc", "<name>&secret;").replace(">square<", ">&secret;<"))
    with pytest.raises(ValueError, match="must not declare a document type or entities"):
        read(voc)


def test_classes_that_are_given_refuse_others(voc: Path, coco: Path) -> None:
    for place in (voc, coco):
        with pytest.raises(ValueError, match=r"class.* is unknown; classes are square, cat"):
            read(place, classes=("square", "cat"))


def test_masks_of_voc_must_agree_with_the_boxes(voc: Path) -> None:
    path = voc / "SegmentationClass" / "train_000.png"
    picture = Image.open(path)
    picture.putdata([{1: 2, 2: 1}.get(value, value) for value in np.asarray(picture).ravel().tolist()])
    picture.save(path)
    (voc / "SegmentationObject" / "train_001.png").unlink()
    Image.new("P", (9, 9)).save(voc / "SegmentationObject" / "train_002.png")
    with pytest.raises(ValueError, match="classes count from 1") as told:
        read(voc, masks=True)
    assert "SegmentationObject/train_001.png: the masks are missing" in str(told.value)
    assert "must have the image's size, 64 x 64, but has 9 x 9" in str(told.value)


def test_each_object_of_voc_has_its_mask_in_its_box_unless_it_is_difficult(voc: Path) -> None:
    path = voc / "SegmentationObject" / "train_000.png"
    whole = Image.open(path).copy()
    picture = whole.copy()
    picture.putdata([0 if value == 1 else value for value in np.asarray(picture).ravel().tolist()])
    picture.save(path)
    with pytest.raises(ValueError, match=r"object 1 \(\w+\): has no pixel of the number 1") as told:
        read(voc, masks=True)
    assert "but 1 is not" in str(told.value)
    xml = voc / "Annotations" / "train_000.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert len(read(voc, masks=True).images[-3].instances) == 1
    whole.transpose(Image.Transpose.ROTATE_180).save(path)
    for folder in ("SegmentationClass",):
        Image.open(voc / folder / "train_000.png").transpose(Image.Transpose.ROTATE_180).save(
            voc / folder / "train_000.png"
        )
    with pytest.raises(ValueError, match="its mask must lie in its box"):
        read(voc, masks=True)


def test_an_image_that_another_one_shares_its_name_with_is_told(voc: Path) -> None:
    Image.new("RGB", (64, 64)).save(voc / "JPEGImages" / "train_000.jpg")
    (voc / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train_000\.png: train_000\.jpg has the same name; keep one") as told:
        read(voc)
    assert "classes.txt: must name a class on each line, but is empty" in str(told.value)


def test_pixels_are_those_of_a_data_set_and_what_does_not_decode_is_named(coco: Path) -> None:
    place = coco / "train" / "000.png"
    Image.fromarray(np.full((64, 64), 257 * 100, np.uint16)).save(place)
    image = read(coco).images[0]
    assert (image.pixels() == 100).all()
    place.write_bytes(place.read_bytes()[:-40])  # its header is whole
    with pytest.raises(ValueError, match=r"000\.png: broken image"):
        read(coco).images[0].pixels()
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(place, "TIFF")
    with pytest.raises(ValueError, match="must have integers as pixels, but has floating point"):
        read(coco)


def test_a_part_that_leaves_nothing_is_told_with_how_much_is_left(voc: Path) -> None:
    lists = voc / "ImageSets" / "Main"
    (lists / "train.txt").write_text((lists / "test.txt").read_text())
    with pytest.raises(ValueError, match="of its 2 images there are 0 to fit on and 0 to score"):
        read(voc).divided("select")


def test_a_few_faults_may_be_left_out_and_are_told(coco: Path) -> None:
    _edit(coco, lambda values: values["annotations"][0].update(bbox=[1, 1, 0, 5]))
    with pytest.raises(ValueError, match=r"skip=0.067"):
        read(coco)
    found = read(coco, skip=0.067)
    assert len(found.images[0].instances) == 1
    assert len(found.left_out) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"images": NaN}', "[" * 100_000])
def test_what_is_no_json_of_cocos_is_refused(text: str, coco: Path) -> None:
    (coco / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(ValueError, match=r"instances_train.json: must (be|hold)"):
        read(coco)


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds neither"):
        read(tmp_path)
    with pytest.raises(ValueError, match="nothing is there"):
        read(tmp_path / "missing")
