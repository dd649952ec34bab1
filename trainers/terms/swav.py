"""SwAV: a view should tell to which prototypes an equal partition of the batch sorts another view of its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from trainers.terms import swapped
from trainers.terms.base import Facts, Head, Outputs, TermConfig, wide

if TYPE_CHECKING:
    from torch import Tensor


class Swav(TermConfig):
    """Cross-entropy between codes of the first views, from Sinkhorn's iterations, and the softmax over M prototypes.

    s_v = cosines of view v's projections with the prototypes, [n, M]. The code of view i has no gradient: Q =
    exp(s_i / ε) over the N images of the global batch, ε = `code_temperature`, is scaled `iterations` times, each
    column to a sum of 1 / M (each prototype has an equal share of the batch), then each row to a sum of 1 / N; q_i =
    N Q, rows of sum 1. With p_v = softmax(s_v / τ), τ = `temperature`, the value is the mean over images and over all
    pairs (i, v), v ≠ i, of -Σ q_i log p_v, i among the first `code_views` views (the global crops of a multi-crop
    recipe). ln M where all is uniform.

    N must be of M's size for an equal partition to mean anything. For smaller batches the last K images' embeddings
    are kept (`model.prototypes.queue`), and their cosines with the prototypes of now join the batch's: Q is then over N
    + K images, of which only the batch's rows are codes.

    Source: Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020
    (arXiv 2006.09882), and facebookresearch/swav. The prototypes are `model.prototypes`.
    """

    reads_heads: ClassVar[frozenset[Head]] = frozenset({"prototypes"})

    kind: Literal["swav"] = "swav"
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    code_temperature: Annotated[float, Field(ge=0.01)] = 0.05
    iterations: Annotated[int, Field(ge=1, le=100)] = 3
    code_views: Annotated[int, Field(ge=1)] = 2

    def __call__(self, outputs: Outputs) -> Tensor:
        scores = self._scores(outputs)
        logs = [(wide(rows) / self.temperature).log_softmax(dim=1) for rows in scores]
        return swapped.cross_entropy(self._codes(outputs), logs, term=self.kind)

    def metrics(self, outputs: Outputs) -> dict[str, Tensor]:
        """`information`: nats that a code tells of its image (`swapped.information`); 0 where all have one code."""
        return {"information": swapped.information(self._codes(outputs))}

    def _codes(self, outputs: Outputs) -> list[Tensor]:
        """q of each of the first views, [n, M]."""
        import torch

        found, queued = [], outputs.queued_scores
        with torch.no_grad():
            for place, rows in enumerate(self._scores(outputs)[: self.code_views]):
                sorted_together = rows if queued is None else torch.cat((queued[place].to(rows.dtype), rows))
                codes = equal_partition(sorted_together, self.code_temperature, self.iterations)
                found.append(codes[len(codes) - len(rows) :])
        return found

    def _scores(self, outputs: Outputs) -> tuple[Tensor, ...]:
        if outputs.scores is None:
            raise ValueError("swav needs the scores of the views, but the outputs have none; set model.prototypes")
        return outputs.scores

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "swav")
        if facts.model.prototypes is None:
            raise ValueError(
                f"objective.{name} (swav) needs model.prototypes, but it is null; set for example "
                f"model.prototypes.count=1024, or objective.{name}.weight=0"
            )
        if self.code_views > len(facts.views):
            raise ValueError(
                f"objective.{name}.code_views must be at most the number of views, {len(facts.views)}, "
                f"but is {self.code_views}; lower it"
            )
        queue = facts.model.prototypes.queue
        if queue and self.code_views > facts.model.prototypes.queued_views:
            raise ValueError(
                f"objective.{name}.code_views must be at most model.prototypes.queued_views, "
                f"{facts.model.prototypes.queued_views}, as a code is sorted together with the queue, but is "
                f"{self.code_views}; set both alike"
            )
        if 0 < queue < facts.batch_size:
            raise ValueError(
                f"model.prototypes.queue must be at least batch_size, {facts.batch_size}, or 0 for none, but is "
                f"{queue}; change it"
            )

    def check_workers(self, name: str, facts: Facts, workers: int) -> None:
        queue = 0 if facts.model.prototypes is None else facts.model.prototypes.queue
        if queue % workers:
            raise ValueError(
                f"model.prototypes.queue must be a multiple of the {workers} workers, but is {queue}; change it, for "
                f"example to {queue - queue % workers}"
            )


def equal_partition(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Sinkhorn and Knopp's scaling of exp(scores / temperature) over the global batch, cosines [n, M] of this rank -> q
    of its rows, [n, M] with row sums 1, in float32 or wider.

    In float64, where exp(-2 / 0.01) is not yet 0: a prototype that nothing is near would have a share of 0 / 0. What
    lies outside of -1 to 1 is no cosine, and cut.
    """
    from trainers import dist

    shares = ((scores.double().clamp(-1.0, 1.0) - 1.0) / temperature).exp()
    for _ in range(iterations):
        shares = shares / dist.sum_over_ranks(shares.sum(0))
        shares = shares / shares.sum(1, keepdim=True)
    return shares.to(wide(scores).dtype)
