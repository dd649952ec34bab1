"""Mismatch detection: its value, its floors, and that a network can solve it from content alone (DILEMMA, 9-11, 18)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.model import build_model
from trainers.objective import Objective
from trainers.terms import Alignment, MismatchDetection, Outputs, Patches

DETECTION = MismatchDetection()


def outputs_of(*views: tuple[Tensor, Tensor]) -> Outputs:
    """From logits and truth, [n, K] each, of every view."""
    patches = []
    for view, (logits, wrong) in enumerate(views):
        kept = torch.arange(logits.shape[1]).expand_as(logits)
        told = torch.where(wrong, kept + 1, kept)
        patches.append(Patches(view, torch.zeros(*logits.shape, 2), kept, told, kept[:, :0], mismatch_logits=logits))
    n = len(views[0][0])
    return Outputs((), (), None, None, torch.arange(n), seed=0, step=0, patches=tuple(patches))


def truth(rate: float, n: int = 50, kept: int = 20) -> Tensor:
    """Exactly this share of mismatches."""
    wrong = torch.zeros(n * kept, dtype=torch.bool)
    wrong[: round(rate * n * kept)] = True
    return wrong.view(n, kept)


def test_it_is_the_mean_cross_entropy_over_patches_and_then_over_views() -> None:
    generator = np.random.default_rng(0)
    views, costs = [], []
    for kept in (6, 3):
        logits, wrong = generator.standard_normal((4, kept)), generator.random((4, kept)) < 0.4
        views.append((torch.from_numpy(logits), torch.from_numpy(wrong)))
        says_wrong = 1 / (1 + np.exp(-logits))
        costs.append(np.mean([-math.log(p if y else 1 - p) for p, y in zip(says_wrong.flat, wrong.flat, strict=True)]))
    assert DETECTION(outputs_of(*views)).item() == pytest.approx(np.mean(costs), rel=1e-12)


FLOORS = {0.05: 0.1985, 0.1: 0.3251, 0.15: 0.4227, 0.2: 0.5004, 0.25: 0.5623, 0.3: 0.6109, 0.4: 0.6730, 0.5: 0.6931}


@pytest.mark.parametrize(("rate", "floor"), FLOORS.items())
def test_the_best_blind_answer_costs_the_floor_and_a_zero_head_ln_2(rate: float, floor: float) -> None:
    wrong = truth(rate)
    best = math.log(rate / (1 - rate))
    if rate == 0.2:
        assert best == pytest.approx(-1.3863, abs=5e-5)
    blind = torch.full(wrong.shape, best, dtype=torch.float64)
    outputs = outputs_of((blind, wrong))
    metrics = DETECTION.metrics(outputs)
    assert DETECTION(outputs).item() == pytest.approx(floor, abs=5e-5)
    assert metrics["loss_floor"].item() == pytest.approx(DETECTION(outputs).item(), rel=1e-12)
    assert metrics["mismatch_rate"].item() == pytest.approx(rate)
    assert metrics["balanced_accuracy"].item() == 0.5
    assert DETECTION(outputs_of((0 * blind, wrong))).item() == pytest.approx(math.log(2), rel=1e-12)


def test_balanced_accuracy_is_the_mean_recall_over_all_views() -> None:
    logits = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, -1.0]])
    wrong = torch.tensor([[True, False, False, True], [True, False, False, False]])
    metrics = DETECTION.metrics(outputs_of((logits, wrong), (logits[:1], ~wrong[:1])))
    found, passed = (2 + 1) / (3 + 2), (4 + 1) / (5 + 2)
    assert metrics["balanced_accuracy"].item() == pytest.approx((found + passed) / 2)
    perfect = DETECTION.metrics(outputs_of((torch.where(wrong, 1.0, -1.0), wrong)))
    assert perfect["balanced_accuracy"].item() == 1.0


def test_a_batch_without_a_mismatch_still_has_finite_metrics() -> None:
    wrong = torch.zeros(2, 3, dtype=torch.bool)
    metrics = DETECTION.metrics(outputs_of((torch.full((2, 3), -1.0), wrong)))
    assert {name: value.item() for name, value in metrics.items()} == {
        "balanced_accuracy": 0.75,
        "mismatch_rate": 0.0,
        "loss_floor": 0.0,
    }


def trial(**masking: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "views": [{"size": 16}],
            "model": {
                "backbone": {
                    "kind": "vit_micro",
                    "patch_size": 4,
                    "embed_dim": 32,
                    "depth": 2,
                    "positions": "fixed",
                    "position_temperature": 100.0,
                },
                "projector": {"widths": [4]},
                "masking": {"mismatch_probability": 0.2, **masking},
            },
            "objective": {"mismatch_detection": {}},
        }
    )


def learned(
    config: TrialConfig, view: Any, steps: int = 400, images: int = 64, blind: bool = False
) -> dict[str, float]:
    """Mean loss and metrics of the last 50 of some training steps on `view(step)`, [n, 3, 16, 16]."""
    images = 64
    model = build_model(config)
    if blind:
        torch.nn.init.zeros_(model.get_parameter("backbone.pos_embed"))
    objective = Objective(config.objective)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    ids = torch.arange(images)
    sums: dict[str, float] = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        outputs = model((view(step, images),), ids, 0, step)
        loss, _ = objective(outputs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps - 50:
            numbers = {"loss": loss.detach(), **DETECTION.metrics(outputs)}
            sums = {name: sums.get(name, 0.0) + value.item() / 50 for name, value in numbers.items()}
    return sums


def blank(step: int, count: int) -> Tensor:
    return torch.ones(count, 3, 16, 16)


def noise(step: int, count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(step))


def numbered(step: int, count: int) -> Tensor:
    """Patch number i is a fixed random pattern of its own, plus noise."""
    patterns = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(10**6))
    return patterns + 0.3 * noise(step, count)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.0, 0.25])
def test_blank_images_give_nothing_away_under_the_default_rule(ratio: float) -> None:
    """In so few steps this network misses weak leaks; `test_masking` counts what told positions alone give away."""
    result = learned(trial(drop_ratio=ratio), blank, steps=250)
    assert result["loss"] > result["loss_floor"] - 0.006
    assert result["balanced_accuracy"] < 0.52


def test_content_that_knows_its_place_solves_the_task() -> None:
    result = learned(trial(drop_ratio=0.5), numbered)
    assert result["loss"] < 0.01
    assert result["balanced_accuracy"] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("blind", [True, False], ids=["no positions", "positions"])
def test_noise_or_no_positions_end_at_chance(blind: bool) -> None:
    result = learned(trial(drop_ratio=0.5), numbered if blind else noise, steps=150, blind=blind)
    assert result["loss"] == pytest.approx(result["loss_floor"], abs=0.02)
    assert result["balanced_accuracy"] == pytest.approx(0.5, abs=0.01)


def test_the_weight_scales_its_gradient_and_zero_leaves_the_hosts() -> None:
    values = trial(drop_ratio=0.5).model_dump(mode="json")
    values |= {"views": [{"size": 16}] * 2, "objective": {"alignment": {}, "mismatch_detection": {}}}
    config = TrialConfig.model_validate(values)
    model = build_model(config).double()
    views = (noise(0, 6).double(), noise(1, 6).double())

    def gradients(host: float, weight: float) -> dict[str, Tensor]:
        model.zero_grad()
        terms = {"alignment": Alignment(weight=host), "mismatch_detection": MismatchDetection(weight=weight)}
        Objective(terms)(model(views, torch.arange(6), 0, 0))[0].backward()  # type: ignore[no-untyped-call]
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    alone, detection = gradients(1.0, 0.0), gradients(0.0, 1.0)
    for weight in (0.1, 3.0):
        both = gradients(1.0, weight)
        for name, gradient in both.items():
            torch.testing.assert_close(gradient - alone[name], weight * detection[name], rtol=0, atol=1e-12)
    assert float(alone["mismatch_head.weight"].abs().max()) == 0.0

    # The same weights and masks, in a model that never had a head.
    values["objective"]["mismatch_detection"]["weight"] = 0.0
    bare = build_model(TrialConfig.model_validate(values)).double()
    Objective({"alignment": Alignment()})(bare(views, torch.arange(6), 0, 0))[0].backward()  # type: ignore[no-untyped-call]
    for name, parameter in bare.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, alone[name]), name


@pytest.mark.parametrize(
    ("masking", "message"),
    [
        (None, r"objective\.found .*mismatch_probability above 0.*is None.*objective\.found\.weight=0"),
        ({"mismatch_probability": 0.0}, "mismatch_probability above 0"),
        ({"mismatch_probability": 0.2, "donor_rule": "tail", "drop_ratio": 0.0}, "makes none with drop_ratio=0"),
    ],
)
def test_detection_of_what_can_not_happen_is_refused_with_a_remedy(masking: Any, message: str) -> None:
    values = trial().model_dump(mode="json")
    values["model"]["masking"] = masking
    values["objective"] = {"found": {"kind": "mismatch_detection"}}
    with pytest.raises(ValueError, match=message):
        TrialConfig.model_validate(values)
    values["objective"] = {"found": {"kind": "mismatch_detection", "weight": 0.0}, "mmd": {}}
    TrialConfig.model_validate(values)


def test_outputs_without_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"set model\.masking"):
        DETECTION(Outputs((), (), None, None, torch.arange(2), seed=0, step=0))
