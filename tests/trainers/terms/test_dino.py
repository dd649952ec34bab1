"""DINO's loss, its center and its head (DILEMMA, oracle 14; arXiv 2104.14294)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import TrialConfig
from trainers.model import Model, build_model
from trainers.objective import Objective
from trainers.terms import Dino, Outputs


def outputs_of(scores: list[Tensor], targets: list[Tensor], center: Tensor, step: int = 0) -> Outputs:
    ids = torch.arange(len(scores[0]))
    return Outputs((), (), None, None, ids, 0, step, scores=tuple(scores), target_scores=tuple(targets), center=center)


def random_rows(views: int, prototypes: int = 6, seed: int = 0) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(generator.uniform(-1, 1, (5, prototypes))) for _ in range(views)]


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(x - x.max())
    return powers / powers.sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("view_count", [2, 4])
def test_it_is_the_mean_cross_entropy_over_pairs_of_different_views(view_count: int) -> None:
    scores, targets = random_rows(view_count), random_rows(2, seed=1)
    center = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)
    costs = []
    for i in range(2):
        for j in range(view_count):
            if i != j:
                for row in range(5):
                    q = softmax((targets[i][row].numpy() - center.numpy()) / 0.04)
                    costs.append(-np.sum(q * np.log(softmax(scores[j][row].numpy() / 0.1))))
    assert len(costs) == 5 * 2 * (view_count - 1)
    assert Dino()(outputs_of(scores, targets, center)).item() == pytest.approx(np.mean(costs), rel=1e-12)


def information(scores: list[Tensor], center: Tensor) -> float:
    return Dino().metrics(outputs_of(scores, scores, center))["information"].item()


def test_information_is_what_an_answer_tells_of_its_image() -> None:
    scores, center = random_rows(2), torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)
    found = []
    for rows in scores:
        answers = np.stack([softmax((row.numpy() - center.numpy()) / 0.04) for row in rows])
        # As a divergence of each answer from the mean of all: Gibbs' form of the same.
        found.append(np.mean([np.sum(q * np.log(np.maximum(q, 1e-300) / answers.mean(0))) for q in answers]))
    assert information(scores, center) == pytest.approx(np.mean(found), rel=1e-10)


def test_information_is_zero_in_both_collapses_and_at_most_the_logarithm_of_images_or_prototypes() -> None:
    none = torch.zeros(6, dtype=torch.float64)
    one = torch.eye(6, dtype=torch.float64)[:1].expand(5, 6)
    assert information([one, one], none) == pytest.approx(0.0, abs=1e-12)
    assert information([torch.zeros(5, 6, dtype=torch.float64)] * 2, none) == pytest.approx(0.0, abs=1e-12)
    each = torch.eye(6, dtype=torch.float64)
    assert information([each[:5], each[:5]], none) == pytest.approx(math.log(5), abs=1e-8)
    assert information([torch.cat([each, each])] * 2, none) == pytest.approx(math.log(6), abs=1e-8)


@pytest.mark.parametrize("count", [2, 1024])
def test_uniform_answers_cost_the_logarithm_of_the_number_of_prototypes(count: int) -> None:
    flat = [torch.full((3, count), 0.3, dtype=torch.float64)] * 4
    assert Dino()(outputs_of(flat, flat[:2], torch.zeros(count))).item() == pytest.approx(math.log(count), rel=1e-12)


def test_the_teachers_temperature_warms_up_linearly() -> None:
    term = Dino(warmup_temperature=0.04, teacher_temperature=0.07, warmup_steps=30)
    assert [term.temperature(step) for step in (0, 10, 30, 99)] == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert Dino().temperature(0) == 0.04
    scores, targets, center = random_rows(2), random_rows(2, seed=1), torch.zeros(6, dtype=torch.float64)
    early, late = term(outputs_of(scores, targets, center, 0)), term(outputs_of(scores, targets, center, 50))
    assert early.item() == pytest.approx(Dino()(outputs_of(scores, targets, center)).item())
    assert late.item() != pytest.approx(early.item(), rel=1e-6)


def trial(**model: Any) -> TrialConfig:
    values = {
        "views": [{"size": 16}, {"size": 16}, {"size": 8}, {"size": 8}],
        "model": {
            "backbone": {"kind": "vit_micro", "patch_size": 4, "embed_dim": 32, "depth": 1},
            "projector": {"widths": [16, 8], "hidden_norm": False, "activation": "gelu"},
            "teacher": {"views": "largest", "momentum": 0.9},
            "prototypes": {"count": 24},
            **model,
        },
        "objective": {"dino": {}},
    }
    return TrialConfig.model_validate(values)


def views_of(first: int, count: int) -> tuple[Tensor, ...]:
    """Rows `first` to `first + count` of four views of a global batch of eight images."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(8, 3, size, size, generator=generator, dtype=torch.float64) for size in (16, 16, 8, 8)]
    return tuple(view[first : first + count] for view in whole)


