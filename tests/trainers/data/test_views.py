"""The compiled views against torchvision's operations with the same drawn parameters, and the draws' statistics."""

from __future__ import annotations

import inspect
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped, unused-ignore]

from trainers.changes import with_fields
from trainers.config import ViewConfig
from trainers.data import views
from trainers.data.views import Drawn, draw, evaluation_table, render, settings_table
from trainers.settings import Resampling

Images = list[NDArray[np.uint8]]
MEAN, DEVIATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SEED, EPOCH = 3, 2


def random_images(sizes: Sequence[tuple[int, int]], seed: int = 0) -> Images:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def rendered(
    images: Images, settings: NDArray[Any], *, seed: int = SEED, epoch: int = EPOCH, step: int = 0
) -> list[NDArray[np.float32]]:
    """Views of raw images, one array [n, S, S, 3] per row of the settings, by the function that the loader calls."""
    record = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")], align=True)
    metadata = np.zeros(len(images), record)
    lengths = np.array([image.size for image in images], dtype=np.uint64)
    metadata["mode"] = 1
    metadata["data_ptr"] = np.cumsum(lengths) - lengths
    metadata["height"], metadata["width"] = zip(*(image.shape[:2] for image in images), strict=True)
    memory = np.concatenate([image.ravel() for image in images])
    sizes = settings["size"].tolist()
    rows = len(images)
    pixels = np.full(rows * sum(3 * size * size for size in sizes), np.nan, np.float32)
    side = max(max(image.shape[:2]) for image in images)
    numbers = np.array([seed, epoch, 0, rows, side, 0, 0, step])
    broken = np.full(1, -1)
    storage = (memory, metadata["data_ptr"].copy(), lengths)
    render(np.arange(rows), pixels, settings, numbers, broken, metadata, storage)
    assert broken[0] == -1
    blocks = np.split(pixels, np.cumsum([3 * size * size * rows for size in sizes])[:-1])
    return [block.reshape(rows, size, size, 3) for block, size in zip(blocks, sizes, strict=True)]


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def by_torchvision(image: Tensor, drawn: Drawn, view: ViewConfig) -> NDArray[np.float32]:
    """The independent reference, on float images."""
    x = functional.resized_crop(
        image, drawn.top, drawn.left, drawn.height, drawn.width, [view.size, view.size], antialias=True
    )
    if drawn.flip:
        x = functional.horizontal_flip(x)
    for operation in drawn.jitter_order:
        if operation == 0:
            x = functional.adjust_brightness(x, drawn.brightness)
        elif operation == 1:
            x = functional.adjust_contrast(x, drawn.contrast)
        elif operation == 2:
            x = functional.adjust_saturation(x, drawn.saturation)
        else:
            x = functional.adjust_hue(x, drawn.hue)
    if drawn.grayscale:
        x = functional.rgb_to_grayscale(x, 3)
    if drawn.blur_sigma is not None:
        taps = 2 * min(math.ceil(3 * drawn.blur_sigma), view.size - 1) + 1
        x = functional.gaussian_blur(x, [taps, taps], [drawn.blur_sigma, drawn.blur_sigma])
    if drawn.solarize:
        x = functional.solarize(x, view.solarize_threshold)
    result: NDArray[np.float32] = functional.normalize(x, list(MEAN), list(DEVIATION)).permute(1, 2, 0).numpy()
    return result


def drawn_many(view: ViewConfig, count: int, *, height: int = 48, width: int = 64, **keys: int) -> list[Drawn]:
    keyed = {"seed": 0, "epoch": 0, "view_index": 0, **keys}
    return [draw(view, sample_id=i, image_height=height, image_width=width, **keyed) for i in range(count)]


@pytest.mark.ffcv
def test_views_equal_torchvision_with_the_same_draws() -> None:
    sizes = [(int(h), int(w)) for h, w in np.random.default_rng(1).integers(8, 120, (60, 2))]
    images = random_images([*sizes, (5, 300), (300, 5), (32, 32), (1, 1)])
    views = [
        ViewConfig(size=32, blur_probability=0.5, solarize_probability=0.3),
        ViewConfig(
            size=13, blur_probability=0.7, blur_sigma=(0.1, 5.0), jitter_probability=0.0, grayscale_probability=0.0
        ),  # kernels wider than the view
        ViewConfig(
            size=64,
            brightness=1.0,
            contrast=1.0,
            saturation=1.0,
            hue=0.5,
            jitter_probability=1.0,
            solarize_threshold=0.2,
        ),
    ]
    found = rendered(images, settings_table(views, MEAN, DEVIATION))
    for index, view in enumerate(views):
        for sample, image in enumerate(images):
            height, width = image.shape[:2]
            drawn = draw(
                view, seed=SEED, epoch=EPOCH, sample_id=sample, view_index=index, image_height=height, image_width=width
            )
            expected = by_torchvision(as_tensor(image), drawn, view)
            # Next to solarize's threshold a last bit turns a value around: a pixel may differ, but hardly ever does.
            differs = np.abs(found[index][sample] - expected) > 1e-4
            assert differs.mean() < 2e-3, (view, drawn, np.abs(found[index][sample] - expected).max())


