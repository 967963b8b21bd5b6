"""Triton kernels of `berhu_loss`: `_largest` gives the largest error and the number of pixels per tile, `_state` those
of the batch, `_costs` the cost per tile; `_backward` computes the errors again, and nothing is kept per pixel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, number, offset, tile_pixels

# No pixel needs its neighbours: an image is one long row.
FORWARD = Block(1, 512, 4)
BACKWARD = Block(1, 512, 4)
SUMS = 512  # tiles that `_state` takes at a time


@triton.jit
def _errors(prediction, depth, valid, at, inside, MEASURED: tl.constexpr):
    """Signed errors of a tile, 0 where a pixel does not count; which do."""
    value = tl.load(depth + at, mask=inside, other=0.0)
    on = inside
    if valid is not None:
        on = inside & (tl.load(valid + at, mask=inside, other=0) != 0)
    elif MEASURED:
        on = inside & (value > 0) & (value < float("inf"))
    guess = tl.load(prediction + at, mask=on, other=0.0)
    return tl.where(on, guess - value, 0.0), on


@triton.jit
def _threshold(state, like, SHARE: tl.constexpr, LEAST: tl.constexpr):
    """c in the dtype of `like`, as csrc/include/mdepth/berhu.h has it: never 0, NaN where an error is not finite."""
    c = SHARE * tl.load(state)
    return (tl.where(c < LEAST, LEAST, c) + (c - c)).to(like.dtype)


@triton.jit
def _largest(
    prediction,  # (B, pixels)
    depth,  # (B, pixels)
    valid,  # (B, pixels) or None
    partial,  # (3, tiles) double: largest error, NaN where one is not finite; pixels that count; left for the cost
    pixels,
    tiles,  # of the batch
    MEASURED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    error, on = _errors(prediction, depth, valid, image * pixels + offset(y, x, pixels), inside, MEASURED)
    size = tl.abs(error).to(tl.float64)
    out = partial + image * tl.cdiv(pixels, COLUMNS) + tile
    tl.store(out, tl.max(size) + tl.sum(size - size))
    tl.store(out + tiles, tl.sum(on.to(tl.float64)))


@triton.jit
def _state(
    partial,  # (3, tiles) double
    state,  # out (2,) double: largest error, number of pixels
    tiles,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    most = tl.zeros((BLOCK,), dtype=tl.float64)
    lost = tl.zeros((BLOCK,), dtype=tl.float64)
    count = tl.zeros((BLOCK,), dtype=tl.float64)
    for block in range(BLOCKS):
        tile = block * BLOCK + lane.to(tl.int64)
        one = tl.load(partial + tile, mask=tile < tiles, other=0.0)
        most = tl.where(one > most, one, most)
        lost += one - one
        count += tl.load(partial + tiles + tile, mask=tile < tiles, other=0.0)
    tl.store(state, tl.max(most) + tl.sum(lost))
    tl.store(state + 1, tl.sum(count))


@triton.jit
def _costs(
    prediction,  # (B, pixels)
    depth,  # (B, pixels)
    valid,  # (B, pixels) or None
    state,  # (2,) double
    partial,  # (3, tiles) double
    pixels,
    tiles,
    SHARE: tl.constexpr,
    LEAST: tl.constexpr,
    MEASURED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    error, on = _errors(prediction, depth, valid, image * pixels + offset(y, x, pixels), inside, MEASURED)
    c = _threshold(state, error, SHARE, LEAST)
    size = tl.abs(error)
    cost = tl.where(size <= c, size, size * (size * (0.5 / c)) + 0.5 * c)
    out = partial + image * tl.cdiv(pixels, COLUMNS) + tile
    tl.store(out + 2 * tiles, tl.sum(tl.where(on, cost, 0.0).to(tl.float64)))


@triton.jit
def _backward(
    grad,  # one number
    state,  # (2,) double
    prediction,  # (B, pixels)
    depth,  # (B, pixels)
    valid,  # (B, pixels) or None
    grad_prediction,  # (B, pixels)
    pixels,
    SHARE: tl.constexpr,
    LEAST: tl.constexpr,
    MEASURED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    at = image * pixels + offset(y, x, pixels)
    error, on = _errors(prediction, depth, valid, at, inside, MEASURED)
    c = _threshold(state, error, SHARE, LEAST)
    of_pixel = (tl.load(grad).to(tl.float64) / tl.maximum(tl.load(state + 1), 1.0)).to(error.dtype)
    one = number(1.0, error)
    sign = tl.where(error > 0, one, tl.where(error < 0, -one, 0.0))
    slope = tl.where(tl.abs(error) <= c, sign, error * (1 / c))
    tl.store(grad_prediction + at, tl.where(on, of_pixel * slope, 0.0), mask=inside)


@_dispatch.implementation("berhu_loss", "triton")
def forward(
    prediction: Tensor, depth: Tensor, valid: Tensor | None, measured: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = prediction.shape
    tiles = batch * FORWARD.tiles(1, height * width)
    partial = prediction.new_empty((3, tiles), dtype=torch.float64)
    state = prediction.new_empty((2,), dtype=torch.float64)
    maps = {"prediction": prediction, "depth": depth, "valid": valid, "partial": partial}
    shape = {"MEASURED": measured, "ROWS": FORWARD.rows, "COLUMNS": FORWARD.columns}
    launch(_largest, tiles, FORWARD.warps, **maps, pixels=height * width, tiles=tiles, **shape)
    launch(_state, 1, 4, partial=partial, state=state, tiles=tiles, BLOCKS=max(1, triton.cdiv(tiles, SUMS)), BLOCK=SUMS)
    launch(
        _costs,
        tiles,
        FORWARD.warps,
        **maps,
        state=state,
        pixels=height * width,
        tiles=tiles,
        SHARE=threshold,
        LEAST=torch.finfo(prediction.dtype).tiny,
        **shape,
    )
    return (partial[2].sum() / state[1].clamp(min=1)).to(prediction.dtype), state


@_dispatch.implementation("berhu_loss_backward", "triton")
def backward(
    grad: Tensor,
    state: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    threshold: float,
) -> Tensor:
    batch, _, height, width = prediction.shape
    grad_prediction = prediction.new_empty(prediction.shape)
    launch(
        _backward,
        batch * BACKWARD.tiles(1, height * width),
        BACKWARD.warps,
        grad=grad,
        state=state,
        prediction=prediction,
        depth=depth,
        valid=valid,
        grad_prediction=grad_prediction,
        pixels=height * width,
        SHARE=threshold,
        LEAST=torch.finfo(prediction.dtype).tiny,
        MEASURED=measured,
        ROWS=BACKWARD.rows,
        COLUMNS=BACKWARD.columns,
    )
    return grad_prediction
