"""Brownian: random tangential kicks that keep embeddings moving apart locally. MSBReg's local dispersion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainers.terms.base import Outputs, TermConfig, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


class Brownian(TermConfig):
    """Mean over images and views of p_ik · g_i: unit embeddings p against a fresh random direction g per step.

    The value is signed, has mean 0 over the noise and never converges: read nothing into it, select no model by it.
    What counts is its gradient, (g - (g·p) p) / length: a zero-mean kick along the sphere, independent between images,
    which needs no other embedding. Kicks of the mean shrink with the batch: keep weight / sqrt(batch_size) fixed.

    g is a function of (seed, step, sample id), whatever the ranks. `share`: "image" gives all views of an image one
    direction, "view" each its own (this one fights attraction), "batch" moves everything rigidly. `norm`: "unit"
    directions, or "gaussian" ones that are sqrt(q) longer. `source`: "prediction" falls back on projections where the
    model has no predictor.

    Source: Moon et al., "An embedding-dynamic approach to self-supervised learning", WACV 2023 (arXiv 2207.03552).
    Confirmed there: a random motion independent of other embeddings. The formula, one direction per image and the
    weight 0.1 come from a third party's code; the rest is inferred. The official text and code were not available.
    """

    kind: Literal["brownian"] = "brownian"
    share: Literal["image", "view", "batch"] = "image"
    norm: Literal["unit", "gaussian"] = "unit"
    source: Literal["prediction", "projection"] = "prediction"

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers.keyed_random import key_of, keys_of, normals

        embeddings = outputs.projections
        if self.source == "prediction" and outputs.predictions is not None:
            embeddings = outputs.predictions
        p = torch.stack([unit_rows(rows) for rows in embeddings])  # [K, n, q]
        key = key_of("brownian", outputs.seed, outputs.step)
        samples = outputs.sample_ids.to(p.device)[None]  # [1, n]
        views = torch.arange(len(p), device=p.device)[:, None]  # [K, 1]
        counters = {"image": (samples,), "view": (samples, views), "batch": (torch.zeros_like(samples[:, :1]),)}
        noise = normals(keys_of(key, *counters[self.share]), p.shape[-1])
        if self.norm == "unit":
            noise = unit_rows(noise)
        return (p * noise.to(p.dtype)).sum(-1).mean()
