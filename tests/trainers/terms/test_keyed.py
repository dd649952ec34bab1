"""Keyed randomness: the right numbers, the right distribution, and nothing that depends on who asks."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.terms.keyed import key_of, normals, orders, random_bits


def reference_bits(key: int, *counters: int) -> int:
    """SplitMix64's finalizer over Python's integers."""
    mask = (1 << 64) - 1
    state = key & mask
    for counter in counters:
        state = ((state ^ (counter & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_bits_are_those_of_unsigned_arithmetic() -> None:
    key = key_of("test", 1, 2)
    rows, columns = torch.tensor([0, 5, -1, 2**62]), torch.arange(3)
    bits = random_bits(key, rows[:, None], columns)
    for i, row in enumerate(rows.tolist()):
        for j in range(3):
            assert int(bits[i, j]) % 2**64 == reference_bits(key, row, j)


def test_each_word_and_counter_matters_and_their_order_too() -> None:
    keys = [key_of("a", 1, 2), key_of("b", 1, 2), key_of("a", 2, 1), key_of("a", 12), key_of("a", "1", 2)]
    assert len(set(keys)) == len(keys)
    one, two = torch.tensor([1]), torch.tensor([2])
    drawn = [int(random_bits(key, *counters)) for key in keys for counters in ((one, two), (two, one), (one,))]
    assert len(set(drawn)) == len(drawn)


def test_a_rows_numbers_do_not_depend_on_the_other_rows() -> None:
    key, ids = key_of("test"), torch.tensor([7, 3, 900_000_000_000, 3])
    together = normals(key, ids, width=5)
    for i in range(4):
        assert torch.equal(normals(key, ids[i : i + 1], width=5)[0], together[i])
    assert torch.equal(together[1], together[3])


@pytest.mark.parametrize("width", [64, 63])
def test_normals_have_the_moments_of_independent_standard_normals(width: int) -> None:
    n = 20_000
    x = normals(key_of("moments"), torch.arange(n), width=width)
    assert x.shape == (n, width)
    count = n * width
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert float(x.pow(power).mean()) == pytest.approx(moment, abs=4.5 * math.sqrt(variance / count))
    covariance = x.T @ x / n - torch.eye(width, dtype=torch.float64)
    assert covariance.abs().max() < 6 / math.sqrt(n)  # of 4096 numbers of deviation 1 / sqrt(n), twice that on the axis
    neighbors = (x[1:] * x[:-1]).sum() / count
    assert abs(float(neighbors)) < 4.5 / math.sqrt(count)


def test_orders_are_permutations_and_each_is_as_likely() -> None:
    n = 12_000
    found = orders(key_of("orders"), torch.arange(n), width=3)
    assert torch.equal(found.sort(dim=-1).values, torch.arange(3).expand(n, 3))
    counts = torch.bincount(found[:, 0] * 3 + found[:, 1], minlength=9)[[1, 2, 3, 5, 6, 7]]
    assert int(counts.sum()) == n
    chi_square = float(((counts - n / 6) ** 2 / (n / 6)).sum())
    assert chi_square < 20.5  # 0.999 quantile at 5 degrees of freedom
