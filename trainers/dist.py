"""Everything that crosses ranks: the only file of `trainers` that knows there may be more than one.

Each function is the identity without a process group, or with a group of one, so that callers need no branch.

Exact under data parallelism: each rank computes the same *global* loss L and calls backward on it. Read across ranks,
that differentiates the sum of W copies of L; every collective here propagates gradients by its true adjoint, so a rank
ends with W times its share of dL/dparameters, and DDP's mean over ranks is exactly dL/dparameters. Every rank holds the
same number of rows n (the batch is global and W divides it); rank r holds rows r n to (r + 1) n of the global batch.

Letters: W = ranks, n = rows on this rank, N = W n, C = channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as _NativeSynchronized
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")

# --- who am I ---------------------------------------------------------------------------------------------------------


def world_size() -> int:
    """Ranks in the process group; 1 without one."""
    return torch_dist.get_world_size() if torch_dist.is_available() and torch_dist.is_initialized() else 1


def rank() -> int:
    """This process's place in the group, from 0; 0 without one."""
    return torch_dist.get_rank() if torch_dist.is_available() and torch_dist.is_initialized() else 0


def row_offset(rows: int) -> int:
    """Place in the global batch of this rank's first row, if each rank holds `rows`."""
    return rank() * rows


# --- tensors, differentiable ------------------------------------------------------------------------------------------


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_rows_detached(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n = gradient.shape[0] // world_size()
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total)
        return total[row_offset(n) : row_offset(n) + n]


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total)
        return total


class _MeanOfValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def gather_rows(x: Tensor) -> Tensor:
    """[n, ...] of each rank -> [N, ...] on every rank, in rank order. Backward: sum over ranks, then own rows."""
    return _GatherRows.apply(x) if world_size() > 1 else x


def gather_rows_detached(x: Tensor) -> Tensor:
    """`gather_rows` without a gradient, hence without communication in backward."""
    x = x.detach()
    if world_size() == 1:
        return x
    everything = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    torch_dist.all_gather_single(everything, x.contiguous())
    return everything


def sum_over_ranks(x: Tensor) -> Tensor:
    """Elementwise sum over ranks, the same on every rank. Backward sums the gradients over ranks too."""
    return _SumOverRanks.apply(x) if world_size() > 1 else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """Elementwise mean over ranks: of means over equally many rows each, the mean over the global batch."""
    return sum_over_ranks(x) / world_size() if world_size() > 1 else x


def mean_of_values(x: Tensor) -> Tensor:
    """`mean_over_ranks` of what a loss is made of: all ranks do the same with the mean, so that its gradient is the
    same on all of them, and backward needs no communication.
    """
    return _MeanOfValues.apply(x) if world_size() > 1 else x


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Each gradient becomes its sum over ranks: of each rank's part of one loss, the gradient of the loss. Those of a
    dtype travel together, after the whole backward. All ranks have gradients of the same parameters.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch_dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


# --- plain values -----------------------------------------------------------------------------------------------------


def _device() -> torch.device:
    """Where the group's backend wants its tensors."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if torch_dist.get_backend() == "nccl" else torch.device("cpu")
    )


def broadcast_object(value: T, source: int = 0) -> T:
    """The `source` rank's `value`, on every rank: how ranks agree on a decision or a number. It must pickle."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    torch_dist.broadcast_object_list(box, src=source, device=_device())
    return box[0]  # type: ignore[no-any-return]


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, in rank order, on every rank. It must pickle."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether `flag` holds on at least one rank, the same answer on every rank."""
    if world_size() == 1:
        return bool(flag)
    count = torch.tensor(int(flag), device=_device())
    torch_dist.all_reduce(count, op=torch_dist.ReduceOp.MAX)
    return bool(count.item())


