"""Reconstruction: the pixels of patches that were dropped. The whole loss of masked autoencoders (MAE)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainers.terms.base import Facts, Head, Outputs, TermConfig

if TYPE_CHECKING:
    from torch import Tensor


class Reconstruction(TermConfig):
    """Mean squared error of the decoder's pixels over dropped patches, [n, S, 3 P²] a view; then over masked views.

    With `normalize` the target is (x - mean) / sqrt(variance + 1e-6) of its own patch of m = 3 P² numbers, variance
    with m - 1: then predicting zero costs (m - 1) / m on any patch that is not blank. Kept patches are never predicted.

    Source: He et al., "Masked autoencoders are scalable vision learners", CVPR 2022 (arXiv 2111.06377), section 3.
    """

    reads_embeddings: ClassVar[bool] = False
    reads_heads: ClassVar[frozenset[Head]] = frozenset({"decoder"})

    kind: Literal["reconstruction"] = "reconstruction"
    normalize: bool = True

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        losses = []
        for patches in outputs.patches:
            if patches.pixels is None or patches.reconstruction is None:
                raise ValueError(
                    "reconstruction needs the decoder's pixels, but the outputs have none; set both "
                    "model.masking and model.decoder"
                )
            predicted, target = (
                x.to(torch.promote_types(x.dtype, torch.float32)) for x in (patches.reconstruction, patches.pixels)
            )
            if self.normalize:
                variance, mean = torch.var_mean(target, dim=2, keepdim=True)
                target = (target - mean) / (variance + 1e-6).sqrt()
            losses.append((predicted - target).square().mean())
        if not losses:
            raise ValueError("reconstruction needs masked views, but the outputs have none; set model.masking")
        return torch.stack(losses).mean()

    def check(self, name: str, facts: Facts) -> None:
        masking = facts.model.masking
        if facts.model.decoder is None or masking is None:
            raise ValueError(
                f"objective.{name} (reconstruction) needs model.masking and model.decoder, but they are {masking!r} "
                f"and {facts.model.decoder!r}; set them, for example model.masking.drop_ratio=0.75 and "
                f"model.decoder.depth=2, or objective.{name}.weight=0"
            )
        for view, patch_count in facts.masked_patch_counts.items():
            if masking.kept_count(patch_count) == patch_count:
                raise ValueError(
                    f"objective.{name} (reconstruction) needs dropped patches, but model.masking.drop_ratio="
                    f"{masking.drop_ratio} drops none of the {patch_count} of views.{view}; raise it"
                )
