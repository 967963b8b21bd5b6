"""Losses of rectified pairs: left-right consistency (Monodepth, arXiv 1609.03677) and Garg et al. (arXiv 1603.04992).

Disparities are x_left - x_right >= 0 as a share of the image's width. The point (x, y) of the left image is at
(x - d_l, y) in the right one, the point (x, y) of the right image at (x + d_r, y) in the left one.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mdepth_fast.losses.monodepth import image_pyramid
from mdepth_fast.ops import _checks, edge_aware_smoothness, flow_warp, photometric_loss

from ._inputs import look_once

__all__ = ["GargLoss", "LeftRightLoss", "LeftRightParts"]


class LeftRightParts(NamedTuple):
    """The terms of `LeftRightLoss`, one entry per scale, sums over both images, before weighting."""

    appearance: Tensor  # (n,), detached
    smoothness: Tensor  # (n,), detached
    consistency: Tensor  # (n,), detached


class LeftRightLoss(nn.Module):
    """Monodepth's objective: the sum over scales s and over both images of
    `appearance + smoothness / 2^s * C_ds + consistency * C_lr` (arXiv 1609.03677, eq. 1-4).

    At each scale, images and disparities are those of the scale. The appearance term compares an image with the other
    one warped to it: ssim_weight * mean clamp((1 - SSIM) / 2, 0, 1) over the 3x3 windows inside the image, plus
    (1 - ssim_weight) * mean L1. C_ds is `ops.edge_aware_smoothness` of the disparity as it is, not normalised by its
    mean. C_lr is the mean of |d_l(x) - d_r(x - d_l(x))|, and of its mirror image. Points outside of an image read its
    border.

    Args:
        ssim_weight: share of SSIM in the appearance term.
        smoothness: weight of the smoothness term at scale 0.
        consistency: weight of the left-right consistency term.
    """

    def __init__(self, ssim_weight: float = 0.85, smoothness: float = 0.1, consistency: float = 1.0) -> None:
        super().__init__()
        _checks.fraction(ssim_weight, "ssim_weight")
        _checks.weight(smoothness, "smoothness")
        _checks.weight(consistency, "consistency")
        self.ssim_weight, self.smoothness, self.consistency = ssim_weight, smoothness, consistency

    def extra_repr(self) -> str:
        return f"ssim_weight={self.ssim_weight}, smoothness={self.smoothness}, consistency={self.consistency}"

    @overload
    def forward(
        self, disparities: Sequence[Tensor], left: Tensor, right: Tensor, *, return_parts: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def forward(
        self, disparities: Sequence[Tensor], left: Tensor, right: Tensor, *, return_parts: Literal[True]
    ) -> tuple[Tensor, LeftRightParts]: ...
    def forward(
        self, disparities: Sequence[Tensor], left: Tensor, right: Tensor, *, return_parts: bool = False
    ) -> Tensor | tuple[Tensor, LeftRightParts]:
        """Returns the loss, or with `return_parts` the pair (loss, LeftRightParts).

        Args:
            disparities: (B, 2, h_s, w_s), channel 0 of the left image, 1 of the right image, as shares of the width;
                position s is scale s.
            left, right: (B, 3, H, W) in [0, 1]. They get no gradient.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        maps, lefts, rights = _at_every_scale(disparities, left, right, 2)
        look_once(self, left=left, right=right)
        appearance, smoothness, consistency = [], [], []
        with torch.autocast(left.device.type, enabled=False):
            for both, one, other in zip(maps, lefts, rights):
                # Both images in one batch: the left ones, then the right ones.
                own, opposite = torch.cat(both.split(1, 1)), torch.cat(both.split(1, 1)[::-1])
                images = torch.cat([one, other])
                flow = torch.cat([_flow(both[:, :1], -1), _flow(both[:, 1:], 1)])
                warped, _ = flow_warp(torch.cat([other, one]), flow)
                distance = photometric_loss(warped, images, ssim_weight=1.0)[..., 1:-1, 1:-1].mean()
                absolute = (warped - images).abs().mean()
                # Means over both images: twice as much is their sum.
                appearance.append(2 * (self.ssim_weight * distance + (1 - self.ssim_weight) * absolute))
                smoothness.append(2 * edge_aware_smoothness(own, images, normalize=False))
                consistency.append(2 * (own - flow_warp(opposite, flow)[0]).abs().mean())
            loss = torch.stack(
                [
                    a + self.smoothness / 2**s * d + self.consistency * c
                    for s, (a, d, c) in enumerate(zip(appearance, smoothness, consistency))
                ]
            ).sum()
        if return_parts:
            return loss, LeftRightParts(*(torch.stack(term).detach() for term in (appearance, smoothness, consistency)))
        return loss


