"""Triton kernels of `nnconv5`.

The forward keeps the depthwise result on the chip: a program makes it for its pixels, a few channels at a time, and
multiplies it with the pointwise weights of its output channels. Programs of other output channels make it again, which
is 25 products beside the `OUT_CHANNELS` of the pointwise one. Where that makes few programs, as small images with many
channels do, parts of the input channels go to programs of their own, and another kernel adds up what they leave, in a
fixed order. The backward makes the activations again with PyTorch's products; the gradients of the weights, sums over
all pixels, are kernels here, in two stages of a fixed order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, plane_size
from mdepth_fast.ops.nnconv5 import _product, laid_out
from mdepth_fast.ops.nnconv5 import backward as backward_with

FORWARD = Block(8, 8, 8)
OUT_CHANNELS = 64  # of a program at most
INNER_CHANNELS = 16  # of the depthwise result at a time
SUM = Block(1, 256, 4)

# As in csrc/include/mdepth/nnconv5.h: so many programs, but parts of at least so many channels.
PROGRAMS, PART_CHANNELS = 256, 32

# A program adds up a run of pixels, `rows` times `columns` of them one after another.
POINTWISE_WEIGHTS = Block(64, 16, 8)
DEPTHWISE_WEIGHTS = Block(32, 64, 4)


@triton.jit
def _scaled_relu(value, scale, shift, index, count):
    """relu(value * scale + shift) of the channels `index` (a column), 0 past the last; a NaN passes."""
    a = tl.load(scale + index, mask=index < count, other=0.0)
    b = tl.load(shift + index, mask=index < count, other=0.0)
    value = tl.fma(value, a, b)
    return tl.where(value < 0, 0.0, value)


@triton.jit
def _store_copies(total, skip, out, corner, width, on):
    """Every pixel doubled both ways, plus `skip` where there is one."""
    for copy in range(4):  # not unrolled: their addresses would take every register
        to = corner + (copy // 2 * 2 * width + copy % 2)
        if skip is None:
            tl.store(out + to, total.to(out.dtype.element_ty), mask=on)
        else:
            doubled = total + tl.load(skip + to, mask=on, other=0.0).to(total.dtype)
            tl.store(out + to, doubled.to(out.dtype.element_ty), mask=on)


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
    out,  # (B, O, 2 H, 2 W) or None
    partial,  # (parts, B, O, H, W), the sums where the input channels are in parts, or None
    batch,
    channels,
    out_channels,
    height,
    width,
    parts,
    part_channels,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # x, pw_weight, skip and out may be halves: these are the factors of the product then, all else is float.
    # Blocks of output channels are next to each other: they read the same pixels.
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(out_channels, OUT)
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    part = program // blocks % parts
    image = program // blocks // parts // tiles
    tile = program // blocks // parts % tiles
    pixel = tl.arange(0, ROWS * COLUMNS)[None, :]
    row = (tile // across).to(tl.int32) * ROWS + pixel // COLUMNS
    column = (tile % across).to(tl.int32) * COLUMNS + pixel % COLUMNS
    o = (program % blocks).to(tl.int32) * OUT + tl.arange(0, OUT)[:, None]
    plane = plane_size(height, width)
    here = x + image * channels * plane + row.to(tl.int64) * width + column

    total = tl.zeros((OUT, ROWS * COLUMNS), dtype=dw_weight.dtype.element_ty)
    begin = part.to(tl.int32) * part_channels
    for first in tl.range(begin, tl.minimum(begin + part_channels, channels), INNER, num_stages=1):
        c = first + tl.arange(0, INNER)[:, None]
        at = here + c * plane
        inner = tl.zeros((INNER, ROWS * COLUMNS), dtype=total.dtype)
        for dy in range(-2, 3):  # no more than a row unrolled: the loads of all 25 would take every register
            in_row = (row + dy >= 0) & (row + dy < height) & (c < channels)
            for dx in tl.static_range(-2, 3):
                on = in_row & (column + dx >= 0) & (column + dx < width)
                weight = tl.load(dw_weight + c * 25 + (5 * dy + dx + 12), mask=c < channels, other=0.0)
                value = tl.load(at + (dy * width + dx), mask=on, other=0.0).to(inner.dtype)
                inner = tl.fma(weight, value, inner)
        inner = _scaled_relu(inner, dw_scale, dw_shift, c, channels)
        k = first + tl.arange(0, INNER)[None, :]
        matrix = tl.load(pw_weight + o.to(tl.int64) * channels + k, mask=(o < out_channels) & (k < channels), other=0.0)
        total = tl.dot(matrix, inner.to(matrix.dtype), total, input_precision=PRECISION, out_dtype=total.dtype)

    on = (o < out_channels) & (row < height) & (column < width)
    if partial is None:
        total = _scaled_relu(total, pw_scale, pw_shift, o, out_channels)
        corner = (image * out_channels + o) * 4 * plane + row.to(tl.int64) * 4 * width + 2 * column
        _store_copies(total, skip, out, corner, width, on)
    else:
        to = ((part * batch + image) * out_channels + o) * plane + row.to(tl.int64) * width + column
        tl.store(partial + to, total, mask=on)


@triton.jit
def _sum(
    partial,  # (parts, B, O, H, W)
    pw_scale,  # (O,)
    pw_shift,  # (O,)
    skip,  # (B, O, 2 H, 2 W) or None
    out,  # (B, O, 2 H, 2 W)
    batch,
    out_channels,
    height,
    width,
    parts,
    COLUMNS: tl.constexpr,
):
    plane = plane_size(height, width)
    numbers = plane * batch * out_channels
    index = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    on = index < numbers
    total = tl.load(partial + index, mask=on, other=0.0)
    for part in range(1, parts):
        total += tl.load(partial + part * numbers + index, mask=on, other=0.0)
    of, pixel = index // plane, (index % plane).to(tl.int32)
    total = _scaled_relu(total, pw_scale, pw_shift, (of % out_channels).to(tl.int32), out_channels)
    corner = of * 4 * plane + (pixel // width).to(tl.int64) * 4 * width + 2 * (pixel % width)
    _store_copies(total, skip, out, corner, width, on)


@triton.jit
def _pointwise_weights(
    grad,  # (B, O, pixels), of the pointwise product
    active,  # (B, C, pixels), its input
    partial,  # (runs, O, C)
    batch,
    channels,
    out_channels,
    pixels,
    OUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    out_blocks, blocks = tl.cdiv(out_channels, OUT), tl.cdiv(channels, CHANNELS)
    run = program // blocks // out_blocks
    o = (program // blocks % out_blocks).to(tl.int32) * OUT + tl.arange(0, OUT)[:, None]
    c = (program % blocks).to(tl.int32) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    begin = run * STEPS * COLUMNS
    end = tl.minimum(begin + STEPS * COLUMNS, tl.full((), 1, dtype=tl.int64) * batch * pixels)
    total = tl.zeros((OUT, CHANNELS), dtype=grad.dtype.element_ty)
    for first in tl.range(begin, end, COLUMNS, num_stages=2):  # pixels of all images, as if of one
        across = first + tl.arange(0, COLUMNS)[None, :]
        down = first + tl.arange(0, COLUMNS)[:, None]
        of_grad = (across // pixels * out_channels + o) * pixels + across % pixels
        of_active = (down // pixels * channels + c) * pixels + down % pixels
        a = tl.load(grad + of_grad, mask=(across < end) & (o < out_channels), other=0.0)
        b = tl.load(active + of_active, mask=(down < end) & (c < channels), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=total.dtype)
    to = partial + (run * out_channels + o) * channels + c
    tl.store(to, total, mask=(o < out_channels) & (c < channels))


@triton.jit
def _depthwise_weights(
    grad,  # (B, C, H, W), of the depthwise product
    x,  # (B, C, H, W)
    partial,  # (B, C, runs, 25)
    height,
    width,
    STEPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    pixels = plane_size(height, width)
    runs = tl.cdiv(pixels, STEPS * COLUMNS)
    plane = program // runs * pixels
    begin = program % runs * (STEPS * COLUMNS)
    end = tl.minimum(begin + STEPS * COLUMNS, pixels)
    tap = tl.arange(0, 32)[:, None]
    dy, dx = tap // 5 - 2, tap % 5 - 2
    total = tl.zeros((32, COLUMNS), dtype=grad.dtype.element_ty)
    for first in range(begin, end, COLUMNS):
        pixel = first + tl.arange(0, COLUMNS)[None, :]
        row, column = (pixel // width).to(tl.int32) + dy, (pixel % width).to(tl.int32) + dx
        on = (pixel < end) & (tap < 25) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        g = tl.load(grad + plane + pixel, mask=pixel < end, other=0.0)
        value = tl.load(x + plane + pixel + (dy * width + dx), mask=on, other=0.0)
        total = tl.fma(value, tl.broadcast_to(g, (32, COLUMNS)), total)
    tap = tl.arange(0, 32)
    tl.store(partial + program * 25 + tap, tl.sum(total, 1), mask=tap < 25)


@_dispatch.implementation("nnconv5", "triton")
@laid_out
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
    x, skip = x.contiguous(), None if skip is None else skip.contiguous()  # the kernel reads planes
    batch, channels, height, width = x.shape
    out_channels = pw_weight.shape[0]
    out = x.new_empty((batch, out_channels, 2 * height, 2 * width))
    group = OUT_CHANNELS if out_channels > OUT_CHANNELS // 2 else OUT_CHANNELS // 2
    programs = batch * FORWARD.tiles(height, width) * triton.cdiv(out_channels, group)
    parts = max(1, min(channels // PART_CHANNELS, PROGRAMS // max(1, programs)))
    part_channels = triton.cdiv(triton.cdiv(channels, PART_CHANNELS), parts) * PART_CHANNELS
    parts = triton.cdiv(channels, part_channels)
    # Sums of float64 and the addresses of their copies would be more than the registers hold.
    split = parts > 1 or x.dtype == torch.float64
    partial = dw_scale.new_empty((parts, batch, out_channels, height, width)) if split else None
    sizes = dict(batch=batch, out_channels=out_channels, height=height, width=width, parts=parts)
    affine = dict(pw_scale=pw_scale, pw_shift=pw_shift)
    launch(
        _forward,
        parts * programs,
        FORWARD.warps,
        x=x,
        dw_weight=dw_weight,
        dw_scale=dw_scale,
        dw_shift=dw_shift,
        pw_weight=pw_weight,
        **affine,
        skip=skip if partial is None else None,
        out=out if partial is None else None,
        partial=partial,
        channels=channels,
        **sizes,
        part_channels=part_channels,
        OUT=group,
        INNER=INNER_CHANNELS,
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
        PRECISION="tf32" if _product("triton", x) == "tf32" else "ieee",
    )
    if partial is not None:
        pixels = SUM.rows * SUM.columns
        launch(
            _sum,
            triton.cdiv(out.numel() // 4, pixels),
            SUM.warps,
            partial=partial,
            **affine,
            skip=skip,
            out=out,
            **sizes,
            COLUMNS=pixels,
        )
    return out


def _pointwise_weight_gradient(grad: Tensor, active: Tensor) -> Tensor:
    """(O, C, 1, 1) of (B, O, H, W) and (B, C, H, W)."""
    batch, channels, height, width = active.shape
    out_channels = grad.shape[1]
    runs = triton.cdiv(batch * height * width, POINTWISE_WEIGHTS.rows * POINTWISE_WEIGHTS.columns)
    partial = grad.new_empty((runs, out_channels, channels))
    launch(
        _pointwise_weights,
        runs * triton.cdiv(out_channels, OUT_CHANNELS) * triton.cdiv(channels, OUT_CHANNELS),
        POINTWISE_WEIGHTS.warps,
        grad=grad,
        active=active,
        partial=partial,
        batch=batch,
        channels=channels,
        out_channels=out_channels,
        pixels=height * width,
        OUT=OUT_CHANNELS,
        CHANNELS=OUT_CHANNELS,
        STEPS=POINTWISE_WEIGHTS.rows,
        COLUMNS=POINTWISE_WEIGHTS.columns,
    )
    return partial.sum(0, dtype=torch.float64).to(grad.dtype).view(out_channels, channels, 1, 1)


def _depthwise_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """(C, 1, 5, 5) of two (B, C, H, W)."""
    batch, channels, height, width = x.shape
    runs = triton.cdiv(height * width, DEPTHWISE_WEIGHTS.rows * DEPTHWISE_WEIGHTS.columns)
    partial = grad.new_empty((batch, channels, runs, 25))
    launch(
        _depthwise_weights,
        batch * channels * runs,
        DEPTHWISE_WEIGHTS.warps,
        grad=grad,
        x=x,
        partial=partial,
        height=height,
        width=width,
        STEPS=DEPTHWISE_WEIGHTS.rows,
        COLUMNS=DEPTHWISE_WEIGHTS.columns,
    )
    return partial.sum((0, 2), dtype=torch.float64).to(grad.dtype).view(channels, 1, 5, 5)


backward = functools.partial(backward_with, _depthwise_weight_gradient, _pointwise_weight_gradient)
_dispatch.implementation("nnconv5_backward", "triton")(backward)
