"""Triton kernels of `min_reprojection`: loss, selection and gradients of a scale in four kernels.

A gradient reaches through two 3x3 windows, and Triton programs cannot hand each other rows as the CUDA kernel's threads
do: what a window needs comes from the strips of `photometric_loss`. So two intermediates go through a workspace, a
portion of images and one scale at a time:
  `warp_forward` (of inverse_warp)  depth, sources                     -> warped sources
  `_compare`                        those, target, identity, depth     -> selection, sums of the loss
  `photometric_backward`            warped sources, target, selection  -> gradients of the warped sources
  `_differentiate`                  those, depth, sources              -> gradient of depth, sums for the projection
and `_identity`, once for all scales, leaves the least identity error of each pixel.

Bytes a pixel and scale in float32, S sources: 4 + 12 S in and 12 S out; 12 S + 20 in and 1 out; 12 S + 12 + 1 in and
12 S out; 24 S + 4 in and 4 out: 46 + 84 S, 214 for two sources. Inputs and outputs alone would be 21 + 12 S. The
workspace holds 24 S bytes a pixel, bounded by `WORKSPACE_BYTES`, and is all that is kept beside one identity map and
the outputs.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, portions, tile_origin
from mdepth_fast.kernels.inverse_warp import (
    STEP,
    in_front,
    project,
    projection_sums,
    sample,
    sample_axis,
    store_projection_sums,
    warp_forward,
)
from mdepth_fast.kernels.photometric_loss import (
    add_distances,
    launch_backward,
    load_columns,
    load_pairs,
    store_pairs,
    strip_pixels,
    strip_programs,
)

WARP = Block(8, 32, 4)
COMPARE = Block(4, 64, 4)
IDENTITY_STRIP, COMPARE_STRIP = 3, 4  # rows; half in double, and one less with more than two sources: registers
DIFFERENTIATE = Block(32, 32, 4)


@triton.jit(do_not_specialize=["images"])
def _identity(
    sources,  # (B, S, 3, H, W)
    target,  # (B, 3, H, W)
    noise,  # (B, S, H, W) or None
    identity,  # out (B, H, W)
    images,
    height,
    width,
    SOURCES: tl.constexpr,
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    STRIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _strip, top, x, owned, left, right = strip_pixels(images, height, width, STRIP, ROWS, COLUMNS)
    plane = plane_size(height, width)
    column, exists = load_columns(x, width, ALIGNED)
    exists = exists & (image < images)
    zero = tl.zeros((ROWS, COLUMNS // 2, 2), dtype=identity.dtype.element_ty)
    best = (zero + float("inf"),) * STRIP
    for s in range(SOURCES):
        of_source = image * SOURCES + s
        errors = (zero,) * STRIP
        for channel in range(3):
            p, t = sources + (of_source * 3 + channel) * plane, target + (image * 3 + channel) * plane
            errors = add_distances(errors, p, t, top, column, exists, left, right, height, width, SSIM, L1, ALIGNED)
        least = ()
        for row in tl.static_range(STRIP):
            error = errors[row]
            if noise is not None:
                at = noise + of_source * plane + offset(top + row, x, width)
                error += load_pairs(at, owned & (top + row < height), ALIGNED)
            least = least + (tl.where((error < best[row]) | (error != error), error, best[row]),)  # NaN stays
        best = least
    for row in tl.static_range(STRIP):
        at = identity + image * plane + offset(top + row, x, width)
        store_pairs(at, best[row], owned & (top + row < height), ALIGNED)


@triton.jit(do_not_specialize=["images"])
def _compare(
    warped,  # (B, S, 3, H, W)
    target,  # (B, 3, H, W)
    identity,  # (B, H, W) or None: no identity term
    depth,  # (B, 1, H, W)
    projection,  # (B, S, 3, 4) double
    selection,  # out (B, 1, H, W) int8
    partial,  # out (B, strips) double: sums of the loss
    images,
    height,
    width,
    SOURCES: tl.constexpr,
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    STRIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, strip, top, x, owned, left, right = strip_pixels(images, height, width, STRIP, ROWS, COLUMNS)
    plane = plane_size(height, width)
    column, exists = load_columns(x, width, ALIGNED)
    exists = exists & (image < images)
    zero = tl.zeros((ROWS, COLUMNS // 2, 2), dtype=depth.dtype.element_ty)
    best, chosen = (), (tl.full((ROWS, COLUMNS // 2, 2), -1, dtype=tl.int32),) * STRIP
    for row in tl.static_range(STRIP):
        if identity is not None:
            at = identity + image * plane + offset(top + row, x, width)
            best = best + (load_pairs(at, owned & (top + row < height), ALIGNED),)
        else:
            best = best + (zero,)
    for s in range(SOURCES):
        of_source = image * SOURCES + s
        errors = (zero,) * STRIP
        for channel in range(3):
            p, t = warped + (of_source * 3 + channel) * plane, target + (image * 3 + channel) * plane
            errors = add_distances(errors, p, t, top, column, exists, left, right, height, width, SSIM, L1, ALIGNED)
        camera = projection + tl.minimum(of_source, images * SOURCES - 1) * 12
        least, winners = (), ()
        for row in tl.static_range(STRIP):
            y = top + row
            at = depth + image * plane + offset(y, x, width)
            d = load_pairs(at, owned & (y < height), ALIGNED)
            valid = in_front(camera, y, x, d)
            better = errors[row] < best[row]
            if identity is None:
                better = better | (chosen[row] < 0)
            wins = (valid & better) | (errors[row] != errors[row])
            least = least + (tl.where(wins, errors[row], best[row]),)
            winners = winners + (tl.where(wins, s, chosen[row]),)
        best, chosen = least, winners
    total = zero
    for row in tl.static_range(STRIP):
        mask = owned & (top + row < height)
        total += tl.where(mask, best[row], 0.0)
        at = selection + image * plane + offset(top + row, x, width)
        store_pairs(at, chosen[row].to(tl.int8), mask, ALIGNED)
    strips = tl.cdiv(height, STRIP).to(tl.int64) * tl.cdiv(width, COLUMNS - 4)
    at = partial + tl.reshape(image * strips + strip, (ROWS,))
    tl.store(at, tl.sum(tl.sum(total, 2), 1).to(tl.float64), mask=tl.reshape(image < images, (ROWS,)))


@triton.jit
def _differentiate(
    grad,  # (B, S, 3, H, W), by the warped sources
    sources,  # (B, S, 3, H, W)
    depth,  # (B, 1, H, W)
    projection,  # (B, S, 3, 4) double
    grad_depth,  # out (B, 1, H, W)
    partial,  # out (B, S, tiles, 12) double
    height,
    width,
    pixels,
    SOURCES: tl.constexpr,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, top, first = tile_origin(height, width, ROWS, COLUMNS)
    x = first + tl.arange(0, COLUMNS)[None, :]
    plane = plane_size(height, width)
    tiles = tl.cdiv(height, ROWS).to(tl.int64) * tl.cdiv(width, COLUMNS)
    share = 1 / pixels.to(depth.dtype.element_ty)
    zero = tl.zeros((STEP, COLUMNS), dtype=depth.dtype.element_ty)
    sums = ((zero,) * 9,) * SOURCES
    for step in range(0, ROWS, STEP):
        y = top + step + tl.arange(0, STEP)[:, None]
        inside = (y < height) & (x < width)
        here = offset(y, x, width)
        d = tl.load(depth + image * plane + here, mask=inside, other=1.0)
        total = zero
        added = ()
        for s in tl.static_range(SOURCES):
            of_source = image * SOURCES + s
            g = grad + of_source * 3 * plane + here
            g0 = tl.load(g, mask=inside, other=0.0)
            g1 = tl.load(g + plane, mask=inside, other=0.0)
            g2 = tl.load(g + 2 * plane, mask=inside, other=0.0)
            shift_u, shift_v, inverse_z, du_ddepth, dv_ddepth, _poison = project(projection + of_source * 12, y, x, d)
            # Most pixels have chosen another: their samples are not read.
            seen = inside & (inverse_z > 0) & ((g0 != 0) | (g1 != 0) | (g2 != 0))
            u = sample_axis(x, shift_u, width, ZEROS)
            v = sample_axis(y, shift_v, height, ZEROS)
            p = sources + of_source * 3 * plane
            _, du0, dv0 = sample(p, u, v, width, seen)
            _, du1, dv1 = sample(p + plane, u, v, width, seen)
            _, du2, dv2 = sample(p + 2 * plane, u, v, width, seen)
            gu, gv = g0 * du0 + g1 * du1 + g2 * du2, g0 * dv0 + g1 * dv1 + g2 * dv2
            total += gu * du_ddepth + gv * dv_ddepth
            added = added + (projection_sums(sums[s], gu, gv, inverse_z, shift_u, shift_v, d, y, x, inside),)
        sums = added
        tl.store(grad_depth + image * plane + here, total * share, mask=inside)
    for s in tl.static_range(SOURCES):
        store_projection_sums(partial + ((image * SOURCES + s) * tiles + tile) * 12, sums[s], x)


@_dispatch.implementation("min_reprojection", "triton")
def forward(
    target: Tensor,
    source: Tensor,
    depth: Sequence[Tensor],
    projection: Tensor,
    identity_noise: Tensor | None,
    ssim_weight: float,
    auto_mask: bool,
    padding: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    maps = (len(depth), *depth[0].shape)
    selection = target.new_empty(maps, dtype=torch.int8)
    grad_depth = target.new_empty(maps) if need_grad else None
    grad_projection = projection.new_empty((len(depth), *projection.shape)) if need_grad else None
    batch, count, _, height, width = source.shape
    if batch == 0:  # the mean over nothing, as PyTorch has it
        return target.new_full((len(depth),), torch.nan), selection, grad_depth, grad_projection
    pixels = batch * height * width
    size = dict(height=height, width=width, SOURCES=count)
    weights = dict(SSIM=ssim_weight / 3, L1=(1 - ssim_weight) / 3)
    strip = (COMPARE_STRIP - (count > 2)) * 4 // target.element_size()
    compare = dict(STRIP=strip, ALIGNED=width % 16 == 0, ROWS=COMPARE.rows, COLUMNS=COMPARE.columns)
    strips = -(-height // strip) * -(-width // (COMPARE.columns - 4))
    identity = target.new_empty((batch, height, width)) if auto_mask else None
    if identity is not None:
        identity_strip = IDENTITY_STRIP * 4 // target.element_size()
        launch(
            _identity,
            strip_programs(COMPARE, batch, height, width, identity_strip),
            COMPARE.warps,
            sources=source,
            target=target,
            noise=identity_noise,
            identity=identity,
            images=batch,
            **size,
            **weights,
            **{**compare, "STRIP": identity_strip},
        )
    planes = 3 * count * (1 + need_grad)
    parts = list(portions(batch, planes * height * width * target.element_size()))
    images = max(part.stop - part.start for part in parts)
    warped = target.new_empty((images, count, 3, height, width))
    grad_warped = warped.new_empty(warped.shape) if need_grad else None
    sums = projection.new_empty((len(depth), batch, strips))
    tiles = DIFFERENTIATE.tiles(height, width)
    projection_sums = projection.new_empty((len(depth), batch, count, tiles, 12)) if need_grad else None
    for scale, one in enumerate(depth):
        for part in parts:
            images = part.stop - part.start
            cameras = dict(depth=one[part], projection=projection[part])
            launch(
                warp_forward,
                images * count * WARP.tiles(height, width),
                WARP.warps,
                source=source[part],
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
                strip_programs(COMPARE, images, height, width, strip),
                COMPARE.warps,
                warped=warped,
                target=target[part],
                identity=None if identity is None else identity[part],
                **cameras,
                selection=selection[scale, part],
                partial=sums[scale, part],
                images=images,
                **size,
                **weights,
                **compare,
            )
            if projection_sums is None:
                continue
            launch_backward(selection[scale, part], warped[:images], target[part], grad_warped, None, ssim_weight)
            launch(
                _differentiate,
                images * tiles,
                DIFFERENTIATE.warps,
                grad=grad_warped,
                sources=source[part],
                **cameras,
                grad_depth=grad_depth[scale, part],
                partial=projection_sums[scale, part],
                **size,
                pixels=pixels,
                ZEROS=padding == "zeros",
                ROWS=DIFFERENTIATE.rows,
                COLUMNS=DIFFERENTIATE.columns,
            )
    if projection_sums is not None:
        torch.sum(projection_sums, 3, out=grad_projection.view(len(depth), batch, count, 12)).div_(pixels)
    loss = (sums.sum((1, 2)) / pixels).to(target.dtype)
    return loss, selection, grad_depth, grad_projection
