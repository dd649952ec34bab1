"""How should whitening cut a batch and its channels: sub-batches, groups, room to spare, which factor?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.suggest import OFF, ON, log_float, made_for
from trainers.changes import with_fields
from trainers.config import TrialConfig
from trainers.terms import BatchWhitening, ChannelWhitening
from trainers.terms.whitening import Whitening

if TYPE_CHECKING:
    from search_spaces.suggest import Trial


@made_for("cw_rgp_tiny")
def space(trial: Trial, base: TrialConfig) -> TrialConfig:
    """Whitening over channels or over the batch: group count g, sub-batch m, and the room ratio to spare.

    Every draw is feasible by construction, because the embedding's width d follows from what is drawn (Weng et al.,
    NeurIPS 2022; published ratios are 2 and 4):

    * channel whitening (CW-RGP) makes m embeddings orthogonal in each of g groups and needs d / g >= m:
      d = ratio · g · m, with ratio 2, 4 or 8. m divides a quarter of the batch, so that up to 4 workers can share it.
    * batch whitening (W-MSE) over all N images needs N > d / g, the other way round: d = g · N / ratio.

    "pca" is left out: as a loss it is known to fail. `whitening` replaces the recipe's whitening term, whose weight
    and name stay.
    """
    name, term = _whitening_of(base)
    kind = trial.suggest_categorical("whitening", ("channel_whitening", "batch_whitening"))
    group_count = trial.suggest_categorical("group_count", (1, 2, 4, 8))
    ratio = trial.suggest_categorical("ratio", (2, 4, 8))
    settings: dict[str, Any] = {
        "weight": term.weight,
        "group_count": group_count,
        "factor": trial.suggest_categorical("factor", ("zca", "cholesky", "newton")),
    }
    if group_count > 1:
        settings["share_partition"] = trial.suggest_categorical("share_partition", (False, True))
    if trial.suggest_categorical("shrink", (OFF, ON)) == ON:
        settings["shrinkage"] = log_float(trial, "shrinkage", 1e-7, 1e-4)
    whitening: Whitening
    if kind == "channel_whitening":
        sub_batch_size = trial.suggest_categorical("sub_batch_size", _sub_batch_sizes(base.batch_size))
        width = ratio * group_count * sub_batch_size
        whitening = ChannelWhitening(sub_batch_size=sub_batch_size, **settings)
    else:
        width = group_count * base.batch_size // ratio
        whitening = BatchWhitening(**settings)
    projector = with_fields(base.model.projector, widths=(*base.model.projector.widths[:-1], width))
    return with_fields(
        base, model=with_fields(base.model, projector=projector), objective={**base.objective, name: whitening}
    )


def _whitening_of(base: TrialConfig) -> tuple[str, Whitening]:
    for name, term in base.objective.items():
        if isinstance(term, Whitening):
            return name, term
    raise ValueError(
        "space 'groups' varies a term of kind 'channel_whitening' or 'batch_whitening', but the recipe's objective "
        f"has only {sorted(base.objective)}; choose another recipe, or add the term with "
        "--set objective.channel_whitening.kind=channel_whitening"
    )


def _sub_batch_sizes(batch_size: int) -> list[int]:
    """Powers of two from 8 to 64 that divide a quarter of the batch: the widest embedding is then 8 · 8 · 64 = 4096."""
    sizes = [m for m in (8, 16, 32, 64) if batch_size % (4 * m) == 0]
    if not sizes:
        raise ValueError(
            "space 'groups' cuts the batch into runs of 8 images and more for up to 4 workers, so batch_size must be "
            f"a multiple of 32, but is {batch_size}; change it with --set batch_size=…"
        )
    return sizes
