"""The Monodepth2 objective (Godard et al., arXiv 1806.01260) and its parts."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.geometry import projection_matrix, scale_intrinsics
from mdepth_fast.ops import (
    MinReprojection,
    _checks,
    disparity_to_depth,
    edge_aware_smoothness,
    inverse_warp,
    min_reprojection,
    photometric_loss,
)
from mdepth_fast.ops.inverse_warp import MIN_Z

from ._inputs import look_once

__all__ = ["EdgeAwareSmoothness", "MinReprojectionLoss", "MonodepthLoss", "MonodepthParts", "PhotometricLoss"]

_MASK_WEIGHT = 0.2  # of the cross-entropy that keeps a predicted mask from vanishing


class PhotometricLoss(nn.Module):
    """Mean of `ops.photometric_loss(prediction, target)` over pixels: 0.85 SSIM + 0.15 L1."""

    def __init__(self, ssim_weight: float = 0.85) -> None:
        super().__init__()
        _checks.fraction(ssim_weight, "ssim_weight")
        self.ssim_weight = ssim_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Takes two images (B, C, H, W) in [0, 1] and returns a scalar."""
        look_once(self, target=target)
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
        _checks.fraction(ssim_weight, "ssim_weight")
        _checks.padding_mode(padding)
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
        look_once(self, K, target=target)
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
    selection: list[Tensor]  # int8 (B, 1, h, w): -1 auto-masked, else the index of the source, 0 for their average
    mask: Tensor | None = None  # (n,), detached: cross-entropy of the predicted masks


