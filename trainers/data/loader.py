"""From a data set's files to batches: (seed, epoch, rank) decides which images, their order and their views.

The only file that builds FFCV loaders. A `Loader` reads a file's tables, maps its bytes and holds a pipeline of one
operation, ours, which renders all views of a sample in one go (`views.render`). FFCV's own iterator over an
epoch is not used: it overwrites batches that are still in use, sets torch's number of threads, and waits for ever after
an exception or an early end. `_batches` below calls the pipeline from its own threads instead. Everything that changes
from epoch to epoch or trial to trial (order, batch size, settings, keys, threads) is an argument of that call, so one
loader per file serves training and evaluation, for any geometry, at the same time.

Every `Loader` of FFCV's sets torch to one thread: `Loaders` sets it back whenever it is called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import DataConfig, TrialConfig
from trainers.data.datasets import REPORT_FILE, SEARCH_FILE, Dataset, verify
from trainers.data.quick_ffcv import Compiler, Loader, Operation, OrderOption, PipelineSpec, State, ctypes_imdecode
from trainers.data.views import evaluation_table, render, settings_table
from trainers.settings import Resampling, ViewConfig

Integers = NDArray[np.int64]
Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of red, green and blue, on a scale of 0..1."""

BATCHES_AHEAD = 3
"""Batches being rendered or waiting, beyond the one in use: what a run holds in memory is this many plus one."""
PART_PIXELS = 2**17
"""Pixels of one part of a batch, the unit of work of a thread: about a millisecond."""
FULL_HASH_BYTES = 2**30
"""Up to this size a file's bytes are all hashed before it is used; above, its size, both ends and 256 blocks."""


class Batch(NamedTuple):
    """One rank's part of one global batch, on the CPU. The memory is the batch's own: it is never written again."""

    views: tuple[Tensor, ...]
    """One tensor per view, [n, 3, S, S] float32, normalized, in channels_last memory; S may differ between views."""
    sample_ids: Tensor
    """Rows of the search file, [n] int64."""


def steps_per_epoch(dataset: Dataset, config: TrialConfig) -> int:
    """Global batches in an epoch; the last partial one is dropped. ValueError if there is none."""
    images = len(pretrain_ids(dataset, config.data))
    if images < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the number of images to pretrain on, which is {images} here, "
            f"but is {config.batch_size}; lower batch_size or raise data.subset"
        )
    return images // config.batch_size


def pretrain_ids(dataset: Dataset, data: DataConfig) -> Integers:
    """Rows of the search file to pretrain on, sorted; ValueError where the data set has none of that kind."""
    if data.images == "all":
        return dataset.pretrain_ids(data.subset)
    if not dataset.unlabeled_count:
        raise ValueError(
            f"data.images=unlabeled needs a data set with unlabeled images, but {dataset.folder} has none; set "
            "data.images=all, or write the data set with --unlabelled"
        )
    return dataset.unlabeled_ids


