"""The probe: which images judge, both classifiers against scikit-learn, and one number on any number of ranks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tests.two_processes import TwoProcesses
from trainers.config import ProbeConfig, TrialConfig, ViewConfig
from trainers.evaluation import probe, regression
from trainers.evaluation.regression import fit_linear
from trainers.terms import Alignment

if TYPE_CHECKING:  # FFCV takes seconds to import, and nothing here needs it
    from trainers.data.datasets import Dataset
    from trainers.data.loader import Loaders

CPU = torch.device("cpu")
CLASSES = 10


class FakeData:
    """Digits in memory, standing in for a data set and its loaders: 900 train, 500 select, 97 unlabeled, 300 report."""

    def __init__(self) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.images / 16).float()[:, None].expand(-1, 3, -1, -1)
        self.images_of = {"search": images[:1497], "report": images[1497:]}
        self.labels: np.ndarray[Any, np.dtype[np.int64]] = digits.target.astype(np.int64)
        self.opened: list[str] = []
        self.batch_sizes: set[int] = set()
        self.folder = Path("digits")
        self.class_count, self.has_labels = CLASSES, True
        self.manifest = SimpleNamespace(split_seed=0, class_names=tuple(map(str, range(CLASSES))))
        self.train_ids, self.select_ids = np.arange(900), np.arange(900, 1400)
        self.report_count = 300

    def search_labels(self) -> np.ndarray[Any, Any]:
        labels = self.labels[:1497].copy()
        labels[1400:] = -1
        return labels

    def report_labels(self) -> np.ndarray[Any, Any]:
        self.opened.append("report labels")
        return self.labels[1497:]

    def images(
        self, dataset: object, ids: Any, *, size: int, batch_size: int, split: str = "search", **_: object
    ) -> Iterator[tuple[Tensor, Any]]:
        assert size == 8
        self.opened.append(split)
        for start in range(0, len(ids), batch_size):
            part = ids[start : start + batch_size]
            self.batch_sizes.add(len(part))
            yield self.images_of[split][torch.from_numpy(part)], part

    def augmented(
        self,
        dataset: object,
        ids: Any,
        *,
        views: Sequence[ViewConfig],
        batch_size: int,
        first_batch: int,
        split: str = "search",
        **_: object,
    ) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """The images, brighter from place to place, and by which of all ranks' batches they are in."""
        for index, (images, part) in enumerate(self.images(dataset, ids, size=8, batch_size=batch_size, split=split)):
            brighter = [images + 10 * place + 100 * (first_batch + index) for place in range(len(views))]
            yield tuple(brighter), part


def config(seed: int = 0, **settings: Any) -> TrialConfig:
    view = ViewConfig(size=8)
    return TrialConfig(
        views=(view, view), objective={"alignment": Alignment()}, probe=ProbeConfig(**settings), seed=seed
    )


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def pooled(images: Tensor) -> Tensor:
    """16 features: quick to fit."""
    return torch.nn.functional.adaptive_avg_pool2d(images[:, :1], 4).flatten(1)


def evaluate(
    data: FakeData, config: TrialConfig, encode: probe.Encode = pixels, *, full: bool = False
) -> dict[str, float]:
    dataset, loaders = cast("Dataset", data), cast("Loaders", data)
    return probe.evaluate(encode, dataset=dataset, loaders=loaders, config=config, device=CPU, full=full)


def class_counts(data: FakeData, subset: probe.Subset) -> list[int]:
    found = Counter(data.search_labels()[subset.ids].tolist())
    return [found[label] for label in range(CLASSES)]


# --- which images judge -----------------------------------------------------------------------------------------------


def test_both_subsets_hold_every_class_in_proportion_and_lie_in_their_split() -> None:
    data = FakeData()
    settings = config(train_images=300, select_images=200)
    for subset, size, split in (
        (probe.train_subset(cast("Dataset", data), settings), 300, data.train_ids),
        (probe.select_subset(cast("Dataset", data), settings), 200, data.select_ids),
    ):
        assert len(np.unique(subset.ids)) == size
        assert set(subset.ids) <= set(split)
        population = np.bincount(data.search_labels()[split], minlength=CLASSES)
        assert np.abs(class_counts(data, subset) - population * size / len(split)).max() <= 1


