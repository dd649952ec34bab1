"""Kernels against special functions, quadrature and published closed forms (SFRIK, numerical oracles 1 to 4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.special
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import integrate

from trainers.terms.kernels import (
    IMQ,
    RBF,
    AnyKernel,
    Energy,
    Exponential,
    Kernel,
    Laplace,
    Linear,
    Logarithm,
    LogRBF,
    Polynomial,
    Quadratic,
    Riesz,
    Truncated,
    chord_mean,
    exponential_mean,
    imq_mean,
    laplace_mean,
    legendre_coefficients,
    log_chord_mean,
    polynomial_mean,
    rbf_mean,
)

KERNELS: dict[str, Kernel] = {
    "truncated 1": Truncated(coefficients=(2.0,)),
    "truncated 2": Truncated(coefficients=(1.0, 40.0)),
    "truncated 3": Truncated(),
    "truncated 4": Truncated(coefficients=(1.0, 0.0, 3.0, 7.0)),
    "linear": Linear(),
    "quadratic": Quadratic(),
    "rbf": RBF(),
    "rbf sharp": RBF(gamma=20.0),
    "rbf_log": LogRBF(),
    "imq": IMQ(),
    "imq peaked": IMQ(offset=0.1, exponent=1.0),
    "laplace": Laplace(),
    "laplace sharp": Laplace(gamma=10.0),
    "energy": Energy(),
    "energy 1/4": Energy(exponent=0.25),
    "energy 7/4": Energy(exponent=1.75),
    "polynomial 1": Polynomial(offset=0.5, degree=1),
    "polynomial 2": Polynomial(offset=0.5, degree=2),
    "polynomial 3": Polynomial(),
    "polynomial 4": Polynomial(offset=0.0, degree=4),
    "exponential": Exponential(),
    "exponential sharp": Exponential(temperature=0.05),
    "riesz 1/4": Riesz(exponent=0.25),
    "log": Logarithm(),
}
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def formula(kernel: Kernel, t: float, q: int) -> float:
    """φ(t) once more, by other means: scipy's Gegenbauer polynomials and plain distances."""
    distance = math.sqrt(max(0.0, 2 - 2 * t))
    match kernel:
        case Truncated():
            return math.fsum(
                b * gegenbauer_ratio(degree, q, t) for degree, b in enumerate(kernel.coefficients, start=1)
            )
        case Linear():
            return t
        case Quadratic():
            return t**2
        case RBF() | LogRBF():
            return math.exp(-kernel.gamma * distance**2)
        case IMQ():
            return float((kernel.offset**2 + distance**2) ** -kernel.exponent)
        case Laplace():
            return math.exp(-kernel.gamma * distance)
        case Energy():
            return float(-(distance**kernel.exponent))
        case Polynomial():
            return float((kernel.offset + t) ** kernel.degree)
        case Exponential():
            return math.exp(t / kernel.temperature)
        case Riesz():
            return float(distance**-kernel.exponent)
        case Logarithm():
            return -math.log(distance)
    raise AssertionError(f"write the formula of {kernel.kind} here")  # type: ignore[attr-defined]


def gegenbauer_ratio(degree: int, q: int, t: float) -> float:
    """P_degree(q; t) as C(t) / C(1); Chebyshev's polynomials at q = 2, where Gegenbauer's vanish."""
    if q == 2:
        return math.cos(degree * math.acos(t))
    alpha = (q - 2) / 2
    return float(scipy.special.eval_gegenbauer(degree, alpha, t) / scipy.special.eval_gegenbauer(degree, alpha, 1.0))


