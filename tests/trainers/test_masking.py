"""The draw of kept patches and wrong positions (DILEMMA, numerical oracles 1 to 5)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import MaskingConfig, TrialConfig
from trainers.masking import Mask, draw

IMAGES = 4000
RATIOS = (0.0, 0.1, 0.25, 0.5, 0.625, 0.75)


def masks(patch_count: int, ratio: float, probability: float, rule: Any = "spare_or_cycle", **key: int) -> Mask:
    config = MaskingConfig(drop_ratio=ratio, mismatch_probability=probability, donor_rule=rule)
    return draw(config, torch.arange(IMAGES), patch_count=patch_count, **{"seed": 0, "step": 0, "view": 0, **key})


def duplicated(told: torch.Tensor) -> torch.Tensor:
    """Number of equal pairs among the positions of each image."""
    equal = told[:, :, None] == told[:, None, :]
    return (equal.sum((1, 2)) - told.shape[1]) // 2


@pytest.mark.parametrize(
    ("patch_count", "ratio", "kept"),
    [
        *((64, r, k) for r, k in ((0.0, 64), (0.25, 48), (0.5, 32), (0.625, 24), (0.75, 16))),
        *((144, r, k) for r, k in ((0.0, 144), (0.25, 108), (0.5, 72), (0.625, 54), (0.75, 36))),
        (196, 0.75, 49),
        *((100, r, k) for r, k in ((0.8, 20), (0.9, 10))),
        (225, 0.8, 45),
    ],
)
def test_the_number_of_kept_patches_is_exact_where_floats_are_not(patch_count: int, ratio: float, kept: int) -> None:
    assert MaskingConfig(drop_ratio=ratio).kept_count(patch_count) == kept


@pytest.mark.parametrize("patch_count", [16, 64, 144])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("probability", [0.2, 0.9])
def test_kept_and_dropped_patches_make_up_the_image_and_no_position_is_told_twice(
    patch_count: int, ratio: float, probability: float
) -> None:
    mask = masks(patch_count, ratio, probability)
    everything = torch.cat([mask.kept, mask.dropped], dim=1)
    assert torch.equal(everything.sort(1).values, torch.arange(patch_count).expand(IMAGES, -1))
    assert int(mask.told.min()) >= 0
    assert int(mask.told.max()) < patch_count
    assert bool((mask.told.sort(1).values.diff(dim=1) > 0).all())
    wrong = mask.told != mask.kept
    few = wrong.sum(1) <= mask.dropped.shape[1]
    spare = torch.zeros(IMAGES, patch_count, dtype=torch.bool).scatter(1, mask.dropped, True).gather(1, mask.told)
    assert torch.equal(spare[few], wrong[few]), "as long as there are enough, donors are spare positions"
    cycled = mask.told[~few]
    assert torch.equal(cycled.sort(1).values, mask.kept[~few].sort(1).values), "else positions are passed on"


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rule", ["spare_or_cycle", "uniform"])
def test_mismatches_are_as_frequent_as_asked(ratio: float, rule: str) -> None:
    probability = 0.2
    for patch_count in (16, 64):
        mask = masks(patch_count, ratio, probability, rule)
        wrong = (mask.told != mask.kept).double()
        expected = probability
        if ratio == 0.0 and rule == "spare_or_cycle":  # one chosen alone has nobody to exchange with
            expected -= probability * (1 - probability) ** (patch_count - 1)
        tolerance = 4 * math.sqrt(probability * (1 - probability) / wrong.numel())
        assert wrong.mean().item() == pytest.approx(expected, abs=tolerance)


def test_no_mismatch_at_probability_zero_and_only_mismatches_at_one() -> None:
    mask = masks(16, 0.5, 0.0)
    assert torch.equal(mask.told, mask.kept)
    for ratio in (0.0, 0.25, 0.5, 0.75):
        mask = masks(16, ratio, 1.0)
        assert bool((mask.told != mask.kept).all())


def test_the_released_rule_repeats_positions_below_one_half_and_does_nothing_at_zero() -> None:
    tail = masks(64, 0.25, 0.2, "tail")
    wrong = tail.told != tail.kept
    assert wrong.double().mean().item() == pytest.approx(0.2, abs=0.005)
    kept_donor = (tail.told[:, :, None] == tail.kept[:, None, :]).any(2)
    assert kept_donor[wrong].double().mean().item() == pytest.approx(2 / 3, abs=0.01)
    assert duplicated(tail.told).double().mean().item() == pytest.approx(5.1, abs=0.15)
    nothing = masks(64, 0.0, 0.2, "tail")
    assert torch.equal(nothing.told, nothing.kept)


def entropy(rate: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = torch.special.entr(rate) + torch.special.entr(1 - rate)
    return total


def given_away(mask: Mask) -> float:
    """Nats per patch that a reader of told positions alone gains on H(rate), who counts, for each patch, how many share
    its position and how many were told a neighboring one, on the grid of 4 x 4."""
    wrong = (mask.told != mask.kept).double().flatten()
    distance = [(part[:, :, None] - part[:, None, :]).abs() for part in (mask.told // 4, mask.told % 4)]
    same = ((distance[0] + distance[1]) == 0).sum(2).flatten()
    near = ((distance[0] + distance[1]) == 1).sum(2).flatten()
    groups = 32 * same + near
    total = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    counts, hits = total.index_add(0, groups, torch.ones_like(wrong)), total.index_add(0, groups, wrong)
    informed = (counts * entropy(hits / counts.clamp_min(1))).sum() / len(wrong)
    return float(entropy(wrong.mean()) - informed)


@pytest.mark.parametrize(
    ("rule", "ratio", "low", "high"),
    [
        *(("spare_or_cycle", ratio, 0.0, 1e-3) for ratio in RATIOS),
        ("tail", 0.5, 0.0, 1e-3),
        ("tail", 0.25, 0.02, 0.2),
        ("uniform", 0.0, 0.05, 0.3),
        ("uniform", 0.5, 0.02, 0.2),
    ],
)
def test_told_positions_alone_give_nothing_away_unless_some_occur_twice(
    rule: str, ratio: float, low: float, high: float
) -> None:
    """What a blank image leaves to see. By symmetry the default rule's positions are any distinct ones, whatever is
    mismatched; the bounds allow for the chance of a finite sample."""
    assert low <= given_away(masks(16, ratio, 0.2, rule)) < high


def test_from_one_half_on_the_default_rule_is_the_released_one_up_to_the_order_of_donors() -> None:
    for ratio in (0.5, 0.75):
        ours, tail = masks(16, ratio, 0.3), masks(16, ratio, 0.3, "tail")
        assert torch.equal(ours.told != ours.kept, tail.told != tail.kept)
        assert int(duplicated(tail.told).sum()) == 0


@pytest.mark.parametrize("part", ["seed", "step", "view"])
def test_another_seed_step_view_or_image_is_another_mask(part: str) -> None:
    mask, other = masks(16, 0.5, 0.2), masks(16, 0.5, 0.2, **{part: 1})
    assert torch.equal(masks(16, 0.5, 0.2).told, mask.told)
    assert (other.kept != mask.kept).any(1).double().mean() > 0.99
    assert ((other.told != other.kept) != (mask.told != mask.kept)).any(1).double().mean() > 0.5
    assert (mask.kept[1:] != mask.kept[:-1]).any(1).double().mean() > 0.99


def masks_of_my_rows(rows: int) -> Mask:
    ids = torch.arange(1000, 1000 + rows * dist.world_size())
    mine = ids[dist.row_offset(rows) : dist.row_offset(rows) + rows]
    config = MaskingConfig(drop_ratio=0.25, mismatch_probability=0.3)
    return draw(config, mine, patch_count=16, seed=3, step=5, view=1)


def test_two_processes_draw_the_masks_of_one(two_processes: TwoProcesses) -> None:
    whole = masks_of_my_rows(12)
    halves = two_processes.run(masks_of_my_rows, 6)
    for name, part in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), part)
    assert not torch.equal(halves[0].kept, halves[1].kept)


def test_masking_that_can_not_work_is_refused_with_a_remedy() -> None:
    vit = {"kind": "vit_micro", "patch_size": 4}

    def trial(backbone: dict[str, Any], ratio: float) -> TrialConfig:
        model = {"backbone": backbone, "masking": {"drop_ratio": ratio}}
        return TrialConfig.model_validate({"views": [{"size": 16}] * 2, "model": model, "objective": {"alignment": {}}})

    with pytest.raises(ValueError, match=r"needs a vision transformer.*resnet_tiny.*set model\.backbone\.kind"):
        trial({"kind": "resnet_tiny"}, 0.5)
    with pytest.raises(ValueError, match=r"at least one patch.*0\.97 leaves none of the 16 of views\.0; lower it"):
        trial(vit, 0.97)
    assert trial(vit, 0.93).masked_patch_counts == {0: 16, 1: 16}


def test_of_views_of_several_sizes_the_largest_are_masked_unless_all_are_asked_for() -> None:
    values: dict[str, Any] = {
        "views": [{"size": 8}, {"size": 16}, {"size": 16}, {"size": 8}],
        "model": {"backbone": {"kind": "vit_micro", "patch_size": 4}, "masking": {}},
        "objective": {"alignment": {}},
    }
    assert TrialConfig.model_validate(values).masked_patch_counts == {1: 16, 2: 16}
    values["model"]["masking"] = {"views": "all"}
    assert TrialConfig.model_validate(values).masked_patch_counts == {0: 4, 1: 16, 2: 16, 3: 4}
    values["model"]["masking"] = None
    assert TrialConfig.model_validate(values).masked_patch_counts == {}
