"""View operations of one's own: drawn by key, undergone with their probability, in their order."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parts import broken_parts, own_parts
from trainers.config import TrialConfig, ViewConfig
from trainers.keyed_random import Draws
from trainers.operations import Operations

BROKEN, MINE = str(Path(broken_parts.__file__)), str(Path(own_parts.__file__))
IDS = torch.arange(40, 72)


def views(*operations: dict[str, Any]) -> list[ViewConfig]:
    return [ViewConfig.model_validate({"size": 8, "operations": one}) for one in operations]


def images(rows: int = 32) -> Tensor:
    drawn = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return drawn.contiguous(memory_format=torch.channels_last)


def noise(**settings: Any) -> dict[str, Any]:
    return {"noise": {"kind": f"{MINE}:noise", **settings}}


def test_a_view_without_operations_is_left_as_it_is() -> None:
    given = images()
    (same,) = Operations(views({}))((given,), IDS, seed=0, epoch=0)
    assert same is given


def test_each_image_has_its_own_draw_wherever_it_is() -> None:
    apply = Operations(views(noise()))
    (whole,) = apply((images(),), IDS, seed=3, epoch=2)
    parts = [apply((images()[rows],), IDS[rows], seed=3, epoch=2)[0] for rows in (slice(16), slice(16, 32))]
    assert torch.equal(torch.cat(parts), whole)
    added = (whole - images()).flatten(1)
    assert torch.linalg.matrix_rank(added) == 32
    assert float(added.std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 3}])
def test_another_seed_or_epoch_draws_anew(other: dict[str, int]) -> None:
    apply = Operations(views(noise()))
    first, again, changed = (apply((images(),), IDS, **{"seed": 3, "epoch": 2, **keys})[0] for keys in ({}, {}, other))
    assert torch.equal(first, again)
    assert not (first == changed).any()


def test_views_and_names_draw_independently() -> None:
    twice = {"one": noise()["noise"], "two": noise()["noise"]}
    first, second = Operations(views(noise(), noise()))((images(), images()), IDS, seed=0, epoch=0)
    assert not (first == second).any()
    (both,) = Operations(views(twice))((images(),), IDS, seed=0, epoch=0)
    assert float((both - images()).std()) == pytest.approx(0.1 * 2**0.5, rel=0.05)


def test_each_image_undergoes_it_with_its_probability() -> None:
    many = torch.zeros(4000, 3, 8, 8)
    (changed,) = Operations(views(noise(probability=0.3)))((many,), torch.arange(4000), seed=0, epoch=0)
    touched = changed.flatten(1).any(1)
    assert float(touched.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert changed[touched].all()
    (never,) = Operations(views(noise(probability=0.0)))((images(),), IDS, seed=0, epoch=0)
    assert torch.equal(never, images())


def test_what_comes_out_has_the_memory_layout_that_networks_want() -> None:
    (changed,) = Operations(views(noise()))((images(),), IDS, seed=0, epoch=0)
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_a_result_of_another_form_is_refused_with_its_place() -> None:
    apply = Operations(views({"mine": {"kind": f"{BROKEN}:smaller"}}))
    line = inspect.getsourcelines(broken_parts.smaller)[1]
    with pytest.raises(ValueError, match=rf"smaller \({BROKEN}:{line}\) must return images of the same shape"):
        apply((images(),), IDS, seed=0, epoch=0)


def test_draws_of_different_names_are_independent_and_of_one_name_equal() -> None:
    draws = Draws(torch.arange(20_000))
    first, second = draws.uniforms("angle", 2), draws.uniforms("size", 2)
    assert torch.equal(draws.uniforms("angle", 2), first)
    correlation = torch.corrcoef(torch.cat([first, second], dim=1).T)
    assert float((correlation - torch.eye(4)).abs().max()) < 0.03
    assert first.dtype == torch.float32
    assert 0.0 <= float(first.min()) < float(first.max()) < 1.0
    assert draws.shuffles("order", 5).sort(1).values.equal(torch.arange(5).expand(20_000, 5))


def test_an_operation_is_checked_with_the_config(tmp_path: Path) -> None:
    values = {"objective": {"alignment": {}}, "views": [{"operations": noise(strenght=2)}, {}]}
    with pytest.raises(ValueError, match=r"views\.0\.operations\.noise\.kind: .*did you mean 'strength'\?"):
        TrialConfig.model_validate(values).check_own()
    with pytest.raises(ValueError, match=r"must be file\.py:Name or module:Name"):
        ViewConfig.model_validate({"operations": {"noise": {"kind": "noise"}}})
