"""Triton kernels of `photometric_loss`: SSIM and L1 per pixel, and the gradient by both images.

The forward reads both images once (their nine shifts come from cache) and writes one map: 8 C + 4 bytes a pixel in
float32. The backward has two steps, because a pixel's gradient needs the derivatives of the nine windows around it:
`_coefficients` writes three numbers per window and channel (four where both gradients are wanted), `_gather` sums them.
Bytes a pixel for one gradient: 8 C + 4 in and 12 C out; 20 C + 4 in and 4 C out: 44 C + 8, where 12 C + 4 would be
the least. The workspace is bounded by `WORKSPACE_BYTES`.
"""

import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, portions, tile_pixels
from mdepth_fast.ops.photometric_loss import C1, C2, _gradient

FORWARD = Block(8, 32, 4)
COEFFICIENTS = Block(8, 32, 4)
GATHER = Block(8, 32, 4)

_C1 = tl.constexpr(C1)
_C2 = tl.constexpr(C2)
_NINTH = tl.constexpr(1 / 9)


@triton.jit
def reflect(i, n):
    """reflect(-1) = 1, reflect(n) = n - 2"""
    i = tl.where(i < 0, -i, i)
    return tl.where(i >= n, 2 * n - 2 - i, i)


@triton.jit
def window(plane, y, x, height, width, inside):
    """The 3x3 window around each pixel, reflected at the border."""
    above, below = reflect(y - 1, height), reflect(y + 1, height)
    left, right = reflect(x - 1, width), reflect(x + 1, width)
    return (
        tl.load(plane + offset(above, left, width), mask=inside, other=0.0),
        tl.load(plane + offset(above, x, width), mask=inside, other=0.0),
        tl.load(plane + offset(above, right, width), mask=inside, other=0.0),
        tl.load(plane + offset(y, left, width), mask=inside, other=0.0),
        tl.load(plane + offset(y, x, width), mask=inside, other=0.0),
        tl.load(plane + offset(y, right, width), mask=inside, other=0.0),
        tl.load(plane + offset(below, left, width), mask=inside, other=0.0),
        tl.load(plane + offset(below, x, width), mask=inside, other=0.0),
        tl.load(plane + offset(below, right, width), mask=inside, other=0.0),
    )


@triton.jit
def _mean(w):
    return (((w[0] + w[1]) + (w[2] + w[3])) + ((w[4] + w[5]) + (w[6] + w[7])) + w[8]) * _NINTH


@triton.jit
def ssim_distance(x, y):
    """clamp((1 - SSIM) / 2, 0, 1) of two windows and its derivative, as in csrc/include/mdepth/ssim.h.

    By a pixel x_q of the window it is a_x + b (x_q - 1/2) + c (y_q - 1/2), and by y_q the same with a_y and x, y
    exchanged."""
    mean_x, mean_y = _mean(x), _mean(y)
    # Centred sums: E[x^2] - E[x]^2 would lose against C2 what float32 has to give.
    sum_x = mean_x * 0
    sum_y = mean_y * 0
    cross = mean_x * 0
    for k in tl.static_range(9):
        dx, dy = x[k] - mean_x, y[k] - mean_y
        sum_x = tl.fma(dx, dx, sum_x)
        sum_y = tl.fma(dy, dy, sum_y)
        cross = tl.fma(dx, dy, cross)
    variances = (sum_x + sum_y) * _NINTH
    covariance = cross * _NINTH
    n1 = 2 * mean_x * mean_y + _C1
    n2 = 2 * covariance + _C2
    d1 = tl.fma(mean_x, mean_x, mean_y * mean_y) + _C1
    d2 = variances + _C2
    inverse = 1 / (d1 * d2)
    similarity = n1 * n2 * inverse
    # 1 - SSIM without subtracting two numbers near 1: d1 - n1 = (difference of the means)^2.
    gap = mean_x - mean_y
    raw = 0.5 * (d1 * (variances - 2 * covariance) + n2 * gap * gap) * inverse
    distance = tl.where(raw < 0, 0.0, tl.where(raw > 1, 1.0, raw))  # NaN stays
    scale = tl.where((raw >= 0) & (raw <= 1), -0.5 / 9, raw * 0)
    by_d1 = similarity * d2 * inverse
    by_mean_x = 2 * (mean_y * n2 * inverse - by_d1 * mean_x)
    by_mean_y = 2 * (mean_x * n2 * inverse - by_d1 * mean_y)
    shift_x, shift_y = mean_x - 0.5, mean_y - 0.5
    b = scale * 2 * (-similarity * d1 * inverse)
    c = scale * 2 * n1 * inverse
    a_x = scale * by_mean_x - b * shift_x - c * shift_y
    a_y = scale * by_mean_y - b * shift_y - c * shift_x
    return distance, a_x, a_y, b, c


