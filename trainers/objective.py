"""The objective: a weighted sum of named terms. The only place where weights are applied."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from trainers import dist
from trainers.terms import Outputs, TermConfig
from trainers.usercode import named, where


class Objective:
    """total = sum over terms of weight · value. A term of weight 0 is not computed: it equals a missing term.

    `terms` is `TrialConfig.objective`, from name to term. Raises ValueError if no term has a positive weight, or the
    code of one's own term is missing, is not what it was, or does not take its settings.
    """

    def __init__(self, terms: Mapping[str, TermConfig]) -> None:
        self.terms: dict[str, TermConfig] = {}
        for name, term in terms.items():
            if term.weight > 0.0:
                with named(f"objective.{name}"):
                    self.terms[name] = term.loaded
        if not self.terms:
            raise ValueError(
                f"an objective needs at least one term of positive weight, but has {dict.fromkeys(terms, 0.0)}; "
                "raise objective.<name>.weight of one of them"
            )

    def __call__(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, differentiable, and each term's unweighted value by name, detached.

        All are scalars over the *global* batch, the same on every rank, float32 at least. ValueError names the term
        that returns something else, or what no gradient passes through.
        """
        differentiable = torch.is_grad_enabled() and any(rows.requires_grad for rows in outputs.features)
        values = {name: term(outputs) for name, term in self.terms.items()}
        for name, value in values.items():
            if complaint := form_complaint(value):
                raise ValueError(f"{self._label(name)} {complaint}")
            if differentiable and not value.requires_grad:
                raise ValueError(
                    f"{self._label(name)} must depend on what the model computes, differentiably, but its value has no "
                    "gradient; look for detach(), item(), no_grad() or argmax"
                )
        values = _over_ranks(values)
        weighted = [self.terms[name].weight * value for name, value in values.items()]
        total = weighted[0]
        for part in weighted[1:]:
            total = total + part
        return total, {name: value.detach() for name, value in values.items()}

    def _label(self, name: str) -> str:
        """`objective.spread, Spread (/home/me/mine.py:12),`"""
        return f"objective.{name}, {where(type(self.terms[name]))},"

    @torch.no_grad()
    def metrics(self, outputs: Outputs) -> dict[str, Tensor]:
        """What terms have to say beyond their values, as `<name>/<key>`: scalars over the global batch."""
        return {
            f"{name}/{key}": value for name, term in self.terms.items() for key, value in term.metrics(outputs).items()
        }


def _over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each term's mean over ranks, all in one collective."""
    if dist.world_size() == 1:
        return dict(values)
    dtype = reduce(torch.promote_types, (value.dtype for value in values.values()))
    means = dist.mean_of_values(torch.stack([value.to(dtype) for value in values.values()]))
    return {name: mean.to(values[name].dtype) for name, mean in zip(values, means.unbind(), strict=True)}


def form_complaint(value: object) -> str:
    """What is wrong with a term's value that is not one floating-point number; empty for one that is."""
    if not isinstance(value, Tensor):
        return f"must return one number, a tensor of shape [], but returned {value!r}; return the tensor itself"
    if value.ndim:
        return f"must return one number, a tensor of shape [], but returned shape {list(value.shape)}; take the mean"
    if not value.is_floating_point():
        return f"must return a floating-point number, but returned {value.dtype}; convert it"
    return ""
