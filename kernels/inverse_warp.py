"""Triton kernels of `inverse_warp`, and the projection and sampling that `min_reprojection` shares.

Forward: depth and source in once, warped image and mask out. Backward: one kernel reads the gradient once; depth's
gradient has one writer a pixel, the projection's is a sum per tile, added up in a fixed order, and only the source's is
a scatter. That one uses atomics unless `torch.use_deterministic_algorithms(True)` asks for an ordered sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, number, offset, tile_origin, tile_pixels
from mdepth_fast.ops.inverse_warp import MIN_Z

FORWARD = Block(8, 32, 4)
BACKWARD = Block(32, 32, 4)
STEP = tl.constexpr(4)  # rows of a tile of the backward at a time: a pixel a lane, and sums once a tile
TAPS = Block(8, 32, 4)

_MIN_Z = tl.constexpr(MIN_Z)


@triton.jit
def camera_z(matrix, y, x, depth):
    """z of pixels in the source's camera, and its derivative by depth."""
    dtype = depth.dtype
    p8, p9, p10, p11 = tl.load(matrix + 8), tl.load(matrix + 9), tl.load(matrix + 10), tl.load(matrix + 11)
    by_depth = (p9 * y.to(tl.float64) + p10).to(dtype) + x.to(dtype) * p8.to(dtype)
    return depth * by_depth + p11.to(dtype), by_depth


@triton.jit
def in_front(matrix, y, x, depth):
    return camera_z(matrix, y, x, depth)[0] > number(_MIN_Z, depth)


@triton.jit
def project(matrix, y, x, depth):
    """Where pixels fall, as in csrc/include/mdepth/warp.h: u - x, v - y, 1 / z, the derivatives of u and v by depth,
    and the poison: 0, or NaN where depth or projection is not finite. An invalid point has 1 / z = 0, no derivatives.

    `matrix` points to 12 doubles. What depends on the row alone is computed in double; the shifts keep all digits of
    the fraction where u itself has only 24 bits for integer part and fraction together.
    """
    p0, p1, p2, p3 = tl.load(matrix), tl.load(matrix + 1), tl.load(matrix + 2), tl.load(matrix + 3)
    p4, p5, p6, p7 = tl.load(matrix + 4), tl.load(matrix + 5), tl.load(matrix + 6), tl.load(matrix + 7)
    p8, p9, p10, p11 = tl.load(matrix + 8), tl.load(matrix + 9), tl.load(matrix + 10), tl.load(matrix + 11)
    dtype = depth.dtype
    row, column = y.to(tl.float64), x.to(dtype)
    a0, a1, a2 = (p1 * row + p2).to(dtype), (p0 - p10 - p9 * row).to(dtype), (-p8).to(dtype)
    b0, b1 = p3.to(dtype), (-p11).to(dtype)
    c0, c1 = (p6 + row * (p5 - p10 - p9 * row)).to(dtype), (p4 - p8 * row).to(dtype)
    d0 = (p7 - row * p11).to(dtype)
    eu = a0 + column * (a1 + column * a2)
    ev = c0 + column * c1
    nu = depth * eu + (b0 + column * b1)
    nv = depth * ev + d0
    z, ez = camera_z(matrix, y, x, depth)
    valid = z > number(_MIN_Z, z)
    inverse = 1 / tl.where(valid, z, 1.0)
    shift_u, shift_v = nu * inverse, nv * inverse
    inverse = tl.where(valid, inverse, 0.0)
    return (
        shift_u,
        shift_v,
        inverse,
        (eu - shift_u * ez) * inverse,
        (ev - shift_v * ez) * inverse,
        (nu + nv + z) * 0,
    )


