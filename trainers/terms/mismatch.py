"""Mismatch detection: which patches were told a wrong position? DILEMMA's dense task beside any host's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainers.terms.base import Facts, Head, Outputs, TermConfig

if TYPE_CHECKING:
    from torch import Tensor


class MismatchDetection(TermConfig):
    """Binary cross-entropy of a linear head on each kept patch token, [n, K] logits a view: 1 = told a wrong position.

    The mean over kept patches and images, then over masked views; right and wrong patches weigh alike. A head that
    sees nothing costs H(θ) nats, θ = the share of mismatches (0.50 at 0.2), and 0 is perfect; plain accuracy says
    little, as "all right" has 1 - θ. `metrics` has the balanced accuracy (mean of both classes' recalls, 0.5 for
    chance; a class that the batch lacks counts as 0.5), the batch's θ and the floor H(θ).

    The head is the model's, on the student alone, and exists only where this term has a weight. Beside a host whose
    loss has another scale the same weight means another thing: MoCo v3's has a factor 2τ, SimCLR's official loss is
    twice the usual.

    Source: Sameni, Jenni, Favaro, "Representation learning by detecting incorrect location embeddings", AAAI 2023
    (arXiv 2204.04788), and the authors' code, whose weight is 1 beside MoCo v3.
    """

    reads_embeddings: ClassVar[bool] = False
    reads_heads: ClassVar[frozenset[Head]] = frozenset({"mismatch_head"})

    kind: Literal["mismatch_detection"] = "mismatch_detection"

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits, mismatched = _answers(outputs)
        losses = [
            binary_cross_entropy_with_logits(answer, truth.to(answer.dtype))
            for answer, truth in zip(logits, mismatched, strict=True)
        ]
        return torch.stack(losses).mean()

    def metrics(self, outputs: Outputs) -> dict[str, Tensor]:
        import torch
        from torch.special import entr

        from trainers import dist

        logits, mismatched = _answers(outputs)
        says = torch.cat([answer.flatten() > 0 for answer in logits])
        wrong = torch.cat([truth.flatten() for truth in mismatched])
        counts = torch.stack([wrong & says, wrong, ~wrong & ~says, ~wrong]).sum(1).double()
        found, wrong_count, passed, right_count = dist.sum_over_ranks(counts)
        recalls = [
            torch.where(total > 0, hits / total.clamp_min(1), 0.5)
            for hits, total in ((found, wrong_count), (passed, right_count))
        ]
        rate = wrong_count / (wrong_count + right_count)
        return {
            "balanced_accuracy": (recalls[0] + recalls[1]) / 2,
            "mismatch_rate": rate,
            "loss_floor": entr(rate) + entr(1 - rate),
        }

    def check(self, name: str, facts: Facts) -> None:
        masking = facts.model.masking
        if masking is None or masking.mismatch_probability == 0.0:
            raise ValueError(
                f"objective.{name} (mismatch_detection) looks for patches at wrong positions and needs "
                f"model.masking.mismatch_probability above 0, but model.masking is {masking!r}; set it to for example "
                f"0.2, or objective.{name}.weight=0"
            )
        if masking.donor_rule == "tail" and masking.drop_ratio == 0.0:
            raise ValueError(
                f"objective.{name} (mismatch_detection) needs mismatches, but model.masking.donor_rule='tail' makes "
                "none with drop_ratio=0, where the tail is the kept patches themselves; use 'spare_or_cycle', or "
                "raise drop_ratio"
            )


def _answers(outputs: Outputs) -> tuple[list[Tensor], list[Tensor]]:
    """Logits [n, K] in float32 or wider, and the truth [n, K], of each masked view."""
    import torch

    logits = [patches.mismatch_logits for patches in outputs.patches if patches.mismatch_logits is not None]
    if not logits or len(logits) != len(outputs.patches):
        raise ValueError(
            "mismatch detection needs masked views and the logits of its head, but the outputs have none; "
            "set model.masking"
        )
    wide = [answer.to(torch.promote_types(answer.dtype, torch.float32)) for answer in logits]
    return wide, [patches.mismatched for patches in outputs.patches]
