"""Rotation-invariant kernels on the unit sphere, K(u, v) = φ(u·v), and what an MMD against the uniform law needs of φ.

Legend: q = dimension of the space around the sphere, t = u·v in [-1, 1], P_l(q; t) = Legendre polynomial of degree l
in q dimensions, scaled so that P_l(q; 1) = 1, φ(t) = sum over l of b_l P_l(q; t). b_0 is the kernel's mean against a
uniform point. Source: Zheng et al., ICLR 2023 (arXiv 2208.00789); constants by standard identities, checked against
quadrature in the tests.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainers.upgrade import refuse_old_names

if TYPE_CHECKING:
    from torch import Tensor


class Kernel(BaseModel, ABC):
    """φ, with its exact mean and its value at t = 1. Frozen and torch-free to build, like every config."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    logarithmic: ClassVar[bool] = False
    """Whether the loss takes the logarithm of the kernel's mean over the batch (φ must be positive then)."""
    singular: ClassVar[bool] = False
    """Whether φ(1) is infinite: then only pairs of different points count, and there is no scale to normalize by."""

    @property
    def delicate(self) -> bool:
        """Whether single precision, or a difference from φ(1), would leave nothing of the mean over pairs."""
        return self.singular

    @model_validator(mode="before")
    @classmethod
    def _names_are_todays(cls, values: Any) -> Any:
        return refuse_old_names("objective.*.kernel", values, kind=cls.model_fields["kind"].default)

    @abstractmethod
    def values(self, t: Tensor, q: int) -> Tensor:
        """φ(t) elementwise, in t's dtype. Differentiable, with slope 0 where rounding hides if two points coincide."""

    @abstractmethod
    def mean(self, q: int) -> float:
        """b_0: the mean of φ(u·v) over a uniform v, the same for every u."""

    @abstractmethod
    def peak(self, q: int) -> float:
        """φ(1): the kernel of a point with itself; infinite where `singular`."""

    def low_degrees(self, q: int) -> tuple[float, float] | None:
        """(b_1, b_2) if φ has no degree above 2, else None."""
        return None


# --- polynomials ---


def legendre_coefficients(degree: int, q: int) -> tuple[float, ...]:
    """Coefficients of P_degree(q; t), degree 0 to 4, from the constant upwards. q >= 2."""
    if degree == 0:
        return (1.0,)
    if degree == 1:
        return (0.0, 1.0)
    if degree == 2:
        return (-1 / (q - 1), 0.0, q / (q - 1))
    if degree == 3:
        return (0.0, -3 / (q - 1), 0.0, (q + 2) / (q - 1))
    if degree == 4:
        scale = q * q - 1
        return (3 / scale, 0.0, -6 * (q + 2) / scale, 0.0, (q + 2) * (q + 4) / scale)
    raise ValueError(f"the degree of a Legendre polynomial must be 0 to 4 here, but is {degree}; use a lower one")


class Truncated(Kernel):
    """φ(t) = sum over l = 1..L of coefficients[l - 1] · P_l(q; t), L <= 4. SFRIK's README uses (1, 40, 40).

    The MMD sees moments up to degree L only: it is 0 exactly on weighted spherical designs of strength L (all b_l > 0).
    These weights were tuned at q = 8192 and more: below q = 121 they make even orthogonal pairs attract each other.
    """

    kind: Literal["truncated"] = "truncated"
    coefficients: tuple[Annotated[float, Field(ge=0.0)], ...] = Field((1.0, 40.0, 40.0), min_length=1, max_length=4)

    @field_validator("coefficients")
    @classmethod
    def _one_is_positive(cls, coefficients: tuple[float, ...]) -> tuple[float, ...]:
        if not any(coefficients):
            raise ValueError(
                f"coefficients must hold at least one value above 0, but are {coefficients}; "
                "raise one, or set the term's weight to 0 to leave it out"
            )
        return coefficients

    def values(self, t: Tensor, q: int) -> Tensor:
        # One polynomial in t, summed in float64 here, then Horner's rule: L multiply-adds an element.
        powers = [0.0] * (len(self.coefficients) + 1)
        for degree, weight in enumerate(self.coefficients, start=1):
            for power, coefficient in enumerate(legendre_coefficients(degree, q)):
                powers[power] += weight * coefficient
        value = powers[-1] * t + powers[-2]
        for coefficient in reversed(powers[:-2]):
            value = value * t + coefficient
        return value

    def mean(self, q: int) -> float:
        return 0.0

    def peak(self, q: int) -> float:
        return sum(self.coefficients)

    def low_degrees(self, q: int) -> tuple[float, float] | None:
        first, second, third, fourth = (*self.coefficients, 0.0, 0.0, 0.0)[:4]
        return (first, second) if third == fourth == 0.0 else None