def run(model: Model, views: tuple[Tensor, ...], step: int = 0) -> Outputs:
    outputs: Outputs = model(views, torch.arange(len(views[0])), 0, step)
    return outputs


def test_the_teacher_sees_the_global_views_and_scores_are_cosines() -> None:
    model = build_model(trial()).double()
    outputs = run(model, views_of(0, 8))
    assert outputs.targets is not None
    assert outputs.scores is not None
    assert outputs.target_scores is not None
    assert (len(outputs.targets), len(outputs.target_scores), len(outputs.scores)) == (2, 2, 4)
    directions = model.get_parameter("prototypes.directions")
    for rows, scores in zip(outputs.projections, outputs.scores, strict=True):
        expected = torch.nn.functional.cosine_similarity(rows[:, None], directions[None], dim=2)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)
    # At the start the teacher is the student.
    torch.testing.assert_close(outputs.target_scores[1], outputs.scores[1])
    assert not outputs.target_scores[0].requires_grad


def test_the_center_moves_a_tenth_of_the_way_to_the_mean_of_the_teachers_scores_in_training_only() -> None:
    model = build_model(trial()).double()
    model.eval()
    assert torch.equal(run(model, views_of(0, 8)).center, torch.zeros(24))  # type: ignore[arg-type]
    assert model.center is not None
    assert float(model.center.abs().max()) == 0.0
    model.train()
    first = run(model, views_of(0, 8))
    assert first.center is not None
    assert first.target_scores is not None
    assert float(first.center.abs().max()) == 0.0, "a step is centered by those before it"
    mean = torch.cat(first.target_scores).mean(0)
    torch.testing.assert_close(model.center, 0.1 * mean, rtol=1e-12, atol=0)
    second = run(model, views_of(0, 8), 1)
    torch.testing.assert_close(second.center, 0.1 * mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.center, 0.19 * mean, rtol=1e-12, atol=0)
    assert "center" in model.state_dict()


def center_after_a_step() -> Tensor:
    model = build_model(trial()).double().train()
    count = 8 // dist.world_size()
    run(model, views_of(dist.row_offset(count), count))
    assert model.center is not None
    return model.center


def test_the_center_is_of_the_global_batch(two_processes: TwoProcesses) -> None:
    alone = center_after_a_step()
    for together in two_processes.run(center_after_a_step):
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-15)


def test_prototypes_stay_for_the_first_steps_and_follow_the_student_in_the_teacher() -> None:
    config = trial(prototypes={"count": 24, "frozen_steps": 2})
    model = build_model(config).double()
    directions = model.get_parameter("prototypes.directions")
    for step, moving in ((0, False), (1, False), (2, True)):
        model.zero_grad()
        Objective(config.objective)(run(model, views_of(0, 8), step))[0].backward()  # type: ignore[no-untyped-call]
        assert directions.grad is not None
        assert bool(directions.grad.abs().max() > 0) == moving
        gradient = model.get_parameter("projector.2.weight").grad
        assert gradient is not None
        assert float(gradient.abs().max()) > 0
    before = directions.detach().clone()
    with torch.no_grad():
        directions.add_(1.0)
    model.update_teacher(0, 10)
    torch.testing.assert_close(model.get_parameter("teacher.prototypes.directions"), before + 0.1)


def test_prototypes_exist_only_with_their_term() -> None:
    values = trial().model_dump(mode="json")
    values["objective"] = {"dino": {"weight": 0.0}, "alignment": {}}
    without = build_model(TrialConfig.model_validate(values)).state_dict()
    with_prototypes = build_model(trial()).state_dict()
    extra = {"prototypes.directions", "teacher.prototypes.directions", "center"}
    assert with_prototypes.keys() - without.keys() == extra
    assert all(torch.equal(with_prototypes[name], value) for name, value in without.items())


def test_dino_that_can_not_work_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"objective\.dino .*model\.teacher, model\.prototypes.*set them"):
        trial(teacher=None)
    with pytest.raises(ValueError, match=r"objective\.dino .*model\.prototypes\.count=1024"):
        trial(prototypes=None)
    values = trial().model_dump(mode="json")
    values["views"] = values["views"][::-1]
    with pytest.raises(ValueError, match=r"largest views must come first.*\(2, 3\).*model\.teacher\.views=all"):
        TrialConfig.model_validate(values)
    with pytest.raises(ValueError, match=r"set model\.teacher and model\.prototypes"):
        Dino()(Outputs((), (), None, None, torch.arange(2), seed=0, step=0))
