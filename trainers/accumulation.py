"""A large batch on small memory: its gradient, part by part, with each term over the whole batch.

A term that compares images has another value on a part of a batch, so gradients of parts can't simply be added up. As
GradCache does (Gao et al., 2021, arXiv 2101.06983): all parts go through the network without a graph, and only what
terms read of them is kept; the objective of the whole batch is differentiated with respect to that; then each part goes
through the network again, with a graph, and takes its share back to the parameters. Two forward passes and one
backward, and of activations no more than a part's. The gradient is the whole batch's to rounding.

Part i has the images i, i + k, i + 2 k … of each rank's batch, for k parts: so it has the same images on any number of
workers. Both passes are alike, as all draws are keyed by image (networks that draw otherwise are refused,
`trainers.backbones`). What moves once per step does so here: the center of the teacher's scores; and running statistics
of batch norm move in the second pass alone. Batch norm itself is over a part, not the batch: see
`TrialConfig.accumulate_batch_norm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from trainers.config import TrialConfig
from trainers.model import Model
from trainers.terms import Outputs, Patches

READ = ("features", "projections", "predictions", "scores")
READ_OF_PATCHES = ("tokens", "mismatch_logits", "reconstruction")
"""Fields of `Outputs` and of `Patches` through which terms reach the parameters."""


class Part(NamedTuple):
    """Every k-th image of a rank's batch."""

    views: tuple[Tensor, ...]
    sample_ids: Tensor


def parts_of(views: Sequence[Tensor], sample_ids: Tensor, count: int) -> list[Part]:
    """`count` parts of views [n, 3, S, S] in channels last; n is a multiple of it."""
    return [
        Part(
            tuple(view[index::count].contiguous(memory_format=torch.channels_last) for view in views),
            sample_ids[index::count],
        )
        for index in range(count)
    ]


def check_batch_norm(model: nn.Module, config: TrialConfig) -> None:
    """ValueError where parts would have statistics of their own and `config` does not ask for that."""
    if config.accumulate == 1 or config.accumulate_batch_norm == "per_part":
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not name.startswith("teacher."):
            raise ValueError(
                f"accumulate={config.accumulate} is exact without batch norm only, whose statistics would be those of "
                f"a part of the batch, but the network has one, {name}; set model.norm=layer, or accept them with "
                "accumulate_batch_norm=per_part"
            )


def read_by_terms(model: Model, parts: Sequence[Part], *, seed: int, step: int) -> Outputs:
    """What `model` makes of all parts together, in the batch's order, as the leaves of a new graph; without one itself.

    The model's buffers stay as they are, but for the center in training, which moves once.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        found = [model(part.views, part.sample_ids, seed, step) for part in parts]
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        whole = _joined(found)
        if model.training and whole.target_scores is not None:
            model.move_center(whole.target_scores)
    return whole


def send_back(
    network: nn.Module, parts: Sequence[Part], whole: Outputs, precision: AbstractContextManager[object]
) -> None:
    """Adds to the parameters' gradients what the gradients of `whole`'s leaves are of; `network` is the model that made
    it, or DDP around that. `precision`: the autocast of forward passes, which can be entered again.
    """
    for index, part in enumerate(parts):
        last = index + 1 == len(parts)
        waiting = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
        with waiting:
            with precision:
                again: Outputs = network(part.views, part.sample_ids, whole.seed, whole.step, with_targets=False)
            ends = list(behind(again, whole, index, len(parts)))
            torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])


def behind(part: Outputs, whole: Outputs, index: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of part number `index` that the objective of `whole` depends on, each with its gradient."""
    for end, leaf in zip(leaves(part), leaves(whole), strict=True):
        if leaf.grad is not None and end.requires_grad:
            yield end, leaf.grad[index::count]


def leaves(outputs: Outputs) -> list[Tensor]:
    """All that a gradient comes back through, in a fixed order."""
    found = [rows for name in READ for rows in getattr(outputs, name) or ()]
    for seen in outputs.patches:
        found += [rows for name in READ_OF_PATCHES if (rows := getattr(seen, name)) is not None]
    return found


def _joined(parts: Sequence[Outputs]) -> Outputs:
    first = parts[0]

    def together(rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows), 1).flatten(0, 1)

    def each(name: str) -> tuple[Tensor, ...] | None:
        if getattr(first, name) is None:
            return None
        joined = (together(views) for views in zip(*(getattr(part, name) for part in parts), strict=True))
        return tuple(rows.requires_grad_(name in READ) for rows in joined)

    def patches(place: int) -> Patches:
        seen = [part.patches[place] for part in parts]
        values: dict[str, Any] = {}
        for name in Patches._fields:
            rows = [getattr(one, name) for one in seen]
            if name != "view" and rows[0] is not None:
                values[name] = together(rows)
                values[name].requires_grad_(name in READ_OF_PATCHES)
        return seen[0]._replace(**values)

    values: dict[str, Any] = {name: each(name) for name in (*READ, "targets", "target_scores")}
    return first._replace(
        **values,
        sample_ids=together([part.sample_ids for part in parts]),
        patches=tuple(patches(place) for place in range(len(first.patches))),
    )
