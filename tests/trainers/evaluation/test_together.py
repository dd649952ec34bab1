"""Two ranks judge an encoder as one does: frozen features to the bit, fine-tuning within rounding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.annotated import Drawn, pictures, write_voc
from tests.trainers.evaluation.test_finetune import VIT, subject
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.data import datasets
from trainers.data.loader import Loaders
from trainers.data.manifest import Dataset, open_dataset
from trainers.evaluation import detector, finetuning, together
from trainers.evaluation.features import Store
from trainers.evaluation.protocol import Data, Protocol, ProtocolResult
from trainers.evaluation.protocols.dense import Dense
from trainers.evaluation.protocols.detection import Detection, Detector, Segmentation
from trainers.evaluation.protocols.finetune import LowLabelsFinetune
from trainers.evaluation.protocols.knn import Knn
from trainers.evaluation.protocols.linear import Linear
from trainers.evaluation.protocols.multilabel import Multilabel
from trainers.evaluation.protocols.robustness import Robustness
from trainers.evaluation.subject import Subject

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("together"))


def opened(folder: Path, cache: Path, annotations: Path | None, model: dict[str, Any]) -> tuple[Subject, Data]:
    own = Data(open_dataset(folder), "digits", "select", Loaders(), Store(cache))
    its = subject(own, **model)
    if annotations is None:
        return its, own
    return its, Data(None, "annotated", "report", Loaders(), own.store, annotations=annotations)


def judged(
    protocol: Protocol, folder: Path, cache: Path, annotations: Path | None = None, **model: Any
) -> ProtocolResult | None:
    """What rank 0 finds."""
    its, data = opened(folder, cache, annotations, model)
    if dist.rank() > 0:
        together.serve([its], [data], device=CPU)
        return None
    found = protocol.run(its, data, seeds=(0,), device=CPU, report=lambda what, done: None)
    together.over()
    return found


def both(
    pool: TwoProcesses, protocol: Protocol, digits: Dataset, tmp_path: Path, *more: Any, **model: Any
) -> tuple[ProtocolResult, ProtocolResult]:
    """The result of one rank and that of two, without the seconds they took."""
    one = judged(protocol, digits.folder, tmp_path / "one", *more, **model)
    two, none = pool.run(judged, protocol, digits.folder, tmp_path / "two", *more, **model)
    assert none is None
    assert one is not None
    assert two is not None
    return one.model_copy(update={"seconds": 0.0}), two.model_copy(update={"seconds": 0.0})


@pytest.mark.ffcv
@pytest.mark.parametrize(
    "protocol",
    [
        Knn(neighbors=(5,), crop_pct=0.875),
        Linear(solver="sgd", epochs=1, learning_rates=(0.1, 1.0)),
        pytest.param(
            Robustness(
                shifts=(0.25,), blurs=(), gray=False, resolutions=(), regularizations=(0.01,), source="embedding"
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["knn", "linear", "robustness"],
)
def test_protocols_on_frozen_features_give_the_same_to_the_bit(
    protocol: Protocol, two_processes: TwoProcesses, digits: Dataset, tmp_path: Path
) -> None:
    one, two = both(two_processes, protocol, digits, tmp_path)
    assert one == two
    files = sorted(path.name for path in (tmp_path / "one").glob("*.npy"))
    assert files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("protocol", [Multilabel(regularizations=(0.01,)), Dense(regularizations=(0.01,), neighbors=3)])
def test_annotated_images_are_divided_as_well(
    protocol: Protocol, two_processes: TwoProcesses, digits: Dataset, tmp_path: Path
) -> None:
    place = write_voc(tmp_path / "voc", pictures(35), pictures(18, seed=1))
    one, two = both(two_processes, protocol, digits, tmp_path, place)
    assert one == two


# --- fine-tuning -----------------------------------------------------------------------------------------------------

TOLERANCE = 1e-4
"""Of class scores that are about 1."""
SHORT: dict[str, Any] = {"epochs": 2, "flip": 0.0, "crop_scale": (0.6, 1.0), "regularization": 10.0}
"""The head starts with small weights, as large ones make much of a rounding."""


def scores(
    folder: Path, cache: Path, changes: dict[str, Any], count: int, model: dict[str, Any]
) -> np.ndarray[Any, Any]:
    its, data = opened(folder, cache, None, model)
    found = finetuning.tuned_scores(
        its,
        data,
        device=CPU,
        report=lambda done: None,
        ids=data.fit_ids[:count],
        recipe=LowLabelsFinetune(**SHORT | changes).recipe(its.kind),
        rate=0.03,
        seed=0,
        asked=data.score_ids,
        file="search",
    )
    assert isinstance(found, torch.Tensor)
    return found.numpy()


@pytest.mark.ffcv
@pytest.mark.parametrize(
    ("changes", "count", "model"),
    [
        ({"batch_size": 32}, 70, {}),
        ({"batch_size": 32, "mixup": 0.4, "label_smoothing": 0.1}, 70, {}),
        ({}, 41, {}),  # an odd batch: one rank has a row more
        pytest.param({"batch_size": 32, "norm": "frozen", "head": "zero"}, 70, {}, marks=pytest.mark.slow),
        pytest.param({"batch_size": 32, "mixup": 0.4}, 35, {"backbone": VIT}, marks=pytest.mark.slow),
    ],
    ids=["batch norm", "mixup", "odd", "frozen", "vit"],
)
def test_fine_tuning_is_the_same_within_rounding(
    changes: dict[str, Any],
    count: int,
    model: dict[str, Any],
    two_processes: TwoProcesses,
    digits: Dataset,
    tmp_path: Path,
) -> None:
    arguments = (digits.folder, tmp_path, changes, count, model)
    one = scores(*arguments)
    two, none = two_processes.run(scores, *arguments)
    assert none.shape == (0, 10)
    shorter = scores(digits.folder, tmp_path, changes | {"epochs": 1}, count, model)
    assert np.abs(one - shorter).max() > 100 * TOLERANCE, "a training that does nothing would tell nothing"
    np.testing.assert_allclose(two, one, rtol=0, atol=TOLERANCE)


def diverging(folder: Path, cache: Path) -> str:
    its, data = opened(folder, cache, None, {})
    found = finetuning.tuned_scores(
        its,
        data,
        device=CPU,
        report=lambda done: None,
        ids=data.fit_ids[:64],
        recipe=LowLabelsFinetune(**SHORT | {"epochs": 20}).recipe(its.kind),
        rate=math.inf,
        seed=0,
        asked=data.score_ids,
        file="search",
    )
    return type(found).__name__


@pytest.mark.ffcv
def test_all_ranks_find_that_a_training_diverges(two_processes: TwoProcesses, digits: Dataset, tmp_path: Path) -> None:
    assert two_processes.run(diverging, digits.folder, tmp_path) == ["DivergedError"] * 2


def refused(folder: Path, store: Path) -> str:
    """Why a batch of one image is refused: said to the rank, whose processes go on."""
    with pytest.raises(ValueError, match="image") as error:
        scores(folder, store, {}, 1, {})
    return str(error.value)


def test_a_batch_without_an_image_for_each_rank_is_refused(
    two_processes: TwoProcesses, digits: Dataset, tmp_path: Path
) -> None:
    for said in two_processes.run(refused, digits.folder, tmp_path):
        assert "a batch must have an image for each worker, but is of 1 images" in said


# --- detectors -------------------------------------------------------------------------------------------------------

DETECTOR: dict[str, Any] = {
    "warmup": 1,
    "sides": (48, 64),
    "longest": 80,
    "steps": 3,
    "batch_size": 4,
    "pyramid_width": 16,
    "head_width": 32,
    "samples": 32,
    "proposals": 100,
    "learning_rate": 0.01,
}


def wider(picture: Drawn) -> Drawn:
    sides = ((0, 0), (0, 16))
    masks = tuple(np.pad(mask, sides) for mask in picture.masks)
    return picture._replace(pixels=np.pad(picture.pixels, (*sides, (0, 0))), masks=masks)


def trained_detector(folder: Path, place: Path, cache: Path, protocol: Detector) -> tuple[dict[str, Any], float]:
    """Its parameters, and a draw that shows whether the generator went the same way."""
    its, _ = opened(folder, cache, place, {"backbone": {"kind": "resnet_tiny", "width": 8}})
    parts, settings = protocol.parts(place, "report"), protocol.settings()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = detector.build(its, settings, parts.class_count)
        detector.train(network, parts.fit, settings, seed=0, device=CPU, threads=1, report=lambda done: None)
        draw = float(torch.rand(1))
    return {name: value.numpy() for name, value in network.state_dict().items()}, draw


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(Detection(**DETECTOR), marks=pytest.mark.slow),
        Segmentation(**DETECTOR, norm="batch"),
        pytest.param(Detection(**DETECTOR, neck="fpn", frozen=True), marks=pytest.mark.slow),
    ],
    ids=["boxes", "masks, batch norm", "frozen"],
)
def test_a_detector_is_trained_the_same_within_rounding(
    protocol: Detector, two_processes: TwoProcesses, digits: Dataset, tmp_path: Path
) -> None:
    shapes = [*pictures(4), *map(wider, pictures(4, seed=1))]  # padded to the widest, on whichever rank that is
    place = write_voc(tmp_path / "voc", shapes, pictures(2, seed=2))
    arguments = (digits.folder, place, tmp_path / "cache", protocol)
    one, draw = trained_detector(*arguments)
    for found, drawn in two_processes.run(trained_detector, *arguments):
        assert drawn == draw
        assert found.keys() == one.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, one[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.ffcv
def test_ranks_take_turns_in_detecting(two_processes: TwoProcesses, digits: Dataset, tmp_path: Path) -> None:
    place = write_voc(tmp_path / "voc", pictures(4), pictures(3, seed=1))
    still = Detection(**DETECTOR | {"steps": 1, "learning_rate": 0.0})
    one, two = both(two_processes, still, digits, tmp_path, place, backbone={"kind": "resnet_tiny", "width": 8})
    assert one == two
