"""Permuting columns and back."""

from __future__ import annotations

import torch

from trainers.terms.permutation import permute_columns


def test_there_and_back_is_the_input_bit_for_bit_and_so_is_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 7, generator=generator, requires_grad=True)
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(3)])
    there = permute_columns(x, order)
    for matrix in range(3):
        for column in range(7):
            assert torch.equal(there[matrix, :, column], x[matrix, :, order[matrix, column]])
    assert torch.equal(permute_columns(there, order.argsort()), x)
    incoming = torch.randn(3, 4, 7, generator=generator)
    (gradient,) = torch.autograd.grad(there, x, incoming)
    (expected,) = torch.autograd.grad(x.gather(-1, order[:, None, :].expand_as(x)), x, incoming)
    assert torch.equal(gradient, expected)