class GargLoss(nn.Module):
    """Squared photometric error of the right image warped to the left one, plus squared gradients of the disparity:
    the mean over scales of `mean (right(x - d) - left)^2 + smoothness * mean (|dx d|^2 + |dy d|^2)`, d in pixels of the
    scale (Garg, Vijay Kumar, Carneiro, Reid, ECCV 2016, arXiv 1603.04992).

    The paper trains the scales one after the other, coarse to fine; here all are trained at once.

    Args:
        smoothness: weight of the smoothness term, for images in [0, 1]. The paper's is 0.01; for which range of
            intensities is not verified.
        linear: take the derivative of the warped image as the paper does, by the Taylor series about the present
            disparity: the horizontal gradient of the right image (central differences), warped. Otherwise it is that
            of the bilinear sampler, the difference of two neighbouring pixels. The loss's value is the same.
    """

    def __init__(self, smoothness: float = 0.01, linear: bool = True) -> None:
        super().__init__()
        _checks.weight(smoothness, "smoothness")
        _checks.flag(linear, "linear")
        self.smoothness, self.linear = smoothness, linear

    def extra_repr(self) -> str:
        return f"smoothness={self.smoothness}, linear={self.linear}"

    def forward(self, disparities: Sequence[Tensor], left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the loss, and detached its photometric and its smoothness term before weighting, means over scales.

        Args:
            disparities: (B, 1, h_s, w_s), of the left image, as shares of the width.
            left, right: (B, 3, H, W) in [0, 1]. They get no gradient.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        maps, lefts, rights = _at_every_scale(disparities, left, right, 1)
        look_once(self, left=left, right=right)
        photometric, smoothness = [], []
        with torch.autocast(left.device.type, enabled=False):
            for disparity, target, source in zip(maps, lefts, rights):
                photometric.append((self._warped(source, disparity) - target).square().mean())
                pixels = disparity * disparity.shape[-1]
                smoothness.append(pixels.diff(dim=-1).square().mean() + pixels.diff(dim=-2).square().mean())
            error, rough = torch.stack(photometric).mean(), torch.stack(smoothness).mean()
            loss = error + self.smoothness * rough
        return loss, error.detach(), rough.detach()

    def _warped(self, source: Tensor, disparity: Tensor) -> Tensor:
        flow = _flow(disparity, -1)
        if not self.linear:
            return flow_warp(source, flow)[0]
        along_x = torch.gradient(source, dim=-1)[0]
        with torch.no_grad():
            both, inside = flow_warp(torch.cat([source, along_x], 1), flow)
        warped, slope = both.chunk(2, 1)
        shift = flow[:, :1]
        return warped + slope * inside * (shift - shift.detach())


def _flow(disparity: Tensor, sign: int) -> Tensor:
    """Disparity (B,1,h,w) as a share of the width to the flow (B,2,h,w) to the other image, in pixels."""
    shift = disparity * (sign * disparity.shape[-1])
    return torch.cat([shift, torch.zeros_like(shift)], 1)


def _at_every_scale(
    disparities: Sequence[Tensor], left: Tensor, right: Tensor, channels: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Checks the arguments; the maps in at least float32, and both images at their sizes, without gradient."""
    _checks.maps(disparities, "disparities", f"(B, {channels}, h, w)")
    for name, image in (("left", left), ("right", right)):
        _checks.floating(image, name, "(B, C, H, W)")
        if image.dim() != 4 or image.shape != left.shape:
            like = "" if image is left else f" like left, {tuple(left.shape)}"
            raise ValueError(f"{name}: expected shape (B, C, H, W){like}, got {tuple(image.shape)}")
        if 0 in image.shape[1:]:
            raise ValueError(f"{name}: expected C, H and W of at least 1, got {tuple(image.shape)}")
    for s, one in enumerate(disparities):
        if one.dim() != 4 or one.shape[:2] != (left.shape[0], channels):
            raise ValueError(
                f"disparities[{s}]: expected shape (B, {channels}, h, w) with B = {left.shape[0]}, "
                f"got {tuple(one.shape)}"
            )
        if min(one.shape[2:]) < 3:
            raise ValueError(f"disparities[{s}]: expected h and w of at least 3, got {tuple(one.shape)}")
    maps = [one if one.dtype == torch.float64 else one.float() for one in disparities]
    images = [image_pyramid(image.detach(), maps) for image in (left, right)]
    return maps, images[0], images[1]
