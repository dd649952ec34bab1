"""Which patches are kept, and which of them are told a wrong position: the draw behind DILEMMA and MAE.

Sources: Sameni, Jenni, Favaro, arXiv 2204.04788 and their released code; He et al., arXiv 2111.06377. The paper's own
way of drawing wrong positions was not available; the default rule is ours (see `MaskingConfig`).

Letters: n = images, L = patches of an image, K = kept ones, S = L - K spare ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainers.keyed_random import keys_of, shuffles, uniforms
from trainers.settings import MaskingConfig

ORDER, MISMATCH, DONOR = range(3)
"""Operations of a draw, part of its key."""


class Mask(NamedTuple):
    """Patches are counted from 0, row by row; the class token is none of them and always kept."""

    kept: Tensor
    """Places of the kept patches, [n, K] int64: a random order of K of the L."""
    told: Tensor
    """The place that the network is told for each, [n, K] int64."""
    dropped: Tensor
    """Places of the others, [n, S] int64."""


def draw(config: MaskingConfig, sample_ids: Tensor, *, patch_count: int, seed: int, step: int, view: int) -> Mask:
    """The mask of each image in view number `view` at optimizer step `step`, keyed by its global sample id [n]."""

    def keys(operation: int) -> Tensor:
        return keys_of(0, seed, step, view, operation, sample_ids)

    kept_count = config.kept_count(patch_count)
    order = shuffles(keys(ORDER), patch_count)
    kept, dropped = order[:, :kept_count], order[:, kept_count:]
    chosen = uniforms(keys(MISMATCH), kept_count) < config.mismatch_probability
    if config.donor_rule == "spare_or_cycle":
        donors = _spare_or_cycle(order, chosen)
    elif config.donor_rule == "tail":
        donors = order[:, patch_count - kept_count :]
    else:
        shift = 1 + (uniforms(keys(DONOR), kept_count) * (patch_count - 1)).long()
        donors = (kept + shift) % patch_count
    return Mask(kept=kept, told=torch.where(chosen, donors, kept), dropped=dropped)


def _spare_or_cycle(order: Tensor, chosen: Tensor) -> Tensor:
    """Wrong positions [n, K] for the chosen [n, K] of the first K of `order` [n, L]; no two of an image are equal.

    The k-th chosen patch takes the k-th spare position; where more are chosen than spare, the position of the next
    chosen one, the last that of the first. One alone without a spare keeps its own, and is then no mismatch.
    """
    kept_count, patch_count = chosen.shape[1], order.shape[1]
    total = chosen.sum(1, keepdim=True)
    number = (chosen.cumsum(1) - 1).clamp_min(0)
    spare = order.gather(1, (kept_count + number).clamp_max(patch_count - 1))
    chosen_first = torch.argsort((~chosen).long(), dim=1, stable=True)
    following = chosen_first.gather(1, (number + 1) % total.clamp_min(1))
    return torch.where(total <= patch_count - kept_count, spare, order.gather(1, following))
