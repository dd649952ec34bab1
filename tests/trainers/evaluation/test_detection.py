from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.annotated import pictures, write_coco, write_voc
from trainers.config import TrialConfig
from trainers.data.loader import Loaders
from trainers.encoder import Preparation
from trainers.evaluation import detector
from trainers.evaluation.detector import anchor_sizes
from trainers.evaluation.features import Store
from trainers.evaluation.protocol import Data, ProtocolResult
from trainers.evaluation.protocols.dense import Dense
from trainers.evaluation.protocols.detection import Detection, Detector, Segmentation
from trainers.evaluation.stages import maps_of, stages_of
from trainers.evaluation.subject import Subject, untrained

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
GRAY = Preparation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
SMALL: dict[str, Any] = {
    "warmup": 1,
    "sides": (SIZE,),
    "longest": SIZE,
    "steps": 2,
    "batch_size": 2,
    "pyramid_width": 16,
    "head_width": 32,
    "samples": 32,
    "proposals": 100,
}


def subject(**backbone: Any) -> Subject:
    """An untrained network for images of 64 pixels."""
    values = {
        "views": [{"size": SIZE}, {"size": SIZE}],
        "model": {
            "backbone": backbone or {"kind": "resnet_tiny", "width": 16, "zero_init_residual": False},
            "projector": {"widths": [12, 8]},
        },
        "objective": {"alignment": {}, "mmd": {}},
    }
    return untrained(TrialConfig.model_validate(values), GRAY)


VIT = {"kind": "vit_micro", "patch_size": 8}


def data_at(place: Path, tmp_path: Path) -> Data:
    return Data(None, place.name, "report", Loaders(), Store(tmp_path / "store"), annotations=place)


def evaluated(protocol: Detector | Dense, data: Data, its: Subject | None = None, seeds: int = 1) -> ProtocolResult:
    return protocol.run(
        its or subject(),
        data,
        seeds=range(seeds),
        device=torch.device("cpu"),
        report=lambda what, done: None,
    )


@pytest.fixture
def voc(tmp_path: Path) -> Data:
    return data_at(write_voc(tmp_path / "voc", pictures(4), pictures(3, seed=1)), tmp_path)


@pytest.fixture
def coco(tmp_path: Path) -> Data:
    return data_at(write_coco(tmp_path / "coco", pictures(4), pictures(3, seed=1)), tmp_path)


# --- the network -----------------------------------------------------------------------------------------------------


