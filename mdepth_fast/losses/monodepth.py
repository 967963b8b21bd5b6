"""The Monodepth2 objective (Godard et al., arXiv 1806.01260) and its parts."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.ops import (
    MinReprojection,
    disparity_to_depth,
    edge_aware_smoothness,
    min_reprojection,
    photometric_loss,
)

__all__ = ["EdgeAwareSmoothness", "MinReprojectionLoss", "MonodepthLoss", "MonodepthParts", "PhotometricLoss"]


class PhotometricLoss(nn.Module):
    """Mean of `ops.photometric_loss(prediction, target)` over pixels: 0.85 SSIM + 0.15 L1."""

    def __init__(self, ssim_weight: float = 0.85) -> None:
        super().__init__()
        self.ssim_weight = ssim_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Takes two images (B, C, H, W) in [0, 1] and returns a scalar."""
        return photometric_loss(prediction, target, ssim_weight=self.ssim_weight).mean()


class EdgeAwareSmoothness(nn.Module):
    """`ops.edge_aware_smoothness` as a module."""

    def forward(self, disparity: Tensor, image: Tensor) -> Tensor:
        """Takes a disparity map (B, 1, H, W) and an image (B, C, H, W) of the same size; returns a scalar."""
        return edge_aware_smoothness(disparity, image)


class MinReprojectionLoss(nn.Module):
    """`ops.min_reprojection` with its options as attributes."""

    def __init__(self, ssim_weight: float = 0.85, auto_mask: bool = True, padding: str = "border") -> None:
        super().__init__()
        self.ssim_weight, self.auto_mask, self.padding = ssim_weight, auto_mask, padding

    def forward(
        self,
        target: Tensor,
        sources: Tensor,
        depth: Tensor | Sequence[Tensor],
        K: Tensor,
        T: Tensor,
        *,
        source_K: Tensor | None = None,
        identity_noise: Tensor | None = None,
    ) -> MinReprojection:
        """See `ops.min_reprojection`."""
        return min_reprojection(
            target,
            sources,
            depth,
            K,
            T,
            source_K=source_K,
            identity_noise=identity_noise,
            ssim_weight=self.ssim_weight,
            auto_mask=self.auto_mask,
            padding=self.padding,
        )


class MonodepthParts(NamedTuple):
    """The terms of `MonodepthLoss`, one entry per scale, before weighting."""

    photometric: Tensor  # (n,), detached
    smoothness: Tensor  # (n,), detached
    selection: list[Tensor]  # int8 (B, 1, H, W): -1 auto-masked, else the index of the source


