"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) under timm's state-dict names, without timm, and DINOv2.

Pre-norm blocks, learned positions, a class token. Positions are resized to the image at hand, so any size will do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DINOv2", "PatchEmbed", "VisionTransformer", "gelu"]

PATCH = 16  # pixels a side that become one token


def gelu(x: Tensor) -> Tensor:
    """GELU with the error function; overwrites `x` where no gradient is needed, which saves its largest allocation."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def _sum(x: Tensor, branch: Tensor) -> Tensor:
    # Under autocast the branch is in half precision, and what goes on from block to block is not.
    return branch.add_(x) if branch.dtype == x.dtype else x + branch


class PatchEmbed(nn.Module):
    """Images to one vector per patch of `patch` x `patch` pixels."""

    def __init__(self, dim: int, patch: int = PATCH) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) to (B, dim, H/patch, W/patch), and the maps on the way there: none."""
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


class _LayerScale(nn.Module):
    """A factor for each channel of a branch (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + gamma * branch, in one pass."""
        return torch.addcmul(x, branch.to(x.dtype), self.gamma.to(x.dtype))


class _Block(nn.Module):
    ls1: _LayerScale | None
    ls2: _LayerScale | None

    def __init__(self, dim: int, heads: int, eps: float, layer_scale: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = _Attention(dim, heads)
        self.ls1 = _LayerScale(dim) if layer_scale else None
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = _MLP(dim, 4 * dim)
        self.ls2 = _LayerScale(dim) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        x = (self.ls1 or _sum)(x, self.attn(self.norm1(x)))
        return (self.ls2 or _sum)(x, self.mlp(self.norm2(x)))

    @torch.no_grad()
    def fold_layer_scale(self) -> None:
        """Multiplies the last layer of each branch by the branch's LayerScale, in place, and drops the latter."""
        for scale, linear in ((self.ls1, self.attn.proj), (self.ls2, self.mlp.fc2)):
            if scale is not None:
                linear.weight.mul_(scale.gamma[:, None])
                linear.bias.mul_(scale.gamma)
        self.ls1 = self.ls2 = None


class VisionTransformer(nn.Module):
    """ViT without its classifier.

    Args:
        patch_embed: images (B, 3, H, W) to a map (B, dim, H/16, W/16) and a list of further maps
        grid: tokens a side of the square for which positions are learned (24: images of 384 x 384)
        eps: of the layer norms
        layer_scale: scale the branches of the blocks

    `norm`, which follows the last block, is there because published files hold it; only the tokens before it are read.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        patch_embed: nn.Module,
        *,
        grid: int = 24,
        eps: float = 1e-6,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads: expected a divisor of dim = {dim}, got {heads}")
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, dim))
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(_Block(dim, heads, eps, layer_scale) for _ in range(depth))
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
        x = x + self.positions(patches.shape[-2:])
        tokens = []
        for n, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block(x)
            if n in taps:
                tokens.append(x)
        return maps, tokens

    def positions(self, size: Sequence[int]) -> Tensor:
        """The positions (1, 1 + h * w, dim) for a map of `size` (h, w)."""
        return resized_positions(self.pos_embed, self.grid, size)

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """A file of ImageNet weights under timm's names: without its classifier, the positions resized to `grid`."""
        content = {key: value for key, value in content.items() if not key.startswith(("head.", "pre_logits."))}
        positions = content.get("pos_embed")
        if isinstance(positions, Tensor) and positions.dim() == 3 and positions.shape[1] > 1:
            side = round((positions.shape[1] - 1) ** 0.5)
            if side**2 == positions.shape[1] - 1:
                content["pos_embed"] = resized_positions(positions, side, (self.grid, self.grid))
        return content


class DINOv2(VisionTransformer):
    """The encoder of DINOv2 (Oquab et al., arXiv 2304.07193) without registers: patches of 14 x 14, LayerScale.

    Args:
        position_offset: None: positions are resized by the ratio of the sizes; else by (size + offset) / grid, against
            rounding, which shifts them slightly. Published: 0.1; transformers: None

    The tokens that `forward` returns have passed `norm`. `mask_token` is in the published files, but nothing reads it.
    """

    PATCH = 14

    def __init__(
        self, dim: int, depth: int, heads: int, *, grid: int = 37, position_offset: float | None = 0.1
    ) -> None:
        super().__init__(dim, depth, heads, PatchEmbed(dim, self.PATCH), grid=grid, layer_scale=True)
        self.position_offset = position_offset
        self.mask_token = nn.Parameter(torch.zeros(1, dim))

    def forward(self, images: Tensor, taps: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 3, H, W), sides multiples of 14, to no maps and the normalised tokens (B, 1 + H/14 * W/14, dim)."""
        maps, tokens = super().forward(images, taps)
        return maps, [self.norm(x) for x in tokens]

    def positions(self, size: Sequence[int]) -> Tensor:
        return resized_positions(self.pos_embed, self.grid, size, mode="bicubic", offset=self.position_offset)

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """A file of DINOv2, of Depth Anything, or of transformers' version of either: what is of the encoder."""
        for prefix in ("pretrained.", "backbone."):
            own = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
            content = own or content
        return renamed(as_published(content), self.transformers_keys())

    def transformers_keys(self) -> dict[str, tuple[str, ...]]:
        """Key of `state_dict()` to that in published files of transformers' Dinov2Model; to three where query, key and
        value are apart there: the rows of ours, in that order."""
        keys: dict[str, tuple[str, ...]] = {}
        for key in self.state_dict():
            start, _, rest = key.partition(".")
            if start != "blocks":
                keys[key] = (key.replace(start, _OUTSIDE[start], 1).replace(".proj.", ".projection."),)
                continue
            index, _, rest = rest.partition(".")
            names: tuple[str, ...] = (rest,)
            if rest.startswith("attn.qkv"):
                leaf = rest.removeprefix("attn.qkv")
                names = tuple(f"attention.attention.{part}{leaf}" for part in ("query", "key", "value"))
            for ours, theirs in _INSIDE.items():
                names = tuple(name.replace(ours, theirs) for name in names)
            keys[key] = tuple(f"encoder.layer.{index}.{name}" for name in names)
        return keys


# Names of transformers' Dinov2Model outside of the blocks and in them.
_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "patch_embed": "embeddings.patch_embeddings",
    "norm": "layernorm",
}
_INSIDE = {"attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1"}
_INSIDE |= {"ls2.gamma": "layer_scale2.lambda1"}
# Of its version 5 in memory, and in files.
_IN_MEMORY = {f"attention.{name[0]}_proj.": f"attention.attention.{name}." for name in ("query", "key", "value")}
_IN_MEMORY["attention.o_proj."] = "attention.output.dense."


