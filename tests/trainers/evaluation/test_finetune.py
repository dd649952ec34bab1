from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.data.datasets import Dataset
from trainers.data.loader import Loaders
from trainers.encoder import Preparation
from trainers.evaluation import finetuning
from trainers.evaluation.features import Store
from trainers.evaluation.finetuning import layer_shares, mixed, rate_at
from trainers.evaluation.protocol import Data, ProtocolResult
from trainers.evaluation.protocols.finetune import Finetune, LowLabelsFinetune, Tuning
from trainers.evaluation.protocols.low_labels import LowLabels, drawn
from trainers.evaluation.regression import fit_linear
from trainers.evaluation.subject import Subject, untrained

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 16
SHORT: dict[str, Any] = {"epochs": 1, "shares": ("20%",), "rates": (0.03,), "flip": 0.0, "crop_scale": (0.6, 1.0)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("finetune"))


@pytest.fixture
def data(digits: Dataset, tmp_path: Path) -> Data:
    return Data(digits, "digits", "select", Loaders(), Store(tmp_path))


def subject(data: Data, **model: Any) -> Subject:
    values = {
        "views": [{"size": SIZE}, {"size": SIZE}],
        "model": {
            "backbone": {"kind": "resnet_tiny", "width": 8, "zero_init_residual": False},
            "projector": {"widths": [12, 8]},
            **model,
        },
        "objective": {"alignment": {}, "mmd": {}},
    }
    manifest = data.dataset.manifest
    return untrained(TrialConfig.model_validate(values), Preparation(manifest.mean, manifest.std))


VIT = {"kind": "vit_micro", "patch_size": 4, "depth": 2, "embed_dim": 32}


def evaluated(protocol: Tuning, data: Data, its: Subject | None = None, seeds: int = 1) -> ProtocolResult:
    return protocol.run(
        its or subject(data),
        data,
        seeds=range(seeds),
        device=torch.device("cpu"),
        report=lambda what, done: None,
    )


def few(data: Data, share: str) -> np.ndarray[Any, Any]:
    """The images that seed 0 draws."""
    rows: np.ndarray[Any, Any] = data.fit_ids[drawn(data.fit_labels, share, data.dataset, 0)]
    return rows


def linear_figure(its: Subject, data: Data, ids: np.ndarray[Any, Any], regularization: float) -> float:
    """The accuracy of the linear probe of frozen features."""

    def features(rows: np.ndarray[Any, Any]) -> torch.Tensor:
        images = data.loaders.images(
            data.dataset, rows, size=SIZE, batch_size=256, threads=1, normalization=(its.mean, its.std)
        )
        return torch.cat([its.encode(batch) for batch, _ in images])

    labels = torch.from_numpy(data.dataset.search_labels())
    probe = fit_linear(features(ids), labels[ids], class_count=10, regularization=regularization)
    right = probe.predict(features(data.score_ids)) == labels[data.score_ids]
    return float(right.double().mean())


@pytest.mark.parametrize("backbone", [{}, VIT])
@pytest.mark.parametrize("source", ["features", "embedding"])
def test_at_rate_0_the_figure_is_that_of_the_linear_probe(backbone: dict[str, Any], source: str, data: Data) -> None:
    its = subject(data, **({"backbone": backbone} if backbone else {}))
    protocol = LowLabelsFinetune(**SHORT | {"rates": (0.0,), "source": source})
    made = evaluated(protocol, data, its)
    wanted = linear_figure(its.at(source), data, few(data, "20%"), protocol.regularization)
    assert made.score("20%/top1").value == pytest.approx(wanted, abs=1e-9)


def test_fine_tuning_moves_the_whole_copy_and_leaves_the_subject(data: Data) -> None:
    its = subject(data)
    before = {name: value.clone() for name, value in its.network.state_dict().items()}
    protocol = LowLabelsFinetune(**SHORT)
    ids = few(data, "20%")
    model = finetuning.tune(
        its,
        data,
        ids,
        protocol.recipe(its.kind),
        rate=0.03,
        seed=0,
        device=torch.device("cpu"),
        report=lambda done: None,
    )
    for name, value in its.network.state_dict().items():
        assert torch.equal(value, before[name])
    for name, parameter in model.network.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_seed_gives_the_same_numbers_twice_and_another_one_others(data: Data, tmp_path: Path) -> None:
    its = subject(data)
    protocol = LowLabelsFinetune(**SHORT | {"batch_size": 64})
    both = evaluated(protocol, data, its, seeds=2)
    elsewhere = Data(data.dataset, "digits", "select", data.loaders, Store(tmp_path / "again"))
    torch.manual_seed(5)
    again = evaluated(protocol, elsewhere, its)
    assert both.score("20%/top1").per_seed[0] == again.score("20%/top1").value
    assert {score.measure for score in both.scores} == {"20%/top1", "20%/top5", "20%/mean_class"}
    assert len(both.classes) == 10
    first, second = (data.store.folder / "outcomes").glob("*.npz")
    (same,) = (elsewhere.store.folder / "outcomes").glob("*.npz")
    scores = [np.load(file)["scores"] for file in (first, second, same)]
    assert not np.array_equal(scores[0], scores[1])
    assert any(np.array_equal(scores[2], other) for other in scores[:2])


@pytest.mark.slow
def test_fine_tuning_beats_the_linear_probe(data: Data) -> None:
    its = subject(data)
    numbers = SHORT | {"epochs": 30, "shares": ("30%",), "batch_size": 32, "rates": (0.1, 0.3)}
    tuned = evaluated(LowLabelsFinetune(**numbers), data, its).score("30%/top1").value
    assert tuned > evaluated(LowLabelsFinetune(**numbers | {"rates": (0.0,)}), data, its).score("30%/top1").value


