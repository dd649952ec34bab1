"""Health: closed forms of spread and rank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.evaluation import health


def with_spectrum(singular_values: list[float], rows: int, dimensions: int) -> Tensor:
    """Centered [rows, dimensions] in float64 with exactly these singular values."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(rows, len(singular_values), generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(raw - raw.mean(0))
    right, _ = torch.linalg.qr(torch.randn(dimensions, len(singular_values), generator=generator, dtype=torch.float64))
    made: Tensor = left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right.T
    return made


@pytest.mark.parametrize(("rows", "dimensions"), [(40, 12), (12, 40)])  # covariance and Gram
def test_ranks_follow_from_the_singular_values(rows: int, dimensions: int) -> None:
    spectrum = [8.0, 4.0, 2.0, 2.0]
    shares = [0.5, 0.25, 0.125, 0.125]
    rank, effective, stable = health.ranks(with_spectrum(spectrum, rows, dimensions) + 3.0)  # centering removes the 3
    assert effective == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)
    assert stable == pytest.approx((64 + 16 + 4 + 4) / 64, rel=1e-9)
    assert rank == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_isotropic_rows_have_full_rank(dtype: torch.dtype) -> None:
    cross = torch.cat([torch.eye(16, dtype=dtype), -torch.eye(16, dtype=dtype)])
    assert health.ranks(cross) == pytest.approx((16.0, 16.0, 16.0), rel=1e-6)
    simplex = torch.eye(9, dtype=dtype)  # nine points span eight directions
    assert health.ranks(simplex) == pytest.approx((8.0, 8.0, 8.0), rel=1e-6)


def test_a_single_direction_has_rank_one_in_float32_too() -> None:
    line = torch.linspace(-1, 1, 50)[:, None] * torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) + 1.7
    rank, effective, stable = health.ranks(line)
    assert rank == 1.0
    assert stable == pytest.approx(1.0, abs=1e-5)
    assert effective == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_the_dust_on_a_collapsed_batch_is_not_mistaken_for_rank(scale: float) -> None:
    rows = torch.full((100, 20), 0.1) * torch.linspace(1, 2, 20) * scale
    dust = rows * (1 + 1e-8 * torch.randn(100, 20, generator=torch.Generator().manual_seed(0)))
    assert health.ranks(rows) == (0.0, 0.0, 0.0)
    assert health.ranks(dust) == (0.0, 0.0, 0.0)


def test_ranks_do_not_depend_on_scale_rotation_or_shift() -> None:
    rows = with_spectrum([5.0, 3.0, 1.0], 30, 10)
    rotation, _ = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert health.ranks(1e-6 * rows @ rotation + 1e-6) == pytest.approx(health.ranks(rows), rel=1e-8)


def test_directions_below_the_rounding_of_float32_do_not_count_for_the_rank() -> None:
    spectrum = [1.0, 1e-3, 20 * torch.finfo(torch.float32).eps]  # the threshold is 40 times that of float32
    assert health.ranks(with_spectrum(spectrum, 40, 12)).rank == 2.0


def test_whitened_rows_have_extent_one_and_one_direction_of_five_has_a_fifth() -> None:
    cross = torch.cat([torch.eye(5), -torch.eye(5)])
    assert health.measure(cross, cross)["health/embedding/whitening"] == pytest.approx(1.0, rel=1e-6)
    line = cross * torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    assert health.measure(line, cross)["health/features/whitening"] == pytest.approx(1 / 5, rel=1e-6)