def test_labels_per_class_are_drawn_once_per_seed_while_select_stays_the_same() -> None:
    data = cast("Dataset", FakeData())
    draws = {seed: probe.train_subset(data, config(seed, labels_per_class=5)) for seed in range(4)}
    assert all(class_counts(FakeData(), draw) == [5] * CLASSES for draw in draws.values())
    assert len({draw.sha256 for draw in draws.values()}) == 4
    again = probe.train_subset(data, config(2, labels_per_class=5))
    assert again.sha256 == draws[2].sha256
    assert np.array_equal(again.ids, draws[2].ids)
    selected = {probe.select_subset(data, config(seed, select_images=100)).sha256 for seed in range(4)}
    fitted = {probe.train_subset(data, config(seed, train_images=100)).sha256 for seed in range(4)}
    assert len(selected) == len(fitted) == 1


def test_a_subset_is_named_by_the_hash_of_its_ids() -> None:
    subset = probe.select_subset(cast("Dataset", FakeData()), config(select_images=50))
    assert subset.sha256 == hashlib.sha256(np.array(sorted(subset.ids), dtype="<i8").tobytes()).hexdigest()


def test_more_labels_per_class_than_a_class_has_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"at most \d+, .* class '\d' .* but is 200; lower it"):
        probe.train_subset(cast("Dataset", FakeData()), config(labels_per_class=200))


def test_a_full_probe_is_scored_on_all_of_select() -> None:
    data = FakeData()
    full = probe.select_subset(cast("Dataset", data), config(select_images=100), full=True)
    assert np.array_equal(full.ids, data.select_ids)


# --- the two probes ---------------------------------------------------------------------------------------------------