@triton.jit
def sample_axis(pixel, shift, size, ZEROS: tl.constexpr):
    """One axis of a bilinear sample at `pixel + shift`: two taps inside the image, their weights, and the weights'
    derivatives."""
    whole = tl.floor(shift)
    fraction = shift - whole  # NaN where shift is not finite
    # Beyond any image, and an int whatever it was.
    bounded = tl.where(whole > -268435456.0, tl.where(whole < 268435456.0, whole, 268435456.0), -268435456.0)
    first = pixel + bounded.to(tl.int32)
    second = first + 1
    last = size - 1
    tap0 = tl.minimum(tl.maximum(first, 0), last)
    tap1 = tl.minimum(tl.maximum(second, 0), last)
    one = fraction * 0 + 1
    if ZEROS:
        in0 = (first >= 0) & (first <= last)
        in1 = (second >= 0) & (second <= last)
        w0, w1 = tl.where(in0, 1 - fraction, 0.0), tl.where(in1, fraction, 0.0)
        d0, d1 = tl.where(in0, -one, 0.0), tl.where(in1, one, 0.0)
    else:
        # Clamped coordinates have no gradient; a coordinate exactly on the border counts as clamped.
        free = (first >= 0) & (first < last) & ((first > 0) | (fraction > 0))
        w0, w1 = 1 - fraction, fraction
        d0, d1 = tl.where(free, -one, 0.0), tl.where(free, one, 0.0)
    return tap0, tap1, w0, w1, d0, d1


@triton.jit
def sample(plane, u, v, width, seen):
    """Value, derivative by u, derivative by v of the plane at the axes `u` and `v`; 0 where not `seen`."""
    t00 = tl.load(plane + offset(v[0], u[0], width), mask=seen, other=0.0)
    t01 = tl.load(plane + offset(v[0], u[1], width), mask=seen, other=0.0)
    t10 = tl.load(plane + offset(v[1], u[0], width), mask=seen, other=0.0)
    t11 = tl.load(plane + offset(v[1], u[1], width), mask=seen, other=0.0)
    row0 = tl.fma(u[2], t00, u[3] * t01)
    row1 = tl.fma(u[2], t10, u[3] * t11)
    value = tl.fma(v[2], row0, v[3] * row1)
    du = tl.fma(v[2], tl.fma(u[4], t00, u[5] * t01), v[3] * tl.fma(u[4], t10, u[5] * t11))
    dv = tl.fma(v[4], row0, v[5] * row1)
    return tl.where(seen, value, 0.0), du, dv


@triton.jit
def scatter(plane, grad, u, v, width, seen):
    """Adds the gradient of a sample to its taps."""
    g0, g1 = grad * v[2], grad * v[3]
    tl.atomic_add(plane + offset(v[0], u[0], width), g0 * u[2], mask=seen, sem="relaxed")
    tl.atomic_add(plane + offset(v[0], u[1], width), g0 * u[3], mask=seen, sem="relaxed")
    tl.atomic_add(plane + offset(v[1], u[0], width), g1 * u[2], mask=seen, sem="relaxed")
    tl.atomic_add(plane + offset(v[1], u[1], width), g1 * u[3], mask=seen, sem="relaxed")