class MonodepthLoss(nn.Module):
    """The whole objective, from the decoder's sigmoid disparity maps to a scalar: the mean over scales of
    `min_reprojection_s + smoothness / 2^s * edge_aware_smoothness_s`.

    Every disparity map is resized to full resolution for the photometric term ("full-resolution multi-scale"). The
    smoothness term uses its original size. The published loss adds noise to the identity term to break ties; here ties
    go to the identity term, without random numbers, unless `identity_noise` asks for them.

    The last six arguments are the ablations of the paper (table 2) and of the published code.

    Args:
        min_depth, max_depth: depth range that a sigmoid disparity map covers, in the unit of `T`.
        smoothness: weight of the smoothness term at scale 0.
        ssim_weight: share of SSIM in the photometric error; 0 leaves the L1 distance alone (published: `no_ssim`).
        auto_mask: mask pixels that the unwarped source explains better.
        padding: "border" or "zeros", for points that fall outside a source.
        average_reprojection: the mean over the sources in place of the minimum, of the unwarped ones too. A source
            counts as 0 at points behind its camera.
        native_scale: the photometric term at the size of each disparity map, with images of that size by area
            averaging and K scaled to it (published: `v1_multiscale`, as in Monodepth, arXiv 1609.03677).
        predictive_mask: `forward` takes predicted masks, which multiply the photometric errors of the sources; 0.2
            times their binary cross-entropy to 1 is added. Goes without `auto_mask` only.
        identity_noise: standard deviation of normal noise on the unwarped errors in training mode, from torch's global
            generator, one draw for all scales of the same size; the published 1e-5 breaks ties, 0 draws none.
        scales: the s of each disparity map; None: 0, 1, 2, ...
    """

    def __init__(
        self,
        min_depth: float = 0.1,
        max_depth: float = 100.0,
        smoothness: float = 1e-3,
        ssim_weight: float = 0.85,
        auto_mask: bool = True,
        padding: str = "border",
        *,
        average_reprojection: bool = False,
        native_scale: bool = False,
        predictive_mask: bool = False,
        identity_noise: float = 0.0,
        scales: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _checks.depth_range(min_depth, max_depth)
        _checks.weight(smoothness, "smoothness")
        if predictive_mask and auto_mask:
            raise ValueError("predictive_mask: expected auto_mask=False with it, got auto_mask=True")
        _checks.number(identity_noise, "identity_noise", "a finite number of at least 0")
        if not 0 <= identity_noise < math.inf:
            raise ValueError(f"identity_noise: expected a finite number of at least 0, got {identity_noise}")
        self.min_depth, self.max_depth, self.smoothness = min_depth, max_depth, smoothness
        self.average_reprojection, self.native_scale = average_reprojection, native_scale
        self.predictive_mask, self.identity_noise = predictive_mask, identity_noise
        self.scales = None if scales is None else tuple(scales)
        for one in self.scales or ():
            _checks.count(one, "scales")
        self.min_reprojection = MinReprojectionLoss(ssim_weight, auto_mask, padding)

    def extra_repr(self) -> str:
        names = "min_depth max_depth smoothness average_reprojection native_scale predictive_mask identity_noise scales"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names.split())

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
        masks: Sequence[Tensor] | None = None,
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
        masks: Sequence[Tensor] | None = None,
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
            masks: with `predictive_mask`, one per disparity map: (B, S, h_s, w_s) in [0, 1]; they get a gradient.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        _checks.maps(disparities, "disparities", "(B, 1, h, w)")
        batch, _, height, width = _checks.tensor(target, "target", (None, 3, None, None), "(B, 3, H, W)").shape
        _checks.tensor(sources, "sources", (batch, None, 3, height, width), "(B, S, 3, H, W)")
        count = sources.shape[1]
        if count == 0:
            raise ValueError(f"sources: expected at least 1 source (S), got shape {tuple(sources.shape)}")
        _checks.tensor(K, "K", (batch, 3, 3), "(B, 3, 3)")
        if source_K is not None:
            _checks.tensor(source_K, "source_K", (batch, count, 3, 3), "(B, S, 3, 3)")
        if pyramid is not None:
            _checks.maps(pyramid, "pyramid", "(B, 3, h, w)")
        if not isinstance(T, Tensor):
            _checks.maps(T, "T", "(B, S, 4, 4)")
        if masks is not None:
            _checks.maps(masks, "masks", "(B, S, h, w)")
        if pyramid is not None and len(pyramid) != len(disparities):
            raise ValueError(f"pyramid: expected {len(disparities)} images, as many as disparities, got {len(pyramid)}")
        if not isinstance(T, Tensor) and len(T) != len(disparities):
            raise ValueError(f"T: expected a tensor, or {len(disparities)} of them, one for each map, got {len(T)}")
        for s, one in enumerate(disparities):
            if one.dim() != 4 or one.shape[:2] != (target.shape[0], 1):
                raise ValueError(
                    f"disparities[{s}]: expected shape (B, 1, h, w) with B = {target.shape[0]}, got {tuple(one.shape)}"
                )
        if self.scales is not None and len(self.scales) != len(disparities):
            raise ValueError(
                f"disparities: expected {len(self.scales)}, one for each of scales, got {len(disparities)}"
            )
        self._check_masks(masks, disparities, sources)
        look_once(self, K, target=target, sources=sources)
        with torch.autocast(target.device.type, enabled=False):
            maps = [one if one.dtype == torch.float64 else one.float() for one in disparities]
            if pyramid is None:
                pyramid = image_pyramid(target, maps)
            size = target.shape[2:]
            depths = [
                disparity_to_depth(
                    one,
                    one.shape[2:] if self.native_scale else size,
                    min_depth=self.min_depth,
                    max_depth=self.max_depth,
                )
                for one in maps
            ]
            if self.native_scale:
                photometric, selection = self._at_native_scale(pyramid, sources, depths, K, T, source_K, masks)
            elif isinstance(T, Tensor):
                photometric, selection = self._compare(target, sources, depths, K, T, source_K, masks)
            else:
                each = [
                    self._compare(target, sources, [depth], K, one, source_K, masks and masks[s : s + 1])
                    for s, (depth, one) in enumerate(zip(depths, T))
                ]
                photometric, selection = torch.cat([loss for loss, _ in each]), [chosen[0] for _, chosen in each]
            smooth = [edge_aware_smoothness(one, image) for one, image in zip(maps, pyramid)]
            # Weighted with numbers: a tensor of weights would be copied to the device in every step.
            weights = [self.smoothness / 2**s for s in self.scales or range(len(maps))]
            loss = photometric + torch.stack([weight * one for weight, one in zip(weights, smooth)])
            entropy = None
            if masks is not None:
                entropy = torch.stack([_entropy(_resized(mask, depth)) for mask, depth in zip(masks, depths)])
                loss = loss + _MASK_WEIGHT * entropy
            loss = loss.mean()
        if return_parts:
            terms = [term if term is None else term.detach() for term in (photometric, torch.stack(smooth), entropy)]
            return loss, MonodepthParts(terms[0], terms[1], selection, terms[2])  # type: ignore[arg-type]
        return loss

    def _check_masks(self, masks: Sequence[Tensor] | None, disparities: Sequence[Tensor], sources: Tensor) -> None:
        if (masks is not None) != self.predictive_mask:
            expected = "one mask for each disparity map" if self.predictive_mask else "None without predictive_mask"
            raise ValueError(f"masks: expected {expected}, got {'None' if masks is None else f'{len(masks)} masks'}")
        if masks is not None and len(masks) != len(disparities):
            raise ValueError(f"masks: expected {len(disparities)}, as many as disparities, got {len(masks)}")
        for s, (mask, one) in enumerate(zip(masks or (), disparities)):
            expected_shape = (one.shape[0], sources.shape[1], *one.shape[2:])
            if tuple(mask.shape) != expected_shape:
                raise ValueError(f"masks[{s}]: expected shape {expected_shape}, got {tuple(mask.shape)}")
            _checks.shares(mask, f"masks[{s}]")

    def _at_native_scale(
        self,
        pyramid: Sequence[Tensor],
        sources: Tensor,
        depths: list[Tensor],
        K: Tensor,
        T: Tensor | Sequence[Tensor],
        source_K: Tensor | None,
        masks: Sequence[Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss (n,) and the selections, each scale with images and intrinsics of the size of its own map."""
        images = image_pyramid(sources.flatten(0, 1), depths)
        full_height, full_width = sources.shape[3:]
        losses, selections = [], []
        for s, (depth, target, others) in enumerate(zip(depths, pyramid, images)):
            height, width = depth.shape[2:]
            factors = width / full_width, height / full_height
            loss, selection = self._compare(
                target,
                others.unflatten(0, sources.shape[:2]),
                [depth],
                scale_intrinsics(K, *factors),
                T if isinstance(T, Tensor) else T[s],
                None if source_K is None else scale_intrinsics(source_K, *factors),
                masks and masks[s : s + 1],
            )
            losses.append(loss)
            selections += selection
        return torch.cat(losses), selections

    def _compare(
        self,
        target: Tensor,
        sources: Tensor,
        depths: list[Tensor],
        K: Tensor,
        T: Tensor,
        source_K: Tensor | None,
        masks: Sequence[Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Photometric losses (n,) of depth maps at the images' size, and what won where.

        A minimum without masks is one fused call. So is an average without the unwarped sources: that of single sources
        in a batch of all of them. The rest is composed of `inverse_warp` and `photometric_loss`.
        """
        options = self.min_reprojection
        batch, count = sources.shape[:2]
        _checks.tensor(T, "T", (batch, count, 4, 4), "(B, S, 4, 4)")
        if self.average_reprojection and not options.auto_mask and masks is None:
            each = options(
                target.repeat_interleave(count, 0),
                sources.flatten(0, 1).unsqueeze(1),
                [depth.repeat_interleave(count, 0) for depth in depths],
                K.repeat_interleave(count, 0),
                T.flatten(0, 1).unsqueeze(1),
                source_K=None if source_K is None else source_K.flatten(0, 1).unsqueeze(1),
            )
            chosen = [one.unflatten(0, (batch, count)).amax(1) for one in each.selection]
            return each.loss, chosen
        noise = None
        if self.identity_noise and self.training and options.auto_mask:
            channels = 1 if self.average_reprojection else count
            shape = (batch, channels, *target.shape[2:])
            noise = self.identity_noise * torch.randn(shape, dtype=depths[0].dtype, device=target.device)
        if not self.average_reprojection and masks is None:
            found = options(target, sources, depths, K, T, source_K=source_K, identity_noise=noise)
            return found.loss, list(found.selection)

        target, sources = target.detach().to(depths[0].dtype), sources.detach().to(depths[0].dtype)
        identity: list[Tensor] = []
        if options.auto_mask:
            each_identity = [
                photometric_loss(one, target, ssim_weight=options.ssim_weight) for one in sources.unbind(1)
            ]
            identity = each_identity
            if self.average_reprojection:
                identity = [torch.cat(each_identity, 1).mean(1, keepdim=True)]
            if noise is not None:
                identity = list((torch.cat(identity, 1) + noise).split(1, 1))
        losses, selections = [], []
        for s, depth in enumerate(depths):
            errors, behind = self._errors(target, sources, depth, K, T, source_K)
            if masks is not None:
                errors = errors * _resized(masks[s], depth)
            if self.average_reprojection:
                errors = torch.where(behind, 0, errors).mean(1, keepdim=True)
                behind = behind.all(1, keepdim=True)
            candidates = torch.cat([*identity, torch.where(behind, torch.inf, errors)], 1)
            least, index = candidates.min(1, keepdim=True)
            nothing = least == torch.inf
            losses.append(torch.where(nothing, 0, least).mean())
            selections.append((index - len(identity)).clamp_min(-1).masked_fill(nothing, -1).to(torch.int8))
        return torch.stack(losses), selections

    def _errors(
        self, target: Tensor, sources: Tensor, depth: Tensor, K: Tensor, T: Tensor, source_K: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Photometric errors (B, S, H, W) of the warped sources, and where a point lies behind the source's camera."""
        options = self.min_reprojection
        errors = []
        for s, source in enumerate(sources.unbind(1)):
            other = None if source_K is None else source_K[:, s]
            warped, _ = inverse_warp(source, depth, K, T[:, s], source_K=other, padding=options.padding)
            errors.append(photometric_loss(warped, target, ssim_weight=options.ssim_weight))
        with torch.no_grad():
            row = projection_matrix(K, T, source_K)[:, :, 2].to(depth.dtype)  # (B, S, 4): z = (a u + b v + c) d + t
            a, b, c, t = row[..., None, None].unbind(2)
            v = torch.arange(depth.shape[2], dtype=depth.dtype, device=depth.device)[:, None]
            u = torch.arange(depth.shape[3], dtype=depth.dtype, device=depth.device)
            behind = (a * u + b * v + c) * depth + t <= MIN_Z
        return torch.cat(errors, 1), behind


def _resized(mask: Tensor, depth: Tensor) -> Tensor:
    mask = mask if mask.dtype == torch.float64 else mask.float()
    if mask.shape[2:] == depth.shape[2:]:
        return mask
    return F.interpolate(mask, depth.shape[2:], mode="bilinear", align_corners=False)


def _entropy(mask: Tensor) -> Tensor:
    return F.binary_cross_entropy(mask, torch.ones_like(mask))


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
