"""The sentinel: what it calls collapsed, and what it lets pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from search_spaces.recipes.dilemma import mae_tiny
from trainers.config import SentinelConfig
from trainers.objective import Objective
from trainers.sentinel import complaint
from trainers.terms import Outputs


def complaint_of(rows: Tensor, gradient_norm: float = 1.0, **metrics: float) -> str:
    outputs = Outputs((rows,), (rows,), None, None, torch.arange(len(rows)), seed=0, step=0)
    told = {f"term/{name}": torch.tensor(value) for name, value in metrics.items()}
    return complaint(outputs, told, torch.tensor(gradient_norm), SentinelConfig())


def noise(count: int = 64, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def test_spread_embeddings_pass_whatever_their_scale_above_the_threshold() -> None:
    assert complaint_of(noise()) == ""
    assert complaint_of(100 * noise()) == ""
    assert complaint_of(0.1 * noise()) == ""


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (torch.ones(64, 32) + 1e-3 * noise(), "are alike"),
        (torch.ones(64, 32), "are alike"),
        (noise(64, 1) @ noise(1, 32), "lie in few directions"),
        (1e-3 * noise(), "shrink to a point"),
    ],
    ids=["nearly equal", "equal", "on a line", "short"],
)
def test_each_way_to_collapse_is_named(rows: Tensor, what: str) -> None:
    assert what in complaint_of(rows)


def test_a_vanished_gradient_is_named() -> None:
    assert "nothing moves" in complaint_of(noise(), gradient_norm=0.0)


def test_images_that_are_sorted_alike_are_named() -> None:
    assert complaint_of(noise(), information=1.0, balanced_accuracy=0.0) == ""
    assert "images are sorted alike: a prototype tells 0.001 nats" in complaint_of(noise(), information=1e-3)


def test_only_so_many_rows_are_looked_at() -> None:
    rows = torch.cat([noise(), torch.ones(1000, 32)])
    assert complaint_of(rows) == ""


def test_an_objective_that_reads_no_embeddings_says_so() -> None:
    """What a masked autoencoder's projector gives is nobody's concern: it must not end its trial."""
    assert not any(term.reads_embeddings for term in Objective(mae_tiny().objective).terms.values())