def test_the_rate_is_chosen_on_a_held_out_part_and_each_candidate_is_told(data: Data) -> None:
    made = evaluated(LowLabelsFinetune(**SHORT | {"rates": (0.0, 0.03, 1e6)}), data)
    (chosen,) = made.chosen
    assert list(chosen["held_out"]) == ["0", "0.03", "1e+06"]
    assert chosen["held_out"][f"{chosen['chosen']:g}"] == max(right or 0.0 for right in chosen["held_out"].values())


def test_rates_that_all_diverge_are_told(data: Data) -> None:
    with pytest.raises(ValueError, match=r"must not diverge, but does at each rate of 1e\+30, 1e\+35; lower"):
        evaluated(LowLabelsFinetune(**SHORT | {"rates": (1e30, 1e35), "epochs": 3, "batch_size": 32}), data)


def test_few_labels_are_those_of_the_linear_form_and_differ_from_seed_to_seed(data: Data) -> None:
    numbers = SHORT | {"rates": (0.0,), "shares": ("2%", 100)}
    tuned = evaluated(LowLabelsFinetune(**numbers, regularization=0.1), data, seeds=2)
    linear = LowLabels(shares=("2%", 100), regularizations=(0.1,)).run(
        subject(data), data, seeds=(0, 1), device=torch.device("cpu"), report=lambda what, done: None
    )
    for measure in ("2%/top1", "100/top1"):
        assert tuned.score(measure).per_seed == pytest.approx(linear.score(measure).per_seed, abs=5e-3)
    assert len(set(tuned.score("2%/top1").per_seed)) == 2
    assert tuned.fitted == 100


def test_labels_too_few_to_choose_a_rate_take_one_and_say_so(data: Data) -> None:
    made = evaluated(LowLabelsFinetune(epochs=1, shares=("2%",)), data)
    (chosen,) = made.chosen
    assert (chosen["chosen"], chosen["held_out"], chosen["share"]) == (0.03, {}, "2%")
    assert "2% is too few labels to hold some out: rate 0.03" in made.notes


def test_few_labels_are_refused_where_they_are_none_of_a_class(digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"low-labels-finetune\.shares must be at least 10 images, one for each"):
        LowLabelsFinetune(shares=("0.5%",)).check(digits)


def test_all_labels_are_fitted_on_and_what_was_tuned_for_a_share_is_kept_for_it(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: dict[str, Any] = {"epochs": 1, "rates": (0.03,)}
    whole = evaluated(Finetune(**numbers), data)
    assert whole.fitted == data.dataset.train_count
    monkeypatch.setattr(finetuning, "tune", None)
    assert evaluated(LowLabelsFinetune(**numbers, shares=("100%",)), data).score("100%/top1").value == (
        whole.score("top1").value
    )


def test_a_finished_seed_is_not_trained_again(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = LowLabelsFinetune(**SHORT)
    first = evaluated(protocol, data)
    trained: list[int] = []
    tune = finetuning.tune

    def counted(*values: Any, seed: int, **more: Any) -> finetuning.Tuned:
        trained.append(seed)
        return tune(*values, seed=seed, **more)

    monkeypatch.setattr(finetuning, "tune", counted)
    assert evaluated(protocol, data, seeds=2).score("20%/top1").per_seed[0] == first.score("20%/top1").value
    assert trained == [1]


def test_another_crop_is_another_outcome(data: Data) -> None:
    protocol = LowLabelsFinetune(**SHORT)
    whole, crop = (evaluated(protocol.model_copy(update={"crop_pct": part}), data) for part in (1.0, 0.5))
    assert len(list((data.store.folder / "outcomes").glob("*.npz"))) == 2
    assert crop.score("20%/top1").value < whole.score("20%/top1").value  # a quarter of a digit tells less


def test_a_damaged_file_of_a_seed_is_made_again(data: Data) -> None:
    protocol = LowLabelsFinetune(**SHORT)
    first = evaluated(protocol, data)
    (file,) = (data.store.folder / "outcomes").glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert evaluated(protocol, data).scores == first.scores


def test_a_transformers_rate_falls_from_layer_to_layer(data: Data) -> None:
    its = subject(data, backbone=VIT)
    model = finetuning.Tuned(its.at("class").network, torch.nn.Linear(32, 10))
    shares = layer_shares(model, 0.5)
    assert shares["head.weight"] == shares["network.network.norm.weight"] == 1.0
    assert shares["network.network.blocks.1.mlp.fc1.weight"] == 0.5
    assert shares["network.network.blocks.0.mlp.fc1.weight"] == 0.25
    assert shares["network.network.pos_embed"] == shares["network.network.patch_embed.proj.weight"] == 0.125


def test_the_rate_rises_and_falls_to_nearly_0() -> None:
    rates = [rate_at(1.0, step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(late < early for early, late in pairwise(rates[10:]))
    assert 0.0 < rates[-1] < 1e-3


def test_mixup_keeps_the_sum_of_targets_and_is_drawn_by_a_key() -> None:
    images, targets = torch.arange(8.0).view(4, 2), torch.eye(4)
    first, again, other = (mixed(images, targets, 0.8, seed=0, step=step) for step in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    torch.testing.assert_close(first[1].sum(1), torch.ones(4))
    share = float(first[1][0, 0])
    torch.testing.assert_close(first[0], share * images + (1 - share) * images.flip(0))
