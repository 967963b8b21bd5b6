"""Triton kernels of `disparity_to_depth`: the forward goes over pixels of the depth, four taps each; the backward over
pixels of the map, each of which gathers what reads it. Positions are whole numbers of 1 / (2 size) pixels, as in
csrc/include/mdepth/resize.h."""

import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, tile_pixels

FORWARD = Block(4, 128, 4)
BACKWARD = Block(1, 64, 2)  # the maps are small: more programs, less to do one after another


@triton.jit
def _twice(size):
    """int64, also of a size of 1, which Triton takes for a constant"""
    return tl.full((), 2, dtype=tl.int64) * size


@triton.jit
def _position(i, size, out):
    """Where pixel `i` of `out` reads an axis of `size` pixels, in 1 / (2 out) pixels from the first, int64."""
    position = (2 * i.to(tl.int64) + 1) * size - out
    return tl.minimum(tl.maximum(position, 0), _twice(out) * (size - 1))


@triton.jit
def _taps(i, size, out, dtype: tl.constexpr):
    """The pixels that pixel `i` of `out` reads, and their weights."""
    position, unit = _position(i, size, out), _twice(out)
    first = position // unit
    part = position - first * unit
    second = tl.where(size == out, first, tl.minimum(first + 1, size - 1))
    return first, second, (unit - part).to(dtype) / unit.to(dtype), part.to(dtype) / unit.to(dtype)


@triton.jit
def _reach(i, size, out):
    """The first pixel of `out` that does not lie before pixel `i`."""
    distance = tl.maximum((2 * i.to(tl.int64) + 1) * out - size, 0)
    return tl.minimum((distance + _twice(size) - 1) // _twice(size), out)


@triton.jit
def _weight(reader, i, size, out, dtype: tl.constexpr):
    distance = tl.abs(_position(reader, size, out) - i * _twice(out))
    return (_twice(out) - distance).to(dtype) / _twice(out).to(dtype)


@triton.jit
def _forward(
    disparity,  # (B, 1, h, w)
    depth,  # out (B, 1, H, W)
    map_height,
    map_width,
    height,
    width,
    FAR: tl.constexpr,  # numbers given at run time would be rounded to float32
    RANGE: tl.constexpr,
    RESIZED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    dtype = depth.dtype.element_ty
    plane = disparity + image * plane_size(map_height, map_width)
    if RESIZED:
        v0, v1, above, below = _taps(y, map_height, height, dtype)
        u0, u1, left, right = _taps(x, map_width, width, dtype)
        t00 = tl.load(plane + v0 * map_width + u0, mask=inside, other=0.0)
        t01 = tl.load(plane + v0 * map_width + u1, mask=inside, other=0.0)
        t10 = tl.load(plane + v1 * map_width + u0, mask=inside, other=0.0)
        t11 = tl.load(plane + v1 * map_width + u1, mask=inside, other=0.0)
        value = above * (left * t00 + right * t01) + below * (left * t10 + right * t11)
    else:
        value = tl.load(plane + offset(y, x, width), mask=inside, other=0.0)
    far = tl.full((), FAR, dtype=dtype)
    range_ = tl.full((), RANGE, dtype=dtype)
    out = depth + image * plane_size(height, width) + offset(y, x, width)
    tl.store(out, 1 / (far + range_ * value), mask=inside)


@triton.jit
def _backward(
    grad,  # (B, 1, H, W)
    depth,  # (B, 1, H, W)
    grad_disparity,  # out (B, 1, h, w)
    map_height,
    map_width,
    height,
    width,
    most_rows,  # that read a row of the map
    most_columns,
    RANGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(map_height, map_width, ROWS, COLUMNS)
    dtype = depth.dtype.element_ty
    plane = image * plane_size(height, width)
    same_height, same_width = map_height == height, map_width == width
    v_begin = tl.where(same_height, y, _reach(y - 1, map_height, height))
    v_end = tl.where(same_height, y + 1, _reach(y + 1, map_height, height))
    u_begin = tl.where(same_width, x, _reach(x - 1, map_width, width))
    u_end = tl.where(same_width, x + 1, _reach(x + 1, map_width, width))
    sum_ = tl.zeros((ROWS, COLUMNS), dtype=dtype)
    for j in range(most_rows):
        v = v_begin + j
        along = tl.zeros((ROWS, COLUMNS), dtype=dtype)
        for k in range(most_columns):
            u = u_begin + k
            on = inside & (v < v_end) & (u < u_end)
            at = plane + v * width + u
            g = tl.load(grad + at, mask=on, other=0.0)
            d = tl.load(depth + at, mask=on, other=0.0)
            along += _weight(u, x, map_width, width, dtype) * (g * (d * d))
        sum_ += _weight(v, y, map_height, height, dtype) * along
    out = grad_disparity + image * plane_size(map_height, map_width) + offset(y, x, map_width)
    tl.store(out, -tl.full((), RANGE, dtype=dtype) * sum_, mask=inside)


def _most_readers(size: int, out: int) -> int:
    """No fewer than the pixels of `out` that read one of `size`: those less than a pixel away from it."""
    return 1 if size == out else min(-(-2 * out // size), out)


@_dispatch.implementation("disparity_to_depth", "triton")
def forward(disparity: Tensor, height: int, width: int, min_depth: float, max_depth: float) -> Tensor:
    batch, _, map_height, map_width = disparity.shape
    depth = disparity.new_empty((batch, 1, height, width))
    launch(
        _forward,
        batch * FORWARD.tiles(height, width),
        FORWARD.warps,
        disparity=disparity,
        depth=depth,
        map_height=map_height,
        map_width=map_width,
        height=height,
        width=width,
        FAR=1 / max_depth,
        RANGE=1 / min_depth - 1 / max_depth,
        RESIZED=(map_height, map_width) != (height, width),
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return depth


@_dispatch.implementation("disparity_to_depth_backward", "triton")
def backward(grad: Tensor, disparity: Tensor, depth: Tensor, min_depth: float, max_depth: float) -> Tensor:
    (batch, _, height, width), (map_height, map_width) = depth.shape, disparity.shape[2:]
    grad_disparity = disparity.new_empty(disparity.shape)
    launch(
        _backward,
        batch * BACKWARD.tiles(map_height, map_width),
        BACKWARD.warps,
        grad=grad,
        depth=depth,
        grad_disparity=grad_disparity,
        map_height=map_height,
        map_width=map_width,
        height=height,
        width=width,
        most_rows=_most_readers(map_height, height),
        most_columns=_most_readers(map_width, width),
        RANGE=1 / min_depth - 1 / max_depth,
        ROWS=BACKWARD.rows,
        COLUMNS=BACKWARD.columns,
    )
    return grad_disparity
