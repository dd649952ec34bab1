"""Checkpoints of a run that goes on: where one is due the state is copied, and a thread writes the copy.

The loop does not wait for bytes to be serialized, hashed and flushed. At the end of an epoch the probe runs meanwhile;
within an epoch the next steps do. What others hear of is whole: an epoch is reported once its checkpoint is on the disk
under its name, which it gets only then, so that one that a run has found not to be finite never has one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch

from trainers import checkpoint, dist
from trainers.report import Checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one run. All ranks call alike; rank 0 writes, one checkpoint at a time.

    A context: at its end nothing is being written any more. A checkpoint of an epoch's end that was not finished by
    then is dropped, one from within an epoch is kept.
    """

    def __init__(self, folder: Path | str) -> None:
        """`folder` that is text is a URI."""
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._judged: Future[float | None] | None = None
        """Of the checkpoint that was begun; None while there is none."""
        self._saved: Future[Checkpoint] | None = None
        """The same on rank 0: done when it is written."""
        self._within = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._judged is not None:
            self._judged.cancel()
        self._thread.shutdown()
        if self._saved is None or not self._within:
            return
        error = self._saved.exception()
        if error is not None:
            logger.warning("the run ends without its newest checkpoint: %s", error)
        else:
            checkpoint.remove_within(self.folder, but=self._saved.result())

    def begin(self, state: Mapping[str, Any], *, epoch: int, step: int | None = None) -> None:
        """Write `state` as it is now; arguments as for `checkpoint.save`. Waits for the one before it, see `finish`."""
        self.finish()
        self._judged, self._within = Future(), step is not None
        if self._within:
            self._judged.set_result(None)  # it judges nothing that anybody would look at
        if dist.rank() == 0:
            copied, over = on_host(state)
            self._saved = self._thread.submit(self._write, copied, over, self._judged, epoch, step)

    def finish(self, score: float | None = None) -> Checkpoint | None:
        """Wait for the checkpoint that was begun, which has this score; None if there is none.

        Raises what writing it raised: rank 0's OSError on all ranks, which would wait for it otherwise.
        """
        if self._judged is None:
            return None
        if not self._within:
            self._judged.set_result(score)
        saved: Checkpoint | OSError | None = None
        if self._saved is not None:
            try:
                saved = self._saved.result()
            except OSError as error:
                saved = error
        self._judged = self._saved = None
        saved = dist.broadcast_object(saved)
        if isinstance(saved, OSError):
            raise saved
        if self._within and dist.rank() == 0:
            checkpoint.remove_within(self.folder, but=saved)
        return saved

    def _write(
        self,
        state: Mapping[str, Any],
        over: torch.cuda.Event | None,
        judged: Future[float | None],
        epoch: int,
        step: int | None,
    ) -> Checkpoint:
        if over is not None:
            over.synchronize()
        return checkpoint.save(self.folder, state, epoch=epoch, step=step, judged=judged.result)


def on_host(state: Mapping[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None]:
    """A copy of `state` with its tensors in the host's memory, laid out as they are, and when that is over.

    From a GPU into page-locked memory, on the stream that computes: what is computed from now on comes after it and
    does not change it, and the host does not wait. None where there is nothing to wait for.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    found = {id(tensor): _on_host(tensor, storages) for tensor in checkpoint.tensors(state)}
    on_gpu = next((tensor.device for tensor in checkpoint.tensors(state) if tensor.is_cuda), None)
    over = None if on_gpu is None else torch.cuda.current_stream(on_gpu).record_event()
    return copy.deepcopy(dict(state), found), over


def _on_host(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """Tensors that share memory go on sharing it, as in a file: `storages` has what was copied, by address."""
    memory = tensor.untyped_storage()
    address = memory.data_ptr()
    if address not in storages:
        every_byte = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(memory)
        copied = torch.empty(len(every_byte), dtype=torch.uint8, pin_memory=tensor.is_cuda)
        storages[address] = copied.copy_(every_byte, non_blocking=True).untyped_storage()
    alike = torch.empty(0, dtype=tensor.dtype)
    return alike.set_(storages[address], tensor.storage_offset(), tensor.size(), tensor.stride())
