"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) under timm's state-dict names, without timm.

Pre-norm blocks, learned positions, a class token. Positions are resized to the image at hand, so any size will do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PatchEmbed", "VisionTransformer", "gelu"]

PATCH = 16  # pixels a side that become one token


def gelu(x: Tensor) -> Tensor:
    """GELU with the error function; overwrites `x` where no gradient is needed, which saves its largest allocation."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def _sum(x: Tensor, branch: Tensor) -> Tensor:
    # Under autocast the branch is in half precision, and what goes on from block to block is not.
    return branch.add_(x) if branch.dtype == x.dtype else x + branch


class PatchEmbed(nn.Module):
    """Images to one vector per patch of 16 x 16 pixels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) to (B, dim, H/16, W/16), and the maps on the way there: none."""
        return self.proj(images), []


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if qkv.device.type == "cpu":
            # Rows 3 * dim apart are whole pages apart and share cache sets; the copy costs less than the collisions.
            qkv = qkv.contiguous()
        q, k, v = qkv
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = _MLP(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = _sum(x, self.attn(self.norm1(x)))
        return _sum(x, self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """ViT without its classifier.

    Args:
        patch_embed: images (B, 3, H, W) to a map (B, dim, H/16, W/16) and a list of further maps
        grid: tokens a side of the square for which positions are learned (24: images of 384 x 384)
        eps: of the layer norms

    `norm`, which follows the last block, is there because published files hold it; only the tokens before it are read.
    """

    def __init__(
        self, dim: int, depth: int, heads: int, patch_embed: nn.Module, *, grid: int = 24, eps: float = 1e-6
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads: expected a divisor of dim = {dim}, got {heads}")
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, dim))
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(_Block(dim, heads, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps)
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, taps: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 3, H, W), sides multiples of 16, to the maps of `patch_embed` and the tokens (B, 1 + H/16 * W/16, dim).

        Tokens are those after each block of `taps`, counted from 0, ascending; blocks after the last do not run.
        """
        patches, maps = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + resized_positions(self.pos_embed, self.grid, patches.shape[-2:])
        tokens = []
        for n, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block(x)
            if n in taps:
                tokens.append(x)
        return maps, tokens

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """A file of ImageNet weights under timm's names: without its classifier, the positions resized to `grid`."""
        content = {key: value for key, value in content.items() if not key.startswith(("head.", "pre_logits."))}
        positions = content.get("pos_embed")
        if isinstance(positions, Tensor) and positions.dim() == 3 and positions.shape[1] > 1:
            side = round((positions.shape[1] - 1) ** 0.5)
            if side**2 == positions.shape[1] - 1:
                content["pos_embed"] = resized_positions(positions, side, (self.grid, self.grid))
        return content


def resized_positions(positions: Tensor, grid: int, size: Sequence[int]) -> Tensor:
    """Positions (1, 1 + grid * grid, D) to (1, 1 + h * w, D), `size` = (h, w); the class token's position stays."""
    if tuple(size) == (grid, grid):
        return positions
    square = positions[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    square = F.interpolate(square, tuple(size), mode="bilinear", align_corners=False)
    return torch.cat([positions[:, :1], square.flatten(2).transpose(1, 2)], 1)