def test_the_cut_of_our_network_gives_the_features_of_torchvisions_with_the_same_weights() -> None:
    import torchvision  # type: ignore[import-untyped]
    from torchvision.models._utils import IntermediateLayerGetter  # type: ignore[import-untyped]

    ours = subject(kind="resnet18", stem="imagenet", zero_init_residual=False)
    theirs = torchvision.models.resnet18(weights=None, num_classes=7)
    theirs.load_state_dict(ours.network.state_dict(), strict=False)
    layers = IntermediateLayerGetter(theirs.eval(), {"layer3": "c4", "layer4": "c5"})
    found = stages_of(ours)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = layers(images)
        maps = found.stem(images)
        for stage in found.stages[:-1]:
            maps = stage(maps)
        torch.testing.assert_close(maps, wanted["c4"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.stages[-1](maps), wanted["c5"], rtol=0, atol=1e-5)
        torch.testing.assert_close(maps_of(ours.network, "resnet", images), wanted["c5"], rtol=0, atol=1e-5)
    assert (found.strides[-2:], found.channels[-1]) == ((16, 32), theirs.fc.in_features)


@pytest.mark.parametrize("backbone", [{}, {"kind": "resnet18"}, VIT])
def test_the_last_maps_average_to_the_features(backbone: dict[str, Any]) -> None:
    its = subject(**backbone)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = maps_of(its.network, its.kind, images).mean((2, 3))
        torch.testing.assert_close(mean, its.sources["mean" if its.kind == "vit" else "features"](images))


def test_anchors_are_those_of_the_papers_at_800_and_in_proportion_below() -> None:
    assert anchor_sizes(800, 5) == pytest.approx((32, 64, 128, 256, 512))
    assert anchor_sizes(64, 5) == pytest.approx((2.56, 5.12, 10.24, 20.48, 40.96))


@pytest.mark.parametrize("neck", ["c4", "fpn"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_network_stays_as_it_was_and_a_tuned_one_moves(neck: str, frozen: bool, voc: Data) -> None:
    its = subject()
    parts = Detection().parts(voc.annotations, "report")
    protocol = Detection(neck=cast(Any, neck), frozen=frozen, **SMALL)
    settings = protocol.settings()
    torch.manual_seed(0)
    network = detector.build(its, settings, parts.class_count)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector.train(
        network, parts.fit, settings, seed=0, device=torch.device("cpu"), threads=1, report=lambda done: None
    )
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    pretrained = {name for name in before if ".stem." in name or ".stages." in name or ".stage." in name}
    assert moved - pretrained
    assert bool(moved & pretrained) != frozen
    assert not any("running" in name for name in moved)


# --- protocols -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_detection_gives_cocos_and_vocs_figures_with_intervals(neck: str, voc: Data) -> None:
    made = evaluated(Detection(neck=cast(Any, neck), **SMALL), voc)
    assert [score.measure for score in made.scores] == ["ap", "ap50", "ap75", "voc/ap50", "voc/ap50_11"]
    assert all(score.interval is not None and score.count == 3 for score in made.scores)
    assert [one.name for one in made.classes] == ["disc", "square"]
    assert (made.fitted, made.split) == (4, "report")
    assert ProtocolResult.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_segmentation_gives_figures_of_boxes_and_masks(neck: str, coco: Data) -> None:
    made = evaluated(Segmentation(neck=cast(Any, neck), **SMALL), coco)
    assert [score.measure for score in made.scores] == [
        "ap", "ap50", "ap75", "mask/ap", "mask/ap50", "mask/ap75",
    ]  # fmt: skip


def test_a_seed_gives_the_same_numbers_twice_and_another_one_others(coco: Data, tmp_path: Path) -> None:
    protocol = Detection(neck="fpn", **SMALL | {"steps": 3, "learning_rate": 0.05})
    parts = protocol.parts(coco.annotations, "report")
    said: list[Any] = []
    for seed in (0, 0, 1):
        torch.manual_seed(100 + len(said))
        found = protocol._detected(
            subject(),
            data_at(cast(Path, coco.annotations), tmp_path / str(len(said))),
            parts,
            seed=seed,
            device=torch.device("cpu"),
            report=lambda what, done: None,
            said="",
        )
        said.append(np.concatenate([one.scores for one in found]))
    np.testing.assert_array_equal(said[0], said[1])
    assert said[0].shape != said[2].shape or not np.array_equal(said[0], said[2])


def test_a_finished_seed_is_not_trained_again(coco: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = Segmentation(neck="fpn", **SMALL)
    first = evaluated(protocol, coco)
    trained: list[int] = []
    train = detector.train

    def counted(*values: Any, seed: int, **more: Any) -> None:
        trained.append(seed)
        train(*values, seed=seed, **more)

    monkeypatch.setattr(detector, "train", counted)
    assert evaluated(protocol, coco).scores == first.scores
    assert trained == []
    assert evaluated(protocol, coco, seeds=2).score("ap").per_seed[0] == first.score("ap").value
    assert trained == [1]


def test_a_transformer_is_told_to_take_the_dense_protocol(coco: Data) -> None:
    with pytest.raises(ValueError, match=r"needs a residual network .* is a vision transformer; .*`dense`"):
        evaluated(Detection(**SMALL), coco, subject(**VIT))


def test_an_encoder_that_has_diverged_is_told_before_anything_is_trained() -> None:
    its = subject()
    next(its.network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the weights of .* must be finite, but some are not; the encoder"):
        Detection().check_subject(its)


def test_a_loss_without_bounds_is_told_with_the_learning_rate(coco: Data) -> None:
    with pytest.raises(ValueError, match=r"loss must be finite, but is not at step \d+ of 9 .* lower it with"):
        evaluated(Detection(neck="fpn", **SMALL | {"learning_rate": 1e12, "steps": 9}), coco)


def test_what_cannot_be_fitted_or_scored_is_refused(tmp_path: Path) -> None:
    squares = [picture for picture in pictures(40) if set(picture.names) == {"square"}]
    both = [picture for picture in pictures(40) if set(picture.names) == {"square", "disc"}]
    data = data_at(write_voc(tmp_path / "one", squares[:3], both[:2]), tmp_path)
    with pytest.raises(ValueError, match=r"an object of each class in the 3 images that are fitted on, .*'disc'"):
        evaluated(Detection(**SMALL), data)
    with pytest.raises(ValueError, match="needs images with boxes and masks, in VOC's or COCO's format"):
        evaluated(Segmentation(**SMALL), Data(None, "x", "select", Loaders(), Store(tmp_path)))


@pytest.mark.parametrize("backbone", [{}, VIT])
def test_a_probe_of_patches_and_their_neighbors_tell_pixels_above_chance(
    backbone: dict[str, Any], tmp_path: Path
) -> None:
    data = data_at(write_coco(tmp_path / "coco", pictures(24), pictures(8, seed=1)), tmp_path)
    made = evaluated(Dense(), data, subject(**backbone))
    assert [one.name for one in made.classes] == ["ground", "disc", "square"]
    ground = made.classes[0].count / sum(one.count for one in made.classes)
    for way in ("linear", "knn"):
        score = made.score(f"{way}/miou")
        assert score.interval is not None
        assert score.value > ground / 3 + 0.1  # what calling everything ground has
        assert made.score(f"{way}/pixels").value > ground


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "measure"), [(Detection, "ap50"), (Segmentation, "mask/ap50")])
def test_small_drawn_sets_train_detectors_above_chance(protocol: type[Detector], measure: str, tmp_path: Path) -> None:
    data = data_at(write_coco(tmp_path / "coco", pictures(120), pictures(30, seed=1)), tmp_path)
    numbers = SMALL | {
        "warmup": 20,
        "steps": 150,
        "batch_size": 4,
        "learning_rate": 0.01,
        "pyramid_width": 32,
        "head_width": 128,
        "samples": 64,
    }
    made = evaluated(protocol(neck=cast(Any, "fpn"), **numbers), data)
    score = made.score(measure)
    assert score.value > 0.3
    assert score.interval is not None
    assert score.interval[0] > 0.1
