"""Annotated images out of a data set with labels, for `multilabel`, `detection`, `segmentation` and `dense`: scenes of
one to three of its images on noise, in COCO's format.

    python benchmarks/scenes.py DATA --out FOLDER [--side 64] [--objects 20 32] [--images 400 200]

`instances_train.json` has scenes of the data set's `train`, `instances_val.json` of its `select`. An image is pasted as
a disc of `--objects` pixels (lowest and highest side), gray ones as what is brighter than half of their range: that
is its mask. Objects do not overlap. Equal arguments draw equal scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.datasets import Dataset, open_dataset
from trainers.data.loader import Loaders

TRIES = 50
"""To place an object beside the others; after that a scene has one fewer."""
AS_THEY_ARE = ((0.0,) * 3, (1.0,) * 3)


class Object(NamedTuple):
    """Of a scene: its class and which pixels are its own, [side, side]."""

    label: int
    mask: NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of a data set that `pretune data` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=64, help="pixels of a scene")
    parser.add_argument("--objects", type=int, nargs=2, default=(20, 32), metavar=("LOW", "HIGH"))
    parser.add_argument("--images", type=int, nargs=2, default=(400, 200), metavar=("TRAIN", "VAL"))
    asked = parser.parse_args()
    write(
        open_dataset(asked.data), asked.out, side=asked.side, objects=tuple(asked.objects), counts=tuple(asked.images)
    )


def write(dataset: Dataset, out: Path, *, side: int, objects: tuple[int, int], counts: tuple[int, int]) -> None:
    """Scenes in COCO's format below `out`, which must not be there."""
    (out / "annotations").mkdir(parents=True)
    labels, names = dataset.search_labels(), dataset.manifest.class_names
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    for seed, (part, ids, count) in enumerate(
        zip(("train", "val"), (dataset.train_ids, dataset.select_ids), counts, strict=True)
    ):
        (out / part).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for pixels, found in scenes(dataset, ids, labels, count, side=side, objects=objects, seed=seed):
            number = len(images) + 1
            name = f"{number:05}.png"
            Image.fromarray(pixels).save(out / part / name)
            images.append({"id": number, "file_name": name, "height": side, "width": side})
            for one in found:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation(one)})
        content = {"images": images, "categories": categories, "annotations": annotations}
        (out / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def scenes(
    dataset: Dataset,
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    count: int,
    *,
    side: int,
    objects: tuple[int, int],
    seed: int,
) -> Iterator[tuple[NDArray[np.uint8], list[Object]]]:
    """(pixels [side, side, 3], objects) of `count` scenes of rows `ids`."""
    draw = np.random.default_rng(seed)
    low, high = objects
    chosen = draw.choice(ids, 3 * count)
    whole = np.concatenate(
        [
            images.numpy()
            for images, _ in Loaders().images(
                dataset, chosen, size=high, batch_size=256, threads=1, normalization=AS_THEY_ARE
            )
        ]
    ).transpose(0, 2, 3, 1)
    for start in range(0, 3 * count, 3):
        pixels = draw.normal(0.5, 0.1, (side, side, 3))
        found: list[Object] = []
        for place in range(start, start + int(draw.integers(1, 4))):
            size = int(draw.integers(low, high + 1))
            picture = Image.fromarray(np.rint(255 * whole[place].clip(0, 1)).astype(np.uint8)).resize((size, size))
            its = np.asarray(picture) / 255
            inside = shape(its)
            for top, left in draw.integers(0, side - size + 1, (TRIES, 2)):
                box = (slice(top, top + size), slice(left, left + size))
                if inside.any() and not any(one.mask[box].any() for one in found):
                    mask = np.zeros((side, side), dtype=bool)
                    mask[box] = inside
                    pixels[box][inside] = its[inside]
                    found.append(Object(int(labels[chosen[place]]), mask))
                    break
        yield np.rint(255 * pixels.clip(0, 1)).astype(np.uint8), found


def shape(pixels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of an image's pixels [s, s, 3] are pasted."""
    if np.ptp(pixels, axis=2).max() < 0.02:  # gray: the strokes of a digit
        strokes: NDArray[np.bool_] = pixels[..., 0] > 0.5 * pixels.max()
        return strokes
    rows, columns = np.mgrid[: len(pixels), : len(pixels)]
    center = (len(pixels) - 1) / 2
    disc: NDArray[np.bool_] = (rows - center) ** 2 + (columns - center) ** 2 <= (len(pixels) / 2) ** 2
    return disc


def annotation(one: Object) -> dict[str, Any]:
    """COCO's entry of an object: its box, and its mask as an uncompressed run-length code."""
    rows, columns = np.nonzero(one.mask)
    left, top = int(columns.min()), int(rows.min())
    flat = one.mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {
        "category_id": one.label + 1,
        "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
        "area": float(one.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(one.mask.shape), "counts": [0, *runs] if flat[0] else runs},
    }


if __name__ == "__main__":
    main()