def average(function: Callable[[float], float], q: int, absolute: float = 0.0) -> float:
    """Mean of function(u·v) over a uniform v in q dimensions, by adaptive quadrature over the angle.

    To 1e-11 of the result, or to the error `absolute` where the result is 0.
    """
    half = min(math.pi / 2, 12 / math.sqrt(q))
    low, high = math.pi / 2 - half, math.pi / 2 + half

    def density(angle: float) -> float:
        return math.exp((q - 2) * math.log(math.sin(angle))) if q > 2 else 1.0

    mass, _ = integrate.quad(density, low, high, epsabs=0.0, epsrel=1e-11, limit=200)
    value, _ = integrate.quad(
        lambda angle: density(angle) * function(math.cos(angle)),
        low,
        high,
        epsabs=absolute * mass,
        epsrel=1e-11,
        limit=200,
    )
    return float(value / mass)


def value_at(kernel: Kernel, t: float, q: int) -> float:
    return float(kernel.values(torch.tensor([t], dtype=torch.float64), q))


# --- oracle 1: polynomials ---


@pytest.mark.parametrize("q", [2, 3, 4, 8, 128, 8192])
def test_legendre_polynomials_equal_gegenbauers_ratio_and_the_recurrence(q: int) -> None:
    t = np.linspace(-1, 1, 41)
    closed = [np.polynomial.polynomial.polyval(t, legendre_coefficients(degree, q)) for degree in range(5)]
    for degree in range(5):
        assert sum(legendre_coefficients(degree, q)) == pytest.approx(1, abs=1e-14), "P(1) = 1"
        np.testing.assert_allclose(closed[degree], [gegenbauer_ratio(degree, q, x) for x in t], rtol=1e-10, atol=1e-12)
    for degree in range(1, 4):
        left = (degree + q - 2) * closed[degree + 1]
        right = (2 * degree + q - 2) * t * closed[degree] - degree * closed[degree - 1]
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12 * q)


@pytest.mark.parametrize("q", [3, 4, 8, 128])
def test_legendre_polynomials_are_orthogonal_with_the_harmonic_counts(q: int) -> None:
    nodes, weights = scipy.special.roots_jacobi(20, (q - 3) / 2, (q - 3) / 2)
    weights = weights / weights.sum()
    table = [np.polynomial.polynomial.polyval(nodes, legendre_coefficients(degree, q)) for degree in range(5)]
    for first in range(5):
        for second in range(5):
            expected = 1 / harmonic_count(q, first) if first == second else 0.0
            assert (weights * table[first] * table[second]).sum() == pytest.approx(expected, rel=1e-9, abs=1e-13)


def harmonic_count(q: int, degree: int) -> float:
    """Dimension of the space of spherical harmonics of one degree in q dimensions."""
    if degree == 0:
        return 1.0
    return (2 * degree + q - 2) / degree * math.comb(degree + q - 3, degree - 1)


@pytest.mark.parametrize("q", [3, 4, 8, 128, 8192])
def test_a_legendre_polynomials_derivative_is_one_of_two_dimensions_more(q: int) -> None:
    for degree in range(1, 5):
        derivative = np.polynomial.polynomial.polyder(legendre_coefficients(degree, q))
        factor = degree * (degree + q - 2) / (q - 1)
        np.testing.assert_allclose(derivative, factor * np.array(legendre_coefficients(degree - 1, q + 2)), rtol=1e-12)


def test_legendre_polynomials_beyond_degree_four_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 0 to 4"):
        legendre_coefficients(5, 8)


# --- oracle 2: means against the uniform law ---


