"""VICReg's two regularizers against their definitions, feature by feature, and the official code's factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.terms import Alignment, Covariance, Variance


def random_views(count: int, n: int = 9, q: int = 4, scale: float = 1.0) -> list[Tensor]:
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((q, q))
    rows = generator.standard_normal((count, n, q)) @ mixing * scale + generator.standard_normal(q)
    return [torch.from_numpy(view) for view in rows]


@pytest.mark.parametrize("target", [1.0, 2.5])
def test_variance_is_the_mean_hinge_over_features_and_views(target: float) -> None:
    views = random_views(3, scale=0.7)
    hinges = []
    for view in views:
        for feature in view.numpy().T:
            hinges.append(max(0.0, target - float(np.sqrt(np.var(feature, ddof=1) + 1e-4))))
    assert 0.0 in hinges or target > 1.0  # some features vary enough, some do not
    value = Variance(target=target)(outputs_of(*views))
    assert value.item() == pytest.approx(float(np.mean(hinges)), rel=1e-12)


def test_collapsed_rows_cost_the_whole_hinge_and_have_a_finite_slope() -> None:
    rows = torch.ones(6, 3, dtype=torch.float64, requires_grad=True)
    value = Variance()(outputs_of(rows, rows))
    assert value.item() == pytest.approx(1 - 1e-2, rel=1e-12)
    assert torch.autograd.grad(value, rows)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["more rows than features", "fewer"])
def test_covariance_is_the_sum_of_squares_beside_the_diagonal_over_the_width(shape: tuple[int, int]) -> None:
    views = random_views(3, *shape)
    costs = []
    for view in views:
        c = np.cov(view.numpy(), rowvar=False)
        costs.append(sum(c[i, j] ** 2 for i in range(shape[1]) for j in range(shape[1]) if i != j) / shape[1])
    assert Covariance()(outputs_of(*views)).item() == pytest.approx(float(np.mean(costs)), rel=1e-12)


def test_features_that_are_not_correlated_cost_nothing() -> None:
    sign = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert Covariance()(outputs_of(3 * sign + 5, sign)).item() == pytest.approx(0.0, abs=1e-28)


def test_the_official_losses_are_sums_of_these_terms_with_known_factors() -> None:
    """facebookresearch/vicreg at 25, 25, 1: mean squared error; hinges halved; covariances not. solo-learn: neither."""
    x, y = random_views(2, scale=0.5)
    q = x.shape[1]
    hinge = [torch.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean() for view in (x, y)]
    different = ~torch.eye(q, dtype=torch.bool)
    decorrelation = [torch.cov(view.T)[different].square().sum() / q for view in (x, y)]
    invariance = torch.nn.functional.mse_loss(x, y)
    official = 25 * invariance + 25 * (hinge[0] / 2 + hinge[1] / 2) + decorrelation[0] + decorrelation[1]
    solo_learn = 25 * invariance + 25 * (hinge[0] + hinge[1]) + decorrelation[0] + decorrelation[1]
    outputs = outputs_of(x, y)
    ours = [Alignment(normalize=False)(outputs), Variance()(outputs), Covariance()(outputs)]
    assert (25 * ours[0] + 25 * ours[1] + 2 * ours[2]).item() == pytest.approx(official.item(), rel=1e-12)
    assert (25 * ours[0] + 50 * ours[1] + 2 * ours[2]).item() == pytest.approx(solo_learn.item(), rel=1e-12)


def _value_and_gradients(views: list[Tensor]) -> list[Tensor]:
    n = len(views[0]) // dist.world_size()
    mine = [view[dist.row_offset(n) : dist.row_offset(n) + n].clone().requires_grad_() for view in views]
    value = Covariance()(outputs_of(*mine))
    value.backward()  # type: ignore[no-untyped-call]
    return [value.detach(), *(view.grad for view in mine if view.grad is not None)]


def test_the_form_for_wide_embeddings_is_the_same_on_two_processes(two_processes: TwoProcesses) -> None:
    """Each rank's gradient is twice its share: DDP takes the mean over ranks."""
    views = random_views(2, n=6, q=9)
    expected, *gradients = _value_and_gradients(views)
    for rank, (value, *shares) in enumerate(two_processes.run(_value_and_gradients, views)):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0.0)
        for share, gradient in zip(shares, gradients, strict=True):
            torch.testing.assert_close(share, 2 * gradient[3 * rank : 3 * rank + 3], rtol=1e-11, atol=1e-14)


def test_a_single_row_has_no_variance() -> None:
    for term in (Variance(), Covariance()):
        with pytest.raises(ValueError, match="needs at least 2 rows, but has 1; raise batch_size"):
            term(outputs_of(torch.ones(1, 3)))
