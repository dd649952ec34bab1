"""How fast a device multiplies matrices at best: as its maker states it, and as it is seen here."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import torch

from trainers.config import TrialConfig
from trainers.profiling.step import finish

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    r"\bGB200\b": {"bf16": 2500e12, "float32": 80e12},
    r"\bB200\b": {"bf16": 2250e12, "float32": 75e12},
    r"\bH[12]00 NVL\b": {"bf16": 835e12, "float32": 60e12},
    r"\bG?H200\b(?! NVL)|\bH100 80GB HBM3\b|\bH100 SXM": {"bf16": 989e12, "float32": 67e12},
    r"\bH100 PCIe\b": {"bf16": 756e12, "float32": 51e12},
    r"\bA100\b": {"bf16": 312e12, "float32": 19.5e12},
    r"\bL40S\b": {"bf16": 362e12, "float32": 91.6e12},
    r"\bL40\b": {"bf16": 181e12, "float32": 90.5e12},
    r"\bL4\b": {"bf16": 121e12, "float32": 30.3e12},
    r"\bA40\b": {"bf16": 149.7e12, "float32": 37.4e12},
    r"\bA10\b": {"bf16": 125e12, "float32": 31.2e12},
    r"\bV100-SXM2\b": {"float32": 15.7e12},
    r"\bT4\b": {"float32": 8.1e12},
    r"\bRTX 4090\b": {"bf16": 165e12, "float32": 82.6e12},
}
"""FLOP/s of cards by a pattern of their names, from NVIDIA's data sheets of the cards
(of HGX B200 and GB200 NVL72 for one of their GPUs, of the RTX 4090 the white paper of Ada, bf16 summed in float32):
dense, which is half of what they print with sparsity; bf16 on tensor cores, float32 beside them (which is what
`precision: float32` means here, without TF32).
"""
SIDES = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied: large enough for a device to be at its best."""


def published(card: str, precision: str) -> float | None:
    """FLOP/s that the maker of `card` states for it; None where this is not known, as of a slice of a card (MIG)."""
    if re.search(r"\bMIG\b", card):
        return None
    found = [numbers for pattern, numbers in PUBLISHED.items() if re.search(pattern, card)]
    return found[0].get(precision) if found else None


def measured(config: TrialConfig, device: torch.device, *, repeats: int, side: int | None = None) -> float:
    """FLOP/s of this process in a product of two square matrices in the config's precision: the best of `repeats`."""
    n = SIDES[device.type] if side is None else side
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    best = 0.0
    for repeat in range(repeats + 1):
        finish(device)
        started = time.perf_counter()
        a @ b
        finish(device)
        if repeat:
            best = max(best, 2.0 * n**3 / (time.perf_counter() - started))
    return best
