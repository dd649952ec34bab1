"""timm's vision transformer, driven on part of the patches and on positions that may be wrong.

Nothing of timm is written again here: its patch embedding, position embeddings, blocks and norm are called one by one.

Letters: n = images, S = height = width of a view in pixels, P = patch size, L = (S / P)² patches, K = kept ones,
d = width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainers.config import ViTConfig
from trainers.masking import Mask

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

_SIZES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}
"""Width, blocks and heads (Touvron et al. 2021, DeiT, table 1)."""


def build_vit(config: ViTConfig, view_size: int) -> tuple[VisionTransformer, int]:
    """A network [n, 3, S, S] -> [n, d], and d. Features are the class token after the last norm.

    Views smaller than `view_size` resample the position embeddings.
    """
    from timm.models.vision_transformer import VisionTransformer  # here: it takes a second to import

    micro = (config.width, config.depth, config.width // 32)
    width, depth, heads = _SIZES.get(config.kind, micro)
    network = VisionTransformer(
        img_size=view_size,
        patch_size=config.patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        dynamic_img_size=True,
    )
    if config.positions == "fixed":
        table = sine_positions(view_size // config.patch_size, width, config.position_temperature)
        network.pos_embed = nn.Parameter(table, requires_grad=False)
    if config.freeze_patches:
        network.patch_embed.requires_grad_(False)
    return network, width


def encode_patches(network: nn.Module, images: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Class token [n, d] and patch tokens [n, K, d] after the last norm, from images [n, 3, S, S].

    Only the kept patches enter the blocks, after the patch projection; each is at the position that it is told.
    """
    vit: Any = network
    patches = vit.patch_embed(images)  # [n, S / P, S / P, d]
    grid = patches.shape[1:3]
    positions = _resampled(vit.pos_embed, grid, vit.patch_embed.grid_size)[0]  # [1 + L, d]
    content = gather_places(patches.flatten(1, 2), mask.kept)
    tokens = content + positions[1:][mask.told]
    class_token = (vit.cls_token + positions[:1]).expand(len(images), -1, -1)
    tokens = vit.norm_pre(vit.pos_drop(torch.cat([class_token, tokens], dim=1)))
    tokens = vit.norm(vit.blocks(tokens))
    return tokens[:, 0], tokens[:, 1:]


def gather_places(rows: Tensor, places: Tensor) -> Tensor:
    """rows [n, L, d] at places [n, K] -> [n, K, d]."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))


def sine_positions(side: int, width: int, temperature: float) -> Tensor:
    """Fixed position embeddings of a class token (zero) and a grid of side x side patches: [1, 1 + side², width].

    With ω_k = temperature^(-k / m), k < m = width / 4, a patch at row y and column x has sin(x ω), cos(x ω), sin(y ω),
    cos(y ω) (Chen, Xie, He, arXiv 2104.02057; ordered as there: x first). Each has length sqrt(width / 2).
    """
    quarter = width // 4
    omega = temperature ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    x, y = column.reshape(-1, 1) * omega, row.reshape(-1, 1) * omega
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None].to(torch.get_default_dtype())


def _resampled(positions: Tensor, grid: torch.Size, built_for: tuple[int, int]) -> Tensor:
    """As timm's own forward pass resamples them for views of another size."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    table: Tensor = resample_abs_pos_embed(positions, list(grid), list(built_for), num_prefix_tokens=1)
    return table
