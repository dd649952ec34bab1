"""Singular values against a full SVD, closed forms, and the dynamics of MSBReg's notes (O9 to O11, O13, O14)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import Array, gradient_of, outputs_of, random_rows, value_of
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import MLPConfig, ModelConfig, TrialConfig
from trainers.objective import Objective
from trainers.terms import Brownian, MultiviewCentroid, SingularValue
from trainers.terms.base import unit_rows
from trainers.terms.singular_value import Form, eigenvalues

FORMS: tuple[Form, ...] = ("nuclear", "frobenius", "entropy", "spectral", "logdet")
CENTERED = tuple(form for form in FORMS if form != "spectral")
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
SHAPES = pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["more rows than dimensions", "fewer"])


def reference(form: Form, z: Array, epsilon: float = 1e-4) -> float:
    """The table of the notes, from a singular value decomposition of unit rows."""
    m, d = z.shape
    r = min(m, d)
    sigma = np.linalg.svd(z, compute_uv=False)
    spectrum = sigma**2 / m
    values: dict[Form, float] = {
        "nuclear": float(np.mean((sigma / math.sqrt(m / r) - 1) ** 2)),
        "frobenius": (r * float((spectrum**2).sum()) - 1) / (r - 1),
        "entropy": 1 + float((spectrum * np.log(spectrum)).sum()) / math.log(r),
        "spectral": (r * float(spectrum[0]) - 1) / (r - 1),
        "logdet": -float(np.log(r * spectrum + epsilon).mean()),
    }
    return values[form]


@EVERY_FORM
@SHAPES
def test_each_form_is_its_function_of_the_singular_values(form: Form, shape: tuple[int, int]) -> None:
    term = SingularValue(form=form, epsilon=0.0 if form == "nuclear" else None)
    views = [3 * random_rows(*shape, seed=seed) for seed in range(2)]
    unit = [view / np.linalg.norm(view, axis=1, keepdims=True) for view in views]
    assert value_of(term, *views) == pytest.approx(np.mean([reference(form, z) for z in unit]), rel=1e-10)
    stacked = term.model_copy(update={"rows": "stacked"})
    assert value_of(stacked, *views) == pytest.approx(reference(form, np.concatenate(unit)), rel=1e-10)
    center = unit[0] + unit[1]
    centroid = term.model_copy(update={"rows": "centroid"})
    expected = reference(form, center / np.linalg.norm(center, axis=1, keepdims=True))
    assert value_of(centroid, *views) == pytest.approx(expected, rel=1e-10)


def test_the_nuclear_form_is_two_less_twice_the_nuclear_norm_over_its_largest() -> None:
    for m, d in ((9, 4), (4, 9)):
        z = unit_rows(torch.from_numpy(random_rows(m, d)))
        norm = torch.linalg.matrix_norm(z, "nuc").item()
        expected = 2 - 2 * norm / math.sqrt(m * min(m, d))
        assert value_of(SingularValue(epsilon=0.0), z) == pytest.approx(expected, rel=1e-10)
        default = value_of(SingularValue(), z)  # epsilon 1e-8 moves it by 2 sqrt(r epsilon) at most
        assert abs(default - expected) <= 2 * math.sqrt(min(m, d) * 1e-8)


# --- closed forms ---


@pytest.mark.parametrize("form", ["nuclear", "frobenius", "entropy", "spectral"])
@pytest.mark.parametrize("rows", [np.tile(np.eye(4), (3, 1)), -np.eye(4), np.eye(3, 7)], ids=["tiled", "basis", "few"])
def test_a_flat_spectrum_costs_nothing(form: Form, rows: Array) -> None:
    assert value_of(SingularValue(form=form), rows) == pytest.approx(0.0, abs=1e-10)


@EVERY_FORM
def test_one_line_costs_the_most_whether_or_not_rows_are_antipodal(form: Form) -> None:
    r, m = 8, 64
    term = SingularValue(form=form)
    line = np.tile(random_rows(1, r), (m, 1))
    signs = np.where(np.arange(m) % 3 == 0, -1.0, 1.0)[:, None]
    epsilon = 1e-4
    logdet = -((r - 1) * math.log(epsilon) + math.log(r + epsilon)) / r
    worst = {"nuclear": 2 - 2 / math.sqrt(r), "logdet": logdet}.get(form, 1.0)
    # The default epsilon and rounding of what should be 0 singular values move the nuclear form by sqrt(r · 1e-8)
    tolerance = {"nuclear": 1e-3, "logdet": 1e-6}.get(form, 1e-10)
    for rows in (line, line * signs):
        assert value_of(term, rows) == pytest.approx(worst, abs=tolerance)


def test_two_orthogonal_clusters_have_their_closed_values() -> None:
    rows = np.repeat(np.eye(8)[:2], 32, axis=0)
    assert value_of(SingularValue(epsilon=0.0), rows) == pytest.approx(1.0, abs=1e-7)
    assert value_of(SingularValue(form="frobenius"), rows) == pytest.approx(3 / 7, rel=1e-10)


@EVERY_FORM
def test_order_signs_duplicates_and_rotations_do_not_matter(form: Form) -> None:
    term, rows = SingularValue(form=form), random_rows(12, 5)
    value = value_of(term, rows)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    for changed in (
        rows[rng.permutation(12)],
        rows * rng.choice([-1.0, 1.0], (12, 1)),
        np.concatenate([rows, rows]),
        rows @ rotation,
        rows * rng.uniform(0.1, 9.0, (12, 1)),
    ):
        assert value_of(term, changed) == pytest.approx(value, rel=1e-9)


def test_both_grams_agree_where_they_meet() -> None:
    """One row more or less than dimensions: by [q, q] and by [M, M], on rows that differ by a zero column."""
    rows = random_rows(6, 6)
    wide = np.concatenate([rows, np.zeros((6, 1))], axis=1)
    for form in FORMS:
        term = SingularValue(form=form)
        assert value_of(term, wide) == pytest.approx(value_of(term, rows), rel=1e-9)


def test_uniform_rows_have_the_expected_frobenius_value() -> None:
    """E[r ||C||² - 1] = (D - 1) / M = 0.109375 for M = 64, D = 8."""
    rows = torch.randn(400, 64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = 7 * torch.stack([SingularValue(form="frobenius")(outputs_of(one)) for one in rows])
    assert values.mean().item() == pytest.approx(0.109375, abs=4 * values.std().item() / math.sqrt(400))


# --- gradients ---


@pytest.mark.parametrize(("form", "center"), [*((form, False) for form in FORMS), *((form, True) for form in CENTERED)])
@SHAPES
def test_gradients_equal_finite_differences_and_are_tangential(
    form: Form, center: bool, shape: tuple[int, int]
) -> None:
    # Centered, few rows leave one eigenvalue of the Gram at 0, which is not among the r that count.
    term = SingularValue(form=form, center=center)
    rows = torch.from_numpy(random_rows(*shape)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term(outputs_of(x)), (rows,), eps=1e-6, atol=1e-8, rtol=1e-6)
    assert (gradient_of(term, rows.detach()) * rows).sum(1).abs().max() < 1e-13


@EVERY_FORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stay_finite_at_repeated_and_at_zero_singular_values(form: Form, dtype: torch.dtype) -> None:
    repeated = torch.cat([torch.eye(6), torch.eye(6)])
    low_rank = torch.eye(6)[torch.arange(12) % 2]
    for rows in (repeated, low_rank, torch.ones(12, 6), torch.ones(3, 6)):
        leaf = rows.to(dtype).requires_grad_()
        for epsilon in (None, 0.0) if form == "nuclear" else (None,):
            (gradient,) = torch.autograd.grad(SingularValue(form=form, epsilon=epsilon)(outputs_of(leaf)), leaf)
            assert gradient.isfinite().all()


def test_near_collapse_the_nuclear_push_stays_and_the_frobenius_push_vanishes() -> None:
    """D = 8, M = 64, one direction plus noise: M · mean ||gradient of a row|| by the notes (O10)."""
    generator = torch.Generator().manual_seed(0)
    direction = unit_rows(torch.randn(1, 8, generator=generator, dtype=torch.float64))
    noise = torch.randn(64, 8, generator=generator, dtype=torch.float64)

    def push(term: SingularValue, scale: float) -> float:
        return float(64 * gradient_of(term, unit_rows(direction + scale * noise)).norm(dim=1).mean())

    exact = [push(SingularValue(epsilon=0.0), scale) for scale in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert exact == pytest.approx([1.8] * 4, rel=0.15)
    frobenius = [7 * push(SingularValue(form="frobenius"), scale) for scale in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert frobenius == pytest.approx([6.8, 0.79, 0.091, 0.0082], rel=0.35)
    assert push(SingularValue(), 1e-3) > 1.5, "the default epsilon only matters below 1e-4"
    collapsed = gradient_of(SingularValue(form="frobenius"), direction.expand(64, 8))
    assert collapsed.abs().max() < 1e-12, "a saddle"


def test_in_float32_small_singular_values_keep_their_digits() -> None:
    rows = torch.from_numpy(random_rows(64, 8)) * torch.logspace(0, -4, 8, dtype=torch.float64)
    rows = rows.float()
    exact = value_of(SingularValue(form="nuclear", epsilon=0.0), rows)
    assert SingularValue(epsilon=0.0)(outputs_of(rows)).item() == pytest.approx(exact, rel=1e-6)


# --- centering ---


@pytest.mark.parametrize(("form", "worst"), [("nuclear", 1.0), ("frobenius", 1 / 7), ("entropy", 1 / math.log(8))])
def test_centered_a_collapse_is_dear_and_a_flat_spectrum_around_the_mean_is_free(form: Form, worst: float) -> None:
    term = SingularValue(form=form, center=True)
    assert value_of(term, np.ones((64, 8))) == pytest.approx(worst, abs=1e-3)
    assert value_of(term, np.concatenate([np.eye(8), -np.eye(8)])) == pytest.approx(0.0, abs=1e-10)
    simplex = np.eye(4, 9) - np.pad(np.full((4, 4), 0.25), ((0, 0), (0, 5)))  # 4 rows around 0: rank 3 is all they have
    assert value_of(term, simplex) == pytest.approx(0.0, abs=1e-10)
    tight = random_rows(64, 8)
    assert value_of(term, tight + 20) > value_of(term, tight) + 0.05


def test_centering_takes_the_mean_of_the_rows_away() -> None:
    z = random_rows(12, 5)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    sigma = np.linalg.svd(z - z.mean(0), compute_uv=False)
    expected = np.mean((sigma / math.sqrt(12 / 5) - 1) ** 2)
    assert value_of(SingularValue(center=True, epsilon=0.0), z) == pytest.approx(expected, rel=1e-10)


# --- ranks ---


def _local_and_global(rows: Tensor, form: Form) -> list[Tensor]:
    n = len(rows) // dist.world_size()
    mine = rows[dist.row_offset(n) : dist.row_offset(n) + n].clone().requires_grad_()
    value = SingularValue(form=form)(outputs_of(mine))
    value.backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    return [value.detach(), mine.grad / dist.world_size()]  # of DDP's mean over ranks


@pytest.mark.parametrize("form", ["nuclear", "frobenius"])
@SHAPES
def test_two_processes_equal_one_and_the_ranks_own_values_do_not(
    two_processes: TwoProcesses, form: Form, shape: tuple[int, int]
) -> None:
    rows = torch.from_numpy(random_rows(12, 6) if shape[0] > shape[1] else random_rows(4, 9))
    term, half = SingularValue(form=form), len(rows) // 2
    answers = two_processes.run(_local_and_global, rows, form)
    for value, _ in answers:
        assert value.item() == pytest.approx(value_of(term, rows), rel=1e-12)
    gradient = gradient_of(term, rows)
    torch.testing.assert_close(torch.cat([share for _, share in answers]), gradient, rtol=1e-10, atol=1e-14)
    local = torch.cat([gradient_of(term, part) for part in (rows[:half], rows[half:])]) / 2
    assert (local - gradient).norm() > 0.2 * gradient.norm(), "a term of each rank's own rows is another one"


# --- the three forces together ---


def effective_rank(rows: Tensor) -> float:
    spectrum = torch.linalg.svdvals(rows).square()
    share = (spectrum / spectrum.sum()).clamp_min(1e-30)
    return math.exp(float(-(share * share.log()).sum()))


def simulate(objective: Objective, steps: int) -> tuple[float, float]:
    """Effective rank of the centers and scatter within images, of free particles that start almost collapsed (O13)."""
    generator = torch.Generator().manual_seed(0)
    images, views, q = 64, 4, 8
    x = unit_rows(torch.randn(1, 1, q, generator=generator, dtype=torch.float64))
    x = x + 0.02 * torch.randn(images, 1, q, generator=generator, dtype=torch.float64)
    x = unit_rows(x + 0.01 * torch.randn(images, views, q, generator=generator, dtype=torch.float64))
    teacher = x.clone()
    for step in range(steps):
        leaf = x.requires_grad_()
        outputs = outputs_of(*leaf.unbind(1))._replace(targets=teacher.unbind(1), step=step)
        (gradient,) = torch.autograd.grad(objective(outputs)[0], leaf)
        x = unit_rows(x.detach() - 0.5 * images * gradient)
        teacher = 0.99 * teacher + 0.01 * x
    center = x.mean(1)
    return effective_rank(center), float((1 - center.square().sum(-1)).mean())


@pytest.mark.slow
def test_particles_spread_by_singular_values_and_by_nothing_else() -> None:
    pull = MultiviewCentroid(reading="v2c")
    alone, _ = simulate(Objective({"pull": pull}), steps=300)
    kicked, scatter = simulate(Objective({"pull": pull, "kick": Brownian(weight=0.1)}), steps=300)
    assert alone < 1.1
    assert kicked < 1.1
    assert scatter < 1e-6
    _, scatter = simulate(Objective({"pull": pull, "kick": Brownian(weight=0.1, share="view")}), steps=300)
    assert 5e-5 < scatter < 1e-3, "directions of its own pull each view away from its image's center"
    forms: tuple[Form, ...] = ("nuclear", "frobenius")
    for form in forms:
        spread, _ = simulate(Objective({"pull": pull, "spread": SingularValue(form=form, weight=0.1)}), steps=1500)
        assert spread > 4, "more than half of the dimensions"


# --- bad input ---


def test_a_non_finite_row_shows_in_the_value_and_does_not_raise() -> None:
    for form in FORMS:
        for shape in ((9, 4), (4, 9)):
            for bad in (np.nan, np.inf):
                rows = random_rows(*shape)
                rows[2, 1] = bad
                assert math.isnan(value_of(SingularValue(form=form), rows))
    mixed = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)])
    assert torch.equal(eigenvalues(mixed).isnan(), torch.tensor([[False] * 3, [True] * 3]))


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon is for the forms .*'frobenius'.*leave it out"):
        SingularValue(form="frobenius", epsilon=1e-3)
    with pytest.raises(ValueError, match=r"at least 1e-4.*but is 1e-06; raise it"):
        SingularValue(form="logdet", epsilon=1e-6)
    with pytest.raises(ValueError, match="would be its best value"):
        SingularValue(form="spectral", center=True)


def test_too_few_rows_or_dimensions_are_refused() -> None:
    narrow = ModelConfig(projector=MLPConfig(widths=(16, 1)))
    with pytest.raises(ValueError, match=r"objective\.s \(singular_value\).*at least 2 directions.*have 1 dim.*raise"):
        TrialConfig(model=narrow, objective={"s": SingularValue()})
    TrialConfig(objective={"s": SingularValue()}, batch_size=2)
    with pytest.raises(ValueError, match="batch_size is 2"):
        TrialConfig(objective={"s": SingularValue(center=True)}, batch_size=2)
    with pytest.raises(ValueError, match="2 rows of 4 dimensions, centered, have 1"):
        value_of(SingularValue(center=True), random_rows(2, 4))


def test_predictions_are_spread_if_there_are_any_unless_projections_are_asked_for() -> None:
    projections, predictions = (
        tuple(map(torch.from_numpy, (random_rows(9, 4, s), random_rows(9, 4, s + 1)))) for s in (0, 5)
    )
    both = outputs_of(*projections)._replace(predictions=predictions)
    assert SingularValue()(both) == SingularValue()(outputs_of(*predictions))
    assert SingularValue(source="projection")(both) == SingularValue()(outputs_of(*projections))
