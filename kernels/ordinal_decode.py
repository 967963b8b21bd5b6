"""Triton kernel of `ordinal_decode`: the logits in once, depth and label out."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, tile_pixels

# No pixel needs its neighbours: an image is one long row. One pixel a thread: planes of an odd number of pixels, usual
# here, could not be read in wider words.
DECODE = Block(1, 128, 4)

UNROLL = tl.constexpr(8)  # pairs whose loads are under way together


@triton.jit
def _decode(
    logits,  # (B, 2 BINS, pixels)
    thresholds,  # (BINS + 1,)
    depth,  # (B, pixels)
    label,  # (B, pixels)
    pixels,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    here = offset(y, x, pixels)
    at = image * pixels + here
    pair = logits + image * 2 * BINS * pixels + here
    step = tl.full((), 2, dtype=tl.int64) * pixels
    bins = tl.full((ROWS, COLUMNS), BINS, dtype=tl.int32)  # as a block: the interpreter takes no scalar into a mask
    count = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    lost = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for first in range(0, BINS, UNROLL):
        for j in tl.static_range(UNROLL):
            on = inside & (first + j < bins)
            not_beyond = tl.load(pair + (first + j) * step, mask=on, other=0.0)
            beyond = tl.load(pair + (first + j) * step + pixels, mask=on, other=0.0)
            count += (beyond > not_beyond).to(tl.int32)
            lost |= ((beyond != beyond) | (not_beyond != not_beyond)).to(tl.int32)
    bin_ = tl.minimum(count, BINS - 1)
    low = tl.load(thresholds + bin_, mask=inside, other=0.0)
    high = tl.load(thresholds + bin_ + 1, mask=inside, other=0.0)
    tl.store(depth + at, tl.where(lost != 0, float("nan"), (low + high) / 2), mask=inside)
    tl.store(label + at, count.to(tl.int64), mask=inside)


@_dispatch.implementation("ordinal_decode", "triton")
def forward(logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = logits.shape
    depth = logits.new_empty((batch, 1, height, width))
    label = logits.new_empty((batch, 1, height, width), dtype=torch.int64)
    launch(
        _decode,
        batch * DECODE.tiles(1, height * width),
        DECODE.warps,
        logits=logits,
        thresholds=thresholds,
        depth=depth,
        label=label,
        pixels=height * width,
        BINS=channels // 2,
        ROWS=DECODE.rows,
        COLUMNS=DECODE.columns,
    )
    return depth, label