def all_gather_numpy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The ranks' arrays joined along the first axis, in rank order, on every rank, bit for bit.

    Row counts may differ (and be 0); dtype and the other axes must agree, else ValueError on every rank.
    """
    if world_size() == 1:
        return array
    kinds = gather_objects((array.shape, array.dtype.str))
    shapes = [shape for shape, _ in kinds]
    # Decided by what all ranks know, so that all refuse together.
    if len({(shape[1:], dtype) for shape, dtype in kinds}) > 1 or () in shapes or array.dtype.hasobject:
        raise ValueError(
            "arrays must agree in dtype and in all axes but the first to be joined over ranks, "
            f"but are {kinds}; convert them before gathering"
        )
    # As bytes, padded to the longest: exact for every dtype, one collective.
    sizes = [int(np.prod(shape, dtype=np.int64)) * array.dtype.itemsize for shape in shapes]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: sizes[rank()]] = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.size else 0
    everything = gather_rows_detached(padded[None].to(_device())).cpu().numpy()
    parts = [
        np.frombuffer(everything[r, : sizes[r]].tobytes(), dtype=array.dtype).reshape(shapes[r])
        for r in range(len(shapes))
    ]
    return np.concatenate(parts)


def own_batches(ids: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Of `ids`, cut into batches of `size` (the last may be smaller), those of this rank, one after the other: every
    W-th, from its own place on. A batch is never divided, so that what is computed of it does not depend on ranks.
    """
    if world_size() == 1:
        return ids
    own = [ids[start : start + size] for start in range(rank() * size, len(ids), world_size() * size)]
    return np.concatenate(own) if own else ids[:0]


def in_order(own: Iterator[T], count: int) -> Iterator[T]:
    """Of `count` values in all, of which each rank computes every W-th (`own_batches`), all in their order on rank 0;
    none on other ranks, which have to be iterated as well. Values must pickle; ranks are at most one value apart.
    """
    if world_size() == 1:
        yield from own
        return
    for start in range(0, count, world_size()):
        value = next(own) if start + rank() < count else None
        found: list[Any] | None = [None] * world_size() if rank() == 0 else None
        torch_dist.gather_object(value, found)
        yield from (found or [])[: count - start]


def barrier() -> None:
    """Wait for all ranks (at most the group's time-out)."""
    if world_size() > 1:
        torch_dist.barrier()


# --- batch norm -------------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "pretune::normalize_over_ranks",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _normalize_over_ranks(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch norm in training, over the rows of all ranks: normalized x, mean and biased variance [C] in float64, and
    the elements per channel, M. One small collective forward, one backward; an operator of torch's, so that compiled
    code calls it as it is.

    Local sums come from torch's fused batch-norm kernels; what is synchronized is [C]-sized, combined in float64.
    Backward with the normalized x̂ = (x - mean) / std:
    dx = weight / std (dy - sum(dy) / M - x̂ sum(dy x̂) / M), sums over all ranks. The weight's and bias' gradients stay
    local: DDP takes their mean, as for any parameter.
    """
    channels = x.shape[1]
    # torch's own statistics kernel (biased variance): 3 to 25 times faster than var_mean over these axes.
    local_mean, local_var = torch.batch_norm_update_stats(x, None, None, 0.0)
    count = x.new_full((1,), x.numel() // channels, dtype=torch.float64)
    local = torch.cat([local_mean.double(), local_var.double(), count])
    ranks = gather_rows_detached(local[None])  # [W, 2C + 1]
    means, variances, counts = ranks[:, :channels], ranks[:, channels:-1], ranks[:, -1:]
    total = counts.sum()
    # Chan's combination: no difference of large sums.
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean).square())).sum(0) / total
    normalized = nn.functional.batch_norm(x, _rounded(mean, x), _rounded(var, x), weight, bias, training=False, eps=eps)
    return _laid_out_as(x, normalized), mean, var, total


@_normalize_over_ranks.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.float64)
    return torch.empty_like(x), mean, torch.empty_like(mean), x.new_empty((), dtype=torch.float64)


@torch.library.custom_op(
    "pretune::normalize_over_ranks_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor var, Tensor total, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _normalize_over_ranks_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, total: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = _rounded(mean, x), _rounded(var, x)
    # Statistics held fixed: dx = weight / std dy, dweight = sum(dy x̂), dbias = sum(dy).
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dy, x, weight, mean, var, None, None, False, eps, [True, True, True]
    )
    sums = torch.cat([dweight, dbias])  # as float64 where x is float64
    torch_dist.all_reduce(sums)
    sum_dy_x, sum_dy = sums.double().chunk(2)
    inverse_std = (var.double() + eps).rsqrt()
    scale = inverse_std if weight is None else inverse_std * weight.double()
    slope = -scale * inverse_std * sum_dy_x / total
    offset = -scale * sum_dy / total - slope * mean.double()
    shape = (1, -1, *([1] * (x.ndim - 2)))
    dx.addcmul_(x, slope.to(x.dtype).view(shape)).add_(offset.to(x.dtype).view(shape))
    return _laid_out_as(x, dx), dweight, dbias


@_normalize_over_ranks_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, total: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dweight = _rounded(mean, x)
    return torch.empty_like(x), torch.empty_like(dweight), torch.empty_like(dweight)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _send_back(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = _normalize_over_ranks_backward(dy, *ctx.saved_tensors, ctx.eps)
    # `needs_input_grad` keeps None where none is asked for, also where there is no weight or bias.
    return (*(one if asked else None for one, asked in zip(gradients, ctx.needs_input_grad, strict=False)), None)


_normalize_over_ranks.register_autograd(_send_back, setup_context=_save_for_backward)


def _rounded(statistic: Tensor, x: Tensor) -> Tensor:
    """As torch's kernels take statistics of `x`: float32, or float64 where x is."""
    return statistic.to(torch.promote_types(x.dtype, torch.float32))


