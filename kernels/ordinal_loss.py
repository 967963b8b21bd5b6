"""Triton kernels of `ordinal_loss`: the forward reads the logits once, the backward reads them again and writes the
gradient; nothing but inputs is kept in between. Logits of pixels that do not count are not read."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, tile_pixels

# No pixel needs its neighbours: an image is one long row. One pixel a thread: planes of an odd number of pixels, usual
# here, could not be read in wider words.
FORWARD = Block(1, 128, 4)
BACKWARD = Block(1, 128, 4)

FACTORS = tl.constexpr(8)  # pairs whose loads are under way together, and between two logarithms


@triton.jit
def _measured(depth, valid, at, inside):
    """Depth at the pixels of a tile, and which of them count."""
    value = tl.load(depth + at, mask=inside, other=0.0)
    if valid is None:
        on = inside & (value > 0) & (value - value == 0)
    else:
        on = inside & (tl.load(valid + at, mask=inside, other=0) != 0)
    return value, on


@triton.jit
def _margin(pair, thresholds, k, pixels, depth, seen, BINS: tl.constexpr):
    """s of csrc/include/mdepth/ordinal.h for pair k, and whether the truth is beyond its threshold; s is -infinity,
    which costs nothing, where not `seen`."""
    step = tl.full((), 2, dtype=tl.int64) * pixels
    not_beyond = tl.load(pair + k * step, mask=seen, other=0.0)
    beyond = tl.load(pair + k * step + pixels, mask=seen, other=0.0)
    bound = tl.load(thresholds + tl.minimum(k + 1, BINS))
    truth = depth >= tl.where(k < BINS - 1, bound, float("nan"))  # no truth is beyond the last bin
    difference = beyond - not_beyond
    return tl.where(seen, tl.where(truth, -difference, difference), float("-inf")), truth


@triton.jit
def _log1p(x):
    """log(1 + x), x >= 0, with what rounding 1 + x has dropped put back."""
    sum_ = 1 + x
    return tl.log(sum_) + (x - (sum_ - 1)) / sum_


@triton.jit
def _forward(
    logits,  # (B, 2 BINS, pixels)
    depth,  # (B, pixels)
    thresholds,  # (BINS + 1,)
    valid,  # (B, pixels) or None
    partial,  # (B, tiles) double
    counts,  # (B, tiles) int64
    pixels,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    here = offset(y, x, pixels)
    value, on = _measured(depth, valid, image * pixels + here, inside)
    pair = logits + image * 2 * BINS * pixels + here
    bins = tl.full((ROWS, COLUMNS), BINS, dtype=tl.int32)  # as a block: the interpreter takes no scalar into a mask
    total = tl.where(on, value - value, 0.0)  # NaN where a depth that counts is not finite
    for first in range(0, BINS, FACTORS):
        odds = tl.zeros((ROWS, COLUMNS), dtype=value.dtype)
        for j in tl.static_range(FACTORS):
            s, _truth = _margin(pair, thresholds, first + j, pixels, value, on & (first + j < bins), BINS)
            total += tl.where(s > 0, s, 0.0)
            odds = tl.fma(tl.exp(-tl.abs(s)), 1 + odds, odds)
        total += _log1p(odds)
    tiles = tl.cdiv(pixels, COLUMNS)
    tl.store(partial + image * tiles + tile, tl.sum(total.to(tl.float64)))
    tl.store(counts + image * tiles + tile, tl.sum(on.to(tl.int64)))


@triton.jit
def _backward(
    grad,  # one number
    count,  # one number
    logits,  # (B, 2 BINS, pixels)
    depth,  # (B, pixels)
    thresholds,  # (BINS + 1,)
    valid,  # (B, pixels) or None
    grad_logits,  # (B, 2 BINS, pixels)
    pixels,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    here = offset(y, x, pixels)
    value, on = _measured(depth, valid, image * pixels + here, inside)
    share = (tl.load(grad).to(tl.float64) / tl.maximum(tl.load(count), 1)).to(value.dtype)
    pair = image * 2 * BINS * pixels + here
    step = tl.full((), 2, dtype=tl.int64) * pixels
    bins = tl.full((ROWS, COLUMNS), BINS, dtype=tl.int32)
    for first in range(0, BINS, FACTORS):
        for j in tl.static_range(FACTORS):
            k = first + j
            s, truth = _margin(logits + pair, thresholds, k, pixels, value, on & (k < bins), BINS)
            e = tl.exp(-tl.abs(s))
            slope = share * tl.where(s >= 0, 1 / (1 + e), e / (1 + e))
            slope = tl.where(on, tl.where(truth, -slope, slope), 0.0)
            out = grad_logits + pair + k * step
            tl.store(out, -slope, mask=inside & (k < bins))
            tl.store(out + pixels, slope, mask=inside & (k < bins))


@_dispatch.implementation("ordinal_loss", "triton")
def forward(logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = logits.shape
    tiles = FORWARD.tiles(1, height * width)
    partial = logits.new_empty((batch, tiles), dtype=torch.float64)
    counts = logits.new_empty((batch, tiles), dtype=torch.int64)
    launch(
        _forward,
        batch * tiles,
        FORWARD.warps,
        logits=logits,
        depth=depth,
        thresholds=thresholds,
        valid=valid,
        partial=partial,
        counts=counts,
        pixels=height * width,
        BINS=channels // 2,
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    count = counts.sum()
    return (partial.sum() / count.clamp(min=1)).to(logits.dtype), count


@_dispatch.implementation("ordinal_loss_backward", "triton")
def backward(
    grad: Tensor, count: Tensor, logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None
) -> Tensor:
    batch, channels, height, width = logits.shape
    grad_logits = logits.new_empty(logits.shape)
    launch(
        _backward,
        batch * BACKWARD.tiles(1, height * width),
        BACKWARD.warps,
        grad=grad,
        count=count,
        logits=logits,
        depth=depth,
        thresholds=thresholds,
        valid=valid,
        grad_logits=grad_logits,
        pixels=height * width,
        BINS=channels // 2,
        ROWS=BACKWARD.rows,
        COLUMNS=BACKWARD.columns,
    )
    return grad_logits
