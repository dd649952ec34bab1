"""Keyed draws as tensors: each is a function of integers, the same on every device, rank and number of workers.

A key is made of what a draw is for (seed, step, view, operation, words) and of what it belongs to (a global sample id,
a sub-batch, a column): a sample's noise does not depend on the rank that holds it, or on who drew before. The mixing is
SplitMix64's (Steele, Lea, Flood, OOPSLA 2014), one integer after another, in int64 arithmetic that wraps around: the
same bits on a CPU and a GPU. The views have the same arithmetic, compiled (`trainers.data.views`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = (
    value - (1 << 64)  # as torch counts: int64, wrapping around
    for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def key_of(*words: str | int) -> int:
    """A signed 64-bit key; other words, in number, order or value, give another one."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def absorb(key: Tensor | int, value: Tensor | int) -> Tensor:
    """Mix an integer into a 64-bit key, elementwise and broadcast, int64: splitmix64's step and finalizer."""
    mixed = (torch.as_tensor(key) ^ value) + _STEP
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return mixed ^ _shifted(mixed, 31)


def keys_of(key: int, *counters: Tensor | int) -> Tensor:
    """A key for each combination of the counters: int64 tensors that broadcast together, and integers they share."""
    found: Tensor | int = key
    for counter in counters:
        found = absorb(found, counter)
    return torch.as_tensor(found)


def shuffles(keys: Tensor, count: int) -> Tensor:
    """A uniform random order of 0 … count - 1 for each key: [...] -> [..., count], int64."""
    return torch.argsort(_numbered(keys, count), dim=-1, stable=True)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1), independent over keys and places: [...] -> [..., count], float64."""
    return _shifted(_numbered(keys, count), 11).double() * 2.0**-53


def normals(keys: Tensor, count: int) -> Tensor:
    """Independent standard normal numbers: [...] -> [..., count], float64.

    Box-Muller: 32 of 64 bits make a radius, 32 an angle, and these two numbers; the largest radius is 6.8.
    """
    bits = _numbered(keys, (count + 1) // 2)
    angle = (bits & 0xFFFFFFFF).double().mul_(2 * math.pi / 2**32)
    uniform = _shifted(bits, 32).double().add_(0.5).mul_(2.0**-32)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :count]


@dataclass(frozen=True)
class Draws:
    """What is drawn for each of n rows, in torch's default dtype: draws of different names are independent, and asking
    for the same name again gives the same."""

    keys: Tensor
    """One for each row, [n] int64."""

    def uniforms(self, name: str, count: int) -> Tensor:
        """Numbers in [0, 1): [n, count]."""
        dtype = torch.get_default_dtype()
        drawn = uniforms(absorb(self.keys, key_of(name)), count).to(dtype)
        return drawn.clamp_max(1.0 - torch.finfo(dtype).eps / 2)  # 1 - 2^-40 would be rounded to 1

    def normals(self, name: str, count: int) -> Tensor:
        """Standard normal numbers: [n, count]."""
        return normals(absorb(self.keys, key_of(name)), count).to(torch.get_default_dtype())

    def shuffles(self, name: str, count: int) -> Tensor:
        """A random order of 0 … count - 1 for each row: [n, count], int64."""
        return shuffles(absorb(self.keys, key_of(name)), count)


def _numbered(keys: Tensor, count: int) -> Tensor:
    return absorb(keys[..., None], torch.arange(count, device=keys.device))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros coming in: torch has no unsigned arithmetic, and would copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
