"""The spectral contrastive loss against explicit sums, and against the terms it is related to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of, random_views
from trainers.config import TrialConfig, ViewConfig
from trainers.terms import Alignment, KernelMMD, Spectral
from trainers.terms.kernels import Quadratic


def reference(first: Tensor, second: Tensor, squared_radius: float) -> float:
    def cut(rows: Tensor) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
        return [row * min(1.0, squared_radius**0.5 / float(np.linalg.norm(row))) for row in rows.numpy()]

    a, b = cut(first), cut(second)
    positive = np.mean([x @ y for x, y in zip(a, b, strict=True)])
    negative = np.mean([(a[i] @ b[j]) ** 2 for i in range(len(a)) for j in range(len(b)) if i != j])
    return float((-2 * positive + negative) / squared_radius)


@pytest.mark.parametrize("squared_radius", [1.0, 4.0, 100.0])
def test_it_is_attraction_of_pairs_and_squared_products_of_different_images(squared_radius: float) -> None:
    views = random_views(3)
    lengths = torch.stack(views).norm(dim=2).square()
    assert squared_radius != 4.0 or (lengths.min() < 4.0 < lengths.max())  # some rows are cut, some are not
    expected = [reference(a, b, squared_radius) for a, b in itertools.combinations(views, 2)]
    value = Spectral(squared_radius=squared_radius)(outputs_of(*views))
    assert value.item() == pytest.approx(float(np.mean(expected)), rel=1e-12)


def test_one_point_costs_minus_one_and_orthogonal_images_minus_two() -> None:
    point = torch.ones(4, 4, dtype=torch.float64) / 2
    assert Spectral()(outputs_of(point, point)).item() == pytest.approx(-1.0, rel=1e-12)
    basis = torch.eye(4, dtype=torch.float64)
    assert Spectral()(outputs_of(basis, basis)).item() == pytest.approx(-2.0, rel=1e-12)


def test_on_equal_views_of_length_one_it_is_alignment_and_the_quadratic_kernel() -> None:
    rows = torch.nn.functional.normalize(random_views(1)[0])
    outputs = outputs_of(rows, rows)
    repulsion = KernelMMD(kernel=Quadratic(), estimator="u", normalize=False)(outputs) + 1 / rows.shape[1]
    assert Spectral()(outputs).item() == pytest.approx((Alignment()(outputs) - 2 + repulsion).item(), rel=1e-12)


def test_rows_of_length_zero_stay_finite() -> None:
    rows = torch.zeros(4, 3, requires_grad=True)
    value = Spectral()(outputs_of(rows, rows))
    assert value.item() == 0.0
    assert torch.autograd.grad(value, rows)[0].isfinite().all()


def test_a_single_view_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"objective\.graph \(spectral\).*at least 2.*add a view"):
        TrialConfig(views=(ViewConfig(),), objective={"graph": Spectral()})