def test_means_take_the_published_values() -> None:
    assert rbf_mean(2.5, 3) == pytest.approx(0.0999954600, abs=1e-10)
    assert rbf_mean(2.5, 8) == pytest.approx(0.0267305250, abs=1e-10)
    assert rbf_mean(2.5, 128) == pytest.approx(0.00742860667, abs=1e-11)
    assert rbf_mean(2.5, 8192) == pytest.approx(0.00674823614, abs=1e-11)
    assert rbf_mean(2.0, 8) == pytest.approx(0.0458432535, abs=1e-10)
    assert imq_mean(1.0, 0.5, 3) == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-14)
    assert imq_mean(1.0, 0.5, 8) == pytest.approx(0.5907714261, abs=1e-10)
    assert chord_mean(1.0, 3) == pytest.approx(4 / 3, abs=1e-14)
    assert chord_mean(1.0, 8) == pytest.approx(1.3893277856, abs=1e-10)
    assert chord_mean(1.0, 2) == pytest.approx(4 / math.pi, abs=1e-14)
    assert log_chord_mean(3) == pytest.approx(math.log(2) - 0.5, abs=1e-15)
    assert log_chord_mean(3) == pytest.approx(0.1931471806, abs=1e-10)
    assert log_chord_mean(8) == pytest.approx(37 / 120, abs=1e-15)
    assert log_chord_mean(2) == pytest.approx(0.0, abs=1e-15)  # Jensen's formula: the mean of log |1 - e^iθ|
    assert chord_mean(-1.0, 3) == pytest.approx(1.0, abs=1e-14)  # the potential of a charged sphere on the sphere
    assert laplace_mean(1.0, 3) == pytest.approx(0.2969970751, abs=1e-10)
    assert laplace_mean(1.0, 8) == pytest.approx(0.2584539108, abs=1e-10)


@EVERY_KERNEL
@pytest.mark.parametrize("q", [2, 3, 8, 32, 8192, 32768])
def test_every_mean_equals_quadrature(kernel: Kernel, q: int) -> None:
    absolute = 1e-9 if kernel.mean(q) == 0.0 else 0.0
    expected = average(lambda t: formula(kernel, t, q), q, absolute / 10)
    assert kernel.mean(q) == pytest.approx(expected, rel=1e-10, abs=absolute)


