"""Triton kernels of `silog_loss`: `_sums` gives residuals and squared residuals per tile, `_image_sums` adds them up in
a fixed order, `_finish` makes of them the loss and the two numbers from which `_backward` computes the gradient, taking
the residuals again. Maps are read once in each direction, and the prediction only where a pixel counts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, tile_pixels

# No pixel needs its neighbours: an image is one long row.
FORWARD = Block(1, 512, 4)
BACKWARD = Block(1, 512, 4)
SUMS = 512  # tiles that `_image_sums` adds at a time


@triton.jit
def _log(x):
    """log(x), NaN unless x is finite and above 0."""
    return tl.log(tl.where((x > 0) & (x < float("inf")), x, float("nan")))


@triton.jit
def _residual(prediction, depth, LOG_PREDICTION: tl.constexpr):
    """log(prediction / depth), or prediction - log(depth), NaN where that is not finite."""
    if LOG_PREDICTION:
        return prediction - _log(depth) + (prediction - prediction)
    # Near 1, log(1 + f) with what rounding 1 + f has dropped put back: the difference of two logarithms would cancel.
    f = (prediction - depth) / depth
    near = tl.abs(f) < 0.25
    sum_ = tl.where(near, 1 + f, 1.0)
    close = tl.log(sum_) + (f - (sum_ - 1)) / sum_
    apart = _log(prediction) - _log(depth)
    return tl.where(near & (apart == apart), close, apart)


@triton.jit
def _counted(depth, valid, at, inside, MEASURED: tl.constexpr):
    """Depth at the pixels of a tile, and which of them count."""
    value = tl.load(depth + at, mask=inside, other=1.0)
    on = inside
    if valid is not None:
        on = inside & (tl.load(valid + at, mask=inside, other=0) != 0)
    elif MEASURED:
        on = inside & (value > 0) & (value < float("inf"))
    return value, on


@triton.jit
def _sums(
    prediction,  # (B, pixels)
    depth,  # (B, pixels)
    valid,  # (B, pixels) or None
    partial,  # (B, 3, tiles) double: how many count, their residuals, the squares of these
    pixels,
    MEASURED: tl.constexpr,
    LOG_PREDICTION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    at = image * pixels + offset(y, x, pixels)
    value, on = _counted(depth, valid, at, inside, MEASURED)
    guess = tl.load(prediction + at, mask=on, other=1.0)
    d = tl.where(on, _residual(guess, tl.where(on, value, 1.0), LOG_PREDICTION), 0.0).to(tl.float64)
    tiles = tl.cdiv(pixels, COLUMNS)
    out = partial + image * 3 * tiles + tile
    tl.store(out, tl.sum(on.to(tl.float64)))
    tl.store(out + tiles, tl.sum(d))
    tl.store(out + 2 * tiles, tl.sum(d * d))


@triton.jit
def _image_sums(
    partial,  # (B, 3, tiles) double
    sums,  # out (B, 3) double
    tiles,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # of B * 3
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for block in range(BLOCKS):
        tile = block * BLOCK + lane.to(tl.int64)
        total += tl.load(partial + row * tiles + tile, mask=tile < tiles, other=0.0)
    tl.store(sums + row, tl.sum(total))


@triton.jit
def _finish(
    sums,  # (B, 3) double
    loss,  # out double
    coefficients,  # out (B, 2) double
    batch,
    FOCUS: tl.constexpr,  # a number given at run time would be rounded to float32
    SCALE: tl.constexpr,
    FORM: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """As `silog_finish` of csrc/include/mdepth/silog.h, all images at once."""
    b = tl.arange(0, IMAGES)
    n = tl.load(sums + 3 * b, mask=b < batch, other=0.0)
    total = tl.load(sums + 3 * b + 1, mask=b < batch, other=0.0)
    squares = tl.load(sums + 3 * b + 2, mask=b < batch, other=0.0)
    if FORM == "sqrt" or FORM == "sqrt_unbiased":
        count = tl.maximum(tl.sum(n), 1.0)
        share = count
        if FORM == "sqrt_unbiased":
            share = tl.maximum(count - 1, 1.0)
        whole = tl.sum(total)
        mean = whole / count
        value = (tl.sum(squares) - whole * mean) / share + (1 - FOCUS) * mean * mean
        still = value <= 0  # no deviation, but for rounding
        root = tl.where(still, 0.0, tl.sqrt(tl.where(still, 1.0, value)))
        factor = tl.where(still, 0.0, SCALE / tl.where(still, 1.0, root))
        tl.store(loss, SCALE * root)
        slope = tl.zeros((IMAGES,), dtype=tl.float64) + factor / share
        shift = tl.zeros((IMAGES,), dtype=tl.float64) + factor * mean * ((1 - FOCUS) / count - 1 / share)
    else:
        mean = total / tl.maximum(n, 1.0)
        if FORM == "eigen":
            of_image = SCALE * n / tl.maximum(tl.sum(n * n), 1.0)
        else:
            images = tl.maximum(tl.sum(tl.where(n > 0, 1.0, 0.0)), 1.0)
            of_image = SCALE / (tl.maximum(n, 1.0) * images)
        tl.store(loss, tl.sum(of_image * (squares - FOCUS * total * mean)))
        slope = 2 * of_image
        shift = -2 * of_image * FOCUS * mean
    tl.store(coefficients + 2 * b, slope, mask=b < batch)
    tl.store(coefficients + 2 * b + 1, shift, mask=b < batch)


@triton.jit
def _backward(
    grad,  # one number
    coefficients,  # (B, 2) double
    prediction,  # (B, pixels)
    depth,  # (B, pixels)
    valid,  # (B, pixels) or None
    grad_prediction,  # (B, pixels)
    pixels,
    MEASURED: tl.constexpr,
    LOG_PREDICTION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(1, pixels, ROWS, COLUMNS)
    at = image * pixels + offset(y, x, pixels)
    value, on = _counted(depth, valid, at, inside, MEASURED)
    guess = tl.load(prediction + at, mask=on, other=1.0)
    d = _residual(guess, tl.where(on, value, 1.0), LOG_PREDICTION)
    factor = tl.load(grad).to(tl.float64)
    slope = (factor * tl.load(coefficients + 2 * image)).to(d.dtype)
    shift = (factor * tl.load(coefficients + 2 * image + 1)).to(d.dtype)
    g = slope * d + shift
    if not LOG_PREDICTION:
        g = g / guess
    tl.store(grad_prediction + at, tl.where(on, g, 0.0), mask=inside)


@_dispatch.implementation("silog_loss", "triton")
def forward(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    form: str,
    variance_focus: float,
    scale: float,
    log_prediction: bool,
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = prediction.shape
    tiles = FORWARD.tiles(1, height * width)
    partial = prediction.new_empty((batch, 3, tiles), dtype=torch.float64)
    sums = prediction.new_empty((batch, 3), dtype=torch.float64)
    loss = prediction.new_empty((), dtype=torch.float64)
    coefficients = prediction.new_empty((batch, 2), dtype=torch.float64)
    launch(
        _sums,
        batch * tiles,
        FORWARD.warps,
        prediction=prediction,
        depth=depth,
        valid=valid,
        partial=partial,
        pixels=height * width,
        MEASURED=measured,
        LOG_PREDICTION=log_prediction,
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    launch(
        _image_sums,
        batch * 3,
        4,
        partial=partial,
        sums=sums,
        tiles=tiles,
        BLOCKS=triton.cdiv(tiles, SUMS),
        BLOCK=SUMS,
    )
    launch(
        _finish,
        1,
        4,
        sums=sums,
        loss=loss,
        coefficients=coefficients,
        batch=batch,
        FOCUS=variance_focus,
        SCALE=scale,
        FORM=form,
        IMAGES=triton.next_power_of_2(max(batch, 1)),
    )
    return loss.to(prediction.dtype), coefficients


@_dispatch.implementation("silog_loss_backward", "triton")
def backward(
    grad: Tensor,
    coefficients: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    log_prediction: bool,
) -> Tensor:
    batch, _, height, width = prediction.shape
    grad_prediction = prediction.new_empty(prediction.shape)
    launch(
        _backward,
        batch * BACKWARD.tiles(1, height * width),
        BACKWARD.warps,
        grad=grad,
        coefficients=coefficients,
        prediction=prediction,
        depth=depth,
        valid=valid,
        grad_prediction=grad_prediction,
        pixels=height * width,
        MEASURED=measured,
        LOG_PREDICTION=log_prediction,
        ROWS=BACKWARD.rows,
        COLUMNS=BACKWARD.columns,
    )
    return grad_prediction