class MonodepthLoss(nn.Module):
    """The whole objective, from the decoder's sigmoid disparity maps to a scalar: the mean over scales of
    `min_reprojection_s + smoothness / 2^s * edge_aware_smoothness_s`.

    Every disparity map is resized to full resolution for the photometric term ("full-resolution multi-scale"). The
    smoothness term uses its original size. The published loss adds noise to the identity term to break ties; here ties
    go to the identity term, without random numbers.

    Args:
        min_depth, max_depth: depth range that a sigmoid disparity map covers, in the unit of `T`.
        smoothness: weight of the smoothness term at scale 0.
        ssim_weight: share of SSIM in the photometric error.
        auto_mask: mask pixels that the unwarped source explains better.
        padding: "border" or "zeros", for points that fall outside a source.
    """

    def __init__(
        self,
        min_depth: float = 0.1,
        max_depth: float = 100.0,
        smoothness: float = 1e-3,
        ssim_weight: float = 0.85,
        auto_mask: bool = True,
        padding: str = "border",
    ) -> None:
        super().__init__()
        self.min_depth, self.max_depth, self.smoothness = min_depth, max_depth, smoothness
        self.min_reprojection = MinReprojectionLoss(ssim_weight, auto_mask, padding)

    def extra_repr(self) -> str:
        return f"min_depth={self.min_depth}, max_depth={self.max_depth}, smoothness={self.smoothness}"

    @overload
    def forward(
        self,
        disparities: Sequence[Tensor],
        target: Tensor,
        sources: Tensor,
        K: Tensor,
        T: Tensor | Sequence[Tensor],
        pyramid: Sequence[Tensor] | None = None,
        *,
        source_K: Tensor | None = None,
        return_parts: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        disparities: Sequence[Tensor],
        target: Tensor,
        sources: Tensor,
        K: Tensor,
        T: Tensor | Sequence[Tensor],
        pyramid: Sequence[Tensor] | None = None,
        *,
        source_K: Tensor | None = None,
        return_parts: Literal[True],
    ) -> tuple[Tensor, MonodepthParts]: ...
    def forward(
        self,
        disparities: Sequence[Tensor],
        target: Tensor,
        sources: Tensor,
        K: Tensor,
        T: Tensor | Sequence[Tensor],
        pyramid: Sequence[Tensor] | None = None,
        *,
        source_K: Tensor | None = None,
        return_parts: bool = False,
    ) -> Tensor | tuple[Tensor, MonodepthParts]:
        """Returns the loss, or with `return_parts` the pair (loss, MonodepthParts).

        Args:
            disparities: sigmoid disparity maps (B, 1, h_s, w_s) in [0, 1]; position s in the list is scale s.
            target: (B, 3, H, W) in [0, 1]. sources: (B, S, 3, H, W). Neither gets a gradient.
            K: (B, 3, 3) in pixels of the target.
            T: (B, S, 4, 4), target camera to source camera; or a sequence of them, one per disparity map (posecnn,
                whose translation is scaled by the inverse depth of each).
            pyramid: the target at the size of every disparity map, (B, 3, h_s, w_s); None: computed by area averaging.
            source_K: (B, S, 3, 3); None for `K`.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        if isinstance(disparities, Tensor) or not isinstance(disparities, Sequence) or len(disparities) == 0:
            raise TypeError(f"disparities: expected a non-empty sequence of tensors, got {type(disparities).__name__}")
        if pyramid is not None and len(pyramid) != len(disparities):
            raise ValueError(f"pyramid: expected {len(disparities)} images, as many as disparities, got {len(pyramid)}")
        if not isinstance(T, Tensor) and len(T) != len(disparities):
            raise ValueError(f"T: expected a tensor, or {len(disparities)} of them, one for each map, got {len(T)}")
        for s, one in enumerate(disparities):
            if one.dim() != 4 or one.shape[:2] != (target.shape[0], 1):
                raise ValueError(
                    f"disparities[{s}]: expected shape (B, 1, h, w) with B = {target.shape[0]}, got {tuple(one.shape)}"
                )
        with torch.autocast(target.device.type, enabled=False):
            maps = [one if one.dtype == torch.float64 else one.float() for one in disparities]
            depths = [
                disparity_to_depth(one, target.shape[2:], min_depth=self.min_depth, max_depth=self.max_depth)
                for one in maps
            ]
            if isinstance(T, Tensor):
                photometric, selection = self.min_reprojection(target, sources, depths, K, T, source_K=source_K)
            else:
                scales = [
                    self.min_reprojection(target, sources, depth, K, one, source_K=source_K)
                    for depth, one in zip(depths, T)
                ]
                photometric = torch.stack([scale.loss for scale in scales])
                selection = [scale.selection for scale in scales]
            if pyramid is None:
                pyramid = image_pyramid(target, maps)
            smooth = [edge_aware_smoothness(one, image) for one, image in zip(maps, pyramid)]
            # Weighted with numbers: a tensor of weights would be copied to the device in every step.
            weighted = torch.stack([self.smoothness / 2**s * one for s, one in enumerate(smooth)])
            loss = (photometric + weighted).mean()
        if return_parts:
            return loss, MonodepthParts(photometric.detach(), torch.stack(smooth).detach(), selection)
        return loss


def image_pyramid(image: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """`image` (B, C, H, W) at the size of every map in `like`; each is area-averaged from the one before."""
    levels, last = [], image
    for one in like:
        height, width = one.shape[2:]
        if last.shape[2:] == (2 * height, 2 * width):
            # Bilinear halving is the same mean of 2x2 pixels. On a CPU it takes a sixth of the time, if it is given
            # planes: of images with three channels PyTorch makes copies in channels_last.
            planes = F.interpolate(last.flatten(0, 1).unsqueeze(1), size=(height, width), mode="bilinear")
            last = planes.view(*last.shape[:2], height, width)
        elif last.shape[2:] != (height, width):
            last = F.interpolate(last, size=(height, width), mode="area")
        levels.append(last)
    return levels
