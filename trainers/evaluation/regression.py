"""Multinomial logistic regression on frozen features: to its optimum, whatever their number and whatever they lie in.

Letters: n = images, p = features, C = classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LinearProbe(NamedTuple):
    """Class scores ((x - mean) / scale) @ weight + bias of features x [..., p]; weight [p, C], bias [C]."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """[..., C] of features [..., p]; their softmax is what it takes for the classes' probabilities."""
        return ((features - self.mean) / self.scale) @ self.weight + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Classes [n] of features [n, p]."""
        return self.scores(features).argmax(1)


ITERATIONS = 200
"""Of the linear probe's first search."""
GRADIENT_TOLERANCE = 1e-5
"""Largest entry of the gradient, in the coordinates of the search, at which the first one is over."""
ROUNDS, ROUND_ITERATIONS = 60, 30
"""Further searches, at most, and of how many iterations, where the first one's end is not near enough."""
EXCESS = 1e-3
"""How far above the optimum the linear probe's loss may be, as a share of it."""
CHOOSING = 1e-2
"""The same where only one of several regularizations is chosen."""
LARGEST = 1e15
"""Features above this are taken as float64: in float32 their squares overflow."""
BLOCK = 1 << 24
"""Class scores held at once by the linear probe: 64 MB in float32."""


class Parts:
    """Features [n, p] that are read by parts each time that they are looked at, because they are too many to be held.

    `read` gives them from the first row to the last.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Tensor]],
        count: int,
        width: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._read = read
        self.count, self.width, self.device, self.dtype = count, width, torch.device(device), dtype

    def __iter__(self) -> Iterator[Tensor]:
        return (part.to(self.device, self.dtype) for part in self._read())


@torch.no_grad()
def fit_linear(
    features: Tensor | Parts, labels: Tensor, *, class_count: int, regularization: float, excess: float = EXCESS
) -> LinearProbe:
    """Multinomial logistic regression on standardized features [n, p] with labels [n], in the features' dtype and on
    their device.

    Minimizes mean cross-entropy + regularization / 2 · ||W||² (the bias is free), a strictly convex function of W, by
    full-batch L-BFGS from 0: there is one optimum and no randomness. scikit-learn's `LogisticRegression` has the same
    one at C = 1 / (regularization · n).

    Plain L-BFGS needs hundreds of passes, as features are strongly correlated. At W = 0 the Hessian is (S / C +
    regularization I), S = covariance [p, p], for each contrast between classes; with its Cholesky factor L, the
    search runs over V = Lᵀ W, where that Hessian is the identity. Measured on 5,000 images and 512 features: 77
    passes instead of 518, and closer to the optimum.

    The loss is curved by `regularization` at least (the bias apart), so it exceeds the optimum by about ||gradient||² /
    (2 regularization) at most. Where that is not within `excess`, a share of the loss, as with little regularization,
    where the Hessian at the optimum is another one, the search goes on in float64, with L of where it has come to.
    """
    mean, scale, x = _standardized(features)
    regression = _Regression(x, labels, class_count, regularization)
    return LinearProbe(mean, scale, *regression.fit(excess))


@torch.no_grad()
def regularization_path(
    features: Tensor | Parts, labels: Tensor, *, class_count: int, regularizations: Sequence[float]
) -> Iterator[tuple[float, LinearProbe]]:
    """`fit_linear` for each regularization to within `CHOOSING`, from the strongest to the weakest: each search begins
    where the one before has ended, and the covariance is computed once.
    """
    mean, scale, x = _standardized(features)
    moment = x.moment()
    before: _Regression | None = None
    for regularization in sorted(regularizations, reverse=True):
        regression = _Regression(x, labels, class_count, regularization, moment)
        if before is not None:
            regression.weight, regression.bias = before.weight.clone(), before.bias.clone()
        weight, bias = regression.fit(CHOOSING)
        before = regression
        yield regularization, LinearProbe(mean, scale, weight, bias)


@torch.no_grad()
def fit_multilabel(
    features: Tensor | Parts, targets: Tensor, *, regularization: float, excess: float = EXCESS
) -> LinearProbe:
    """A logistic regression for each of C classes on standardized features [n, p]: `targets` [n, C] are 1, 0, and -1
    where it is not known, which counts for nothing.

    Minimizes the sum over classes of the mean cross-entropy over all n images + regularization / 2 · ||w||²; otherwise
    as `fit_linear`. Its scores' sigmoid is a probability.
    """
    mean, scale, x = _standardized(features)
    regression = _Separate(x, targets, targets.shape[1], regularization)
    return LinearProbe(mean, scale, *regression.fit(excess))


def _standardized(features: Tensor | Parts) -> tuple[Tensor, Tensor, _Standardized]:
    """(mean [p], scale [p], the features in these terms)."""
    if isinstance(features, Tensor):
        mean, scale = features.mean(0), features.std(0, correction=0)
    else:
        wide = torch.zeros(features.width, dtype=torch.float64, device=features.device)
        total = sum((part.double().sum(0) for part in features), start=wide) / features.count
        squares = sum(((part.double() - total).square().sum(0) for part in features), start=wide) / features.count
        mean, scale = total.to(features.dtype), squares.sqrt().to(features.dtype)
    scale = torch.where(scale > torch.finfo(scale.dtype).eps * mean.abs(), scale, 1.0)  # a constant feature stays 0
    if isinstance(features, Tensor):
        return mean, scale, _Held((features - mean) / scale)
    return mean, scale, _Read(features, mean, scale)


class _Standardized(ABC):
    """Standardized features [n, p]."""

    count: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def split(self, rows: int) -> Iterator[Tensor]:
        """By at most so many rows."""

    @abstractmethod
    def double(self) -> _Standardized:
        """The same in float64."""

    def moment(self) -> Tensor:
        """Their covariance [p, p], float64."""
        found = torch.zeros(self.width, self.width, dtype=torch.float64, device=self.device)
        for rows in self.split(max(1, BLOCK // self.width)):
            wide = rows.double()
            found.addmm_(wide.T, wide, alpha=1 / self.count)
        return found


class _Held(_Standardized):
    """In memory."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self.count, self.width = x.shape
        self.dtype, self.device = x.dtype, x.device

    def split(self, rows: int) -> Iterator[Tensor]:
        return iter(torch.split(self._x, rows))

    def double(self) -> _Standardized:
        return _Held(self._x.double())