def correlated_features(count: int, dimensions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Overlapping classes in strongly correlated, badly scaled dimensions, one of which is constant."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (count,), generator=generator)
    centers = torch.randn(4, dimensions, generator=generator)
    noise = torch.randn(count, dimensions, generator=generator) * torch.logspace(0, -1.5, dimensions)
    mixing = torch.randn(dimensions, dimensions, generator=generator)
    features = ((0.3 * centers[labels] + noise) @ mixing) * torch.logspace(-3, 3, dimensions)
    features[:, 0] = 7.0
    return features.to(dtype), labels


@pytest.mark.parametrize("regularization", [1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 1.0])
@pytest.mark.parametrize(("count", "dimensions"), [(400, 24), (30, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
@pytest.mark.filterwarnings("ignore:Line search of Newton solver")  # it goes on with another one
def test_the_linear_probe_finds_scikit_learns_optimum(
    count: int, dimensions: int, regularization: float, dtype: torch.dtype
) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = correlated_features(count, dimensions, dtype)
    found = fit_linear(features, labels, class_count=4, regularization=regularization)
    assert found.weight.dtype == dtype

    x = ((features - found.mean) / found.scale).double().numpy()
    reference = LogisticRegression(
        C=1 / (regularization * count), solver="newton-cholesky", tol=1e-10, max_iter=1000
    ).fit(x, labels.numpy())

    def objective(weight: Tensor, bias: Tensor) -> float:
        entropy = torch.nn.functional.cross_entropy(torch.from_numpy(x) @ weight.double() + bias.double(), labels)
        return float(entropy + regularization / 2 * weight.double().square().sum())

    optimum = objective(torch.from_numpy(reference.coef_.T), torch.from_numpy(reference.intercept_))
    assert objective(found.weight, found.bias) == pytest.approx(optimum, rel=regression.EXCESS, abs=0)
    np.testing.assert_allclose(found.weight.T.numpy(), reference.coef_, atol=0.02 * np.abs(reference.coef_).max())
    assert np.array_equal(found.predict(features).numpy(), reference.predict(x))


def test_features_whose_squares_overflow_are_judged_as_they_would_be_at_another_scale() -> None:
    data = FakeData()
    plain = evaluate(data, config(train_images=200), pooled)
    large = evaluate(data, config(train_images=200), lambda images: 1e25 * pooled(images))
    assert plain == large


def test_the_linear_probe_in_float32_agrees_with_float64() -> None:
    features, labels = correlated_features(500, 30, torch.float64)
    wide = fit_linear(features, labels, class_count=4, regularization=1e-3)
    narrow = fit_linear(features.float(), labels, class_count=4, regularization=1e-3)
    assert narrow.weight.dtype == torch.float32
    torch.testing.assert_close(narrow.weight.double(), wide.weight, rtol=0, atol=2e-2 * float(wide.weight.abs().max()))


def test_the_linear_probe_gives_the_same_bits_in_blocks_and_whatever_torch_drew_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = correlated_features(300, 12, torch.float64)
    first = fit_linear(features, labels, class_count=4, regularization=1e-2)
    torch.rand(5)
    second = fit_linear(features, labels, class_count=4, regularization=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(regression, "BLOCK", 64)
    blocked = fit_linear(features, labels, class_count=4, regularization=1e-2)
    torch.testing.assert_close(blocked.weight, first.weight, rtol=0, atol=2e-3 * float(first.weight.abs().max()))


def test_nearest_neighbors_vote_as_in_scikit_learn_with_our_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr(probe, "SIMILARITIES", 10_000)  # many blocks
    digits = load_digits()
    x, y = digits.data[:1000] + 0.1, digits.target[:1000]
    queries = digits.data[1000:]
    temperature = 0.07
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(x, y)
    predicted = probe.nearest_neighbors(
        torch.from_numpy(x),
        torch.from_numpy(y),
        torch.from_numpy(queries),
        class_count=CLASSES,
        neighbors=20,
        temperature=temperature,
    )
    assert np.array_equal(predicted.numpy(), reference.predict(queries))


def test_the_temperature_decides_between_one_close_and_two_distant_neighbors() -> None:
    features = torch.tensor([[1.0, 0.1], [1.0, 0.9], [0.9, 1.0]])
    vote = {
        temperature: int(
            probe.nearest_neighbors(
                features,
                torch.tensor([0, 1, 1]),
                torch.tensor([[1.0, 0.0]]),
                class_count=2,
                neighbors=20,  # more than there are: all vote
                temperature=temperature,
            )
        )
        for temperature in (0.01, 10.0)
    }
    assert vote == {0.01: 0, 10.0: 1}


# --- judging an encoder -----------------------------------------------------------------------------------------------


def test_the_score_on_pixels_is_scikit_learns_on_the_same_images() -> None:
    from sklearn.linear_model import LogisticRegression

    data = FakeData()
    settings = config(labels_per_class=5, select_images=400, regularization=1e-2, neighbors=5)
    scores = evaluate(data, settings)
    train = probe.train_subset(cast("Dataset", data), settings).ids
    select = probe.select_subset(cast("Dataset", data), settings).ids
    x = data.images_of["search"].flatten(1).numpy().astype(np.float64)
    scale = x[train].std(0)
    z = (x - x[train].mean(0)) / np.where(scale > 0, scale, 1)
    model = LogisticRegression(C=1 / (1e-2 * len(train)), tol=1e-8, max_iter=10_000).fit(z[train], data.labels[train])
    accuracy = model.score(z[select], data.labels[select])
    assert scores["probe/linear"] == pytest.approx(accuracy, abs=1 / 400)
    assert scores["probe/linear_stderr"] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400), rel=0.05)
    assert sorted(scores) == ["probe/knn", "probe/knn_stderr", "probe/linear", "probe/linear_stderr"]


def test_a_full_probe_adds_scores_with_all_labels_and_leaves_the_searched_ones_alone() -> None:
    settings = config(labels_per_class=5, select_images=400)
    quick, full = evaluate(FakeData(), settings, pooled), evaluate(FakeData(), settings, pooled, full=True)
    assert quick.items() <= full.items()
    assert full["probe/full_linear"] > quick["probe/linear"] + 0.05
    assert full["probe/full_knn"] > quick["probe/knn"] + 0.05
    assert full["probe/full_train_images"] == 900


def test_a_full_probe_stays_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "FEATURE_BYTES", 4 * 16 * 300)
    scores = evaluate(FakeData(), config(labels_per_class=5), pooled, full=True)
    assert scores["probe/full_train_images"] == 300


def test_features_that_are_not_finite_give_not_a_number_instead_of_an_accuracy() -> None:
    scores = evaluate(FakeData(), config(labels_per_class=5), lambda images: pixels(images) / 0.0)
    assert len(scores) == 4
    assert all(np.isnan(value) for value in scores.values())


def test_a_collapsed_encoder_scores_at_chance() -> None:
    scores = evaluate(FakeData(), config(labels_per_class=5), lambda images: torch.ones(len(images), 16))
    assert scores["probe/linear"] == pytest.approx(0.1, abs=0.02)


def test_a_search_never_opens_the_report_split_and_report_split_does() -> None:
    data, settings = FakeData(), config(labels_per_class=5)
    evaluate(data, settings, pooled, full=True)
    baselines = probe.baselines(settings, dataset=cast("Dataset", data), loaders=cast("Loaders", data), device=CPU)
    assert set(data.opened) == {"search"}
    assert {"untrained/linear", "untrained/linear_stderr", "untrained/knn", "pixels/linear", "pixels/knn"} <= set(
        baselines
    )
    assert baselines["pixels/linear"] == evaluate(data, settings)["probe/linear"]

    scores = probe.report_split(
        pooled, dataset=cast("Dataset", data), loaders=cast("Loaders", data), config=settings, device=CPU
    )
    assert {"report", "report labels"} <= set(data.opened)
    assert 0.5 < scores["report/linear"] < scores["report/full_linear"] < 1.0


def evaluate_on_this_rank(settings: TrialConfig, full: bool) -> dict[str, float]:
    return evaluate(FakeData(), settings, pooled, full=full)


def test_two_ranks_agree_with_one(two_processes: TwoProcesses) -> None:
    settings = config(labels_per_class=5, select_images=333)
    assert two_processes.run(evaluate_on_this_rank, settings, True) == [evaluate_on_this_rank(settings, True)] * 2


def extract_on_this_rank(ids: list[int], views: int | None = None) -> tuple[list[float], set[int]]:
    with patch.object(probe, "BATCH_SIZE", 20), patch.object(probe, "ROUND", 2):
        data = FakeData()
        (found,) = probe.extract(
            lambda images: (images[:, 0, 4, 4],),
            np.array(ids),
            dataset=cast("Dataset", data),
            loaders=cast("Loaders", data),
            config=config(),
            device=CPU,
            views=views,
        )
    return found.tolist(), data.batch_sizes


@pytest.mark.parametrize("count", [7, 20, 140, 153])
def test_features_come_in_the_order_of_the_ids_from_the_same_batches(two_processes: TwoProcesses, count: int) -> None:
    ids = list(range(count))[::-1]
    expected = FakeData().images_of["search"][ids, 0, 4, 4].tolist()
    alone, its_batches = extract_on_this_rank(ids)
    (first, first_batches), (second, second_batches) = two_processes.run(extract_on_this_rank, ids)
    assert alone == first == expected
    assert second == []
    assert its_batches == first_batches | second_batches


@pytest.mark.parametrize("count", [3, 32, 67])
def test_views_come_image_by_image_the_same_on_two_ranks_as_on_one(two_processes: TwoProcesses, count: int) -> None:
    ids = list(range(count))[::-1]
    pixels = FakeData().images_of["search"][ids, 0, 4, 4]
    batches = torch.arange(count) // 5  # of 20 views, four to an image
    expected = (pixels + 100 * batches)[:, None] + 10 * torch.arange(4)
    alone, _ = extract_on_this_rank(ids, 4)
    (first, _), (second, _) = two_processes.run(extract_on_this_rank, ids, 4)
    assert alone == first == expected.flatten().tolist()
    assert second == []
