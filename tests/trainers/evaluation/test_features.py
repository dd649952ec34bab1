"""Features are computed once, read by parts, and kept within a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainers.evaluation import small
from trainers.evaluation import frozen
from trainers.evaluation.features import Rows, Store, View


def rows(store: Store, digits: small.Digits, part: str = "select", **given: object) -> Rows:
    data = replace(small.data(digits, store.folder), store=store)
    return frozen.rows(small.subject(), data, part, device=small.CPU, report=small.silent, **given)  # type: ignore[arg-type]


def test_features_are_computed_once_for_all_protocols(tmp_path: Path) -> None:
    digits = small.Digits()
    first, second = (rows(Store(tmp_path), digits) for _ in range(2))
    assert digits.looked_at == [("search", 500)]
    every = np.arange(500)
    np.testing.assert_array_equal(first.take(every), second.take(every))
    np.testing.assert_array_equal(first.take(every), digits.pixels[900:1400, 0].flatten(1).numpy())
    rows(Store(tmp_path), digits, view=View("dark", lambda images: images / 2))
    assert len(digits.looked_at) == 2


def test_any_rows_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    found = rows(Store(tmp_path), small.Digits())
    whole = found.take(np.arange(500))
    for ids in (np.array([3, 1, 499]), np.arange(20, 90), np.arange(0, 500, 2), np.array([7])):
        np.testing.assert_array_equal(found.take(ids), whole[ids])
        parts = list(found.chunks(ids, size=10 * 64 * 4))
        assert max(len(part) for part in parts) <= 10
        np.testing.assert_array_equal(np.concatenate(parts), whole[ids])


def test_the_training_part_of_report_is_train_and_select(tmp_path: Path) -> None:
    digits = small.Digits()
    data = small.data(digits, tmp_path, "report")
    fit, scored = frozen.features(small.subject(), data, device=small.CPU, report=small.silent)
    np.testing.assert_array_equal(fit.take(), digits.pixels[:1400, 0].flatten(1).numpy())
    np.testing.assert_array_equal(scored.take(), digits.pixels[1400:, 0].flatten(1).numpy())
    some = np.array([0, 899, 900, 1399])
    np.testing.assert_array_equal(fit.some(some).take(), digits.pixels[some, 0].flatten(1).numpy())


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    digits = small.Digits()
    store = Store(tmp_path, budget=300_000)  # two of 500 x 64 x 4 bytes
    for name in ("a", "b", "c"):
        rows(store, digits, view=View(name, lambda images: images))
    assert sorted(path.stem.split("-")[-2] for path in tmp_path.glob("*.npy")) == ["b", "c"]


def test_a_file_that_a_disk_has_cut_off_is_made_again(tmp_path: Path) -> None:
    digits = small.Digits()
    first = rows(Store(tmp_path), digits)
    whole = first.path.read_bytes()
    for content in (whole[:-4], whole[:20], b""):
        first.path.write_bytes(content)
        rows(Store(tmp_path), digits)
        assert first.path.read_bytes() == whole


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no")

    data = small.data(small.Digits(), tmp_path)
    with pytest.raises(RuntimeError):
        frozen.features(small.subject(Fails()), data, device=small.CPU, report=small.silent)
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_told(tmp_path: Path) -> None:
    class Diverged(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 4), torch.nan)

    data = small.data(small.Digits(), tmp_path)
    with pytest.raises(ValueError, match="must be finite"):
        frozen.features(small.subject(Diverged()), data, device=small.CPU, report=small.silent)
