"""Keyed draws against splitmix64 in whole numbers, and against the views' compiled arithmetic."""

from __future__ import annotations

import numpy as np
import torch

from trainers.draws import absorb, sample_keys, shuffles, uniforms

WORD = 1 << 64


def reference(key: int, value: int) -> int:
    """splitmix64 of key xor value, in Python's unbounded integers."""
    mixed = ((key ^ value) + 0x9E3779B97F4A7C15) % WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % WORD
    return mixed ^ (mixed >> 31)


def test_absorbing_is_splitmix64() -> None:
    # The generator's published first numbers from state 0 (its state advances by the golden step).
    assert reference(0, 0) == 0xE220A8397B1DCDAF
    keys = [0, 1, 7, 2**31 - 1, 0x9E3779B97F4A7C15, WORD - 1, 1 << 63]
    values = [0, 3, 50_000, 2**40]
    for key in keys:
        signed = key - WORD if key >= WORD // 2 else key
        found = absorb(torch.tensor(signed), torch.tensor(values))
        assert [int(number) % WORD for number in found] == [reference(key, value) for value in values]


def test_numbers_are_a_function_of_all_parts_of_the_key() -> None:
    ids = torch.tensor([5, 6, 5])
    keys = sample_keys(ids, 3, 7)
    assert keys[0] == keys[2] != keys[1]
    signed = [reference(reference(reference(0, 3), 7), 5)]
    assert int(keys[0]) % WORD == signed[0]
    assert not torch.equal(sample_keys(ids, 3, 8), keys)
    assert not torch.equal(sample_keys(ids, 7, 3), keys)
    fractions = uniforms(keys, 2)
    assert fractions[0, 1].item() == (reference(signed[0], 1) >> 11) / 2**53


def test_uniforms_fill_the_unit_interval_evenly_and_shuffles_are_permutations() -> None:
    keys = sample_keys(torch.arange(4000), 1)
    numbers = uniforms(keys, 10)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = np.histogram(numbers.numpy(), bins=20, range=(0, 1))[0]
    assert float(((counts - 2000.0) ** 2 / 2000.0).sum()) < 45  # chi-squared, 19 degrees: 99.9 % below 43.8
    orders = shuffles(keys, 10)
    assert torch.equal(orders.sort(1).values, torch.arange(10).expand(4000, -1))
    places = torch.stack([(orders == place).sum(0) for place in range(10)]).double()
    assert float(((places - 400) ** 2 / 400).sum()) < 140  # 81 degrees