class Linear(Kernel):
    """φ(t) = t: the MMD is ||mean z||². It centers only; a batch collapsed to two antipodes costs nothing."""

    kind: Literal["linear"] = "linear"

    def values(self, t: Tensor, q: int) -> Tensor:
        return t.clone()

    def mean(self, q: int) -> float:
        return 0.0

    def peak(self, q: int) -> float:
        return 1.0

    def low_degrees(self, q: int) -> tuple[float, float] | None:
        return (1.0, 0.0)


class Quadratic(Kernel):
    """φ(t) = t²: the MMD is ||mean z zᵀ - I/q||², blind to the mean (even degrees only)."""

    kind: Literal["quadratic"] = "quadratic"

    def values(self, t: Tensor, q: int) -> Tensor:
        return t.square()

    def mean(self, q: int) -> float:
        return 1 / q

    def peak(self, q: int) -> float:
        return 1.0

    def low_degrees(self, q: int) -> tuple[float, float] | None:
        return (0.0, (q - 1) / q)


class Polynomial(Kernel):
    """φ(t) = (offset + t)^degree. With offset 0 it sees degrees of one parity only, as `linear` and `quadratic` do."""

    kind: Literal["polynomial"] = "polynomial"
    offset: float = Field(1.0, ge=0.0, le=10.0)
    degree: int = Field(3, ge=1, le=10)

    def values(self, t: Tensor, q: int) -> Tensor:
        return (t + self.offset).pow(self.degree)

    def mean(self, q: int) -> float:
        return polynomial_mean(self.offset, self.degree, q)

    def peak(self, q: int) -> float:
        return float((1 + self.offset) ** self.degree)

    def low_degrees(self, q: int) -> tuple[float, float] | None:
        if self.degree > 2:
            return None
        return (1.0, 0.0) if self.degree == 1 else (2 * self.offset, (q - 1) / q)


# --- kernels of the distance ||u - v||² = 2 - 2t: all degrees ---


class _Gaussian(Kernel):
    """φ = exp(-gamma · ||u - v||²), with gamma = 1 / (2 · bandwidth²)."""

    kind: Literal["rbf", "rbf_log"]
    gamma: float = Field(2.5, ge=1e-3, le=40.0)

    def values(self, t: Tensor, q: int) -> Tensor:
        return (2 * self.gamma * (t - 1)).exp()

    def mean(self, q: int) -> float:
        return rbf_mean(self.gamma, q)

    def peak(self, q: int) -> float:
        return 1.0


class RBF(_Gaussian):
    """φ = exp(-gamma · ||u - v||²), with gamma = 1 / (2 · bandwidth²); the mean, not its logarithm."""

    kind: Literal["rbf"] = "rbf"