def _laid_out_as(x: Tensor, found: Tensor) -> Tensor:
    """As compiled code was told that it would be."""
    wanted = torch.empty_like(x)
    return found if found.stride() == wanted.stride() else wanted.copy_(found)


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm with statistics over the rows of all ranks; parameters, buffers and their names are torch's.

    One rank: torch's ordinary batch norm, bit for bit. Several ranks: on a GPU what `torch.nn.SyncBatchNorm` runs, on a
    CPU and in compiled code `_normalize_over_ranks`. Not derived from `torch.nn.SyncBatchNorm`: DDP refuses that class
    on a CPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"batch norm needs rows and channels, [n, C, ...], but its input has shape {list(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # torch's convention: a plain average over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        if input.is_cuda and not torch.compiler.is_compiling():
            settings = (self.weight, self.bias, *running, self.eps, momentum)
            native: Tensor = _NativeSynchronized.apply(input, *settings, torch_dist.group.WORLD, world_size())
            return native
        normalized, mean, var, total = _normalize_over_ranks(input, self.weight, self.bias, self.eps)
        for kept, new in zip(running, (mean, var * (total / (total - 1))), strict=True):
            if kept is not None:
                kept.mul_(1 - momentum).add_(new.detach().to(kept.dtype), alpha=momentum)
        found: Tensor = normalized
        return found


def synchronize_batch_norm(module: nn.Module) -> nn.Module:
    """Every BatchNorm1d/2d/3d in the tree becomes a SynchronizedBatchNorm that takes over its parameters and buffers.

    Returns the module, changed in place; if `module` itself is a batch norm, its replacement. Parameters stay the same
    objects, state dicts keep their keys. Convert before wrapping in DDP. ValueError on a batch norm with a forward pass
    of its own, of which nothing is known.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, SynchronizedBatchNorm):
        if type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ValueError(
                f"model.norm=batch synchronizes torch's own batch norms, but the network has a {type(module).__name__} "
                "with a forward pass of its own; use torch's, or set model.norm=batch_per_rank"
            )
        norm = SynchronizedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, name, getattr(module, name))
        norm.train(module.training)
        return norm
    for name, child in module.named_children():
        setattr(module, name, synchronize_batch_norm(child))
    return module