@pytest.mark.parametrize("q", [2, 8, 32768])
def test_series_keep_all_digits_at_the_bounds_of_their_parameters(q: int) -> None:
    with mpmath.workdps(25):
        half = mpmath.mpf(q) / 2
        for gamma in (1e-3, 2.5, 40.0):
            exact = mpmath.exp(-2 * gamma) * mpmath.hyp0f1(half, mpmath.mpf(gamma) ** 2)
            assert rbf_mean(gamma, q) == pytest.approx(float(exact), rel=1e-12)
        for offset, exponent in ((0.05, 10.0), (1.0, 0.5), (10.0, 10.0)):
            width = mpmath.mpf(offset) ** 2 + 2
            beta = mpmath.mpf(exponent)
            exact = width**-beta * mpmath.hyp2f1(beta / 2, (beta + 1) / 2, half, (2 / width) ** 2)
            assert imq_mean(offset, exponent, q) == pytest.approx(float(exact), rel=1e-11)
        for power in (-6.0, -1.0, -0.01, 0.01, 0.5, 1.0, 1.99):
            if power <= 1 - q:
                continue
            p = mpmath.mpf(power)
            gammas = mpmath.loggamma(half) + mpmath.loggamma((p + q - 1) / 2) - mpmath.loggamma(q - 1 + p / 2)
            exact = mpmath.power(2, p + q - 2) * mpmath.exp(gammas) / mpmath.sqrt(mpmath.pi)
            assert chord_mean(power, q) == pytest.approx(float(exact), rel=1e-12)
        a = mpmath.mpf(q - 1) / 2
        exact = mpmath.log(2) + (mpmath.digamma(a) - mpmath.digamma(2 * a)) / 2
        assert log_chord_mean(q) == pytest.approx(float(exact), rel=1e-14, abs=1e-15)
        for temperature in (0.02, 0.5, 100.0):
            exact = mpmath.hyp0f1(half, 1 / (4 * mpmath.mpf(temperature) ** 2))
            assert exponential_mean(temperature, q) == pytest.approx(float(exact), rel=1e-12)
        for offset, degree in ((0.0, 10), (10.0, 10), (0.5, 3)):
            exact = mpmath.nsum(
                lambda k: (
                    mpmath.binomial(degree, 2 * k)  # noqa: B023
                    * mpmath.power(offset, degree - 2 * k)  # noqa: B023
                    * mpmath.rf(0.5, k)
                    / mpmath.rf(half, k)
                ),
                [0, degree // 2],
            )
            assert polynomial_mean(offset, degree, q) == pytest.approx(float(exact), rel=1e-13)
        for gamma in (1e-3, 1.0, 100.0):

            def density(angle: mpmath.mpf) -> mpmath.mpf:
                return mpmath.exp((q - 2) * mpmath.log(mpmath.sin(angle)))

            def weighted(angle: mpmath.mpf, gamma: float = gamma) -> mpmath.mpf:
                return density(angle) * mpmath.exp(-2 * gamma * mpmath.sin(angle / 2))

            middle, width = mpmath.pi / 2, min(mpmath.pi / 2 - mpmath.mpf(10) ** -18, 14 / mpmath.sqrt(q))
            pieces = [middle + width * mpmath.mpf(k) / 8 for k in range(-8, 9)]
            exact = mpmath.quad(weighted, pieces) / mpmath.quad(density, pieces)
            assert laplace_mean(gamma, q) == pytest.approx(float(exact), rel=1e-11)


# --- oracle 3: spectra ---


def test_the_rbf_kernels_spectrum_takes_the_published_values() -> None:
    kernel, q = RBF(gamma=2.5), 8
    nodes, weights = scipy.special.roots_jacobi(60, (q - 3) / 2, (q - 3) / 2)
    values = kernel.values(torch.from_numpy(nodes), q).numpy() * weights / weights.sum()
    spectrum = [
        harmonic_count(q, degree)
        * (values * np.polynomial.polynomial.polyval(nodes, legendre_coefficients(degree, q))).sum()
        for degree in range(5)
    ]
    expected = [kernel.mean(q), 0.1057352144, 0.1954218756, 0.2295929974, 0.1951078714]
    np.testing.assert_allclose(spectrum, expected, atol=1e-10)


@EVERY_KERNEL
def test_low_degrees_are_the_whole_kernel_where_given(kernel: Kernel) -> None:
    q = 7
    degrees = kernel.low_degrees(q)
    if degrees is None:
        assert kernel.kind not in ("linear", "quadratic")  # type: ignore[attr-defined]
        assert not isinstance(kernel, Polynomial) or kernel.degree > 2
        return
    for t in np.linspace(-1, 1, 9):
        rest = sum(b * gegenbauer_ratio(degree, q, t) for degree, b in enumerate(degrees, start=1))
        assert formula(kernel, t, q) == pytest.approx(kernel.mean(q) + rest, abs=1e-12)


# --- values and slopes ---


@EVERY_KERNEL
@pytest.mark.parametrize("q", [2, 3, 8, 8192])
def test_values_equal_the_formula(kernel: Kernel, q: int) -> None:
    for t in np.linspace(-1, 1 - 1e-9, 31):
        assert value_at(kernel, t, q) == pytest.approx(formula(kernel, t, q), rel=1e-8, abs=1e-11)
    if not kernel.singular:
        assert value_at(kernel, 1.0, q) == pytest.approx(kernel.peak(q), rel=1e-12, abs=0.0)
    else:
        assert kernel.peak(q) == math.inf
        assert value_at(kernel, 1 - 1e-9, q) < value_at(kernel, 1.0, q) < math.inf


@EVERY_KERNEL
def test_slopes_equal_finite_differences(kernel: Kernel) -> None:
    t = torch.linspace(-0.999, 0.99, 25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kernel.values(x, 6), (t,), eps=1e-7, atol=1e-5, rtol=1e-5)


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_beyond_one_gives_finite_values_and_slopes(kernel: Kernel, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    t = torch.tensor([1.0, 1 - eps, 1 + eps, 1 + 8 * eps, -1 - 8 * eps], dtype=dtype, requires_grad=True)
    values = kernel.values(t, 64)
    (slope,) = torch.autograd.grad(values.sum(), t)
    assert values.isfinite().all()
    assert slope.isfinite().all()
    if kernel.singular:
        assert (values[:4] == values[0]).all()
        assert (slope[:4] == 0.0).all()
    else:
        torch.testing.assert_close(values[:4], torch.full((4,), kernel.peak(64), dtype=dtype), rtol=1e-3, atol=1e-3)


@EVERY_KERNEL
def test_what_is_not_a_number_stays_so(kernel: Kernel) -> None:
    assert math.isnan(value_at(kernel, math.nan, 8))


def test_the_exponential_kernel_is_a_multiple_of_the_rbf_kernel() -> None:
    for temperature, q in ((0.1, 5), (0.5, 64), (2.0, 8192)):
        rbf, scale = RBF(gamma=1 / (2 * temperature)), math.exp(1 / temperature)
        kernel = Exponential(temperature=temperature)
        assert kernel.mean(q) == pytest.approx(scale * rbf.mean(q), rel=1e-12)
        for t in (-1.0, 0.0, 0.3, 1.0):
            assert value_at(kernel, t, q) == pytest.approx(scale * value_at(rbf, t, q), rel=1e-12)


def test_a_polynomial_without_offset_is_the_linear_or_the_quadratic_kernel() -> None:
    for degree, same in ((1, Linear()), (2, Quadratic())):
        kernel = Polynomial(offset=0.0, degree=degree)
        assert kernel.low_degrees(9) == pytest.approx(same.low_degrees(9))
        assert (kernel.mean(9), kernel.peak(9)) == pytest.approx((same.mean(9), same.peak(9)))


def test_the_log_kernel_is_the_limit_of_riesz_kernels() -> None:
    """(d^-r - 1) / r -> -log d."""
    r = 1e-6
    for q in (3, 64):
        assert (Riesz(exponent=r).mean(q) - 1) / r == pytest.approx(Logarithm().mean(q), abs=1e-6)
        for t in (-0.9, 0.0, 0.7):
            assert (value_at(Riesz(exponent=r), t, q) - 1) / r == pytest.approx(value_at(Logarithm(), t, q), abs=2e-6)


def test_a_riesz_kernel_of_infinite_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exponent of a Riesz kernel must be below .* 2, but is 2\.0; lower it"):
        Riesz(exponent=2.0).mean(3)


# --- configs ---


@EVERY_KERNEL
def test_a_kernel_survives_json(kernel: Kernel) -> None:
    adapter: TypeAdapter[Kernel] = TypeAdapter(AnyKernel)
    assert adapter.validate_json(adapter.dump_json(kernel)) == kernel


def test_a_new_kernel_cannot_miss_these_tests() -> None:
    adapter: TypeAdapter[Kernel] = TypeAdapter(AnyKernel)
    kinds = set(adapter.json_schema()["discriminator"]["mapping"])
    assert kinds == {kernel.kind for kernel in KERNELS.values()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("truncated", {"coefficients": (0.0, 0.0)}),
        ("truncated", {"coefficients": ()}),
        ("truncated", {"coefficients": (1.0, 1.0, 1.0, 1.0, 1.0)}),
        ("truncated", {"coefficients": (1.0, -1.0)}),
        ("rbf", {"gamma": 0.0}),
        ("rbf", {"gamma": 50.0}),
        ("rbf", {"sharpnes": 2.0}),
        ("imq", {"offset": 0.0}),
        ("energy", {"exponent": 2.0}),
        ("laplace", {"gamma": math.inf}),
        ("polynomial", {"offset": -0.1}),
        ("polynomial", {"degree": 0}),
        ("exponential", {"temperature": 0.0}),
        ("riesz", {"exponent": 0.0}),
        ("cosine", {}),
    ],
)
def test_kernels_outside_their_rules_are_refused(kind: str, settings: dict[str, object]) -> None:
    adapter: TypeAdapter[Kernel] = TypeAdapter(AnyKernel)
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": kind, **settings})
