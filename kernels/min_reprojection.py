"""Triton kernels of `min_reprojection`: loss, selection and gradients of a scale in three kernels.

A gradient reaches through two 3x3 windows, and Triton programs cannot hand each other rows as the CUDA kernel's threads
do. Warping nine times over would cost more than memory does, so two intermediates go through a workspace, a portion of
images and one scale at a time:
  `warp_forward` (of inverse_warp)  depth, sources                      -> warped sources
  `_compare`                        warped sources, target, identity    -> selection, the winner's 9 coefficients, sums
  `_differentiate`                  those, depth, sources, target       -> gradient of depth, sums for the projection
and `_identity`, once for all scales, leaves the least identity error of each pixel.

Bytes a pixel and scale in float32, S sources: 4 + 12 S in and 12 S out; 12 S + 20 in and 37 out (1 where the identity
wins); 53 + 12 S in and 4 out: 118 + 48 S, 214 for two sources. The reads of a stencil are counted once; its neighbours
come from L1 and L2. Inputs and outputs alone would be 21 + 12 S. The workspace holds 36 + 12 S bytes a pixel, bounded
by `WORKSPACE_BYTES`, and is all that is kept beside one identity map and the outputs.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, portions, tile_pixels
from mdepth_fast.kernels.inverse_warp import project, sample, sample_axis, store_projection_sums, warp_forward
from mdepth_fast.kernels.photometric_loss import sign, ssim_distance, window, window_weight
from mdepth_fast.ops.min_reprojection import _outputs

WARP = Block(8, 32, 4)
COMPARE = Block(8, 32, 8)
DIFFERENTIATE = Block(8, 32, 8)
COEFFICIENTS = 9  # a, b, c of three channels


@triton.jit
def _compare_channel(image, target, y, x, height, width, inside, SSIM: tl.constexpr, L1: tl.constexpr):
    """A channel's share of the photometric error, and its derivative's coefficients a, b, c."""
    p = window(image, y, x, height, width, inside)
    t = window(target, y, x, height, width, inside)
    distance, a, _a_target, b, c = ssim_distance(p, t)
    return SSIM * distance + L1 * tl.abs(p[4] - t[4]), SSIM * a, SSIM * b, SSIM * c


@triton.jit
def _identity(
    sources,  # (B, S, 3, H, W)
    target,  # (B, 3, H, W)
    noise,  # (B, S, H, W) or None
    identity,  # out (B, H, W)
    height,
    width,
    SOURCES: tl.constexpr,
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    here = offset(y, x, width)
    t = target + image * 3 * plane
    best = tl.full((ROWS, COLUMNS), float("inf"), dtype=identity.dtype.element_ty)
    error = tl.zeros((ROWS, COLUMNS), dtype=identity.dtype.element_ty)
    for k in range(3 * SOURCES):  # channels within sources, one at a time: more windows would not fit the registers
        channel = k % 3
        p = sources + (image * 3 * SOURCES + k) * plane
        share = _compare_channel(p, t + channel * plane, y, x, height, width, inside, SSIM, L1)[0]
        error = tl.where(channel == 0, share, error + share)
        if channel == 2:
            if noise is not None:
                error += tl.load(noise + (image * SOURCES + k // 3) * plane + here, mask=inside, other=0.0)
            best = tl.where((error < best) | (error != error), error, best)  # NaN stays
    tl.store(identity + image * plane + here, best, mask=inside)


@triton.jit
def _compare(
    warped,  # (B, S, 3, H, W)
    target,  # (B, 3, H, W)
    identity,  # (B, H, W) or None: no identity term
    depth,  # (B, 1, H, W)
    projection,  # (B, S, 3, 4) double
    selection,  # out (B, 1, H, W) int8
    coefficients,  # out (B, 9, H, W), where a source won; or None
    partial,  # out (B, tiles) double: sums of the loss
    height,
    width,
    SOURCES: tl.constexpr,
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    here = offset(y, x, width)
    d = tl.load(depth + image * plane + here, mask=inside, other=1.0)
    zero = tl.zeros((ROWS, COLUMNS), dtype=d.dtype)
    if identity is not None:
        best = tl.load(identity + image * plane + here, mask=inside, other=0.0)
    else:
        best = zero
    chosen = tl.full((ROWS, COLUMNS), -1, dtype=tl.int32)
    a0, b0, c0, a1, b1, c1, a2, b2, c2 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    t = target + image * 3 * plane
    error = zero
    na0, nb0, nc0, na1, nb1, nc1, na2, nb2, nc2 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(3 * SOURCES):  # channels within sources, one at a time: more windows would not fit the registers
        channel, s = k % 3, k // 3
        p = warped + (image * 3 * SOURCES + k) * plane
        share, a, b, c = _compare_channel(p, t + channel * plane, y, x, height, width, inside, SSIM, L1)
        error = tl.where(channel == 0, share, error + share)
        # The last three channels' coefficients, the newest last.
        na0, nb0, nc0, na1, nb1, nc1, na2, nb2, nc2 = na1, nb1, nc1, na2, nb2, nc2, a, b, c
        if channel == 2:
            inverse_z = project(projection + (image * SOURCES + s) * 12, y, x, d)[2]
            better = error < best
            if identity is None:
                better = better | (chosen < 0)
            wins = ((inverse_z > 0) & better) | (error != error)
            best = tl.where(wins, error, best)
            chosen = tl.where(wins, s, chosen)
            a0, b0, c0 = tl.where(wins, na0, a0), tl.where(wins, nb0, b0), tl.where(wins, nc0, c0)
            a1, b1, c1 = tl.where(wins, na1, a1), tl.where(wins, nb1, b1), tl.where(wins, nc1, c1)
            a2, b2, c2 = tl.where(wins, na2, a2), tl.where(wins, nb2, b2), tl.where(wins, nc2, c2)
    tl.store(selection + image * plane + here, chosen.to(tl.int8), mask=inside)
    tl.store(partial + tl.program_id(0).to(tl.int64), tl.sum(tl.where(inside, best, 0.0)).to(tl.float64))
    if coefficients is not None:
        out = coefficients + image * 9 * plane + here
        won = inside & (chosen >= 0)
        tl.store(out, a0, mask=won)
        tl.store(out + plane, b0, mask=won)
        tl.store(out + 2 * plane, c0, mask=won)
        tl.store(out + 3 * plane, a1, mask=won)
        tl.store(out + 4 * plane, b1, mask=won)
        tl.store(out + 5 * plane, c1, mask=won)
        tl.store(out + 6 * plane, a2, mask=won)
        tl.store(out + 7 * plane, b2, mask=won)
        tl.store(out + 8 * plane, c2, mask=won)


@triton.jit
def _differentiate_channel(source, target, here, u, v, width, inside, seen, poison, a, b, c, wins, L1: tl.constexpr):
    """Gradient by u and by v that comes through one channel."""
    value, du, dv = sample(source, u, v, width, seen)
    value += poison
    t = tl.load(target + here, mask=inside, other=0.0)
    g = a + b * (value - 0.5) + c * (t - 0.5) + tl.where(wins, L1 * sign(value - t), 0.0)
    return g * du, g * dv


@triton.jit
def _differentiate(
    sources,  # (B, S, 3, H, W)
    target,  # (B, 3, H, W)
    depth,  # (B, 1, H, W)
    projection,  # (B, S, 3, 4) double
    selection,  # (B, 1, H, W) int8
    coefficients,  # (B, 9, H, W), as _compare left them
    grad_depth,  # out (B, 1, H, W)
    partial,  # out (B, S, tiles, 12) double
    height,
    width,
    pixels,
    SOURCES: tl.constexpr,
    L1: tl.constexpr,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    tiles = tl.cdiv(height, ROWS).to(tl.int64) * tl.cdiv(width, COLUMNS)
    here = offset(y, x, width)
    d = tl.load(depth + image * plane + here, mask=inside, other=1.0)
    chosen = selection + image * plane
    t = target + image * 3 * plane
    zero = tl.zeros((ROWS, COLUMNS), dtype=d.dtype)
    total = zero
    for s in range(SOURCES):
        # What the windows around the pixel that chose this source hand it.
        a0, b0, c0, a1, b1, c1, a2, b2, c2 = zero, zero, zero, zero, zero, zero, zero, zero, zero
        for step in range(-1, 2):  # not unrolled: 81 loads in flight would not fit the registers
            weight_y = tl.where(step < 0, window_weight(y, height, -1), window_weight(y, height, 0))
            weight_y = tl.where(step > 0, window_weight(y, height, 1), weight_y)
            for tap in tl.static_range(3):
                weight = weight_y * window_weight(x, width, tap - 1)
                at = offset(y + step, x + (tap - 1), width)
                mask = inside & (weight > 0)
                mask = mask & (tl.load(chosen + at, mask=mask, other=-1) == s)
                weight = weight.to(d.dtype)
                at += image * 9 * plane
                a0 = tl.fma(weight, tl.load(coefficients + at, mask=mask, other=0.0), a0)
                b0 = tl.fma(weight, tl.load(coefficients + at + plane, mask=mask, other=0.0), b0)
                c0 = tl.fma(weight, tl.load(coefficients + at + 2 * plane, mask=mask, other=0.0), c0)
                a1 = tl.fma(weight, tl.load(coefficients + at + 3 * plane, mask=mask, other=0.0), a1)
                b1 = tl.fma(weight, tl.load(coefficients + at + 4 * plane, mask=mask, other=0.0), b1)
                c1 = tl.fma(weight, tl.load(coefficients + at + 5 * plane, mask=mask, other=0.0), c1)
                a2 = tl.fma(weight, tl.load(coefficients + at + 6 * plane, mask=mask, other=0.0), a2)
                b2 = tl.fma(weight, tl.load(coefficients + at + 7 * plane, mask=mask, other=0.0), b2)
                c2 = tl.fma(weight, tl.load(coefficients + at + 8 * plane, mask=mask, other=0.0), c2)
        wins = tl.load(chosen + here, mask=inside, other=-1) == s
        at_source = image * SOURCES + s
        shift_u, shift_v, inverse_z, du_ddepth, dv_ddepth, poison = project(projection + at_source * 12, y, x, d)
        seen = inside & (inverse_z > 0)
        u = sample_axis(x, shift_u, width, ZEROS)
        v = sample_axis(y, shift_v, height, ZEROS)
        p = sources + at_source * 3 * plane
        gu0, gv0 = _differentiate_channel(p, t, here, u, v, width, inside, seen, poison, a0, b0, c0, wins, L1)
        p, t1, t2 = p + plane, t + plane, t + 2 * plane
        gu1, gv1 = _differentiate_channel(p, t1, here, u, v, width, inside, seen, poison, a1, b1, c1, wins, L1)
        p += plane
        gu2, gv2 = _differentiate_channel(p, t2, here, u, v, width, inside, seen, poison, a2, b2, c2, wins, L1)
        gu, gv = gu0 + gu1 + gu2, gv0 + gv1 + gv2
        total += gu * du_ddepth + gv * dv_ddepth
        out = partial + (at_source * tiles + tile) * 12
        store_projection_sums(out, gu, gv, inverse_z, shift_u, shift_v, d, y, x, inside)
    share = 1 / pixels.to(d.dtype)
    tl.store(grad_depth + image * plane + here, total * share, mask=inside)


@_dispatch.implementation("min_reprojection", "triton")
def forward(
    target: Tensor,
    sources: Tensor,
    depths: Sequence[Tensor],
    projection: Tensor,
    identity_noise: Tensor | None,
    ssim_weight: float,
    auto_mask: bool,
    padding: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = loss, selection, grad_depth, grad_projection = _outputs(target, depths, projection, need_grad)
    batch, count, _, height, width = sources.shape
    if batch == 0:  # the mean over nothing, as PyTorch has it
        loss.fill_(torch.nan)
        return outputs
    pixels = batch * height * width
    size = dict(height=height, width=width, SOURCES=count)
    weights = dict(SSIM=ssim_weight / 3, L1=(1 - ssim_weight) / 3)
    compare = dict(ROWS=COMPARE.rows, COLUMNS=COMPARE.columns)
    identity = target.new_empty((batch, height, width)) if auto_mask else None
    if identity is not None:
        launch(
            _identity,
            batch * COMPARE.tiles(height, width),
            COMPARE.warps,
            sources=sources,
            target=target,
            noise=identity_noise,
            identity=identity,
            **size,
            **weights,
            **compare,
        )
    maps = 3 * count + COEFFICIENTS * need_grad
    parts = list(portions(batch, maps * height * width * target.element_size()))
    images = max(part.stop - part.start for part in parts)
    warped = target.new_empty((images, count, 3, height, width))
    coefficients = target.new_empty((images, COEFFICIENTS, height, width)) if need_grad else None
    sums = projection.new_empty((len(depths), batch, COMPARE.tiles(height, width)))
    tiles = DIFFERENTIATE.tiles(height, width)
    projection_sums = projection.new_empty((len(depths), batch, count, tiles, 12)) if need_grad else None
    for scale, depth in enumerate(depths):
        for part in parts:
            images = part.stop - part.start
            cameras = dict(depth=depth[part], projection=projection[part])
            launch(
                warp_forward,
                images * count * WARP.tiles(height, width),
                WARP.warps,
                source=sources[part],
                **cameras,
                warped=warped,
                valid=None,
                **size,
                source_height=height,
                source_width=width,
                CHANNELS=3,
                ZEROS=padding == "zeros",
                ROWS=WARP.rows,
                COLUMNS=WARP.columns,
            )
            launch(
                _compare,
                images * COMPARE.tiles(height, width),
                COMPARE.warps,
                warped=warped,
                target=target[part],
                identity=None if identity is None else identity[part],
                **cameras,
                selection=selection[scale, part],
                coefficients=coefficients,
                partial=sums[scale, part],
                **size,
                **weights,
                **compare,
            )
            if projection_sums is None:
                continue
            launch(
                _differentiate,
                images * tiles,
                DIFFERENTIATE.warps,
                sources=sources[part],
                target=target[part],
                **cameras,
                selection=selection[scale, part],
                coefficients=coefficients,
                grad_depth=grad_depth[scale, part],
                partial=projection_sums[scale, part],
                **size,
                pixels=pixels,
                L1=weights["L1"],
                ZEROS=padding == "zeros",
                ROWS=DIFFERENTIATE.rows,
                COLUMNS=DIFFERENTIATE.columns,
            )
    loss.copy_(sums.sum((1, 2)) / pixels)
    if projection_sums is not None:
        torch.sum(projection_sums, 3, out=grad_projection.view(len(depths), batch, count, 12)).div_(pixels)
    return outputs
