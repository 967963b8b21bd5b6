"""Triton kernels of `view_synthesis_loss`: both terms and their gradients in four kernels.

As in `min_reprojection`, what 3x3 windows need goes through a workspace, a portion of images at a time:
  `_warp`                 depth, source, target, weight   -> warped source, what pixels count, sums of L1
  `_compare`              warped source, target, counts   -> weights of the windows, sums of SSIM
  `photometric_backward`  warped source, target, weights  -> SSIM's gradient by the warped source
  `_differentiate`        all of those, source, depth     -> gradients of depth and weight, sums for the projection
Without SSIM the two in the middle have nothing to do.

Bytes a pixel in float32: 28 in and 16 out, 28 in and 4 out, 28 in and 12 out, 56 in and 8 out: 180, and a weight's
gradients 4 + 4 + 4 and a map of the windows' distances more. The workspace holds 32 (36) bytes a pixel, bounded by
`WORKSPACE_BYTES`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, portions, tile_origin, tile_pixels
from mdepth_fast.kernels.inverse_warp import (
    STEP,
    project,
    projection_sums,
    sample,
    sample_axis,
    store_projection_sums,
)
from mdepth_fast.kernels.photometric_loss import (
    add_distances,
    beside,
    launch_backward,
    load_columns,
    load_pairs,
    sign,
    store_pairs,
    strip_pixels,
    strip_programs,
)
from mdepth_fast.ops.view_synthesis_loss import GREY

WARP = Block(8, 32, 4)
COMPARE = Block(4, 64, 4)
COMPARE_STRIP = 3  # rows; one in double
DIFFERENTIATE = Block(32, 32, 4)

_GREY = tl.constexpr(GREY)


@triton.jit
def _between_pixels(pixel, shift, size):
    """Whether both neighbours of `pixel + shift` lie on the axis."""
    first = pixel.to(shift.dtype) + tl.floor(shift)
    return (first >= 0) & (first < size - 1)


@triton.jit
def _in_view(y, x, shift_u, shift_v, inverse_z, height, width):
    """Where all four neighbours lie in the source."""
    return (inverse_z > 0) & _between_pixels(x, shift_u, width) & _between_pixels(y, shift_v, height)


@triton.jit
def _warp(
    target,  # (B, 3, H, W)
    source,  # (B, 3, H, W)
    depth,  # (B, 1, H, W)
    projection,  # (B, 3, 4) double
    weight,  # (B, 1, H, W) or None
    warped,  # out (B, 3, H, W)
    counts,  # out (B, 1, H, W): the mask times the weight
    grad_weight,  # out (B, 1, H, W), of L1, or None
    partial,  # out (B, tiles) double: sums of L1
    height,
    width,
    colors,  # of the whole batch
    OUTSIDE_GREY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    here = offset(y, x, width)
    d = tl.load(depth + image * plane + here, mask=inside, other=1.0)
    shift_u, shift_v, inverse_z, _du, _dv, poison = project(projection + image * 12, y, x, d)
    in_view = _in_view(y, x, shift_u, shift_v, inverse_z, height, width)
    seen = inside & (inverse_z > 0)
    u = sample_axis(x, shift_u, width, False)
    v = sample_axis(y, shift_v, height, False)
    absolute = d * 0
    for channel in range(3):
        at = (image * 3 + channel) * plane
        value = sample(source + at, u, v, width, seen)[0] + poison
        if OUTSIDE_GREY:
            value = tl.where(in_view, value, value * 0 + _GREY)
        tl.store(warped + at + here, value, mask=inside)
        absolute += tl.abs(value - tl.load(target + at + here, mask=inside, other=0.0))
    counted = d * 0 + 1
    if not OUTSIDE_GREY:
        counted = in_view.to(d.dtype)
    count = counted
    if weight is not None:
        count = counted * tl.load(weight + image * plane + here, mask=inside, other=0.0)
    tl.store(counts + image * plane + here, count, mask=inside)
    tiles = tl.cdiv(height, ROWS).to(tl.int64) * tl.cdiv(width, COLUMNS)
    tl.store(partial + image * tiles + tile, tl.sum(tl.where(inside, count * absolute, 0.0)).to(tl.float64))
    if grad_weight is not None:
        tl.store(grad_weight + image * plane + here, counted * absolute * (1 / colors.to(d.dtype)), mask=inside)


@triton.jit(do_not_specialize=["images"])
def _compare(
    warped,  # (B, 3, H, W)
    target,  # (B, 3, H, W)
    counts,  # (B, 1, H, W)
    weights,  # out (B, 1, H, W): of the windows around each pixel, 0 where there is none
    distances,  # out (B, 1, H, W) or None: of these windows, summed over the colours
    partial,  # out (B, strips) double: sums of SSIM
    images,
    height,
    width,
    STRIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, strip, top, x, owned, left, right = strip_pixels(images, height, width, STRIP, ROWS, COLUMNS)
    plane = plane_size(height, width)
    column, exists = load_columns(x, width, ALIGNED)
    exists = exists & (image < images)
    zero = tl.zeros((ROWS, COLUMNS // 2, 2), dtype=warped.dtype.element_ty)
    totals = (zero,) * STRIP
    for channel in range(3):
        p, t = warped + (image * 3 + channel) * plane, target + (image * 3 + channel) * plane
        totals = add_distances(totals, p, t, top, column, exists, left, right, height, width, 1.0, 0.0, ALIGNED)
    window = owned & (x >= 1) & (x < width - 1)
    above, here, sum = zero, zero, zero
    for step in tl.static_range(STRIP + 2):
        y = top + (step - 1)
        at = counts + image * plane + offset(y, x, width)
        below = load_pairs(at, exists & (x < width) & (y >= 0) & (y < height), ALIGNED)
        before, after = beside(below, left, right)
        below = (before + after) + below
        if step >= 2:
            row = y - 1
            mask = window & (row >= 1) & (row < height - 1)
            weight = tl.where(mask, ((above + below) + here) * (1 / 9), 0.0)
            distance = tl.where(mask, totals[step - 2], 0.0)
            sum += weight * distance
            at = image * plane + offset(row, x, width)
            store_pairs(weights + at, weight, owned & (row < height), ALIGNED)
            if distances is not None:
                store_pairs(distances + at, distance, owned & (row < height), ALIGNED)
        above, here = here, below
    strips = tl.cdiv(height, STRIP).to(tl.int64) * tl.cdiv(width, COLUMNS - 4)
    at = partial + tl.reshape(image * strips + strip, (ROWS,))
    tl.store(at, tl.sum(tl.sum(sum, 2), 1).to(tl.float64), mask=tl.reshape(image < images, (ROWS,)))


@triton.jit(do_not_specialize=["windows"])
def _differentiate(
    warped,  # (B, 3, H, W)
    target,  # (B, 3, H, W)
    counts,  # (B, 1, H, W)
    grad_warped,  # (B, 3, H, W), of SSIM, or None, as are all of SSIM below
    distances,  # (B, 1, H, W) or None
    source,  # (B, 3, H, W)
    depth,  # (B, 1, H, W)
    projection,  # (B, 3, 4) double
    l1_grad_depth,  # out (B, 1, H, W)
    ssim_grad_depth,  # out (B, 1, H, W)
    ssim_grad_weight,  # out (B, 1, H, W) or None
    l1_partial,  # out (B, tiles, 12) double
    ssim_partial,  # out (B, tiles, 12) double
    height,
    width,
    colors,  # of the whole batch
    windows,
    OUTSIDE_GREY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, top, first = tile_origin(height, width, ROWS, COLUMNS)
    x = first + tl.arange(0, COLUMNS)[None, :]
    plane = plane_size(height, width)
    dtype = depth.dtype.element_ty
    l1_share, ssim_share = 1 / colors.to(dtype), 1 / windows.to(dtype)
    zero = tl.zeros((STEP, COLUMNS), dtype=dtype)
    l1_sums, ssim_sums = (zero,) * 9, (zero,) * 9
    for step in range(0, ROWS, STEP):
        y = top + step + tl.arange(0, STEP)[:, None]
        inside = (y < height) & (x < width)
        here = offset(y, x, width)
        at = image * plane + here
        d = tl.load(depth + at, mask=inside, other=1.0)
        count = tl.load(counts + at, mask=inside, other=0.0)
        shift_u, shift_v, inverse_z, du_ddepth, dv_ddepth, _poison = project(projection + image * 12, y, x, d)
        in_view = _in_view(y, x, shift_u, shift_v, inverse_z, height, width)
        seen = inside & (inverse_z > 0)
        if OUTSIDE_GREY:
            seen = inside & in_view
        u = sample_axis(x, shift_u, width, False)
        v = sample_axis(y, shift_v, height, False)
        l1_u, l1_v, ssim_u, ssim_v = zero, zero, zero, zero
        for channel in range(3):
            color = (image * 3 + channel) * plane
            _value, du, dv = sample(source + color, u, v, width, seen)
            color += here
            w = tl.load(warped + color, mask=inside, other=0.0)
            g = count * sign(w - tl.load(target + color, mask=inside, other=0.0))
            l1_u += g * du
            l1_v += g * dv
            if grad_warped is not None:
                g = tl.load(grad_warped + color, mask=inside, other=0.0)
                ssim_u += g * du
                ssim_v += g * dv
        tl.store(l1_grad_depth + at, (l1_u * du_ddepth + l1_v * dv_ddepth) * l1_share, mask=inside)
        l1_sums = projection_sums(l1_sums, l1_u, l1_v, inverse_z, shift_u, shift_v, d, y, x, inside)
        if grad_warped is not None:
            tl.store(ssim_grad_depth + at, (ssim_u * du_ddepth + ssim_v * dv_ddepth) * ssim_share, mask=inside)
            ssim_sums = projection_sums(ssim_sums, ssim_u, ssim_v, inverse_z, shift_u, shift_v, d, y, x, inside)
        if distances is not None:
            total = zero
            for tap in tl.static_range(9):
                row, column = y + (tap // 3 - 1), x + (tap % 3 - 1)
                exists = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                total += tl.load(distances + image * plane + offset(row, column, width), mask=exists, other=0.0)
            # The mean of nine pixels, and the mean of three colours.
            total *= ssim_share * (1 / 27)
            if not OUTSIDE_GREY:
                total = tl.where(in_view, total, total * 0)
            tl.store(ssim_grad_weight + at, total, mask=inside)
    tiles = tl.cdiv(height, ROWS).to(tl.int64) * tl.cdiv(width, COLUMNS)
    store_projection_sums(l1_partial + (image * tiles + tile) * 12, l1_sums, x)
    if grad_warped is not None:
        store_projection_sums(ssim_partial + (image * tiles + tile) * 12, ssim_sums, x)


@_dispatch.implementation("view_synthesis_loss", "triton")
def forward(
    target: Tensor,
    source: Tensor,
    depth: Tensor,
    projection: Tensor,
    weight: Tensor | None,
    padding: str,
    terms: int,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    batch, _, height, width = target.shape
    maps, ssim, by_weight = (terms, *depth.shape), terms > 1, need_grad and weight is not None
    grad_depth = target.new_empty(maps) if need_grad else None
    grad_projection = projection.new_empty((terms, batch, 3, 4)) if need_grad else None
    grad_weight = target.new_empty(maps) if by_weight else None
    if batch == 0:  # the mean over nothing, as PyTorch has it
        return target.new_full((terms,), torch.nan), grad_depth, grad_projection, grad_weight
    colors, windows = 3 * batch * height * width, batch * (height - 2) * (width - 2)
    size = dict(height=height, width=width)
    tiles, tiles_back = WARP.tiles(height, width), DIFFERENTIATE.tiles(height, width)
    strip = COMPARE_STRIP * 4 // target.element_size()
    strips = -(-height // strip) * -(-width // (COMPARE.columns - 4))
    l1_sums = projection.new_empty((batch, tiles))
    ssim_sums = projection.new_empty((batch, strips)) if ssim else None
    projection_sums = projection.new_empty((terms, batch, tiles_back, 12)) if need_grad else None

    planes = 4 + ssim * (1 + by_weight + 3 * need_grad)
    parts = list(portions(batch, planes * height * width * target.element_size()))
    images = max(part.stop - part.start for part in parts)

    def workspace(channels: int, wanted: bool = True) -> Tensor | None:
        return target.new_empty((images, channels, height, width)) if wanted else None

    warped, counts = workspace(3), workspace(1)
    weights, distances = workspace(1, ssim), workspace(1, ssim and by_weight)
    grad_warped = workspace(3, ssim and need_grad)
    for part in parts:
        count = part.stop - part.start
        view = dict(source=source[part], depth=depth[part], projection=projection[part])
        pair = dict(warped=warped, target=target[part], counts=counts)
        launch(
            _warp,
            count * tiles,
            WARP.warps,
            **pair,
            **view,
            weight=None if weight is None else weight[part],
            grad_weight=None if grad_weight is None else grad_weight[0, part],
            partial=l1_sums[part],
            **size,
            colors=colors,
            OUTSIDE_GREY=padding == "grey",
            ROWS=WARP.rows,
            COLUMNS=WARP.columns,
        )
        if ssim_sums is not None:
            launch(
                _compare,
                strip_programs(COMPARE, count, height, width, strip),
                COMPARE.warps,
                **pair,
                weights=weights,
                distances=distances,
                partial=ssim_sums[part],
                images=count,
                **size,
                STRIP=strip,
                ALIGNED=width % 16 == 0,
                ROWS=COMPARE.rows,
                COLUMNS=COMPARE.columns,
            )
        if grad_depth is None or projection_sums is None:
            continue
        if grad_warped is not None and warped is not None and weights is not None:
            launch_backward(weights[:count], warped[:count], target[part], grad_warped, None, 1.0)
        launch(
            _differentiate,
            count * tiles_back,
            DIFFERENTIATE.warps,
            **pair,
            **view,
            grad_warped=grad_warped,
            distances=distances,
            l1_grad_depth=grad_depth[0, part],
            ssim_grad_depth=grad_depth[1, part] if ssim else None,
            ssim_grad_weight=grad_weight[1, part] if ssim and grad_weight is not None else None,
            l1_partial=projection_sums[0, part],
            ssim_partial=projection_sums[1, part] if ssim else None,
            **size,
            colors=colors,
            windows=windows,
            OUTSIDE_GREY=padding == "grey",
            ROWS=DIFFERENTIATE.rows,
            COLUMNS=DIFFERENTIATE.columns,
        )
    losses = [l1_sums.sum() / colors]
    if ssim_sums is not None:
        losses.append(ssim_sums.sum() / (3 * windows))
    if projection_sums is not None:
        torch.sum(projection_sums, 2, out=grad_projection.view(terms, batch, 12))
        grad_projection[0].div_(colors)
        grad_projection[1:].div_(windows)
    return torch.stack(losses).to(target.dtype), grad_depth, grad_projection, grad_weight
