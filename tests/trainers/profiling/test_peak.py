"""What a device could do at best."""

from __future__ import annotations

import re

import pytest
import torch

from trainers.config import TrialConfig
from trainers.profiling import peak


@pytest.mark.parametrize(
    ("card", "precision", "flops"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H200 NVL", "bf16", 835e12),
        ("NVIDIA H200 MIG 1g.18gb", "bf16", None),
        ("NVIDIA GH200 480GB", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 67e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA A10", "float32", 31.2e12),
        ("Tesla T4", "float32", 8.1e12),
        ("Tesla T4", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("NVIDIA A100X of another maker", "bf16", None),
        ("cpu", "float32", None),
    ],
)
def test_a_cards_peak_is_what_its_maker_states_for_the_precision(
    card: str, precision: str, flops: float | None
) -> None:
    assert peak.published(card, precision) == flops


def test_no_two_patterns_mean_one_card() -> None:
    names = ("B200", "GB200", "H200", "H200 NVL", "H100 NVL", "L4", "L40", "L40S", "A10", "A40", "A100")
    cards = [f"NVIDIA {name}" for name in names]
    for card in cards:
        assert sum(bool(re.search(pattern, card)) for pattern in peak.PUBLISHED) == 1, card


def test_a_product_of_matrices_says_what_this_machine_can_do() -> None:
    config = TrialConfig.model_validate({"objective": {"alignment": {}}})
    assert 1e6 < peak.measured(config, torch.device("cpu"), repeats=2, side=64) < 1e15
