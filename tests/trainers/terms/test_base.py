"""What terms share: unit rows, and matrix products in full precision."""

from __future__ import annotations

import pytest
import torch

from trainers.config import MLPConfig, ModelConfig, TrialConfig, ViewConfig
from trainers.terms import MomentumContrast, MultiviewCentroid, Prediction
from trainers.terms.base import full_precision, unit_rows


def test_unit_rows_have_length_one_in_float32_at_least_and_zero_stays_zero() -> None:
    rows = torch.randn(5, 300)
    rows[2] = 0.0
    for dtype, wide in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        z = unit_rows(rows.to(dtype))
        assert z.dtype == wide
        torch.testing.assert_close(z.norm(dim=1), torch.tensor([1, 1, 0, 1, 1], dtype=wide), rtol=1e-6, atol=0)


def fail_in_full_precision() -> None:
    with full_precision(torch.device("cuda")):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        raise RuntimeError("inside")


def test_full_precision_switches_tf32_off_and_restores_the_callers_setting_even_after_an_error() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="inside"):
            fail_in_full_precision()
        assert matmul.fp32_precision == "tf32"
        with full_precision(torch.device("cpu")):
            assert matmul.fp32_precision == "tf32", "nothing of the GPU's is touched for a tensor on the CPU"
    finally:
        matmul.fp32_precision = before


def test_full_precision_switches_autocast_off() -> None:
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize("term", [MultiviewCentroid(), MomentumContrast(), Prediction()], ids=lambda term: term.kind)
def test_a_predictor_of_another_width_and_a_single_view_are_refused_with_a_remedy(
    term: MultiviewCentroid | MomentumContrast | Prediction,
) -> None:
    model = ModelConfig(projector=MLPConfig(widths=(16, 8)), predictor=MLPConfig(widths=(16, 9)))
    with pytest.raises(ValueError, match=rf"objective\.pull \({term.kind}\).*8, but is 9; change it to 8"):
        TrialConfig(model=model, objective={"pull": term})
    with pytest.raises(ValueError, match=r"at least 2.*views has 1.*add a view"):
        TrialConfig(views=(ViewConfig(),), objective={"pull": term})
