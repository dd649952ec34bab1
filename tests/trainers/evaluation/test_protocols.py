"""Each protocol on digits' pixels: what it says, and what it never looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainers.evaluation import small
from trainers.evaluation import changed, frozen
from trainers.evaluation.protocol import Protocol, ProtocolResult
from trainers.evaluation.protocols import PROTOCOLS
from trainers.evaluation.protocols.knn import Knn
from trainers.evaluation.protocols.linear import Linear
from trainers.evaluation.protocols.low_labels import LowLabels
from trainers.evaluation.protocols.robustness import Robustness
from trainers.evaluation.protocols.transfer import Transfer

SMALL = (1e-2, 1e-1)


def run(protocol: Protocol, folder: Path, *, seeds: int = 1, digits: small.Digits | None = None) -> ProtocolResult:
    data = small.data(digits or small.Digits(), folder)
    return protocol.run(small.subject(), data, seeds=range(seeds), device=small.CPU, report=small.silent)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_protocol_is_a_value_with_its_name_and_version(name: str) -> None:
    made = PROTOCOLS[name].model_validate({})
    assert (made.name, made.version) == (name, 1)
    assert PROTOCOLS[name].model_validate(made.model_dump(mode="json")) == made


def test_linear_by_lbfgs_chooses_on_a_part_of_train_and_scores_on_select(tmp_path: Path) -> None:
    digits = small.Digits()
    found = run(Linear(regularizations=SMALL), tmp_path, seeds=2, digits=digits)
    assert found.score("top1").value > 0.85
    assert found.score("top5").value > found.score("top1").value
    assert (found.score("top1").count, found.fitted, found.split) == (500, 900, "select")
    assert {one["chosen"] for one in found.chosen} <= set(SMALL)
    assert [one["images"] for one in found.chosen] == [90, 90]
    assert sum(count for _, _, count in found.confusion) == 500
    assert {file for file, _ in digits.looked_at} == {"search"}  # never report
    assert ProtocolResult.model_validate_json(found.model_dump_json()) == found


def test_features_that_are_too_many_to_be_held_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = run(Linear(regularizations=SMALL), tmp_path)
    monkeypatch.setattr(frozen, "HELD_BYTES", 1000)
    read = run(Linear(regularizations=SMALL), tmp_path)
    assert read.score("top1").value == pytest.approx(held.score("top1").value, abs=0.005)


@pytest.mark.parametrize("augmentation", ["crop_flip", "none"])
def test_linear_by_sgd_trains_all_rates_at_once(tmp_path: Path, augmentation: str) -> None:
    protocol = Linear(
        solver="sgd",
        epochs=8,
        batch_size=100,
        learning_rates=(1e-3, 1.0),
        augmentation=augmentation,
    )
    found = run(protocol, tmp_path)
    assert found.chosen[0]["chosen"] == 1.0
    assert found.score("top1").value > 0.8
    assert any("end of the grid" in note for note in found.notes)


def test_knn_has_each_k_weighted_and_not(tmp_path: Path) -> None:
    found = run(Knn(neighbors=(5, 2000)), tmp_path, seeds=3)
    assert found.seeds == (0,)  # nothing is drawn
    assert found.score("knn5/top1").value > 0.9
    assert found.score("knn5/unweighted/top1").value > 0.9
    assert found.score("knn2000/unweighted/top1").value < 0.3  # all vote: the largest class
    assert found.notes == ("with k = 2000 all 900 images vote, as there are no more",)


def test_few_labels_are_stratified_and_nested_and_drawn_by_seed(tmp_path: Path) -> None:
    digits = small.Digits()
    found = run(LowLabels(shares=("2%", 200), regularizations=SMALL), tmp_path, seeds=2, digits=digits)
    assert found.score("200/top1").value > found.score("2%/top1").value > 0.4
    assert len(set(found.score("2%/top1").per_seed)) == 2
    assert [(one["share"], one["images"]) for one in found.chosen[:3]] == [("2%", 0), ("2%", 0), (200, 40)]
    assert any("too few labels" in note for note in found.notes)


def test_fewer_labels_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one for each class"):
        LowLabels(shares=("1%",)).check(small.data(small.Digits(), tmp_path).dataset)


def test_changed_images_are_harder_and_features_of_them_are_kept_apart(tmp_path: Path) -> None:
    found = run(Robustness(regularizations=(1e-2,), resolutions=(0.25,)), tmp_path)
    plain = found.score("plain/top1").value
    assert found.score("shift0.25/top1").value < plain - 0.2
    assert found.score("resolution0.25/top1").value < plain
    assert found.score("gray/top1").value == pytest.approx(plain, abs=0.01)  # digits are gray
    same = run(Robustness(regularizations=(1e-2,), resolutions=(0.25,), fitted_on="changed"), tmp_path)
    assert same.score("shift0.25/top1").value > found.score("shift0.25/top1").value


@pytest.mark.parametrize(
    "protocol",
    [
        Knn(neighbors=(5,)),
        Linear(regularizations=SMALL),
        LowLabels(shares=("20%",), regularizations=SMALL),
        Robustness(regularizations=SMALL, shifts=(), blurs=(), gray=False, resolutions=()),
        Transfer(regularizations=SMALL),
    ],
    ids=lambda protocol: protocol.name,
)
def test_a_crop_is_looked_at_alone_and_its_features_are_kept_apart(protocol: Protocol, tmp_path: Path) -> None:
    digits = small.Digits()
    whole, crop = (
        run(protocol.model_copy(update={"crop_pct": part}), tmp_path, digits=digits).scores[0].value
        for part in (1.0, 0.5)
    )
    assert crop < whole - 0.02  # a quarter of a digit tells less
    passes = len(digits.looked_at)
    assert passes == 4  # fitted on and scored, of both
    assert run(protocol.model_copy(update={"crop_pct": 0.5}), tmp_path, digits=digits).scores[0].value == crop
    assert len(digits.looked_at) == passes


def test_transfer_is_a_regression_on_a_fine_grid(tmp_path: Path) -> None:
    found = run(Transfer(regularizations=SMALL), tmp_path)
    assert found.name == "transfer"
    assert found.score("mean_class").value > 0.85


def test_a_source_that_a_subject_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source must be one of features"):
        run(Knn(source="teacher"), tmp_path)


def test_changes_are_what_they_are_called() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = changed.shifted(images, share=0.25)
    assert torch.equal(moved[..., 2:, 2:], images[..., :6, :6])
    assert torch.equal(moved[..., :2, 2:], images[..., 1:3, :6].flip(-2))  # mirrored: no edge that is not in the image
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(changed.blurred(flat, share=0.05), flat)
    torch.testing.assert_close(changed.coarse(flat, share=0.5), flat)
    assert changed.blurred(images, share=0.1).std() < images.std()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    gray = changed.grayed(images, mean=mean, std=std)
    pixels = gray * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    torch.testing.assert_close(pixels[:, 0], pixels[:, 2])
    luma = sum(w * (images[:, c] * std[c] + mean[c]) for c, w in enumerate(changed.LUMA))
    np.testing.assert_allclose(pixels[:, 1], luma, rtol=0, atol=1e-6)
