"""Random numbers that are functions of what they belong to: no state, the same on any number of ranks.

A key is made of words (what it is for, seed, step); each number of it is a function of the key and of integer counters
(sample id, view, column ...). So a sample's noise does not depend on the rank that holds it or on who drew before.

The mixing is SplitMix64's finalizer (Steele, Lea, Flood 2014), absorbing one counter after another, in int64 arithmetic
that wraps: the same bits on a CPU and a GPU.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def key_of(*words: str | int) -> int:
    """A signed 64-bit key; other words, in number, order or value, give another one."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def random_bits(key: int, *counters: Tensor) -> Tensor:
    """64 random bits, as int64, for each combination of the counters: int64 tensors that broadcast together."""
    state = counters[0] ^ key
    for counter in counters[1:]:
        state = _scramble(state) ^ counter
    return _scramble(state)


def normals(key: int, *counters: Tensor, width: int) -> Tensor:
    """Independent standard normal numbers, float64, [..., width], a row for each combination of the counters.

    Box-Muller: 32 of 64 bits make a radius, 32 an angle, and these two numbers; the largest radius is 6.8.
    """
    import torch

    half = (width + 1) // 2
    columns = torch.arange(half, device=counters[0].device)
    bits = random_bits(key, *(counter[..., None] for counter in counters), columns)
    angle = (bits & 0xFFFFFFFF).double().mul_(2 * math.pi / 2**32)
    uniform = _shift_right(bits, 32).double().add_(0.5).mul_(2.0**-32)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :width]


def orders(key: int, *counters: Tensor, width: int) -> Tensor:
    """Uniform random orders of 0 .. width - 1, int64, [..., width], one for each combination of the counters."""
    import torch

    columns = torch.arange(width, device=counters[0].device)
    return random_bits(key, *(counter[..., None] for counter in counters), columns).argsort(dim=-1)


def _scramble(state: Tensor) -> Tensor:
    state = state + _INCREMENT
    state = (state ^ _shift_right(state, 30)).mul_(_FIRST)
    state = (state ^ _shift_right(state, 27)).mul_(_SECOND)
    return state ^ _shift_right(state, 31)


def _shift_right(word: Tensor, places: int) -> Tensor:
    """Without dragging the sign along, as on an unsigned word."""
    return (word >> places) & ((1 << (64 - places)) - 1)
