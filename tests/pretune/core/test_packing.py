"""How many trials share a GPU, decided from made-up measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pretune.core import packing
from pretune.core.packing import Packing, Together
from tests import toys

GB = 1e9


def tried(rate: Callable[[int], float], most: int) -> list[Together]:
    """What a search would try where so many copies have that rate."""
    found = [Together(copies=1, images_per_s=rate(1), bytes=GB)]
    while (count := packing.following(found, most)) is not None:
        found.append(Together(copies=count, images_per_s=rate(count), bytes=GB))
    return found


@pytest.mark.parametrize(
    ("rate", "most", "counts", "chosen"),
    [
        (lambda count: 100.0 * count, 16, [1, 2, 4, 8, 16], 16),
        (lambda count: 100.0 * min(count, 4), 16, [1, 2, 4, 8], 4),
        (lambda count: 100.0, 16, [1, 2], 1),
        (lambda count: 100.0 / count, 16, [1, 2], 1),
        (lambda count: 100.0 + count, 16, [1, 2], 1),
        (lambda count: 100.0 * count, 6, [1, 2, 4, 6], 6),
        (lambda count: 100.0 * count, 1, [1], 1),
        (lambda count: 100.0 * count, 3, [1, 2, 3], 3),
        (lambda count: 100.0 * count**0.05, 16, [1, 2], 1),
        (lambda count: 100.0 * count**0.1, 16, [1, 2, 4, 8, 16], 16),
    ],
)
def test_more_are_tried_for_as_long_as_they_pay(
    rate: Callable[[int], float], most: int, counts: list[int], chosen: int
) -> None:
    found = tried(rate, most)
    assert [one.copies for one in found] == counts
    assert packing.chosen(found).copies == chosen


def test_mps_is_chosen_where_it_pays_and_not_for_a_trifle() -> None:
    plain = [Together(copies=count, images_per_s=rate, bytes=GB) for count, rate in ((1, 100.0), (2, 110.0))]
    for rate, wanted in ((200.0, (4, True)), (111.0, (2, False)), (90.0, (2, False))):
        under = Together(copies=4, images_per_s=rate, bytes=GB, mps=True)
        best = packing.chosen([*plain, under])
        assert (best.copies, best.mps) == wanted


@pytest.mark.parametrize("count", range(1, packing.MOST + 1))
def test_as_many_fit_on_a_card_as_ray_counts_it(count: int) -> None:
    share = packing.part(count)
    assert count * round(share * 10_000) <= 10_000
    assert (count + 1) * round(share * 10_000) > 10_000, "and no more"
    assert int(1.0 / share + 1e-9) == count


@pytest.mark.parametrize("total", [8 * GB, 24 * GB, 141 * GB])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_what_all_hold_beside_their_tensors_is_taken_off_their_shares(total: float, count: int) -> None:
    fraction = packing.memory_fraction(packing.part(count), total)
    assert 0.5 / count <= fraction + 1e-4
    assert fraction < 1.0 / count
    if total / count > 2 * packing.CONTEXT_BYTES:
        assert count * (fraction * total + packing.CONTEXT_BYTES) <= total


def test_a_memory_holds_as_many_as_fit_with_a_margin() -> None:
    assert packing.fitting(100.0, 10.0) == 9
    assert packing.fitting(100.0, 91.0) == 0
    assert packing.fitting(100.0, 0.0) == 90, "what takes nothing is bounded by others"


def test_a_number_on_cards_is_a_share_of_each(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path, slots=8)
    found = packing.given(asked, 3, on="gpu", cpus=16.0).applied(asked)
    assert (found.gpus_per_worker, found.cpus_per_worker, found.slots) == (0.3333, 1.0, 8)


def test_a_number_on_a_machine_shares_its_processors(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path)
    for count, each in ((1, 1.0), (2, 1.0), (4, 0.5), (3, 0.6666)):
        found = packing.given(asked, count, on="machine", cpus=2.0).applied(asked)
        assert (found.gpus_per_worker, found.cpus_per_worker, found.slots) == (0.0, each, count)


def test_the_choice_is_said_with_what_it_gains(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path)
    rates = [Together(copies=count, images_per_s=100.0 * rate, bytes=GB) for count, rate in ((1, 1.0), (2, 1.9))]
    found = packing.measured(asked, rates, on="gpu", cpus=2.0, why="")
    assert packing.in_words(found) == "2 trials per card, 1.9 times one alone"
    under = [*rates, Together(copies=4, images_per_s=300.0, bytes=GB, mps=True)]
    found = packing.measured(asked, under, on="gpu", cpus=2.0, why="")
    assert packing.in_words(found) == "4 trials per card, 3 times one alone, with MPS"
    assert packing.in_words(Packing(count=1, on="machine")) == "1 trial per machine"
    assert Packing(count=4, on="gpu").ratio is None
