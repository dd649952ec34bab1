"""timm's vision transformer, driven on part of the patches and on positions that may be wrong.

Nothing of timm is written again here: its patch embedding, position embeddings, blocks and norm are called one by one.

Letters: n = images, S = height = width of a view in pixels, P = patch size, L = (S / P)² patches, K = kept ones,
d = width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.masking import Mask
from trainers.settings import DecoderConfig, ViTConfig

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def build_vit(config: ViTConfig, view_size: int) -> tuple[VisionTransformer, int]:
    """A network [n, 3, S, S] -> [n, d], and d. Features are the class token after the last norm.

    Views smaller than `view_size` resample the position embeddings.
    """
    from timm.models.vision_transformer import VisionTransformer  # here: it takes a second to import

    width = config.width
    network = VisionTransformer(
        img_size=view_size,
        patch_size=config.patch_size,
        embed_dim=width,
        depth=config.block_count,
        num_heads=config.head_count,
        num_classes=0,
        dynamic_img_size=True,
    )
    _initialize(network, config.initialization)
    if config.positions == "fixed":
        table = sine_positions(view_size // config.patch_size, width, config.position_temperature)
        network.pos_embed = nn.Parameter(table, requires_grad=False)
    if config.freeze_patches:
        network.patch_embed.requires_grad_(False)
    return network, width


@torch.no_grad()
def _initialize(network: VisionTransformer, scheme: Literal["timm", "moco_v3", "mae", "dino"]) -> None:
    """Draw the parameters again that `scheme` has otherwise than timm (the formulas are in `ViTConfig`).

    The authors' code: VisionTransformerMoCo in vits.py of facebookresearch/moco-v3, MaskedAutoencoderViT in
    models_mae.py of facebookresearch/mae, VisionTransformer in vision_transformer.py of facebookresearch/dino.
    """
    if scheme == "timm":
        return
    class_token: Any = network.cls_token
    projection: Any = network.patch_embed.proj
    if scheme == "dino":  # truncated at 100 deviations, as theirs is: a normal law
        nn.init.trunc_normal_(class_token, std=0.02)
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            parts = module.weight.chunk(3) if scheme == "moco_v3" and name.endswith("qkv") else [module.weight]
            for matrix in parts:
                nn.init.xavier_uniform_(matrix)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    if scheme == "moco_v3":
        nn.init.zeros_(projection.bias)
    nn.init.normal_(class_token, std=1e-6 if scheme == "moco_v3" else 0.02)


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


class Decoder(nn.Module):
    """Pixels of dropped patches from the tokens of kept ones: MAE's decoder (arXiv 2111.06377, section 3).

    Kept tokens go back to their *true* places, whatever the encoder was told; a learned mask token stands at the
    others; positions are fixed sines and cosines.
    """

    def __init__(self, config: DecoderConfig, *, inputs: int, patch_size: int, side: int) -> None:
        """`inputs` = d of the encoder; `side` = patches along a side of the largest view."""
        from timm.models.vision_transformer import Block

        super().__init__()
        width = config.width
        self.embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", sine_positions(side, width, 10_000.0), persistent=False)
        self.positions: Tensor
        self.blocks = nn.Sequential(
            *(Block(width, num_heads=width // 32, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(config.depth))
        )
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * patch_size**2)
        self._side = side
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, class_token: Tensor, tokens: Tensor, mask: Mask) -> Tensor:
        """[n, d] and [n, K, d] -> the dropped patches' pixels in the order of `mask.dropped`, [n, L - K, 3 P²]."""
        count = mask.kept.shape[1] + mask.dropped.shape[1]
        grid = torch.Size([math.isqrt(count)] * 2)
        positions = _resampled(self.positions, grid, (self._side, self._side))
        embedded = self.embed(torch.cat([class_token[:, None], tokens], dim=1))
        blanks = self.mask_token.to(embedded.dtype).expand(len(tokens), mask.dropped.shape[1], -1)
        shuffled = torch.cat([embedded[:, 1:], blanks], dim=1)
        back = torch.argsort(torch.cat([mask.kept, mask.dropped], dim=1), dim=1)
        whole = torch.cat([embedded[:, :1], gather_places(shuffled, back)], dim=1) + positions
        decoded = self.norm(self.blocks(whole))
        predicted: Tensor = self.pixels(gather_places(decoded[:, 1:], mask.dropped))
        return predicted


def patch_pixels(images: Tensor, patch_size: int) -> Tensor:
    """[n, 3, S, S] -> each patch's pixels, channel by channel, [n, L, 3 P²]; patches row by row."""
    return functional.unfold(images, patch_size, stride=patch_size).transpose(1, 2)


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