QUIET = {"jitter_probability": 0.0, "grayscale_probability": 0.0}
SHAPES = [(1, 1), (1, 300), (300, 1), (2, 2), (3, 400), (400, 3), (32, 32), (64, 64), (96, 31), (31, 96)]


def hard_images(seed: int) -> Images:
    """Of many shapes, a third of them black and white, where a kernel that overshoots is clipped everywhere."""
    sizes = np.random.default_rng(seed).integers(1, 200, (90, 2))
    images = random_images([*((int(height), int(width)) for height, width in sizes), *SHAPES], seed)
    return [image // 128 * 255 if index % 3 == 0 else image for index, image in enumerate(images)]


@pytest.mark.ffcv
@pytest.mark.parametrize(("kernel", "levels"), [("bilinear", 1.01), ("bicubic", 1e-3)])
def test_crops_are_resampled_as_by_pillow(kernel: Resampling, levels: float) -> None:
    # Up and down, and both at once. Pillow has rounded twice where bilinear views have not.
    images = hard_images(2)
    views = [
        ViewConfig(size=size, crop_scale=(1e-4, 1.0), crop_ratio=(0.1, 10.0), resampling=kernel, **QUIET)
        for size in (4, 16, 61, 128)
    ]
    found = rendered(images, settings_table(views, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    for index, view in enumerate(views):
        for sample, image in enumerate(images):
            height, width = image.shape[:2]
            drawn = draw(
                view, seed=SEED, epoch=EPOCH, sample_id=sample, view_index=index, image_height=height, image_width=width
            )
            box = (drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height)
            crop = Image.fromarray(image).crop(box)
            expected = np.asarray(crop.resize((view.size, view.size), Image.Resampling[kernel.upper()]))
            if drawn.flip:
                expected = expected[:, ::-1]
            assert np.abs(255 * found[index][sample] - expected).max() < levels, (view, drawn, image.shape)


@pytest.mark.ffcv
@pytest.mark.parametrize(("kernel", "levels"), [("bilinear", 1.01), ("bicubic", 1e-3)])
@pytest.mark.parametrize("size", [16, 64])
def test_evaluation_is_resampled_as_by_pillow(kernel: Resampling, levels: float, size: int) -> None:
    images = hard_images(3)
    (found,) = rendered(images, evaluation_table(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resampling=kernel))
    for image, ours in zip(images, found, strict=True):
        resized = functional.resize(Image.fromarray(image), [size], interpolation=v2.InterpolationMode(kernel))
        assert np.abs(255 * ours - np.asarray(functional.center_crop(resized, [size, size]))).max() < levels


@pytest.mark.ffcv
def test_what_is_erased_has_the_mean_color_and_nothing_else_changes() -> None:
    images = random_images([(40, 30)] * 50)
    view = ViewConfig(size=24, blur_probability=0.5, solarize_probability=0.3, erase_probability=0.6)
    (whole,) = rendered(images, settings_table([with_fields(view, erase_probability=0.0)], MEAN, DEVIATION))
    (found,) = rendered(images, settings_table([view], MEAN, DEVIATION))
    erased = 0
    for sample in range(50):
        keys = {"sample_id": sample, "view_index": 0, "image_height": 40, "image_width": 30}
        drawn = draw(view, seed=SEED, epoch=EPOCH, **keys)
        plain = draw(with_fields(view, erase_probability=0.0), seed=SEED, epoch=EPOCH, **keys)
        assert plain == drawn._replace(erased=None)
        if drawn.erased is not None:
            top, left, height, width = drawn.erased
            whole[sample, top : top + height, left : left + width] = 0.0
            erased += 1
    assert 20 <= erased <= 40
    np.testing.assert_array_equal(found, whole)


@pytest.mark.ffcv
@pytest.mark.parametrize(("crop_pct", "resized"), [(1.0, 24), (0.875, 27), (0.75, 32)])
def test_evaluation_equals_torchvision_resize_and_center_crop(crop_pct: float, resized: int) -> None:
    images = random_images([(40, 40), (24, 24), (17, 50), (90, 33), (8, 8), (300, 7)])
    (found,) = rendered(images, evaluation_table(24, MEAN, DEVIATION, crop_pct=crop_pct))
    for sample, image in enumerate(images):
        x = functional.center_crop(functional.resize(as_tensor(image), [resized], antialias=True), [24, 24])
        expected = functional.normalize(x, list(MEAN), list(DEVIATION)).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found[sample], expected, atol=1e-4)


@pytest.mark.ffcv
def test_a_view_does_not_depend_on_its_neighbors_in_the_batch_or_on_later_views() -> None:
    images = random_images([(20, 30), (33, 21), (16, 16)])
    view, other = ViewConfig(size=16, blur_probability=0.5, solarize_probability=0.5), ViewConfig(size=24)
    together = rendered(images, settings_table([view, other], MEAN, DEVIATION))[0]
    alone = rendered(images[:1], settings_table([view], MEAN, DEVIATION))[0]
    np.testing.assert_array_equal(alone[0], together[0])


@pytest.mark.ffcv
def test_a_channel_without_variance_stays_finite() -> None:
    (found,) = rendered(random_images([(16, 16)]), settings_table([ViewConfig(size=16)], MEAN, (0.2, 0.0, 0.2)))
    assert np.isfinite(found).all()


@pytest.mark.ffcv
def test_a_second_process_links_the_compiled_code_instead_of_compiling_it() -> None:
    rendered(random_images([(8, 8)]), evaluation_table(8, MEAN, DEVIATION))
    script = "\n".join(
        [
            "from __future__ import annotations",
            "import numpy as np",
            "from trainers.data.views import evaluation_table, render",
            f"SEED, EPOCH = {SEED}, {EPOCH}",
            inspect.getsource(random_images),
            inspect.getsource(rendered),
            f"rendered(random_images([(8, 8)]), evaluation_table(8, {MEAN}, {DEVIATION}))",
            "print(sum(render.stats.cache_hits.values()), sum(render.stats.cache_misses.values()))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["1", "0"], done.stderr


def test_an_installation_and_a_home_that_can_not_be_written_to_cost_the_cache_alone(tmp_path: Path) -> None:
    # A file where a folder is to be made stops the superuser as well.
    source = Path(views.__file__).parents[1]
    shutil.copytree(source, tmp_path / "trainers", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in {path.parent for path in (tmp_path / "trainers").rglob("*.py")}:
        (folder / "__pycache__").touch()
    variables = {name: value for name, value in os.environ.items() if name not in {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME"}}
    script = "import numpy, trainers.data.views as it; print(it.__file__, it._absorb(numpy.uint64(1), 2))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=variables | {"PYTHONPATH": str(tmp_path), "HOME": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [
        str(tmp_path / "trainers" / "data" / "views.py"),
        str(views._absorb(np.uint64(1), 2)),
    ], done.stderr


KEYS = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0)]
"""(seed, epoch, sample or step, view): each changed alone, and seed and epoch together."""


def test_every_draw_differs_between_seeds_epochs_samples_and_views() -> None:
    view = ViewConfig(size=32, blur_probability=1.0)
    keys = [*KEYS, (2, 0, 0, 0), (0, 2, 0, 0)]
    numbers = {
        tuple(
            draw(view, seed=seed, epoch=epoch, sample_id=sample, view_index=index, image_height=500, image_width=500)[
                7:11
            ]
        )
        for seed, epoch, sample, index in keys
    }
    assert len(numbers) == len(keys)
    # Replicates must not share epochs, as they would with a key of seed + epoch.
    one = Counter(drawn.brightness for drawn in drawn_many(view, 200, seed=0, epoch=1))
    other = Counter(drawn.brightness for drawn in drawn_many(view, 200, seed=1, epoch=0))
    assert not one & other


def test_draws_have_the_probabilities_and_ranges_that_were_asked_for() -> None:
    view = ViewConfig(
        size=32,
        flip_probability=0.3,
        jitter_probability=0.6,
        brightness=0.4,
        contrast=0.3,
        saturation=0.2,
        hue=0.1,
        grayscale_probability=0.15,
        blur_probability=0.7,
        blur_sigma=(0.5, 1.5),
        solarize_probability=0.25,
    )
    count = 4000
    drawn = drawn_many(view, count)
    for expected, happened in (
        (view.flip_probability, [one.flip for one in drawn]),
        (view.jitter_probability, [bool(one.jitter_order) for one in drawn]),
        (view.grayscale_probability, [one.grayscale for one in drawn]),
        (view.blur_probability, [one.blur_sigma is not None for one in drawn]),
        (view.solarize_probability, [one.solarize for one in drawn]),
    ):
        error = math.sqrt(expected * (1 - expected) / count)
        assert abs(np.mean(happened) - expected) < 4.5 * error
    for low, high, values in (
        (0.6, 1.4, [one.brightness for one in drawn]),
        (0.7, 1.3, [one.contrast for one in drawn]),
        (0.8, 1.2, [one.saturation for one in drawn]),
        (-0.1, 0.1, [one.hue for one in drawn]),
        (0.5, 1.5, [one.blur_sigma for one in drawn if one.blur_sigma is not None]),
    ):
        shares = (np.sort(values) - low) / (high - low)
        uniform = (np.arange(len(shares)) + 0.5) / len(shares)
        assert shares.min() >= 0.0
        assert shares.max() <= 1.0
        assert np.abs(shares - uniform).max() < 2.2 / math.sqrt(len(shares))  # Kolmogorov-Smirnov, far below 1 %
    orders = Counter(one.jitter_order for one in drawn if one.jitter_order)
    assert len(orders) == 24
    assert min(orders.values()) > 0.5 * sum(orders.values()) / 24
    draws = np.array(
        [[one.flip, bool(one.jitter_order), one.brightness, one.hue, one.solarize] for one in drawn], float
    )
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 5 / math.sqrt(count)


def test_a_batchs_sigma_is_one_for_its_images_and_differs_between_seeds_epochs_steps_and_views() -> None:
    view = ViewConfig(size=32, blur_probability=0.7, blur_sigma_per="batch")
    image = {"image_height": 40, "image_width": 40}
    sigmas = []
    for seed, epoch, step, index in KEYS:
        keys = {"seed": seed, "epoch": epoch, "view_index": index, **image}
        drawn = [draw(view, step=step, sample_id=sample, **keys) for sample in range(50)]
        (sigma,) = {one.blur_sigma for one in drawn} - {None}
        sigmas.append(sigma)
        # Which images are blurred, and all else, is drawn for each.
        per_image = [draw(with_fields(view, blur_sigma_per="image"), sample_id=i, **keys) for i in range(50)]
        assert [one.blur_sigma is None for one in drawn] == [one.blur_sigma is None for one in per_image]
        assert drawn[0]._replace(blur_sigma=None) == per_image[0]._replace(blur_sigma=None)
        assert len({one.blur_sigma for one in per_image} - {None}) > 20
    assert len(set(sigmas)) == len(sigmas)


def test_erased_boxes_are_distributed_as_torchvision_draws_them() -> None:
    size, count = 32, 4000
    view = ViewConfig(size=size, erase_probability=1.0)
    torch.manual_seed(0)
    reference = v2.RandomErasing(p=1.0)
    image = torch.zeros(3, size, size)
    made = [reference.make_params([image]) for _ in range(count)]
    assert all(one["v"] is not None for one in made)
    expected = np.array([[one["i"], one["j"], one["h"], one["w"]] for one in made], float)
    ours = np.array([one.erased for one in drawn_many(view, count)], float)
    error = expected.std(0) * math.sqrt(2 / count)
    assert (np.abs(ours.mean(0) - expected.mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(ours.std(0), expected.std(0), rtol=0.1)
    # A box that can not be smaller than the view is none, as there.
    assert {one.erased for one in drawn_many(with_fields(view, erase_scale=(1.0, 1.0)), 50)} == {None}


def test_crops_are_distributed_as_torchvision_draws_them() -> None:
    height, width, count = 48, 64, 4000
    view = ViewConfig(size=32, crop_scale=(0.2, 1.0))
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    image = torch.zeros(3, height, width)
    made = [reference.make_params([image]) for _ in range(count)]
    expected = np.array([[one["top"], one["left"], one["height"], one["width"]] for one in made], float)
    ours = np.array([one[:4] for one in drawn_many(view, count, height=height, width=width)], float)
    assert (ours[:, 2] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    error = expected.std(0) * math.sqrt(2 / count)
    assert (np.abs(ours.mean(0) - expected.mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(ours.std(0), expected.std(0), rtol=0.1)


@pytest.mark.parametrize(("height", "width"), [(300, 5), (5, 300)])
def test_an_image_too_long_for_any_crop_gives_the_largest_allowed_one_at_its_center(height: int, width: int) -> None:
    drawn = draw(
        ViewConfig(size=32, crop_scale=(0.9, 1.0)),
        seed=0, epoch=0, sample_id=0, view_index=0, image_height=height, image_width=width,
    )  # fmt: skip
    expected = v2.RandomResizedCrop(32, scale=(0.9, 1.0)).make_params([torch.zeros(3, height, width)])
    assert drawn[:4] == (expected["top"], expected["left"], expected["height"], expected["width"])