@triton.jit
def store_taps(index, weight, here, image, u, v, source_height, source_width, seen, inside):
    """The four taps of pixels `here` for `scatter_in_order`: places in the batch of sources, and weights."""
    for tap in tl.static_range(4):
        row, column = v[tap // 2], u[tap % 2]
        value = tl.where(seen, v[2 + tap // 2] * u[2 + tap % 2], 0.0)
        tl.store(
            index + here * 4 + tap,
            image * source_height * source_width + offset(row, column, source_width),
            mask=inside,
        )
        tl.store(weight + here * 4 + tap, value, mask=inside)


def scatter_in_order(taps, grad: Tensor, by_source: Tensor, ZEROS: bool, **arguments: Tensor | int) -> None:
    """Adds the gradient of samples to their taps in a fixed order; the kernel `taps` finds them by `store_taps`."""
    batch, channels, height, width = grad.shape
    index = torch.empty((batch, height, width, 4), dtype=torch.int64, device=grad.device)
    weight = grad.new_empty((batch, height, width, 4))
    launch(
        taps,
        batch * TAPS.tiles(height, width),
        TAPS.warps,
        **arguments,
        index=index,
        weight=weight,
        height=height,
        width=width,
        source_height=by_source.shape[2],
        source_width=by_source.shape[3],
        ZEROS=ZEROS,
        ROWS=TAPS.rows,
        COLUMNS=TAPS.columns,
    )
    # PyTorch sorts by index and adds up equal ones in that order; a channel at a time, to spare memory.
    for channel in range(channels):
        plane = by_source[:, channel]
        total = plane.new_zeros(plane.numel())
        total.index_put_((index.flatten(),), (grad[:, channel, :, :, None] * weight).flatten(), accumulate=True)
        by_source[:, channel] = total.view_as(plane)


@triton.jit
def projection_sums(sums, gu, gv, inverse_z, shift_u, shift_v, depth, y, x, inside):
    """`sums` and the pixels' share of the gradient by the projection: u = nu / z, v = nv / z, and
    (nu, nv, z) = projection * (depth * (x, y, 1), 1). What is left to be done for x, the same in every row, is left."""
    column, row = x.to(depth.dtype), y.to(depth.dtype)
    to_u = tl.where(inside, gu * inverse_z, 0.0)
    to_v = tl.where(inside, gv * inverse_z, 0.0)
    to_z = tl.where(inside, -(to_u * (column + shift_u) + to_v * (row + shift_v)), 0.0)
    by_u, by_v, by_z = to_u * depth, to_v * depth, to_z * depth
    return (
        sums[0] + by_u,
        tl.fma(by_u, tl.broadcast_to(row, by_u.shape), sums[1]),
        sums[2] + to_u,
        sums[3] + by_v,
        tl.fma(by_v, tl.broadcast_to(row, by_u.shape), sums[4]),
        sums[5] + to_v,
        sums[6] + by_z,
        tl.fma(by_z, tl.broadcast_to(row, by_u.shape), sums[7]),
        sums[8] + to_z,
    )


@triton.jit
def store_projection_sums(out, sums, x):
    """The tile's share of the gradient by the projection, 12 doubles."""
    column = x.to(sums[0].dtype)
    for k in tl.static_range(3):
        tl.store(out + 4 * k, tl.sum(sums[3 * k] * column).to(tl.float64))
        tl.store(out + 4 * k + 1, tl.sum(sums[3 * k + 1]).to(tl.float64))
        tl.store(out + 4 * k + 2, tl.sum(sums[3 * k]).to(tl.float64))
        tl.store(out + 4 * k + 3, tl.sum(sums[3 * k + 2]).to(tl.float64))


@triton.jit
def warp_forward(
    source,  # (B * SOURCES, C, Hs, Ws)
    depth,  # (B, 1, H, W)
    projection,  # (B * SOURCES, 3, 4) double
    warped,  # (B * SOURCES, C, H, W)
    valid,  # (B * SOURCES, 1, H, W) or None
    height,
    width,
    source_height,
    source_width,
    SOURCES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    here = offset(y, x, width)
    d = tl.load(depth + image // SOURCES * height * width + here, mask=inside, other=1.0)
    shift_u, shift_v, inverse_z, _du, _dv, poison = project(projection + image * 12, y, x, d)
    seen = inside & (inverse_z > 0)
    u = sample_axis(x, shift_u, source_width, ZEROS)
    v = sample_axis(y, shift_v, source_height, ZEROS)
    for channel in range(CHANNELS):
        at = image * CHANNELS + channel
        value = sample(source + at * source_height * source_width, u, v, source_width, seen)[0]
        tl.store(warped + at * height * width + here, value + poison, mask=inside)
    if valid is not None:
        at_u, at_v = x.to(d.dtype) + shift_u, y.to(d.dtype) + shift_v
        ok = seen & (at_u >= 0) & (at_u <= source_width - 1) & (at_v >= 0) & (at_v <= source_height - 1)
        tl.store(valid + image * height * width + here, ok, mask=inside)


@triton.jit
def _backward(
    grad,  # (B, C, H, W)
    source,  # (B, C, Hs, Ws)
    depth,  # (B, 1, H, W)
    projection,  # (B, 3, 4) double
    grad_source,  # (B, C, Hs, Ws), zeroed, or None
    grad_depth,  # (B, 1, H, W) or None
    partial,  # (B, tiles, 12) double, or None
    height,
    width,
    source_height,
    source_width,
    CHANNELS: tl.constexpr,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, top, first = tile_origin(height, width, ROWS, COLUMNS)
    x = first + tl.arange(0, COLUMNS)[None, :]
    sums = (tl.zeros((STEP, COLUMNS), dtype=source.dtype.element_ty),) * 9
    for step in range(0, ROWS, STEP):
        y = top + step + tl.arange(0, STEP)[:, None]
        inside = (y < height) & (x < width)
        here = offset(y, x, width)
        d = tl.load(depth + image * height * width + here, mask=inside, other=1.0)
        shift_u, shift_v, inverse_z, du_ddepth, dv_ddepth, _poison = project(projection + image * 12, y, x, d)
        seen = inside & (inverse_z > 0)
        u = sample_axis(x, shift_u, source_width, ZEROS)
        v = sample_axis(y, shift_v, source_height, ZEROS)
        gu = tl.zeros((STEP, COLUMNS), dtype=d.dtype)
        gv = tl.zeros((STEP, COLUMNS), dtype=d.dtype)
        for channel in range(CHANNELS):
            at = image * CHANNELS + channel
            g = tl.load(grad + at * height * width + here, mask=inside, other=0.0)
            _value, du, dv = sample(source + at * source_height * source_width, u, v, source_width, seen)
            gu += g * du
            gv += g * dv
            if grad_source is not None:
                scatter(grad_source + at * source_height * source_width, g, u, v, source_width, seen)
        if grad_depth is not None:
            tl.store(grad_depth + image * height * width + here, gu * du_ddepth + gv * dv_ddepth, mask=inside)
        if partial is not None:
            sums = projection_sums(sums, gu, gv, inverse_z, shift_u, shift_v, d, y, x, inside)
    if partial is not None:
        tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
        store_projection_sums(partial + (image * tiles + tile) * 12, sums, x)


@triton.jit
def _taps(
    depth,  # (B, 1, H, W)
    projection,  # (B, 3, 4) double
    index,  # out (B, H, W, 4) int64, of a pixel of the whole batch of sources
    weight,  # out (B, H, W, 4)
    height,
    width,
    source_height,
    source_width,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    here = image * height * width + offset(y, x, width)
    d = tl.load(depth + here, mask=inside, other=1.0)
    shift_u, shift_v, inverse_z, _du, _dv, _poison = project(projection + image * 12, y, x, d)
    u = sample_axis(x, shift_u, source_width, ZEROS)
    v = sample_axis(y, shift_v, source_height, ZEROS)
    store_taps(index, weight, here, image, u, v, source_height, source_width, inverse_z > 0, inside)


@_dispatch.implementation("inverse_warp", "triton")
def forward(source: Tensor, depth: Tensor, projection: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    batch, channels, source_height, source_width = source.shape
    height, width = depth.shape[2:]
    warped = source.new_empty((batch, channels, height, width))
    valid = depth.new_empty(depth.shape, dtype=torch.bool)
    launch(
        warp_forward,
        batch * FORWARD.tiles(height, width),
        FORWARD.warps,
        source=source,
        depth=depth,
        projection=projection,
        warped=warped,
        valid=valid,
        height=height,
        width=width,
        source_height=source_height,
        source_width=source_width,
        SOURCES=1,
        CHANNELS=channels,
        ZEROS=padding == "zeros",
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return warped, valid


@_dispatch.implementation("inverse_warp_backward", "triton")
def backward(
    grad: Tensor,
    source: Tensor,
    depth: Tensor,
    projection: Tensor,
    padding: str,
    need_source: bool,
    need_depth: bool,
    need_projection: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    by_source = torch.zeros(source.shape, dtype=source.dtype, device=source.device) if need_source else None
    by_depth = torch.empty(depth.shape, dtype=depth.dtype, device=depth.device) if need_depth else None
    by_projection = projection.new_empty(projection.shape) if need_projection else None
    batch, channels = source.shape[:2]
    height, width = depth.shape[2:]
    ordered = need_source and torch.are_deterministic_algorithms_enabled()
    tiles = BACKWARD.tiles(height, width)
    partial = projection.new_empty((batch, tiles, 12)) if need_projection else None
    sizes = dict(height=height, width=width, source_height=source.shape[2], source_width=source.shape[3])
    if need_depth or need_projection or not ordered:
        launch(
            _backward,
            batch * tiles,
            BACKWARD.warps,
            grad=grad,
            source=source,
            depth=depth,
            projection=projection,
            grad_source=None if ordered else by_source,
            grad_depth=by_depth,
            partial=partial,
            **sizes,
            CHANNELS=channels,
            ZEROS=padding == "zeros",
            ROWS=BACKWARD.rows,
            COLUMNS=BACKWARD.columns,
        )
    if partial is not None:
        torch.sum(partial, 1, out=by_projection.view(batch, 12))
    if by_source is not None and ordered:
        scatter_in_order(_taps, grad, by_source, padding == "zeros", depth=depth, projection=projection)
    return by_source, by_depth, by_projection
