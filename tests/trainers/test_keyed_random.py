"""Keyed draws: splitmix64 in whole numbers, the right distributions, and nothing that depends on who asks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainers.keyed_random import absorb, key_of, keys_of, normals, shuffles, uniforms

WORD = 1 << 64


def reference(key: int, *values: int) -> int:
    """splitmix64 of key xor value, one value after another, in Python's unbounded integers."""
    for value in values:
        mixed = ((key ^ (value % WORD)) + 0x9E3779B97F4A7C15) % WORD
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % WORD
        key = mixed ^ (mixed >> 31)
    return key


def test_absorbing_is_splitmix64() -> None:
    # The generator's published first numbers from state 0 (its state advances by the golden step).
    assert reference(0, 0) == 0xE220A8397B1DCDAF
    keys = [0, 1, 7, 2**31 - 1, 0x9E3779B97F4A7C15, WORD - 1, 1 << 63]
    values = [0, 3, 50_000, 2**40, -1]
    for key in keys:
        signed = key - WORD if key >= WORD // 2 else key
        found = absorb(torch.tensor(signed), torch.tensor(values))
        assert [int(number) % WORD for number in found] == [reference(key, value) for value in values]


def test_a_key_is_made_of_each_combination_of_counters() -> None:
    key = key_of("test", 1, 2)
    rows, columns = torch.tensor([0, 5, -1, 2**62]), torch.arange(3)
    keys = keys_of(key, rows[:, None], 7, columns)
    assert keys.shape == (4, 3)
    for i, row in enumerate(rows.tolist()):
        for j in range(3):
            assert int(keys[i, j]) % WORD == reference(key % WORD, row, 7, j)


def test_each_word_and_counter_matters_and_their_order_too() -> None:
    words = [key_of("a", 1, 2), key_of("b", 1, 2), key_of("a", 2, 1), key_of("a", 12), key_of("a", "1", 2)]
    assert len(set(words)) == len(words)
    one, two = torch.tensor([1]), torch.tensor([2])
    drawn = [int(keys_of(word, *counters)) for word in words for counters in ((one, two), (two, one), (one,))]
    assert len(set(drawn)) == len(drawn)


def test_a_rows_numbers_do_not_depend_on_the_other_rows() -> None:
    ids = torch.tensor([7, 3, 900_000_000_000, 3])
    for draw in (normals, uniforms, shuffles):
        together = draw(keys_of(0, 3, ids), 5)
        for row in range(4):
            assert torch.equal(draw(keys_of(0, 3, ids[row : row + 1]), 5)[0], together[row])
        assert torch.equal(together[1], together[3])


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    keys = keys_of(0, 1, torch.arange(4000))
    numbers = uniforms(keys, 10)
    assert numbers[17, 3].item() == (reference(0, 1, 17, 3) >> 11) / 2**53
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = np.histogram(numbers.numpy(), bins=20, range=(0, 1))[0]
    assert float(((counts - 2000.0) ** 2 / 2000.0).sum()) < 45  # chi-squared, 19 degrees: 99.9 % below 43.8


def test_shuffles_are_permutations_and_each_is_as_likely() -> None:
    n = 12_000
    found = shuffles(keys_of(key_of("orders"), torch.arange(n)), 3)
    assert torch.equal(found.sort(dim=-1).values, torch.arange(3).expand(n, 3))
    counts = torch.bincount(found[:, 0] * 3 + found[:, 1], minlength=9)[[1, 2, 3, 5, 6, 7]]
    assert int(counts.sum()) == n
    assert float(((counts - n / 6) ** 2 / (n / 6)).sum()) < 20.5  # chi-squared, 5 degrees: 99.9 % below
    places = shuffles(keys_of(0, 1, torch.arange(4000)), 10)
    counts = torch.stack([(places == place).sum(0) for place in range(10)]).double()
    assert float(((counts - 400) ** 2 / 400).sum()) < 140  # 81 degrees


@pytest.mark.parametrize("width", [64, 63])
def test_normals_have_the_moments_of_independent_standard_normals(width: int) -> None:
    n = 20_000
    x = normals(keys_of(key_of("moments"), torch.arange(n)), width)
    assert x.shape == (n, width)
    count = n * width
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert float(x.pow(power).mean()) == pytest.approx(moment, abs=4.5 * math.sqrt(variance / count))
    covariance = x.T @ x / n - torch.eye(width, dtype=torch.float64)
    assert covariance.abs().max() < 6 / math.sqrt(n)  # of 4096 numbers of deviation 1 / sqrt(n), twice that on the axis
    neighbors = (x[1:] * x[:-1]).sum() / count
    assert abs(float(neighbors)) < 4.5 / math.sqrt(count)