class LogRBF(_Gaussian):
    """The RBF kernel, and the logarithm of its mean over the batch: Wang and Isola's uniformity (arXiv 2005.10242).

    As published: estimator "u" (no pair of a point with itself), `normalize=False`, `gamma` 2 (2.5 in SFRIK's
    README).
    """

    logarithmic: ClassVar[bool] = True

    kind: Literal["rbf_log"] = "rbf_log"

    @property
    def delicate(self) -> bool:
        return self.gamma > 5  # orthogonal points have exp(-2 gamma), opposite ones exp(-4 gamma)


class Exponential(Kernel):
    """φ(t) = exp(t / temperature): the repulsion of InfoNCE, as an MMD.

    InfoNCE takes the logarithm of the mean over partners of each point, then the mean over points; here the mean is
    over all pairs. It is the RBF kernel with gamma = 1 / (2 · temperature), times exp(1 / temperature).
    """

    kind: Literal["exponential"] = "exponential"
    temperature: float = Field(0.5, ge=0.02, le=100.0)

    def values(self, t: Tensor, q: int) -> Tensor:
        return (t / self.temperature).exp()

    def mean(self, q: int) -> float:
        return exponential_mean(self.temperature, q)

    def peak(self, q: int) -> float:
        return math.exp(1 / self.temperature)


class IMQ(Kernel):
    """Inverse multiquadric: φ = (offset² + ||u - v||²)^-exponent."""

    kind: Literal["imq"] = "imq"
    offset: float = Field(1.0, ge=0.05, le=10.0)
    exponent: float = Field(0.5, gt=0.0, le=10.0)

    def values(self, t: Tensor, q: int) -> Tensor:
        return (self.offset**2 + (2 - 2 * t).clamp_min(0.0)).pow(-self.exponent)

    def mean(self, q: int) -> float:
        return imq_mean(self.offset, self.exponent, q)

    def peak(self, q: int) -> float:
        return float(self.offset ** (-2 * self.exponent))


class Laplace(Kernel):
    """φ = exp(-gamma · ||u - v||)."""

    kind: Literal["laplace"] = "laplace"
    gamma: float = Field(1.0, ge=1e-3, le=100.0)

    def values(self, t: Tensor, q: int) -> Tensor:
        return (-self.gamma * _distance_to_the(1.0, t)).exp()

    def mean(self, q: int) -> float:
        return laplace_mean(self.gamma, q)

    def peak(self, q: int) -> float:
        return 1.0


class Energy(Kernel):
    """φ = -||u - v||^exponent: the energy distance at exponent 1. φ is negative, its MMD is not."""

    kind: Literal["energy"] = "energy"
    exponent: float = Field(1.0, gt=0.0, lt=2.0)

    def values(self, t: Tensor, q: int) -> Tensor:
        return -_distance_to_the(self.exponent, t)

    def mean(self, q: int) -> float:
        return -chord_mean(self.exponent, q)

    def peak(self, q: int) -> float:
        return 0.0


# --- kernels that are infinite where two points coincide: minimal energy on the sphere ---


class Riesz(Kernel):
    """φ = ||u - v||^-exponent, for exponent < q - 1 (Coulomb's at q - 2). Estimator "u", not normalized.

    Points nearer than t's rounding resolves, or so near that the slope by t exceeds `STEEPEST` (at exponent 1 a
    distance of 1e-5, at 8 one of 0.03), count as if at that distance, and do not repel each other.
    """

    singular: ClassVar[bool] = True

    kind: Literal["riesz"] = "riesz"
    exponent: float = Field(1.0, gt=0.0, le=8.0)

    def values(self, t: Tensor, q: int) -> Tensor:
        return _resolved_square(t, self.exponent).pow(-self.exponent / 2)

    def mean(self, q: int) -> float:
        """ValueError where it is infinite."""
        if self.exponent >= q - 1:
            raise ValueError(
                f"the exponent of a Riesz kernel must be below the embedding's width less 1, {q - 1}, "
                f"but is {self.exponent}; lower it, or raise the last of model.projector.widths"
            )
        return chord_mean(-self.exponent, q)

    def peak(self, q: int) -> float:
        return math.inf


