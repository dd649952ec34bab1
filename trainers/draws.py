"""Keyed draws as tensors: each is a function of integers, the same on every device, rank and number of workers.

The views have the same arithmetic, compiled (`trainers.views`); this is for draws inside a training step.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = (
    value - (1 << 64)  # as torch counts: int64, wrapping around
    for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def absorb(key: Tensor | int, value: Tensor | int) -> Tensor:
    """Mix an integer into a 64-bit key, elementwise and broadcast, int64: splitmix64's step and finalizer (Steele,
    Lea, Flood, OOPSLA 2014). Start from key 0 and absorb one after the other."""
    mixed = (torch.as_tensor(key) ^ value) + _STEP
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return mixed ^ _shifted(mixed, 31)


def sample_keys(sample_ids: Tensor, *context: int) -> Tensor:
    """A key for each row, [n] int64, from global sample ids [n] and what they share (seed, step, view, operation)."""
    key: Tensor | int = 0
    for value in context:
        key = absorb(key, value)
    return absorb(torch.as_tensor(key, device=sample_ids.device), sample_ids)


def shuffles(keys: Tensor, count: int) -> Tensor:
    """A permutation of 0 … count - 1 for each key: [n] -> [n, count], int64."""
    return torch.argsort(_numbered(keys, count), dim=1, stable=True)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1), independent over keys and places: [n] -> [n, count], float64."""
    return _shifted(_numbered(keys, count), 11).double() * 2.0**-53


def _numbered(keys: Tensor, count: int) -> Tensor:
    return absorb(keys[:, None], torch.arange(count, device=keys.device))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros coming in: torch has no unsigned arithmetic, and would copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