def as_published(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict of a DINOv2 of transformers 5, or of a network around one, under the names of published files."""
    found = {}
    for key, value in content.items():
        for name, published in _IN_MEMORY.items():
            key = key.replace(name, published)
        found[key] = value
    return content if found.keys() == content.keys() else found


def renamed(content: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]]) -> Mapping[str, Any]:
    """`content` under other names, by `keys`: name to those of the tensors that are joined to it along dimension 0.

    Names that are not in `keys` stay, and so does what is joined from tensors that are not all there.
    """
    found = dict(content)
    for key, theirs in keys.items():
        parts = [found[name] for name in theirs if isinstance(found.get(name), Tensor)]
        if len(parts) == len(theirs) and theirs != (key,):
            for name in theirs:
                del found[name]
            found[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return content if found.keys() == content.keys() else found


def resized_positions(
    positions: Tensor, grid: int, size: Sequence[int], mode: str = "bilinear", offset: float | None = None
) -> Tensor:
    """Positions (1, 1 + grid * grid, D) to (1, 1 + h * w, D), `size` = (h, w); the class token's position stays.

    `offset`: places are scaled by (size + offset) / grid in place of size / grid.
    """
    if tuple(size) == (grid, grid):
        return positions
    square = positions[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    if mode == "bicubic":  # which half precision would shift
        square = square.to(torch.promote_types(square.dtype, torch.float32))
    if offset is None:
        square = F.interpolate(square, tuple(size), mode=mode, align_corners=False)
    else:
        factors = tuple((length + offset) / grid for length in size)
        square = F.interpolate(square, scale_factor=factors, mode=mode, align_corners=False)
    return torch.cat([positions[:, :1], square.flatten(2).transpose(1, 2).to(positions.dtype)], 1)