@triton.jit
def window_weight(i, n, STEP: tl.constexpr):
    """How often the window at i + STEP reads pixel i: reflection makes it 2 beside the border; 0 outside."""
    if STEP < 0:
        weight = tl.where(i == 0, 0.0, tl.where(i == 1, 2.0, 1.0))
    elif STEP > 0:
        weight = tl.where(i == n - 1, 0.0, tl.where(i == n - 2, 2.0, 1.0))
    else:
        weight = tl.where(i < n, 1.0, 0.0)
    return weight


@triton.jit
def sign(value):
    return tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0)).to(value.dtype)


@triton.jit
def _forward(
    prediction,  # (B, C, H, W)
    target,  # (B, C, H, W)
    loss,  # (B, 1, H, W)
    height,
    width,
    CHANNELS: tl.constexpr,
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    total = tl.zeros((ROWS, COLUMNS), dtype=loss.dtype.element_ty)
    for channel in range(CHANNELS):
        at = (image * CHANNELS + channel) * plane
        p = window(prediction + at, y, x, height, width, inside)
        t = window(target + at, y, x, height, width, inside)
        total += SSIM * ssim_distance(p, t)[0] + L1 * tl.abs(p[4] - t[4])
    tl.store(loss + image * plane + offset(y, x, width), total, mask=inside)


@triton.jit
def _coefficients(
    prediction,  # (B, C, H, W)
    target,  # (B, C, H, W)
    grad,  # (B, 1, H, W)
    workspace,  # (B, C, 2 + NEED_PREDICTION + NEED_TARGET, H, W)
    height,
    width,
    CHANNELS: tl.constexpr,
    SSIM: tl.constexpr,
    NEED_PREDICTION: tl.constexpr,
    NEED_TARGET: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)  # an "image" is one channel here
    plane = plane_size(height, width)
    here = offset(y, x, width)
    p = window(prediction + image * plane, y, x, height, width, inside)
    t = window(target + image * plane, y, x, height, width, inside)
    _distance, a_x, a_y, b, c = ssim_distance(p, t)
    scale = SSIM * tl.load(grad + image // CHANNELS * plane + here, mask=inside, other=0.0)
    out = workspace + image * (2 + NEED_PREDICTION + NEED_TARGET) * plane + here
    tl.store(out, scale * b, mask=inside)
    tl.store(out + plane, scale * c, mask=inside)
    if NEED_PREDICTION:
        tl.store(out + 2 * plane, scale * a_x, mask=inside)
    if NEED_TARGET:
        tl.store(out + (2 + NEED_PREDICTION) * plane, scale * a_y, mask=inside)


@triton.jit
def _gather(
    prediction,  # (B, C, H, W)
    target,  # (B, C, H, W)
    grad,  # (B, 1, H, W)
    workspace,  # as _coefficients left it
    grad_prediction,  # (B, C, H, W) or None
    grad_target,  # (B, C, H, W) or None
    height,
    width,
    CHANNELS: tl.constexpr,
    L1: tl.constexpr,
    NEED_PREDICTION: tl.constexpr,
    NEED_TARGET: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)  # an "image" is one channel here
    plane = plane_size(height, width)
    here = offset(y, x, width)
    coefficients = workspace + image * (2 + NEED_PREDICTION + NEED_TARGET) * plane
    zero = tl.zeros((ROWS, COLUMNS), dtype=prediction.dtype.element_ty)
    b, c, a_x, a_y = zero, zero, zero, zero
    for tap in tl.static_range(9):
        weight = window_weight(y, height, tap // 3 - 1) * window_weight(x, width, tap % 3 - 1)
        weight = weight.to(zero.dtype)
        mask = inside & (weight > 0)
        at = coefficients + offset(y + (tap // 3 - 1), x + (tap % 3 - 1), width)
        b = tl.fma(weight, tl.load(at, mask=mask, other=0.0), b)
        c = tl.fma(weight, tl.load(at + plane, mask=mask, other=0.0), c)
        if NEED_PREDICTION:
            a_x = tl.fma(weight, tl.load(at + 2 * plane, mask=mask, other=0.0), a_x)
        if NEED_TARGET:
            a_y = tl.fma(weight, tl.load(at + (2 + NEED_PREDICTION) * plane, mask=mask, other=0.0), a_y)
    p = tl.load(prediction + image * plane + here, mask=inside, other=0.0)
    t = tl.load(target + image * plane + here, mask=inside, other=0.0)
    absolute = L1 * tl.load(grad + image // CHANNELS * plane + here, mask=inside, other=0.0) * sign(p - t)
    if NEED_PREDICTION:
        value = a_x + b * (p - 0.5) + c * (t - 0.5) + absolute
        tl.store(grad_prediction + image * plane + here, value, mask=inside)
    if NEED_TARGET:
        value = a_y + b * (t - 0.5) + c * (p - 0.5) - absolute
        tl.store(grad_target + image * plane + here, value, mask=inside)


@_dispatch.implementation("photometric_loss", "triton")
def forward(prediction: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
    batch, channels, height, width = prediction.shape
    loss = prediction.new_empty((batch, 1, height, width))
    launch(
        _forward,
        batch * FORWARD.tiles(height, width),
        FORWARD.warps,
        prediction=prediction,
        target=target,
        loss=loss,
        height=height,
        width=width,
        CHANNELS=channels,
        SSIM=ssim_weight / channels,
        L1=(1 - ssim_weight) / channels,
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return loss


@_dispatch.implementation("photometric_loss_backward", "triton")
def backward(
    grad: Tensor, prediction: Tensor, target: Tensor, ssim_weight: float, need_prediction: bool, need_target: bool
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = prediction.shape
    grads = _gradient(prediction, need_prediction), _gradient(target, need_target)
    planes = channels * (2 + need_prediction + need_target)
    workspace = None
    for part in portions(batch, planes * height * width * prediction.element_size()):
        images = part.stop - part.start
        if workspace is None or images > workspace.shape[0]:
            workspace = prediction.new_empty((images, planes, height, width))
        shared = dict(
            prediction=prediction[part],
            target=target[part],
            grad=grad[part],
            workspace=workspace,
            height=height,
            width=width,
            CHANNELS=channels,
            NEED_PREDICTION=need_prediction,
            NEED_TARGET=need_target,
        )
        launch(
            _coefficients,
            images * channels * COEFFICIENTS.tiles(height, width),
            COEFFICIENTS.warps,
            **shared,
            SSIM=ssim_weight / channels,
            ROWS=COEFFICIENTS.rows,
            COLUMNS=COEFFICIENTS.columns,
        )
        launch(
            _gather,
            images * channels * GATHER.tiles(height, width),
            GATHER.warps,
            **shared,
            grad_prediction=grads[0][part] if need_prediction else None,
            grad_target=grads[1][part] if need_target else None,
            L1=(1 - ssim_weight) / channels,
            ROWS=GATHER.rows,
            COLUMNS=GATHER.columns,
        )
    return grads
