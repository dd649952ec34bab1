"""SwAV's loss and its equal partition (arXiv 2006.09882), against their definitions written out here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import TrialConfig
from trainers.model import build_model
from trainers.objective import Objective
from trainers.terms import Outputs, Swav
from trainers.terms.swav import equal_partition

IMAGES, PROTOTYPES = 8, 6


def scores_of(views: int, seed: int = 0) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(generator.uniform(-1, 1, (IMAGES, PROTOTYPES))) for _ in range(views)]


def outputs_of(scores: list[Tensor]) -> Outputs:
    return Outputs((), (), None, None, torch.arange(len(scores[0])), 0, 0, scores=tuple(scores))


def partition(scores: Tensor, temperature: float, iterations: int) -> np.ndarray[Any, Any]:
    """The paper's algorithm on the M x N matrix: rows to 1 / M, columns to 1 / N, in turn, and times N at the end."""
    q = np.exp(scores.numpy() / temperature).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * PROTOTYPES
        q /= q.sum(axis=0, keepdims=True) * IMAGES
    return (q * IMAGES).T


@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_a_code_is_sinkhorns_scaling_and_at_last_all_prototypes_have_the_same_share(iterations: int) -> None:
    (scores,) = scores_of(1)
    found = equal_partition(scores, 0.3, iterations).numpy()
    np.testing.assert_allclose(found, partition(scores, 0.3, iterations), rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    if iterations == 100:
        np.testing.assert_allclose(found.sum(axis=0), IMAGES / PROTOTYPES, rtol=1e-6)


def test_the_sharpest_partition_has_no_overflow_and_leaves_no_prototype_without_a_share() -> None:
    far = torch.full((4, 3), -1.0)
    far[:, 0] = 1.0
    found = equal_partition(far, 0.01, 3)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.sum(1), torch.ones(4))


@pytest.mark.parametrize(("view_count", "code_views"), [(2, 2), (5, 2), (3, 1)])
def test_it_is_the_mean_cross_entropy_from_each_code_to_every_other_view(view_count: int, code_views: int) -> None:
    scores = scores_of(view_count)
    costs = []
    for i in range(code_views):
        q = partition(scores[i], 0.05, 3)
        for v in range(view_count):
            if v != i:
                log_p = (scores[v] / 0.1).log_softmax(dim=1).numpy()
                costs.append(-(q * log_p).sum(axis=1).mean())
    assert len(costs) == code_views * (view_count - 1)
    value = Swav(code_views=code_views)(outputs_of(scores)).item()
    assert value == pytest.approx(float(np.mean(costs)), rel=1e-12)


def test_uniform_scores_cost_the_logarithm_of_the_number_of_prototypes_and_tell_nothing() -> None:
    flat = outputs_of([torch.zeros(IMAGES, PROTOTYPES, dtype=torch.float64)] * 2)
    assert Swav()(flat).item() == pytest.approx(math.log(PROTOTYPES))
    assert float(Swav().metrics(flat)["information"]) == pytest.approx(0.0, abs=1e-12)
    sorted_apart = torch.eye(PROTOTYPES, dtype=torch.float64)
    assert float(Swav().metrics(outputs_of([sorted_apart] * 2))["information"]) == pytest.approx(
        math.log(PROTOTYPES), abs=1e-6
    )


def test_no_gradient_goes_through_the_codes() -> None:
    first, second = (rows.requires_grad_() for rows in scores_of(2))
    torch.autograd.backward(Swav(code_views=1)(outputs_of([first, second])))
    assert first.grad is None
    code = torch.from_numpy(partition(first.detach(), 0.05, 3))
    expected = ((second.detach() / 0.1).softmax(dim=1) - code) / 0.1 / IMAGES  # of a cross-entropy with a fixed code
    torch.testing.assert_close(second.grad, expected)


