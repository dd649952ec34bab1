"""Order, views and evaluation images as the training loop gets them, from real FFCV files of both kinds."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.reader import Reader
from numba import types
from numba.core import event
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped, unused-ignore]

from trainers.changes import with_fields
from trainers.config import DataConfig, TrialConfig, ViewConfig
from trainers.data import loader
from trainers.data.datasets import Dataset, build, ensure_builtin
from trainers.data.loader import Batch, Loaders, epoch_order, steps_per_epoch
from trainers.data.views import draw, render

pytestmark = pytest.mark.ffcv

PLAIN: dict[str, Any] = {
    "flip_probability": 0.0,
    "jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": 0.0,
    "solarize_probability": 0.0,
}
RICH = ViewConfig(size=16, blur_probability=0.5, solarize_probability=0.2)


@pytest.fixture(scope="module")
def loaders() -> Loaders:
    """One for all tests, as in a worker process."""
    return Loaders()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Raw pixels, all of one size."""
    return ensure_builtin("digits", tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """JPEGs of many sizes, smooth enough to survive compression; some carry a stray byte, about which decoders warn."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(96):
        height, width = (int(side) for side in generator.integers(90, 320, 2))
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        content = buffer.getvalue()
        path = folder / "source" / ("train" if index < 72 else "val") / f"class{index % 2}" / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[:-2] + b"\x00" + content[-2:] if index % 3 == 0 else content)
    return build("images", source=[folder / "source"], out=folder / "data", select_images=16)


def trial(*views: ViewConfig, batch_size: int = 64, **fields: Any) -> TrialConfig:
    return TrialConfig(
        views=views or (RICH, RICH), objective={"alignment": {"weight": 1.0}}, batch_size=batch_size, **fields
    )


def run(loaders: Loaders, dataset: Dataset, config: TrialConfig, **place: Any) -> list[Batch]:
    """All batches of an epoch; by default of epoch 0 on one rank."""
    return list(loaders.epoch(dataset, config, **{"epoch": 0, "rank": 0, "world_size": 1, **place}))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.sample_ids, b.sample_ids)
        and len(a.views) == len(b.views)
        and all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def row(dataset: Dataset, sample: int) -> tuple[NDArray[np.uint8], bytes]:
    """The stored image as FFCV's own tables locate it: (pixels [h, w, 3], stored bytes), decoded by OpenCV."""
    reader = Reader(str(dataset.search_file))
    mode, width, height, start = reader.metadata["f0"][sample].tolist()
    size = int(reader.alloc_table["size"][reader.alloc_table["ptr"] == start][0])
    stored = dataset.search_file.read_bytes()[start : start + size]
    if mode == 1:
        return np.frombuffer(stored, np.uint8).reshape(height, width, 3), stored
    return np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")), stored


def test_nothing_is_compiled_again_for_other_epochs_settings_views_sizes_batches_threads_or_data_sets(
    loaders: Loaders, digits: Dataset, photos: Dataset
) -> None:
    run(loaders, digits, trial())
    versions = len(render.overloads)
    with event.install_recorder("numba:compile") as recorder:
        run(loaders, digits, trial(), epoch=7)
        views = (RICH, ViewConfig(size=24, **PLAIN), ViewConfig(size=8, hue=0.5))
        run(loaders, digits, trial(*views, batch_size=96, threads=2))
        frozen = digits.select_ids
        frozen.setflags(write=False)
        list(loaders.images(digits, frozen, size=20, batch_size=33, threads=2))
        run(loaders, photos, trial(batch_size=8))
    assert recorder.buffer == []
    assert len(render.overloads) == versions


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_one_and_two_threads_give_the_same_batches(name: str, loaders: Loaders, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(name)
    batch_size = 64 if name == "digits" else 14
    one = run(loaders, dataset, trial(batch_size=batch_size, threads=1))
    two = run(loaders, dataset, trial(batch_size=batch_size, threads=2))
    assert len(one) == dataset.train_count // batch_size > 1
    assert same(one, two)


def test_one_and_two_ranks_see_the_same_order_and_views(loaders: Loaders, digits: Dataset) -> None:
    whole = run(loaders, digits, trial(), epoch=3)
    parts = [run(loaders, digits, trial(), epoch=3, rank=rank, world_size=2) for rank in (0, 1)]
    joined = [
        Batch(
            tuple(torch.cat(views) for views in zip(first.views, second.views, strict=True)),
            torch.cat([first.sample_ids, second.sample_ids]),
        )
        for first, second in zip(*parts, strict=True)
    ]
    assert same(whole, joined)


def test_an_epoch_resumed_in_its_middle_goes_on_with_the_same_batches(loaders: Loaders, digits: Dataset) -> None:
    whole = run(loaders, digits, trial(), epoch=1)
    assert same(whole[5:], run(loaders, digits, trial(), epoch=1, first_step=5))
    assert run(loaders, digits, trial(), epoch=1, first_step=len(whole)) == []


def test_a_batchs_blur_is_the_same_on_one_and_two_ranks_and_after_a_resume(loaders: Loaders, digits: Dataset) -> None:
    view = ViewConfig(size=16, **PLAIN | {"blur_probability": 1.0}, blur_sigma_per="batch")
    config = trial(view, view)
    whole = run(loaders, digits, config)
    second = run(loaders, digits, config, rank=1, world_size=2)
    assert all(torch.equal(a.views[1][32:], b.views[1]) for a, b in zip(whole, second, strict=True))
    assert same(whole[5:], run(loaders, digits, config, first_step=5))
    per_image = run(loaders, digits, trial(with_fields(view, blur_sigma_per="image"), view))
    assert not torch.equal(whole[0].views[0], per_image[0].views[0])
    assert torch.equal(whole[0].views[1], per_image[0].views[1])


def test_one_loader_serves_training_and_evaluation_at_the_same_time(
    loaders: Loaders, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(loaders, digits, trial())
    built = []
    real = vars(loader)["Loader"]

    def counted(path: str, **settings: Any) -> Any:
        built.append(Path(path))
        return real(path, **settings)

    monkeypatch.setattr(loader, "Loader", counted)
    fresh = Loaders()
    found, evaluated = [], []
    for batch in fresh.epoch(digits, trial(threads=2), epoch=0, rank=0, world_size=1):
        found.append(batch)
        evaluated.append(next(fresh.images(digits, digits.select_ids[:8], size=16, batch_size=8, threads=2))[0])
    assert same(found, expected)
    assert all(torch.equal(images, evaluated[0]) for images in evaluated)
    assert built == [digits.search_file]


def test_views_epochs_and_seeds_differ_and_never_coincide(loaders: Loaders, digits: Dataset) -> None:
    first = run(loaders, digits, trial(seed=0), epoch=1)
    assert not torch.equal(first[0].views[0], first[0].views[1])
    for other in (run(loaders, digits, trial(seed=1), epoch=0), run(loaders, digits, trial(seed=0), epoch=0)):
        ids, others = (torch.cat([batch.sample_ids for batch in batches]) for batches in (first, other))
        assert (ids == others).float().mean() < 0.02
        views = {int(i): view for batch in first for i, view in zip(batch.sample_ids, batch.views[0], strict=True)}
        assert not any(
            torch.equal(views[int(i)], view)
            for batch in other
            for i, view in zip(batch.sample_ids, batch.views[0], strict=True)
            if int(i) in views
        )


def test_an_epoch_is_a_permutation_of_the_images_to_pretrain_on_without_the_last_partial_batch(
    loaders: Loaders, digits: Dataset
) -> None:
    config = trial(data=DataConfig(subset=500))
    ids = torch.cat([batch.sample_ids for batch in run(loaders, digits, config)]).numpy()
    allowed = digits.pretrain_ids(500)
    assert len(ids) == steps_per_epoch(digits, config) * 64 == 448
    assert len(np.unique(ids)) == len(ids)
    assert np.isin(ids, allowed).all()
    np.testing.assert_array_equal(ids, epoch_order(allowed, seed=0, epoch=0)[:448])
    assert len({tuple(epoch_order(allowed, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_batches_are_channels_last_normalized_and_keep_their_values_while_later_ones_are_made(
    loaders: Loaders, digits: Dataset
) -> None:
    config = trial(
        ViewConfig(size=16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), **PLAIN), RICH, batch_size=32, threads=2
    )
    kept = []
    for batch in loaders.epoch(digits, config, epoch=0, rank=0, world_size=1):
        kept.append((batch, [view.clone() for view in batch.views]))
    for batch, copies in kept:
        assert all(torch.equal(view, copy) for view, copy in zip(batch.views, copies, strict=True))
    for view in kept[0][0].views:
        assert view.shape == (32, 3, 16, 16)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
    whole = torch.cat([batch.views[0] for batch, _ in kept])
    assert whole.mean().abs() < 0.02
    assert (whole.std() - 1).abs() < 0.02


def test_raw_views_show_the_image_that_their_id_names(loaders: Loaders, digits: Dataset) -> None:
    view = ViewConfig(size=12, **PLAIN)
    batch = run(loaders, digits, trial(view, view), epoch=2)[0]
    for sample, found in zip(batch.sample_ids[:5].tolist(), batch.views[0][:5], strict=True):
        pixels, _ = row(digits, sample)
        drawn = draw(view, seed=0, epoch=2, sample_id=sample, view_index=0, image_height=16, image_width=16)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        expected = functional.resized_crop(image, *drawn[:4], [12, 12], antialias=True)
        expected = functional.normalize(expected, list(digits.manifest.mean), list(digits.manifest.std))
        torch.testing.assert_close(found.contiguous(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, 12])
def test_jpeg_views_show_the_image_that_their_id_names(size: int, loaders: Loaders, photos: Dataset) -> None:
    """At 12 px some are decoded at a half or a quarter of their size; decoders differ by a few levels of 255 anyway."""
    view = ViewConfig(size=size, **PLAIN)
    (batch,) = run(loaders, photos, trial(view, view, batch_size=photos.train_count))
    std = torch.tensor(photos.manifest.std).view(3, 1, 1)
    stray = 0
    for sample, found in zip(batch.sample_ids.tolist(), batch.views[0], strict=True):
        pixels, stored = row(photos, sample)
        stray += stored[-3] == 0
        height, width = pixels.shape[:2]
        drawn = draw(view, seed=0, epoch=0, sample_id=sample, view_index=0, image_height=height, image_width=width)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        expected = functional.resized_crop(image, *drawn[:4], [size, size], antialias=True)
        expected = functional.normalize(expected, list(photos.manifest.mean), list(photos.manifest.std))
        levels = ((found - expected) * std).abs() * 255
        assert levels.mean() < 1.5, (sample, drawn)
        assert levels.max() < 8, (sample, drawn)
    assert stray > 5


def test_evaluation_follows_the_order_of_the_ids_down_to_a_last_partial_batch(
    loaders: Loaders, digits: Dataset
) -> None:
    ids = digits.select_ids[::-1][:21]
    batches = list(loaders.images(digits, ids, size=16, batch_size=8, threads=2))
    assert [len(images) for images, _ in batches] == [8, 8, 5]
    np.testing.assert_array_equal(np.concatenate([part for _, part in batches]), ids)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (digits.manifest.mean, digits.manifest.std))
    for sample, image in zip(ids, torch.cat([images for images, _ in batches]), strict=True):
        pixels = torch.from_numpy(row(digits, int(sample))[0].copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(image.contiguous(), (pixels - mean) / std, atol=1e-4, rtol=0)


def test_evaluation_of_the_report_split_reads_the_report_file_and_nothing_else_does(
    digits: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits.folder, folder)
    moved = Dataset(folder, digits.manifest, digits.manifest_hash)
    loaders = Loaders()
    ids = np.arange(10)
    images = torch.cat(
        [part for part, _ in loaders.images(moved, ids, size=16, batch_size=4, threads=1, split="report")]
    )
    searched = torch.cat([part for part, _ in loaders.images(moved, ids, size=16, batch_size=4, threads=1)])
    assert not torch.equal(images, searched)
    moved.report_file.unlink()
    loaders = Loaders()
    assert len(run(loaders, moved, trial())) > 0
    assert len(list(loaders.images(moved, ids, size=16, batch_size=4, threads=1))) == 3
    with pytest.raises(ValueError, match=r"report\.beton"):
        loaders.images(moved, ids, size=16, batch_size=4, threads=1, split="report")


def test_the_number_of_torch_threads_is_the_one_that_was_asked_for(digits: Dataset) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(3 - threads)
            run(Loaders(), digits, trial(threads=threads))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def view_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("views-")]


@pytest.mark.timeout(60)
def test_leaving_an_epoch_early_ends_its_threads(loaders: Loaders, digits: Dataset) -> None:
    for batch in loaders.epoch(digits, trial(threads=2, batch_size=16), epoch=0, rank=0, world_size=1):
        assert len(batch.sample_ids) == 16
        assert len(view_threads()) == 2
        break
    assert view_threads() == []


@pytest.mark.timeout(60)
def test_an_exception_in_a_loader_thread_reaches_the_consumer(
    loaders: Loaders, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loader._File.render
    calls = []

    def failing(self: loader._File, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 4:
            raise MemoryError("no room for a view")
        real(self, *arguments)

    monkeypatch.setattr(loader._File, "render", failing)
    with pytest.raises(MemoryError, match="no room for a view"):
        run(loaders, digits, trial(threads=2))
    assert view_threads() == []


@pytest.mark.timeout(60)
def test_a_jpeg_that_does_not_decode_is_named(photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = damaged(photos, tmp_path, sample=5)
    monkeypatch.setattr(loader, "verify", lambda dataset, **_: None)  # as if the bytes rotted after the check
    with pytest.raises(ValueError, match="image 5 must be a readable JPEG"):
        run(Loaders(), broken, trial(batch_size=photos.train_count))


def test_a_file_with_other_bytes_than_the_manifest_says_is_refused(photos: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"search\.beton"):
        run(Loaders(), damaged(photos, tmp_path, sample=5), trial(batch_size=8))


def damaged(dataset: Dataset, folder: Path, sample: int) -> Dataset:
    """A copy in which one JPEG ends half-way in garbage that no decoder accepts."""
    shutil.copytree(dataset.folder, folder / "copy")
    copy = Dataset(folder / "copy", dataset.manifest, dataset.manifest_hash)
    start = int(Reader(str(copy.search_file)).metadata["f0"]["data_ptr"][sample])
    with copy.search_file.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff\xd8\xff\xd9")
    return copy


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"batch_size": 63}, {"world_size": 2}, "divisible by the number of workers.*use batch_size 62"),
        ({"batch_size": 64}, {"rank": 2, "world_size": 2}, "rank must be 0 to 1"),
        ({"batch_size": 64}, {"epoch": -1}, "epoch must be at least 0"),
        ({"batch_size": 64}, {"first_step": 99}, "first_step must be 0 to 15"),
        ({"batch_size": 5000}, {}, "batch_size must be at most the number of images"),
        ({"batch_size": 64, "data": DataConfig(manifest="0" * 64)}, {}, "data.manifest must be the hash"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_read(
    change: dict[str, Any], arguments: dict[str, Any], message: str, digits: Dataset
) -> None:
    with pytest.raises(ValueError, match=message):
        Loaders().epoch(digits, trial(**change), **{"epoch": 0, "rank": 0, "world_size": 1, **arguments})


@pytest.mark.parametrize("ids", [np.array([-1]), np.array([10**6]), np.zeros((2, 2), int)])
def test_ids_that_are_no_rows_of_the_file_are_refused(
    ids: NDArray[np.int64], loaders: Loaders, digits: Dataset
) -> None:
    with pytest.raises(ValueError, match="ids must be a list of rows"):
        loaders.images(digits, ids, size=16, batch_size=4, threads=1)


def test_a_run_can_pretrain_on_the_unlabeled_images_alone_and_is_told_where_there_are_none(
    loaders: Loaders, digits: Dataset, photos: Dataset, tmp_path: Path
) -> None:
    """As SFRIK does on STL-10."""
    for index in range(20):
        path = tmp_path / "more" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 100), (index, 0, 0)).save(path)
    source = photos.folder.parent / "source"
    dataset = build("images", source=[source], unlabeled=tmp_path / "more", out=tmp_path / "data", select_images=16)
    config = trial(batch_size=10, data=DataConfig(images="unlabeled"))
    assert steps_per_epoch(dataset, config) == 2
    seen = torch.cat([batch.sample_ids for batch in run(loaders, dataset, config)])
    assert sorted(seen.tolist()) == dataset.unlabeled_ids.tolist()
    with pytest.raises(ValueError, match=r"data.images=unlabeled needs .* set data.images=all"):
        steps_per_epoch(digits, config)


def test_opening_a_data_set_leaves_numbas_types_as_they_are(digits: Dataset) -> None:
    """One that could no longer be written to would break what is compiled later, in whichever order."""
    bytes_of_an_array = types.Array(types.uint8, 1, "C")
    before = hash(bytes_of_an_array)
    next(Loaders().images(digits, digits.select_ids[:4], size=16, batch_size=4, threads=1))
    assert bytes_of_an_array.mutable
    assert hash(bytes_of_an_array) == before
    assert types.Array(types.uint8, 1, "C") is bytes_of_an_array


def test_augmented_views_of_images_are_the_same_in_batches_of_any_size(digits: Dataset) -> None:
    view = ViewConfig(size=8)
    ids = digits.select_ids[:10]

    def rendered(batch_size: int) -> list[torch.Tensor]:
        loaders = Loaders()
        parts = list(loaders.augmented(digits, ids, views=(view, view), batch_size=batch_size, threads=1))
        return [torch.cat([views[place] for views, _ in parts]) for place in range(2)]

    first, second = rendered(10)
    for one, other in zip((first, second), rendered(3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first, second), "each place has draws of its own"
