"""Triton kernel of `depth_metrics`: one pass over the window; predictions where nothing counts are not read."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, number, offset, tile_pixels

METRICS = Block(4, 128, 8)


@triton.jit
def _add(partial, index: tl.constexpr, on, term):
    tl.store(partial + index, tl.sum(tl.where(on, term, 0.0)))


@triton.jit
def _metrics(
    prediction,  # (B, height, width)
    ground_truth,  # (B, height, width)
    scale,  # (B,) double or None
    shift,  # (B,) double or None
    partial,  # (B, tiles, 12) double
    height,
    width,
    top,  # of the window, as are left, rows and columns
    left,
    rows,
    columns,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(rows, columns, ROWS, COLUMNS)
    at = image * height * width + offset(y + top, x + left, width)
    truth = tl.load(ground_truth + at, mask=inside, other=0.0)
    on = inside & (truth > number(LOW, truth)) & (truth < number(HIGH, truth))
    p = tl.load(prediction + at, mask=on, other=1.0).to(tl.float64)
    g = tl.where(on, truth, 1.0).to(tl.float64)
    if scale is not None:
        p = p * tl.load(scale + image)
    if shift is not None:
        p = p + tl.load(shift + image)
    near = tl.full((ROWS, COLUMNS), NEAR, dtype=tl.float64)
    far = tl.full((ROWS, COLUMNS), FAR, dtype=tl.float64)
    if INVERSE:
        p = tl.where(p <= 0, far, 1 / p)
    p = tl.where(p < near, near, tl.where(p > far, far, p))  # NaN stays NaN

    error = p - g
    relative = error / g
    apart = error / (p * g)
    e = tl.log(p / g)
    out = partial + (image * tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS) + tile) * 12
    one = tl.full((ROWS, COLUMNS), 1, dtype=tl.float64)
    _add(out, 0, on, one)
    _add(out, 1, on, tl.abs(relative))
    _add(out, 2, on, error * relative)
    _add(out, 3, on, relative * relative)
    _add(out, 4, on, error * error)
    _add(out, 5, on, e * e)
    _add(out, 6, on, e)
    _add(out, 7, on, tl.abs(e))
    _add(out, 8, on & (p < 1.25 * g) & (g < 1.25 * p), one)
    _add(out, 9, on & (p < 1.5625 * g) & (g < 1.5625 * p), one)
    _add(out, 10, on & (p < 1.953125 * g) & (g < 1.953125 * p), one)
    _add(out, 11, on, apart * apart)


@_dispatch.implementation("depth_metrics", "triton")
def forward(
    prediction: Tensor,
    ground_truth: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    top: int,
    bottom: int,
    left: int,
    right: int,
    min_valid: float,
    max_valid: float,
    min_depth: float,
    max_depth: float,
    inverse: bool,
) -> Tensor:
    batch, height, width = prediction.shape
    rows, columns = bottom - top, right - left
    tiles = METRICS.tiles(rows, columns)
    partial = prediction.new_empty((batch, tiles, 12), dtype=torch.float64)
    launch(
        _metrics,
        batch * tiles,
        METRICS.warps,
        prediction=prediction,
        ground_truth=ground_truth,
        scale=scale,
        shift=shift,
        partial=partial,
        height=height,
        width=width,
        top=top,
        left=left,
        rows=rows,
        columns=columns,
        LOW=min_valid,
        HIGH=max_valid,
        NEAR=min_depth,
        FAR=max_depth,
        INVERSE=inverse,
        ROWS=METRICS.rows,
        COLUMNS=METRICS.columns,
    )
    return partial.sum(1)