def trial(**changes: Any) -> TrialConfig:
    values = {
        "views": [{"size": 16}, {"size": 16}, {"size": 8}],
        "model": {
            "backbone": {"kind": "resnet_tiny", "width": 8},
            "projector": {"widths": [16, 8]},
            "prototypes": {"count": 24},
        },
        "objective": {"swav": {}},
    }
    return TrialConfig.model_validate({**values, **changes})


def views_of(rows: slice) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(IMAGES, 3, size, size, generator=generator, dtype=torch.float64) for size in (16, 16, 8)]
    return tuple(view[rows] for view in whole)


def gradients(rank: int, world_size: int) -> tuple[float, dict[str, Any]]:
    """The loss and each parameter's gradient, as NumPy, with this rank's part of the batch."""
    model = build_model(trial()).double()
    part = IMAGES // world_size
    rows = slice(rank * part, (rank + 1) * part)
    network = DistributedDataParallel(model) if world_size > 1 else model
    total, _ = Objective(trial().objective)(network(views_of(rows), torch.arange(IMAGES)[rows], 0, 0))
    torch.autograd.backward(total)
    return total.item(), {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def gradients_on_this_rank() -> tuple[float, dict[str, Any]]:
    return gradients(dist.rank(), dist.world_size())


def test_two_workers_have_the_loss_and_gradients_of_one_through_the_whole_network(two_processes: TwoProcesses) -> None:
    loss, expected = gradients(0, 1)
    assert "prototypes.directions" in expected
    for found, ours in two_processes.run(gradients_on_this_rank):
        assert found == pytest.approx(loss, rel=1e-12)
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(ours[name], gradient, rtol=1e-8, atol=1e-12)


def test_prototypes_need_no_teacher_and_stay_in_their_first_steps() -> None:
    config = trial()
    model = build_model(config)
    assert model.teacher is None
    assert "center" not in model.state_dict()
    outputs = model(tuple(view.float() for view in views_of(slice(None))), torch.arange(IMAGES), 0, 0)
    assert [tuple(rows.shape) for rows in outputs.scores] == [(IMAGES, 24)] * 3
    assert outputs.target_scores is None
    frozen = build_model(trial(model={**config.model.model_dump(), "prototypes": {"count": 24, "frozen_steps": 3}}))
    for step, moves in ((2, False), (3, True)):
        frozen.zero_grad()
        outputs = frozen(tuple(view.float() for view in views_of(slice(None))), torch.arange(IMAGES), 0, step)
        torch.autograd.backward(Objective(config.objective)(outputs)[0])
        gradient = frozen.get_parameter("prototypes.directions").grad
        assert gradient is not None
        assert bool(gradient.any()) == moves


# ---- the queue -------------------------------------------------------------------------------------------------------

QUEUE, QUEUE_AFTER = 16, 2
FULL = QUEUE_AFTER + QUEUE // IMAGES
"""The first step that begins with a full queue."""


def with_queue(**prototypes: Any) -> TrialConfig:
    queue = {"count": 24, "queue": QUEUE, "queue_after": QUEUE_AFTER}
    return trial(model={**trial().model.model_dump(), "prototypes": {**queue, **prototypes}}, batch_size=IMAGES)


def batch(step: int, rows: slice = slice(None)) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    whole = [torch.randn(IMAGES, 3, size, size, generator=generator, dtype=torch.float64) for size in (16, 16, 8)]
    return tuple(view[rows] for view in whole)


def test_codes_are_sorted_together_with_the_queue_and_only_the_batchs_rows_are_codes() -> None:
    first, second = scores_of(2)
    queued = tuple(scores_of(2, seed=1))
    value = Swav()(outputs_of([first, second])._replace(queued_scores=queued)).item()
    costs = []
    for own, earlier, other in ((first, queued[0], second), (second, queued[1], first)):
        shares = np.exp(torch.cat((earlier, own)).numpy() / 0.05)
        for _ in range(3):
            shares /= shares.sum(axis=0)
            shares /= shares.sum(axis=1, keepdims=True)
        costs.append(-(shares[IMAGES:] * (other / 0.1).log_softmax(dim=1).numpy()).sum(axis=1).mean())
    assert value == pytest.approx(float(np.mean(costs)), rel=1e-12)
    assert value != Swav()(outputs_of([first, second])).item()


def test_a_queue_has_the_newest_embeddings_first_and_is_used_once_it_is_full() -> None:
    model = build_model(with_queue()).double()
    ids = torch.arange(IMAGES)
    kept: list[Tensor] = []
    for step in range(FULL + 2):
        outputs = model(batch(step), ids, 0, step)
        assert (outputs.queued_scores is None) == (step < FULL), step
        if step >= FULL:
            wanted = torch.cat(kept[-1 : -1 - QUEUE // IMAGES : -1])
            directions = torch.nn.functional.normalize(model.get_parameter("prototypes.directions").detach())
            torch.testing.assert_close(outputs.queued_scores[0], wanted @ directions.T)
        if step >= QUEUE_AFTER:
            kept.append(torch.nn.functional.normalize(outputs.projections[0].detach()))
    before = model.state_dict()["queue"].clone()
    model.eval()
    model(batch(0), ids, 0, FULL + 2)
    assert torch.equal(model.state_dict()["queue"], before), "only training adds to it"


def test_a_queue_is_part_of_the_state_and_a_run_that_goes_on_is_the_same_bit_for_bit() -> None:
    whole, ids = build_model(with_queue()), torch.arange(IMAGES)
    values = []
    for step in range(FULL + 2):
        if step == FULL:
            state = {name: value.clone() for name, value in whole.state_dict().items()}
        outputs = whole(tuple(view.float() for view in batch(step)), ids, 0, step)
        values.append(Objective(with_queue().objective)(outputs)[0].item())
    again = build_model(with_queue())
    assert "queue" in state
    again.load_state_dict(state)
    for step in range(FULL, FULL + 2):
        outputs = again(tuple(view.float() for view in batch(step)), ids, 0, step)
        assert Objective(with_queue().objective)(outputs)[0].item() == values[step]
    assert "queue" not in build_model(trial()).state_dict(), "where none is asked for there is none"


def queued_gradients(rank: int, world_size: int) -> tuple[float, dict[str, Any]]:
    """As `gradients`, of the first step with a full queue."""
    model = build_model(with_queue()).double()
    part = IMAGES // world_size
    rows = slice(rank * part, (rank + 1) * part)
    network = DistributedDataParallel(model) if world_size > 1 else model
    for step in range(FULL + 1):
        model.zero_grad()
        outputs = network(batch(step, rows), torch.arange(IMAGES)[rows], 0, step)
        total, _ = Objective(with_queue().objective)(outputs)
        torch.autograd.backward(total)
    assert outputs.queued_scores is not None
    return total.item(), {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def queued_gradients_on_this_rank() -> tuple[float, dict[str, Any]]:
    return queued_gradients(dist.rank(), dist.world_size())


def test_two_workers_with_a_queue_have_the_loss_and_gradients_of_one(two_processes: TwoProcesses) -> None:
    loss, expected = queued_gradients(0, 1)
    for found, ours in two_processes.run(queued_gradients_on_this_rank):
        assert found == pytest.approx(loss, rel=1e-12)
        for name, gradient in expected.items():
            np.testing.assert_allclose(ours[name], gradient, rtol=1e-8, atol=1e-12)


def test_a_queue_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="queue must be at least batch_size, 8"):
        with_queue(queue=7)
    with pytest.raises(ValueError, match="queued_views"):
        with_queue(queued_views=1)
    with pytest.raises(ValueError, match="multiple of the 2 workers"):
        with_queue(queue=17).check_workers(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "model.prototypes"),
        ({"views": [{"size": 16}]}, "needs at least 2"),
        ({"objective": {"swav": {"code_views": 4}}}, "code_views must be at most the number of views, 3"),
        ({"objective": {"swav": {"code_temperature": 0.001}}}, "code_temperature"),
    ],
)
def test_what_it_needs_is_demanded_with_the_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trial(**changes)