def test_the_mean_cosine_is_that_of_all_pairs_of_different_rows() -> None:
    embedding = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    cosines = [
        float(torch.nn.functional.cosine_similarity(embedding[i], embedding[j], dim=0))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    found = health.measure(torch.randn(7, 3), embedding)["health/embedding/cosine"]
    assert found == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    collapsed = health.measure(torch.randn(7, 3), torch.ones(7, 4))
    assert collapsed["health/embedding/cosine"] == pytest.approx(1.0, rel=1e-6)


def test_spread_is_one_on_the_whole_sphere_and_zero_where_all_agree() -> None:
    cross = torch.cat([torch.eye(16), -torch.eye(16)])
    metrics = health.measure(cross, 5 * cross)  # projections are normalized first
    assert metrics["health/embedding/std"] == pytest.approx(1.0, rel=1e-6)
    assert metrics["health/features/std"] == pytest.approx(1 / 4, rel=1e-6)
    collapsed = health.measure(torch.ones(8, 4), torch.linspace(1, 9, 8)[:, None] * torch.ones(8, 4))
    assert collapsed["health/embedding/std"] == pytest.approx(0.0, abs=1e-6)
    assert collapsed["health/embedding/effective_rank"] == 0.0


def test_the_names_are_those_of_the_interface() -> None:
    metrics = health.measure(torch.randn(10, 3), torch.randn(10, 5))
    assert set(metrics) == {
        f"health/{place}/{name}"
        for place in ("features", "embedding")
        for name in ("std", "rank", "effective_rank", "stable_rank", "whitening", "alpha_req")
    } | {"health/embedding/cosine"}


def test_only_the_first_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ROWS", 20)
    rows, noise = torch.randn(20, 4), 100 * torch.randn(30, 4)
    assert health.measure(torch.cat([rows, noise]), torch.cat([rows, noise])) == health.measure(rows, rows)


def test_values_that_are_not_finite_show_as_such_and_only_where_they_are() -> None:
    features, embedding = torch.randn(10, 3), torch.randn(10, 5)
    features[4, 1] = math.inf
    metrics = health.measure(features, embedding)
    assert all(math.isnan(value) == ("features" in name) for name, value in metrics.items())


def test_a_single_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        health.measure(torch.ones(1, 3), torch.ones(1, 3))


# --- label-free measures against straightforward forms and known spectra ----------------------------------------------


def exponential_entropy(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    shares = values / values.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(("rows", "dimensions"), [(40, 12), (12, 40)])
def test_rankme_is_of_the_singular_values_of_rows_that_are_not_centered(rows: int, dimensions: int) -> None:
    features = torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(0)) + 2.0
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    assert health.rankme(features) == pytest.approx(exponential_entropy(singular), rel=1e-6)
    assert health.rankme(features) < health.rankme(features - features.mean(0)), "a common mean is a direction"


def test_rankme_of_orthogonal_rows_is_their_number_and_of_one_direction_one() -> None:
    assert health.rankme(3.0 * torch.eye(16)) == pytest.approx(16.0, rel=1e-4)
    assert health.rankme(torch.ones(20, 8)) == pytest.approx(1.0, abs=1e-4)
    assert health.rankme(torch.zeros(20, 8)) == 0.0
    assert math.isnan(health.rankme(torch.full((4, 4), math.inf)))


def lda_rank(rows: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Its definition, with matrix square roots."""
    n, v, d = rows.shape
    means, grand = rows.mean(1), rows.mean((0, 1))
    between = (means - grand).T @ (means - grand) / n
    within = sum((rows[i, j] - means[i])[:, None] * (rows[i, j] - means[i]) for i in range(n) for j in range(v))
    values, vectors = np.linalg.eigh(within / (n * v) + 1e-4 * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return exponential_entropy(np.linalg.eigvalsh(root @ between @ root).clip(0))


@pytest.mark.parametrize(("n", "v", "d"), [(12, 3, 5), (6, 4, 30), (4, 2, 8)])  # also wider than there are rows
def test_lidar_is_the_effective_rank_of_the_discriminant_matrix(n: int, v: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, 1, d, generator=generator) + 0.5 * torch.randn(n, v, d, generator=generator) + 1.0
    # A width above the number of rows adds eigenvalues of 0, which have a share of 1e-7 each.
    assert health.lidar(rows) == pytest.approx(lda_rank(rows.double().numpy()), rel=1e-4)


def test_lidar_counts_directions_in_which_images_differ_by_more_than_their_views() -> None:
    images = torch.eye(8).repeat(8, 1)  # eight directions, of which seven are left about the mean
    noise = torch.randn(64, 4, 8, generator=torch.Generator().manual_seed(0))
    assert health.lidar(images[:, None] + 0.01 * noise) == pytest.approx(7.0, rel=0.03)
    loud = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0])
    assert health.lidar(images[:, None] + (0.01 + loud) * noise) < 5.0, "four of them drown in what views change"
    assert health.lidar(torch.full((8, 4, 3), 0.1)) == 0.0, "all alike"
    huge = health.lidar(1e15 * (images[:, None, :2].repeat(1, 1, 8) + noise[..., :1]))
    assert math.isfinite(huge), "one direction, beside which the ridge is nothing"
    assert math.isnan(health.lidar(torch.full((4, 2, 3), math.nan)))
    with pytest.raises(ValueError, match="at least 2 views each of 2 images"):
        health.lidar(torch.ones(4, 1, 3))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("length", [2, 3, 4, 5, 60, 300])
def test_the_exponent_of_a_power_law_is_found(alpha: float, length: int) -> None:
    eigenvalues = 3.0 * torch.arange(1, length + 1, dtype=torch.float64) ** -alpha
    assert health.power_law(eigenvalues) == pytest.approx(alpha, abs=1e-9)


def test_the_exponent_is_a_weighted_fit_over_places_4_to_100() -> None:
    eigenvalues = np.sort(np.random.default_rng(0).exponential(size=200))[::-1].copy()
    places = np.arange(4, 101)
    slope = np.polyfit(np.log(places), np.log(eigenvalues[3:100]), 1, w=places**-0.5)[0]
    assert health.power_law(torch.from_numpy(eigenvalues)) == pytest.approx(-slope, rel=1e-9)


def test_the_exponent_of_features_is_that_of_their_covariance_and_flat_where_that_is_the_identity() -> None:
    singular = [1.0 / k for k in range(1, 41)]  # eigenvalues k^-2
    rows = with_spectrum(singular, 120, 50)
    assert health.measure(rows + 1.0, rows)["health/features/alpha_req"] == pytest.approx(2.0, rel=1e-6)
    cross = torch.cat([torch.eye(16), -torch.eye(16)])
    assert health.measure(cross, cross)["health/features/alpha_req"] == pytest.approx(0.0, abs=1e-6)
    collapsed = health.measure(torch.ones(8, 4), torch.ones(8, 4))
    assert collapsed["health/features/alpha_req"] == 0.0, "a number, as one that is not finite would end the trial"
