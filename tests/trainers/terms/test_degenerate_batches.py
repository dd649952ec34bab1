"""No batch makes a term's value or gradient not a number: every term, on batches that no method was made for.

Where a value cannot be one, as with a single view, the config is refused in words; where embeddings are so large that
a loss of their own size overflows, its value is infinite, and the run says how large they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import gradient_of, outputs_of, random_rows, value_of
from tests.trainers.terms.test_every_term import TERMS, leaves, random_outputs
from trainers.config import TrialConfig
from trainers.contracts import everything
from trainers.terms import (
    Alignment,
    BatchWhitening,
    ChannelWhitening,
    Covariance,
    Dino,
    KernelMMD,
    Outputs,
    Reconstruction,
    SingularValue,
    TermConfig,
    kernels,
)
from trainers.terms.base import unit_rows

EXTREME_KERNELS: tuple[kernels.Kernel, ...] = (
    *(kernels.RBF(gamma=gamma) for gamma in (1e-3, 40.0)),
    *(kernels.LogRBF(gamma=gamma) for gamma in (1e-3, 5.0, 5.1, 40.0)),
    *(kernels.Exponential(temperature=temperature) for temperature in (0.02, 100.0)),
    *(kernels.IMQ(offset=offset, exponent=exponent) for offset in (0.05, 10.0) for exponent in (1e-3, 10.0)),
    *(kernels.Laplace(gamma=gamma) for gamma in (1e-3, 100.0)),
    *(kernels.Energy(exponent=exponent) for exponent in (1e-3, 1.999)),
    *(kernels.Polynomial(offset=offset, degree=degree) for offset in (0.0, 10.0) for degree in (1, 10)),
    kernels.Truncated(coefficients=(0.0, 0.0, 0.0, 1e3)),
)
EXTREME: list[TermConfig] = [
    *(KernelMMD(kernel=kernel) for kernel in EXTREME_KERNELS),
    *(KernelMMD(kernel=kernel, estimator="u", normalize=False) for kernel in EXTREME_KERNELS),
    *(KernelMMD(kernel=kernels.LogRBF(gamma=gamma), estimator="u") for gamma in (1e-3, 5.1, 40.0)),
    *(KernelMMD(kernel=kernels.Riesz(exponent=power), estimator="u", normalize=False) for power in (1e-3, 2.0, 4.9)),
    SingularValue(epsilon=0.0),
    SingularValue(center=True, epsilon=0.0),
    Dino(student_temperature=1e-3, teacher_temperature=1e-3),
    *(
        whitening.model_copy(update={"factor": factor, "newton_steps": steps})
        for whitening in (
            ChannelWhitening(sub_batch_size=2, group_count=2),
            ChannelWhitening(sub_batch_size=4, group_count=1),
            BatchWhitening(group_count=2),
            BatchWhitening(group_count=1, normalize=False),
        )
        for factor, steps in (("zca", 1), ("pca", 1), ("cholesky", 1), ("newton", 5), ("newton", 100))
    ),
    *(
        whitening.model_copy(update={"factor": factor, "arithmetic": "float32"})
        for whitening in (ChannelWhitening(sub_batch_size=2, group_count=2), BatchWhitening(group_count=2))
        for factor in ("zca", "cholesky")
    ),
]
EVERY = pytest.mark.parametrize("term", [*TERMS, *EXTREME], ids=repr)
LOSE_SCALE = (Alignment, Covariance, Reconstruction)
"""Losses of the embeddings or pixels themselves, with their fourth or second power."""
BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "large": lambda rows: 1e25 * rows,
    "one large": lambda rows: torch.cat([1e25 * rows[:1], rows[1:]]),
    "small": lambda rows: 1e-25 * rows,
    "zero": torch.zeros_like,
    "blank rows": lambda rows: torch.cat([torch.zeros_like(rows[:2]), rows[2:]]),
    "equal rows": lambda rows: rows[:1].expand_as(rows),
    "constant": lambda rows: torch.full_like(rows, 3.3),
    "copies": lambda rows: torch.cat([rows[: len(rows) // 2]] * 2),
    "opposite": lambda rows: torch.cat([rows[: len(rows) // 2], -rows[: len(rows) // 2]]),
}


@cache
def made(batch: str, dtype: torch.dtype) -> Outputs:
    """Outputs of 8 images whose rows of each kind are changed."""
    outputs = random_outputs(dtype=dtype)

    def changed(rows: Tensor) -> Tensor:
        return BATCHES[batch](rows.detach()).to(dtype).clone().requires_grad_(rows.requires_grad)

    whole: dict[str, Any] = {}
    for field in ("features", "projections", "predictions", "targets", "scores", "target_scores"):
        whole[field] = tuple(changed(rows) for rows in getattr(outputs, field))
    patches = tuple(
        seen._replace(
            tokens=changed(seen.tokens),
            mismatch_logits=None if seen.mismatch_logits is None else changed(seen.mismatch_logits),
            reconstruction=None if seen.reconstruction is None else changed(seen.reconstruction),
        )
        for seen in outputs.patches
    )
    return outputs._replace(**whole, patches=patches)


@EVERY
def test_value_and_gradient_are_finite_on_any_finite_batch(term: TermConfig) -> None:
    of_its_size = isinstance(term, LOSE_SCALE) and getattr(term, "normalize", None) is not True
    # As published, a kernel that is not normalized may itself be larger.
    unbounded = isinstance(term, KernelMMD) and not term.kernel.singular and term.kernel.peak(6) > 1e10
    for batch in BATCHES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16) if term in TERMS else (torch.float32,):
            outputs = made(batch, dtype)
            value = term(outputs)
            if "large" in batch and (of_its_size or isinstance(term, Reconstruction)):
                assert value.isfinite() if dtype == torch.float64 else not value.isneginf()
                continue
            assert value.isfinite(), (batch, dtype, value)
            for gradient in torch.autograd.grad(value, leaves(outputs), allow_unused=True):
                if gradient is not None:
                    assert gradient.isfinite().all(), (batch, dtype)
                    # Its square is what its norm, and clipping, are made of.
                    assert unbounded or gradient.abs().max() < 1e17, (batch, dtype)


def refusal(term: TermConfig, **changes: Any) -> str:
    """What a config with this term and these changes is refused for; empty if it is not."""
    base = everything()
    objective = {name: other for name, other in base.objective.items() if name != "dino"}
    try:
        TrialConfig.model_validate({**dict(base), "objective": {**objective, "mine": term}, **changes})
    except ValueError as error:
        return str(error)
    return ""


@EVERY
def test_a_batch_of_two_is_finite_or_refused_by_the_config(term: TermConfig) -> None:
    if refused := refusal(term, batch_size=2):
        assert "objective.mine" in refused
        return
    for dtype in (torch.float32, torch.float64):
        outputs = random_outputs(2, 8, dtype)
        value = term(outputs)
        assert value.isfinite()
        found = torch.autograd.grad(value, leaves(outputs), allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in found if gradient is not None)


@EVERY
def test_one_view_is_finite_or_refused_by_the_config_and_by_the_term_itself(term: TermConfig) -> None:
    outputs = random_outputs(8, 6)
    whole = ("features", "projections", "predictions", "targets", "scores", "target_scores", "patches")
    one = outputs._replace(**{name: getattr(outputs, name)[:1] for name in whole})
    refused = refusal(term, views=everything().views[:1])
    if "at least 2" in refused:
        assert "objective.mine" in refused
        with pytest.raises(ValueError, match="view"):
            term(one)
    elif refused:
        assert "objective.mine" in refused
    else:
        assert term(one).isfinite()


@pytest.mark.parametrize(
    "kernel", [*EXTREME_KERNELS, kernels.Riesz(exponent=8.0), kernels.Riesz(exponent=1e-3)], ids=repr
)
@pytest.mark.parametrize("q", [2, 3, 10, 512, 8192])
def test_a_kernels_numbers_are_finite_at_the_ends_of_its_settings_for_any_width(kernel: kernels.Kernel, q: int) -> None:
    if isinstance(kernel, kernels.Riesz) and kernel.exponent >= q - 1:
        with pytest.raises(ValueError, match="must be below the embedding's width less 1"):
            kernel.mean(q)
        return
    assert math.isfinite(kernel.mean(q))
    if not kernel.singular:
        assert 0 < kernel.peak(q) - kernel.mean(q) < math.inf
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(-1, 1, 9, dtype=dtype).requires_grad_()
        values = kernel.values(t, q)
        (slope,) = torch.autograd.grad(values.sum(), t)
        assert values.isfinite().all()
        assert slope.isfinite().all()


def test_every_kernel_with_a_setting_is_tried_at_its_ends() -> None:
    tried = {type(kernel) for kernel in (*EXTREME_KERNELS, kernels.Riesz())}
    kinds = get_args(get_args(kernels.AnyKernel)[0])
    assert {kind for kind in kinds if set(kind.model_fields) - {"kind"}} == tried


@pytest.mark.parametrize("exponent", [1e-3, 1.0, 4.0, 8.0])
def test_a_steep_riesz_kernel_is_finite_in_float32_at_coinciding_and_at_near_points(exponent: float) -> None:
    term = KernelMMD(kernel=kernels.Riesz(exponent=exponent), estimator="u", normalize=False)
    rows = torch.from_numpy(random_rows(8, 16)).float()
    for distance in (0.0, 1e-8, 1e-6, 1e-4, 1e-2):
        near = torch.cat(
            [rows, rows + distance * torch.from_numpy(random_rows(8, 16, seed=1)).float()]
        ).requires_grad_()
        value = term(outputs_of(near))
        (gradient,) = torch.autograd.grad(value, near)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e15
    spread = value_of(term, random_rows(8, 16))
    assert spread < value_of(term, near.detach())


def test_a_sharp_uniformity_keeps_its_digits_where_nearly_nothing_is_left_of_the_kernel() -> None:
    """Orthogonal points: log of exp(-2 gamma), which a difference from φ(1) in any precision would lose."""
    for gamma in (4.0, 5.1, 40.0):
        term = KernelMMD(kernel=kernels.LogRBF(gamma=gamma), estimator="u", normalize=False)
        assert term(outputs_of(torch.eye(6))).item() == pytest.approx(-2 * gamma, rel=1e-6)
        assert value_of(term, [[1.0, 0.0], [-1.0, 0.0]]) == pytest.approx(-4 * gamma, rel=1e-6)  # type: ignore[arg-type]


def test_rows_keep_their_direction_at_any_size_and_have_none_below_the_shortest() -> None:
    rows = torch.from_numpy(random_rows(5, 6)).float()
    for scale in (1e-10, 1.0, 1e14, 1e25, 1e36):
        torch.testing.assert_close(unit_rows(scale * rows), unit_rows(rows), rtol=1e-5, atol=1e-6)
    # Alignment's gradient falls with the size of the rows, and is 0 for blank ones.
    other = torch.from_numpy(random_rows(5, 6, seed=1)).float()
    for scale, most in ((1.0, 1.0), (1e25, 1e-24), (0.0, 0.0)):
        leaf = (scale * rows).requires_grad_()
        (gradient,) = torch.autograd.grad(Alignment()(outputs_of(leaf, other)), leaf)
        assert gradient.abs().max() <= most
    assert gradient_of(KernelMMD(), torch.zeros(4, 6)).abs().max() == 0
