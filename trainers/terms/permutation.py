"""Reordering columns, differently in each matrix of a batch, and back, without adding anything up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def permute_columns(x: Tensor, order: Tensor) -> Tensor:
    """y[..., i, j] = x[..., i, order[..., j]] for x [..., m, d] and permutations [..., d]; undone by order.argsort."""
    permuted: Tensor = _PermuteColumns.apply(x, order)
    return permuted


class _PermuteColumns(torch.autograd.Function):
    """`gather`, whose own backward adds into zeros (slow, and not deterministic on a GPU): this one moves back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.gather(-1, order[..., None, :].expand_as(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        inverse = order.argsort(dim=-1)
        return gradient.gather(-1, inverse[..., None, :].expand_as(gradient)), None