def epoch_order(ids: Integers, *, seed: int, epoch: int) -> Integers:
    """A permutation of `ids` keyed by (seed, epoch): different keys share nothing, unlike FFCV's `seed + epoch`."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    return generator.permutation(ids)


class Loaders:
    """The FFCV loaders of one process, at most two: for the search file and, where it is asked for, the report file.

    Keep one for as long as the process lives. Opening a file takes milliseconds (but FFCV makes a table in Python with
    an entry per image). The first batch of the first process on a machine compiles, 15 to 60 s; later ones load that
    code.
    """

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def epoch(
        self,
        dataset: Dataset,
        config: TrialConfig,
        *,
        epoch: int,
        rank: int,
        world_size: int,
        first_step: int = 0,
        pinned: bool = False,
    ) -> Generator[Batch]:
        """Rank `rank`'s part of each global batch of an epoch (counted from 0), from step `first_step` of the epoch on.

        Order and views depend on `config.seed` and `epoch`, not on ranks, threads or where the epoch is resumed.
        Rendering starts with the first `next()` and ends when the generator is exhausted, closed or dropped. `pinned`
        batches lie in page-locked memory, from which a GPU copies while the host goes on; it takes CUDA. Raises
        ValueError, before that, where the data set is not the config's, or world size, rank or step do not fit.
        """
        if config.data.manifest is not None and config.data.manifest != dataset.manifest_hash:
            raise ValueError(
                f"data.manifest must be the hash of the data set at hand, {dataset.manifest_hash[:12]} "
                f"({dataset.folder}), but is {config.data.manifest[:12]}; name the folder with the original data, "
                "or start a new run"
            )
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, but is {world_size}; pass the size of this run's group")
        if config.batch_size % world_size:
            nearest = max(1, config.batch_size // world_size) * world_size
            raise ValueError(
                f"batch_size must be divisible by the number of workers, but batch_size is {config.batch_size} and "
                f"there are {world_size}; use batch_size {nearest}, or other workers"
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be 0 to {world_size - 1}, but is {rank}; pass the rank within this run's group"
            )
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, but is {epoch}; epochs are counted from 0 here")
        steps = steps_per_epoch(dataset, config)
        if not 0 <= first_step <= steps:
            raise ValueError(
                f"first_step must be 0 to {steps}, the steps of this epoch, but is {first_step}; "
                "resume with the config of the interrupted run"
            )
        file = self._open(dataset, "search", config.threads)
        rows = config.batch_size // world_size
        order = epoch_order(pretrain_ids(dataset, config.data), seed=config.seed, epoch=epoch)
        mine = order[: steps * config.batch_size].reshape(steps, world_size, rows)[first_step:, rank].ravel()
        settings = settings_table(config.views, dataset.manifest.mean, dataset.manifest.std)
        batches = _batches(
            file,
            mine,
            rows=rows,
            settings=settings,
            seed=config.seed,
            epoch=epoch,
            first_step=first_step,
            threads=config.threads,
            pinned=pinned,
        )
        return (Batch(views, torch.from_numpy(ids)) for views, ids in batches)

    def images(
        self,
        dataset: Dataset,
        ids: NDArray[np.integer[Any]],
        *,
        size: int,
        batch_size: int,
        threads: int,
        resampling: Resampling = "bilinear",
        split: Literal["search", "report"] = "search",
        normalization: Normalization | None = None,
        crop_pct: float = 1.0,
    ) -> Iterator[tuple[Tensor, Integers]]:
        """Images as they are, for evaluation, in the order of `ids`: (images [n, 3, size, size] float32, ids [n]).

        The shorter side is resized to `size` / `crop_pct`, the center cropped, the channels normalized. `ids` are rows
        of the split's file; the last batch may be smaller. The report file is opened by `split="report"` alone.
        `normalization` (mean, deviation) defaults to the data set's own. Raises ValueError on ids out of range.
        """
        for name, value in (("size", size), ("batch_size", batch_size), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}; pass a positive number")
        file = self._open(dataset, split, threads)
        rows = _rows_of(file, ids)
        mean, deviation = normalization or (dataset.manifest.mean, dataset.manifest.std)
        settings = evaluation_table(size, mean, deviation, resampling=resampling, crop_pct=crop_pct)
        batches = _batches(
            file, rows, rows=batch_size, settings=settings, seed=0, epoch=0, first_step=0, threads=threads
        )
        return ((views[0], part) for views, part in batches)

    def augmented(
        self,
        dataset: Dataset,
        ids: NDArray[np.integer[Any]],
        *,
        views: Sequence[ViewConfig],
        batch_size: int,
        threads: int,
        first_batch: int = 0,
        split: Literal["search", "report"] = "search",
        seed: int = 0,
        epoch: int = 0,
        normalization: Normalization | None = None,
    ) -> Iterator[tuple[tuple[Tensor, ...], Integers]]:
        """Augmented views of images for evaluation, in the order of `ids`: (one tensor [n, 3, S, S] per view, ids [n]).

        The draws are those of `seed` and `epoch`. `first_batch` is the place of the first batch among those of all
        ranks. `normalization` and errors as of `images`.
        """
        file = self._open(dataset, split, threads)
        rows = _rows_of(file, ids)
        mean, deviation = normalization or (dataset.manifest.mean, dataset.manifest.std)
        settings = settings_table(views, mean, deviation)
        return _batches(
            file,
            rows,
            rows=batch_size,
            settings=settings,
            seed=seed,
            epoch=epoch,
            first_step=first_batch,
            threads=threads,
        )

    def _open(self, dataset: Dataset, split: Literal["search", "report"], threads: int) -> _File:
        counts = dataset.manifest.counts
        path = dataset.search_file if split == "search" else dataset.report_file
        file = self._files.get(split)
        if file is None or (file.path, file.manifest_hash) != (path, dataset.manifest_hash):
            name = SEARCH_FILE if split == "search" else REPORT_FILE
            verify(dataset, files=(name,), full=dataset.manifest.files[name].bytes <= FULL_HASH_BYTES)
            count = counts.train + counts.select + counts.unlabeled if split == "search" else counts.report
            file = self._files[split] = _File(path, dataset.manifest_hash, count)
        torch.set_num_threads(threads)
        return file


class _Render(Operation):  # type: ignore[misc]
    """The one operation of our pipelines: FFCV's decoder of an image field, all views at once.

    Its memory is allotted by `_File.render`, not by FFCV: (pixels, settings, numbers, broken), as in
    `trainers.data.views.render`.
    """

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=True, shape=(), dtype=np.dtype(np.float32)), None

    def generate_code(self) -> Callable[..., Any]:
        def render_views(batch_indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            pixels, settings, numbers, broken = memory
            render(batch_indices, pixels, settings, numbers, broken, metadata, storage_state)
            return pixels

        return render_views


class _File:
    """An open FFCV file and its pipeline; `render` may be called by many threads at once."""

    def __init__(self, path: Path, manifest_hash: str, count: int) -> None:
        self.path, self.manifest_hash, self.count = path, manifest_hash, count
        # Our operation is compiled and cached already; FFCV would compile it anew for each Loader, in seconds.
        Compiler.set_enabled(False)
        try:
            self._loader = Loader(
                str(path),
                batch_size=1,
                num_workers=1,
                os_cache=True,
                order=OrderOption.SEQUENTIAL,
                drop_last=False,
                pipelines={"image": PipelineSpec("image", decoder=_Render()), "label": None},
            )
        finally:
            Compiler.set_enabled(True)
        reader = self._loader.reader
        if reader.num_samples != count:
            raise ValueError(
                f"{path}: must hold {count} images, as the manifest says, but holds {reader.num_samples}; "
                "build the data set again"
            )
        (node,) = self._loader.graph.nodes
        self._node_id = node.id
        image = reader.metadata[f"f{self._loader.field_name_to_f_ix['image']}"]
        height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
        self._side, self._area = int(max(height.max(), width.max())), int((height * width).max())
        manager = self._loader.memory_manager
        for table in (manager.ptr_to_size, manager.sample_to_pages, manager.page_to_samples):
            table.clear()  # only FFCV's other memory manager reads them, and they take half a kilobyte per image
        context = manager.schedule_epoch([])
        context.__enter__()  # maps the file; FFCV has no way to unmap it
        self._storage = tuple(np.asarray(array) for array in context.state)  # numba is slow to recognize a memmap
        self._decoder = ctypes.cast(ctypes_imdecode, ctypes.c_void_p).value

    def render(
        self,
        ids: Integers,
        pixels: NDArray[np.float32],
        settings: NDArray[Any],
        seed: int,
        epoch: int,
        step: int,
        place: int,
        rows: int,
    ) -> None:
        """Render `ids` into a batch of `rows` rows, from row `place` on, in the layout of `views.render`."""
        numbers = np.array([seed, epoch, place, rows, self._side, self._area, self._decoder, step], dtype=np.int64)
        broken = np.full(1, -1, dtype=np.int64)
        node = self._node_id
        arguments = {
            "batch_indices": ids,
            "metadata": self._loader.reader.metadata,
            "storage_state": self._storage,
            f"memory_{node}": (pixels, settings, numbers, broken),
            f"shared_memory_{node}": None,
        }
        stages, _ = self._loader.code
        for stage, _ in stages:
            stage(**arguments)
        if broken[0] >= 0:
            raise ValueError(
                f"{self.path}: image {broken[0]} must be a readable JPEG, but does not decode; "
                "the file is damaged: build it again"
            )


def _rows_of(file: _File, ids: NDArray[np.integer[Any]]) -> Integers:
    """`ids` as rows of the file. ValueError on ids out of range."""
    rows = np.array(ids, dtype=np.int64)  # a copy: the code that is compiled takes no read-only array
    if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < file.count):
        found = f"of shape {list(rows.shape)}" if rows.ndim != 1 else f"{rows.min()} to {rows.max()}"
        raise ValueError(
            f"ids must be a list of rows of {file.path}, 0 to {file.count - 1}, but are {found}; "
            "take them from the data set"
        )
    return rows


class _Part(NamedTuple):
    batch: int
    start: int
    """First row within the batch."""
    stop: int


class _Queue:
    """Hands out the parts of all batches in order, at most BATCHES_AHEAD batches ahead, and collects them."""

    def __init__(self, count: int, rows: int, part_rows: int, floats_per_row: int, *, pinned: bool) -> None:
        self._changed = Condition()
        self._count, self._rows, self._floats, self._pinned = count, rows, floats_per_row, pinned
        self._parts = (
            _Part(start // rows, place, min(place + part_rows, length))
            for start in range(0, count, rows)
            for length in (min(rows, count - start),)
            for place in range(0, length, part_rows)
        )
        self._next = next(self._parts, None)
        self._pixels: dict[int, Tensor] = {}
        self._missing: dict[int, int] = {}
        self._taken = 0
        self._stopped = False
        self._error: BaseException | None = None

    def part(self) -> tuple[_Part, Tensor] | None:
        """The next part to render and its batch's buffer; waits for room; None when there is nothing left to do."""
        with self._changed:
            while not self._stopped and self._next is not None and self._next.batch >= self._taken + BATCHES_AHEAD:
                self._changed.wait()
            if self._stopped or self._next is None:
                return None
            part, self._next = self._next, next(self._parts, None)
            if part.batch not in self._pixels:
                length = min(self._rows, self._count - part.batch * self._rows)
                self._pixels[part.batch] = torch.empty(
                    length * self._floats, dtype=torch.float32, device="cpu", pin_memory=self._pinned
                )
                self._missing[part.batch] = length
            return part, self._pixels[part.batch]

    def done(self, part: _Part) -> None:
        with self._changed:
            self._missing[part.batch] -= part.stop - part.start
            if not self._missing[part.batch]:
                self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._stopped = True
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def take(self, batch: int) -> Tensor:
        """The finished batch number `batch`, to be taken in order; raises what a thread raised."""
        with self._changed:
            while self._error is None and self._missing.get(batch) != 0:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            self._taken = batch + 1
            self._changed.notify_all()
            del self._missing[batch]
            return self._pixels.pop(batch)