class _Read(_Standardized):
    """Read by parts."""

    def __init__(self, parts: Parts, mean: Tensor, scale: Tensor) -> None:
        self._parts, self._mean, self._scale = parts, mean, scale
        self.count, self.width = parts.count, parts.width
        self.dtype, self.device = mean.dtype, mean.device

    def split(self, rows: int) -> Iterator[Tensor]:
        for part in self._parts:
            for block in torch.split(part, rows):
                yield (block.to(self.dtype) - self._mean) / self._scale

    def double(self) -> _Standardized:
        return _Read(self._parts, self._mean.double(), self._scale.double())


class _Regression:
    """The linear probe's weight [p, C] and bias [C] on their way to the optimum, for standardized features [n, p]."""

    def __init__(
        self, x: _Standardized, labels: Tensor, class_count: int, regularization: float, moment: Tensor | None = None
    ) -> None:
        self._x, self._labels, self._regularization = x, labels, regularization
        self._class_count, self._moment = class_count, moment
        self.weight = torch.zeros(x.width, class_count, dtype=x.dtype, device=x.device)
        self.bias = torch.zeros(class_count, dtype=x.dtype, device=x.device)

    def fit(self, excess: float) -> tuple[Tensor, Tensor]:
        """To within `excess` of the optimum, a share of the loss there: weight and bias, in the features' dtype."""
        self.search(ITERATIONS, GRADIENT_TOLERANCE)
        at = self
        for _ in range(ROUNDS):
            value, squared = at.loss_and_slope()
            if squared <= 2 * self._regularization * excess * value:
                break
            at = at.in_double()
            at.search(ROUND_ITERATIONS, 0.0, unit=value)
        self.weight, self.bias = at.weight.to(self._x.dtype), at.bias.to(self._x.dtype)
        return self.weight, self.bias

    def in_double(self) -> _Regression:
        """The same, at the same place."""
        if self._x.dtype == torch.float64 and self._moment is None:
            return self
        x = self._x if self._x.dtype == torch.float64 else self._x.double()
        wide = type(self)(x, self._labels, self._class_count, self._regularization)
        wide.weight, wide.bias = self.weight.double(), self.bias.double()
        return wide

    def loss_and_slope(self) -> tuple[float, float]:
        """The loss here, and the square of its gradient's length."""
        value, slope, bias_slope = self._loss(self.weight, self.bias)
        return float(value), float(slope.double().square().sum() + bias_slope.double().square().sum())

    def search(self, iterations: int, tolerance: float, unit: float = 1.0) -> None:
        """L-BFGS over V = Lᵀ W from here, until no entry of the gradient exceeds `tolerance`. The loss is measured in
        `unit`s: torch's line search takes changes below 1e-9 for none.
        """
        factor = torch.linalg.cholesky(self._curvature() / unit).to(self._x.dtype)
        point, bias = factor.T @ self.weight, self.bias

        def weight() -> Tensor:
            solved: Tensor = torch.linalg.solve_triangular(factor.T, point, upper=True)
            return solved

        def loss() -> Tensor:
            value, slope, bias_slope = self._loss(weight(), bias)
            slope, bias.grad = slope / unit, bias_slope / unit
            # L-BFGS views it flat.
            point.grad = torch.linalg.solve_triangular(factor, slope, upper=False).contiguous()
            return value / unit

        search = torch.optim.LBFGS(
            [point, bias],
            max_iter=iterations,
            max_eval=2 * iterations,
            tolerance_grad=tolerance,
            tolerance_change=1e-12 if tolerance else 0.0,
            line_search_fn="strong_wolfe",
        )
        search.step(loss)  # type: ignore[no-untyped-call]
        self.weight = weight()

    def _loss(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, float64, and its gradient by weight and bias."""
        slope, bias_slope = self._regularization * weight, torch.zeros_like(bias)
        value = self._regularization / 2 * weight.double().square().sum()
        start = 0
        for rows in self._x.split(max(1, BLOCK // self._class_count)):
            labels = self._labels[start : start + len(rows)]
            start += len(rows)
            here, residual = self._part(torch.addmm(bias, rows, weight), labels)
            value = value + here
            slope = slope.addmm(rows.T, residual)
            bias_slope += residual.sum(0)
        return value, slope, bias_slope

    def _part(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows' part of the loss, float64, and its gradient by their logits [n, C]."""
        logs = functional.log_softmax(logits, dim=1)
        here = torch.arange(len(logs), device=logs.device)
        value = -logs[here, labels].sum(dtype=torch.float64) / self._x.count
        residual = logs.exp()
        residual[here, labels] -= 1
        residual /= self._x.count
        return value, residual

    def _curvature(self) -> Tensor:
        """What the Hessian is for a contrast between classes, as if all were alike, [p, p] float64: the mean over
        images of (1 - Σ p_c²) / (C - 1) x xᵀ, whose factor is 1 / C at W = 0, + regularization I.
        """
        n, p = self._x.count, self._x.width
        if self._moment is not None:
            return self._moment / self._class_count + self._regularization * torch.eye(
                p, dtype=torch.float64, device=self._x.device
            )
        curvature = self._regularization * torch.eye(p, dtype=torch.float64, device=self._x.device)
        at_start = not self.weight.any()
        for rows in self._x.split(max(1, BLOCK // (p if at_start else max(p, self._class_count)))):
            wide = rows.double()
            if at_start:
                curvature.addmm_(wide.T, wide, alpha=1 / (n * self._class_count))
                continue
            sure = torch.softmax(torch.addmm(self.bias, rows, self.weight).double(), dim=1).square().sum(1)
            spread = (1 - sure).clamp_min(0) / max(self._class_count - 1, 1)
            curvature.addmm_((wide * spread[:, None]).T, wide, alpha=1 / n)
        return curvature


class _Separate(_Regression):
    """One regression for each class; labels are targets [n, C] of 1, 0 and -1."""

    def _part(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        known = (labels >= 0).to(logits.dtype) / self._x.count
        wanted = (labels == 1).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (known * losses).sum(dtype=torch.float64), (torch.sigmoid(logits) - wanted) * known

    def _curvature(self) -> Tensor:
        """Of a class at W = 0, where each image counts a quarter: an upper bound anywhere."""
        unit = torch.eye(self._x.width, dtype=torch.float64, device=self._x.device)
        return self._x.moment() / 4 + self._regularization * unit