class Logarithm(Kernel):
    """φ = -log ||u - v||: the limit of Riesz kernels as their exponent goes to 0. Estimator "u", not normalized.

    Not to be taken for `rbf_log`, the logarithm of a mean. Near points as in `riesz`.
    """

    singular: ClassVar[bool] = True

    kind: Literal["log"] = "log"

    def values(self, t: Tensor, q: int) -> Tensor:
        return -_resolved_square(t, 0.0).log() / 2

    def mean(self, q: int) -> float:
        return -log_chord_mean(q)

    def peak(self, q: int) -> float:
        return math.inf


AnyKernel = Annotated[
    Truncated
    | Linear
    | Quadratic
    | Polynomial
    | RBF
    | LogRBF
    | Exponential
    | IMQ
    | Laplace
    | Energy
    | Riesz
    | Logarithm,
    Field(discriminator="kind"),
]


def _distance_to_the(power: float, t: Tensor) -> Tensor:
    """||u - v||^power from t. Below what t's rounding resolves: 0, with slope 0 (the true slope there is infinite)."""
    import torch

    squared = 2 - 2 * t
    resolved = ~(squared <= _resolution(t))  # not ">": what is not a number must stay so
    # The inner `where` keeps the infinite slope out of the branch that is not taken, whose gradient would be 0 · inf.
    return torch.where(resolved, torch.where(resolved, squared, 1.0).pow(power / 2), 0.0)


STEEPEST = 1e15
"""A step as long as the inverse of the slope is lost in rounding; and squares of steeper ones overflow in float32."""


def _resolved_square(t: Tensor, exponent: float) -> Tensor:
    """||u - v||² from t, at least what t's rounding resolves, and where ||u - v||^-(exponent + 2) is `STEEPEST`; there
    its slope is 0.
    """
    import torch

    squared, nearest = 2 - 2 * t, max(_resolution(t), STEEPEST ** (-2 / (exponent + 2)))
    return torch.where(squared <= nearest, nearest, squared)


def _resolution(t: Tensor) -> float:
    """The squared distance below which the rounding of t in its dtype decides."""
    import torch

    return 16 * torch.finfo(t.dtype).eps


# --- means against the uniform law, exact in float64 for every q ---


