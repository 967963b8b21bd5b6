"""Triton kernels of `nnconv5`.

The forward keeps the depthwise result on the chip: a program makes it for its pixels, a few channels at a time, and
multiplies it with the pointwise weights of its output channels. Programs of other output channels make it again, which
is 25 products beside the `OUT_CHANNELS` of the pointwise one.
"""

import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, plane_size

FORWARD = Block(8, 8, 4)
OUT_CHANNELS = 64  # of a program
INNER_CHANNELS = 16  # of the depthwise result at a time


@triton.jit
def _scaled_relu(value, scale, shift, index, count):
    """relu(value * scale + shift) of the channels `index` (a column), 0 past the last; a NaN passes."""
    a = tl.load(scale + index, mask=index < count, other=0.0)
    b = tl.load(shift + index, mask=index < count, other=0.0)
    value = tl.fma(value, a, b)
    return tl.where(value < 0, 0.0, value)


@triton.jit
def _forward(
    x,  # (B, C, H, W)
    dw_weight,  # (C, 1, 5, 5)
    dw_scale,  # (C,)
    dw_shift,  # (C,)
    pw_weight,  # (O, C, 1, 1)
    pw_scale,  # (O,)
    pw_shift,  # (O,)
    skip,  # (B, O, 2 H, 2 W) or None
    out,  # (B, O, 2 H, 2 W)
    channels,
    out_channels,
    height,
    width,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Blocks of output channels are next to each other: they read the same pixels.
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(out_channels, OUT)
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    image = program // blocks // tiles
    tile = program // blocks % tiles
    pixel = tl.arange(0, ROWS * COLUMNS)[None, :]
    row = (tile // across).to(tl.int32) * ROWS + pixel // COLUMNS
    column = (tile % across).to(tl.int32) * COLUMNS + pixel % COLUMNS
    o = (program % blocks).to(tl.int32) * OUT + tl.arange(0, OUT)[:, None]
    plane = plane_size(height, width)
    here = x + image * channels * plane + row.to(tl.int64) * width + column

    total = tl.zeros((OUT, ROWS * COLUMNS), dtype=x.dtype.element_ty)
    for first in tl.range(0, channels, INNER, num_stages=1):  # in stages, all 25 loads would lie in shared memory
        c = first + tl.arange(0, INNER)[:, None]
        at = here + c * plane
        inner = tl.zeros((INNER, ROWS * COLUMNS), dtype=total.dtype)
        for tap in tl.static_range(25):
            dy, dx = tap // 5 - 2, tap % 5 - 2
            inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
            weight = tl.load(dw_weight + c * 25 + tap, mask=c < channels, other=0.0)
            value = tl.load(at + (dy * width + dx), mask=inside & (c < channels), other=0.0)
            inner = tl.fma(weight, value, inner)
        inner = _scaled_relu(inner, dw_scale, dw_shift, c, channels)
        k = first + tl.arange(0, INNER)[None, :]
        matrix = tl.load(
            pw_weight + o.to(tl.int64) * channels + k, mask=(o < out_channels) & (k < channels), other=0.0
        )
        total = tl.dot(matrix, inner, total, input_precision="ieee", out_dtype=total.dtype)
    total = _scaled_relu(total, pw_scale, pw_shift, o, out_channels)

    # A pixel and its copy beside it go out as one word of twice the size.
    twice = tl.broadcast_to(total[:, :, None], (OUT, ROWS * COLUMNS, 2))
    side = tl.arange(0, 2)[None, None, :]
    on = ((o < out_channels) & (row < height) & (column < width))[:, :, None] & (side < 2)
    corner = (image * out_channels + o) * 4 * plane + row.to(tl.int64) * 4 * width + 2 * column
    for below in tl.static_range(2):
        to = corner[:, :, None] + below * 2 * width + side
        if skip is None:
            tl.store(out + to, twice, mask=on)
        else:
            tl.store(out + to, twice + tl.load(skip + to, mask=on, other=0.0), mask=on)


@_dispatch.implementation("nnconv5", "triton")
def forward(
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    skip: Tensor | None,
) -> Tensor:
    batch, channels, height, width = x.shape
    out_channels = pw_weight.shape[0]
    out = x.new_empty((batch, out_channels, 2 * height, 2 * width))
    launch(
        _forward,
        batch * FORWARD.tiles(height, width) * triton.cdiv(out_channels, OUT_CHANNELS),
        FORWARD.warps,
        x=x,
        dw_weight=dw_weight,
        dw_scale=dw_scale,
        dw_shift=dw_shift,
        pw_weight=pw_weight,
        pw_scale=pw_scale,
        pw_shift=pw_shift,
        skip=skip,
        out=out,
        channels=channels,
        out_channels=out_channels,
        height=height,
        width=width,
        OUT=OUT_CHANNELS,
        INNER=INNER_CHANNELS,
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return out
