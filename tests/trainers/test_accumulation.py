"""Parts of a batch, one by one, give the whole batch's losses and gradients: for each term, and whole runs.

Data live in memory, as in tests/trainers/test_train.py.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.terms.test_every_term import TERMS
from tests.trainers.test_train import (
    AUTOENCODER,
    DINO,
    MASKED,
    Recorder,
    assert_same_run,
    config,
    fingerprint,
    run,
    whole_run,
)
from tests.two_processes import TwoProcesses
from trainers import accumulation
from trainers.config import TrialConfig
from trainers.contracts import everything
from trainers.model import Model, build_model
from trainers.objective import Objective

LAYER: dict[str, Any] = {
    "model": {"norm": "layer", "teacher": {"momentum": 0.9}, "predictor": {"widths": [16, 8]}},
    "objective": {"alignment": {}, "mmd": {}, "prediction": {}},
    "optimizer": {"kind": "lars", "learning_rate": 2.0, "clip_norm": 0.5},
}
BATCH_NORM: dict[str, Any] = {
    "model": {"teacher": {"momentum": 0.9}, "predictor": {"widths": [16, 8]}},
    "objective": {"alignment": {}, "mmd": {}, "prediction": {}},
    "accumulate_batch_norm": "per_part",
}
EXACT: dict[str, dict[str, Any]] = {
    "layer norm": LAYER,
    "masked transformer": {**MASKED, "model": {**MASKED["model"], "projector": {"widths": [8]}}},
    "masked autoencoder": {**AUTOENCODER, "model": {**AUTOENCODER["model"], "projector": {"widths": [8]}}},
    "dino, multi-crop": DINO,
}
exact = pytest.mark.parametrize("changes", EXACT.values(), ids=EXACT)


def gradients_of(model: nn.Module) -> Tensor:
    """Of all parameters, as one vector of float64; they are taken away."""
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    flat = torch.cat([gradient.flatten() for gradient in found]).double()
    model.zero_grad(set_to_none=True)
    return flat


@pytest.mark.parametrize(
    ("dtype", "count", "tolerance"), [(torch.float64, 4, 1e-10), (torch.float32, 2, 1e-5)], ids=["64", "32"]
)
def test_parts_give_each_terms_value_and_gradient_over_the_whole_batch(
    dtype: torch.dtype, count: int, tolerance: float
) -> None:
    trial = everything()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator, dtype=torch.float64)
    views = tuple(images + 0.5 * torch.randn(images.shape, generator=generator, dtype=torch.float64) for _ in range(3))
    ids = torch.arange(100, 116)
    exactly: Model = build_model(trial).double().train()
    tested = copy.deepcopy(exactly).to(dtype)
    at_once = copy.deepcopy(tested)
    outputs = exactly(views, ids, 3, 7)
    rounded = at_once(tuple(view.to(dtype) for view in views), ids, 3, 7)
    parts = accumulation.parts_of([view.to(dtype) for view in views], ids, count)
    whole = accumulation.read_by_terms(tested, parts, seed=3, step=7)
    assert torch.equal(whole.sample_ids, ids)
    torch.testing.assert_close(tested.center, exactly.center, check_dtype=False)
    for term in {type(term): term for term in reversed(TERMS)}.values():  # each once, as it is by default
        objective = Objective({"only": term})
        # In float32 the reference is float64, as in the contract of two workers: the whole batch is as far from it.
        value, _ = objective(outputs)
        value.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        expected = gradients_of(exactly)
        objective(rounded)[0].backward(retain_graph=True)  # type: ignore[no-untyped-call]
        rounding = float((gradients_of(at_once) - expected).norm())
        found, _ = objective(whole)
        found.backward()  # type: ignore[no-untyped-call]
        accumulation.send_back(tested, parts, whole, nullcontext())
        gradient = gradients_of(tested)
        for leaf in accumulation.leaves(whole):
            leaf.grad = None
        assert found.item() == pytest.approx(value.item(), rel=tolerance, abs=tolerance), repr(term)
        assert (gradient - expected).norm() <= max(tolerance * expected.norm(), 2 * rounding), repr(term)


@exact
def test_a_run_in_parts_is_the_run_of_whole_batches(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = whole_run(str(tmp_path / "whole"), config(**changes).model_dump(mode="json"))
    in_parts = whole_run(str(tmp_path / "parts"), config(**changes, accumulate=3).model_dump(mode="json"))
    assert_same_run(in_parts, whole, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("changes", [DINO, BATCH_NORM], ids=["dino", "batch norm"])
def test_two_workers_in_parts_train_the_model_of_one_in_parts(
    two_processes: TwoProcesses, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """With batch norm too: a part has the same images on any number of workers."""
    trial = config(**changes, accumulate=3, epochs=1).model_dump(mode="json")
    alone = whole_run(str(tmp_path / "one"), trial)
    for found in two_processes.run(whole_run, str(tmp_path / "two"), trial):
        assert_same_run(found, alone)


def test_parameters_that_no_term_reaches_do_not_stall_two_workers_in_parts(
    two_processes: TwoProcesses, tmp_path: Path
) -> None:
    changes = {**BATCH_NORM, "objective": {"alignment": {}, "mmd": {}, "prediction": {"weight": 0.0}}}
    trial = config(**changes, accumulate=2, epochs=1).model_dump(mode="json")
    for outcome, _, _ in two_processes.run(whole_run, str(tmp_path), trial):
        assert outcome.state == "complete"


@pytest.mark.parametrize("changes", [DINO, BATCH_NORM], ids=["dino", "batch norm"])
def test_a_resumed_run_in_parts_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    trial = config(**changes, accumulate=3)
    whole = Recorder()
    run(tmp_path / "whole", whole, trial)
    first, second = Recorder(stop_at=1), Recorder()
    run(tmp_path / "cut", first, trial)
    run(tmp_path / "cut", second, trial, resume=first.checkpoint)
    assert fingerprint(second.checkpoint) == fingerprint(whole.checkpoint)


def test_a_term_of_weight_zero_is_a_missing_term_in_parts_too(tmp_path: Path) -> None:
    prints = []
    two: dict[str, Any] = {"alignment": {}, "mmd": {}}
    for objective in (two, {**two, "covariance": {"weight": 0.0}}):
        recorder = Recorder()
        trial = config(model={"norm": "layer"}, accumulate=2, epochs=1, objective=objective)
        run(tmp_path / str(len(objective)), recorder, trial)
        prints.append(fingerprint(recorder.checkpoint))
    assert prints[0] == prints[1]


def test_statistics_move_once_for_each_part_and_the_teacher_sees_each_part_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows: list[tuple[int, bool]] = []
    original = Model.forward

    def watched(self: Model, views: Any, *arguments: Any, **keywords: Any) -> Any:
        rows.append((len(views[0]), keywords.get("with_targets", True)))
        return original(self, views, *arguments, **keywords)

    monkeypatch.setattr(Model, "forward", watched)
    _, _, model = whole_run(str(tmp_path), config(**BATCH_NORM, accumulate=3, epochs=1).model_dump(mode="json"))
    assert rows == [*[(4, True)] * 3, *[(4, False)] * 3] * 3
    assert int(model["backbone.stem.1.num_batches_tracked"]) == 3 * 3 * 2, "steps, parts, views"


def test_batch_norm_in_parts_is_another_network_than_in_whole_batches(tmp_path: Path) -> None:
    losses = []
    for count in (1, 3):
        _, reports, _ = whole_run(
            str(tmp_path / str(count)), config(**BATCH_NORM, accumulate=count).model_dump(mode="json")
        )
        losses.append(reports[0].metrics["loss/total"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accumulate": 5}, "batch_size must be a multiple of accumulate=5, but is 12; change one of them"),
        (
            {"accumulate": 2},
            r"accumulate=2 is exact without batch norm only, .*, but model.backbone.kind=resnet_tiny has it; set "
            "model.norm=layer, or accept them with accumulate_batch_norm=per_part",
        ),
        ({"accumulate": 2, **MASKED}, "but model.projector has it; set model.norm=layer"),
        (
            {
                "accumulate": 2,
                "model": {"norm": "layer", "prototypes": {"count": 4, "queue": 24}},
                "objective": {"swav": {}},
            },
            "accumulate=2 goes through the batch in parts, and model.prototypes.queue=24 keeps whole batches",
        ),
    ],
)
def test_what_would_not_be_exact_is_refused_unless_it_is_asked_for(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_batch_norm_that_only_the_network_tells_of_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.BatchNorm2d(3)

    with pytest.raises(ValueError, match=r"but the network has one, inner; set model\.norm=layer"):
        accumulation.check_batch_norm(Hidden(), config(model={"norm": "layer"}, accumulate=2))
    accumulation.check_batch_norm(Hidden(), config(accumulate=2, accumulate_batch_norm="per_part"))
    accumulation.check_batch_norm(Hidden(), config())


def test_workers_that_cannot_share_the_parts_are_refused() -> None:
    trial = config(model={"norm": "layer"}, accumulate=4)
    trial.check_workers(1)
    with pytest.raises(ValueError, match=r"must divide the batch of a worker, which is 6 \(2 workers\), but is 4"):
        trial.check_workers(2)


def test_a_config_without_the_field_trains_whole_batches() -> None:
    values = config().model_dump(mode="json")
    del values["accumulate"], values["accumulate_batch_norm"]
    assert TrialConfig.model_validate(values) == config()