@lru_cache(maxsize=1024)
def polynomial_mean(offset: float, degree: int, q: int) -> float:
    """sum over k of binom(m, 2k) c^(m - 2k) (1/2)_k / (q/2)_k, from the moments of t: only even ones remain."""
    moment, total = 1.0, []
    for k in range(degree // 2 + 1):
        total.append(math.comb(degree, 2 * k) * float(offset) ** (degree - 2 * k) * moment)
        moment *= (0.5 + k) / (q / 2 + k)
    return math.fsum(total)


@lru_cache(maxsize=1024)
def exponential_mean(temperature: float, q: int) -> float:
    """0F1(; q/2; 1 / (4 τ²)), with positive terms only."""
    return _hypergeometric((), q / 2, 1 / (4 * temperature**2))


@lru_cache(maxsize=1024)
def rbf_mean(gamma: float, q: int) -> float:
    """exp(-2s) 0F1(; q/2; s²). The series has positive terms only: no digit is lost at any s or q."""
    return math.exp(-2 * gamma) * _hypergeometric((), q / 2, gamma**2)


@lru_cache(maxsize=1024)
def imq_mean(offset: float, exponent: float, q: int) -> float:
    """(c² + 2)^-β 2F1(β/2, (β+1)/2; q/2; (2 / (c² + 2))²), again with positive terms only."""
    width = offset**2 + 2
    return float(width**-exponent) * _hypergeometric((exponent / 2, (exponent + 1) / 2), q / 2, (2 / width) ** 2)


@lru_cache(maxsize=1024)
def chord_mean(power: float, q: int) -> float:
    """Mean of ||u - v||^p for a uniform v, p > 1 - q: 2^(p+q-2) Γ(q/2) Γ((p+q-1)/2) / (√π Γ(q-1+p/2)).

    Written with a = (q-1)/2 as 2^p [Γ(a + p/2) / Γ(a)] / [Γ(2a + p/2) / Γ(2a)], whose two ratios keep their digits at
    large q.
    """
    a = (q - 1) / 2
    return float(2**power * math.exp(_log_gamma_step(a, power / 2) - _log_gamma_step(2 * a, power / 2)))


@lru_cache(maxsize=1024)
def log_chord_mean(q: int) -> float:
    """Mean of log ||u - v|| for a uniform v: log 2 + ½ [ψ(a) - ψ(2a)], a = (q-1)/2, ψ = digamma.

    With ψ(2a) = ½ ψ(a) + ½ ψ(a + ½) + log 2 it is ½ log 2 - ¼ [ψ(a + ½) - ψ(a)], a small correction to the
    distance √2 of orthogonal points.
    """
    return math.log(2) / 2 - _digamma_half_step((q - 1) / 2) / 4


@lru_cache(maxsize=1024)
def laplace_mean(gamma: float, q: int) -> float:
    """Mean of exp(-γ ||u - v||), by quadrature over the angle θ: ||u - v|| = 2 sin(θ/2), of density ∝ sin(θ)^(q-2).

    The integrand is smooth in θ; Gauss-Legendre over the part of [0, π] that carries the mass converges to rounding.
    """
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(128)
    half_width = min(math.pi / 2, 10 / math.sqrt(q))  # beyond it sin(θ)^(q-2) < e^-45
    deviation = half_width * nodes  # θ - π/2
    density = weights * np.exp((q - 2) * np.log(np.cos(deviation)))
    values = np.exp(-2 * gamma * np.sin((deviation + math.pi / 2) / 2))
    return float((density * values).sum() / density.sum())


def _hypergeometric(upper: tuple[float, ...], lower: float, x: float) -> float:
    """sum over k of (product of the rising factorials of `upper`) / (lower)_k · x^k / k!, for positive arguments."""
    terms = [1.0]
    limit = x if upper else 0.0  # what the ratio of neighboring terms tends to
    for k in range(1_000_000):
        ratio = math.prod(a + k for a in upper) / ((lower + k) * (k + 1)) * x
        terms.append(terms[-1] * ratio)
        bound = max(ratio, limit)
        if bound < 1 and terms[-1] * bound / (1 - bound) < 1e-18 * terms[0]:
            return math.fsum(terms)
    raise ValueError(
        f"the kernel's mean did not converge (series in {x}); move the kernel's parameters away from their bounds"
    )


def _log_gamma_step(x: float, step: float) -> float:
    """log Γ(x + step) - log Γ(x) for x and x + step > 0, without the cancellation of two large logarithms."""
    if min(x, x + step) < 20:
        return math.lgamma(x + step) - math.lgamma(x)

    def tail(y: float) -> float:  # Stirling's series after its leading terms; the next one is below 1e-15 here
        return 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5) - 1 / (1680 * y**7)

    return (x + step - 0.5) * math.log1p(step / x) + step * math.log(x) - step + tail(x + step) - tail(x)


def _digamma_half_step(x: float) -> float:
    """ψ(x + ½) - ψ(x) for x > 0, without the cancellation of two logarithms."""
    total = []
    while x < 20:  # ψ(x) = ψ(x + 1) - 1 / x
        total.append(0.5 / (x * (x + 0.5)))
        x += 1

    def tail(y: float) -> float:  # the asymptotic series after its logarithm; the next term is below 1e-15 here
        return -1 / (2 * y) - 1 / (12 * y**2) + 1 / (120 * y**4) - 1 / (252 * y**6) + 1 / (240 * y**8)

    return math.fsum([*total, math.log1p(0.5 / x), tail(x + 0.5), -tail(x)])