def _batches(
    file: _File,
    ids: Integers,
    *,
    rows: int,
    settings: NDArray[Any],
    seed: int,
    epoch: int,
    first_step: int,
    threads: int,
    pinned: bool = False,
) -> Generator[tuple[tuple[Tensor, ...], Integers]]:
    """(views, ids) of each run of `rows` ids, rendered by `threads` threads that live as long as this generator.

    The first run is this rank's part of the epoch's global batch number `first_step`.
    """
    sizes = [int(size) for size in settings["size"]]
    pixels_per_row = sum(size * size for size in sizes)
    part_rows = max(1, min(-(-min(rows, len(ids)) // threads), PART_PIXELS // pixels_per_row))
    queue = _Queue(len(ids), rows, part_rows, 3 * pixels_per_row, pinned=pinned)

    def work() -> None:
        try:
            while (next_part := queue.part()) is not None:
                part, pixels = next_part
                start = part.batch * rows
                length = min(rows, len(ids) - start)
                file.render(
                    ids[start + part.start : start + part.stop],
                    pixels.numpy(),
                    settings,
                    seed,
                    epoch,
                    first_step + part.batch,
                    part.start,
                    length,
                )
                queue.done(part)
        except BaseException as error:  # handed to whoever takes the next batch
            queue.fail(error)

    workers = [Thread(target=work, name=f"views-{number}", daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for batch in range(-(-len(ids) // rows)):
            length = min(rows, len(ids) - batch * rows)
            yield _split(queue.take(batch), sizes, length), ids[batch * rows : batch * rows + length]
    finally:
        queue.stop()
        for worker in workers:
            worker.join()


def _split(pixels: Tensor, sizes: list[int], rows: int) -> tuple[Tensor, ...]:
    """The views in a batch's buffer: blocks [rows, S, S, 3], seen as [rows, 3, S, S]. Nothing is copied."""
    blocks = torch.split(pixels, [3 * size * size * rows for size in sizes])
    return tuple(block.view(rows, size, size, 3).permute(0, 3, 1, 2) for block, size in zip(blocks, sizes, strict=True))
