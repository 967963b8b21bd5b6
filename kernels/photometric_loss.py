"""Triton kernels of `photometric_loss`: SSIM and L1 per pixel, and the gradient by both images.

Both kernels march: a warp goes down a strip of the image a row at a time, a lane has two columns, and what windows
share stays in registers. A row leaves mean and spread of three neighbours, three rows give a window; its adjoint is
summed along x as soon as a window's derivatives are known and along y when the next row's are. Neighbours come from
other lanes (a gather within a warp is a shuffle), so a pixel is loaded once; nine loads a window and their addresses
would be as many instructions as the arithmetic. Nothing in between goes through memory:

  forward    8 C + 4 bytes a pixel in float32, all of them needed
  backward   12 C + 4 for one gradient, 16 C + 4 for both; `grad` comes from L2 after the first channel

and in both what strips share, 4 columns of 64 and 2 (4) rows of a strip, which L2 serves.

SSIM is symmetric in x and y, so everything is written in s = x + y - 1 and d = x - y. With P = mean(x + y)^2 + 2 C1,
q = mean(d)^2, R = var(s) + 2 C2, w = var(d):
  f = q / (P + q),  g = w / (R + w),  SSIM = (1 - 2 f) (1 - 2 g),  (1 - SSIM) / 2 = f + g - 2 f g
where nothing cancels, and two variances do instead of three moments.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, number, offset, plane_size
from mdepth_fast.ops.photometric_loss import C1, C2

# A row of a tile is a strip, and marched by a warp; its columns overlap the next strip's by 4.
FORWARD = Block(4, 64, 4)
BACKWARD = Block(4, 64, 4)
FORWARD_STRIP = 6  # rows; their sums over the channels are registers
BACKWARD_AT_ONCE = 4  # programs of a multiprocessor, which registers limit

_C1 = tl.constexpr(C1)
_C2 = tl.constexpr(C2)
_THIRD = tl.constexpr(1 / 3)


def strip_programs(block: Block, images: int, height: int, width: int, strip: int) -> int:
    """How many programs `strip_pixels` needs."""
    return -(-images * -(-height // strip) * -(-width // (block.columns - 4)) // block.rows)


@lru_cache
def _strip(block: Block, images: int, height: int, width: int, processors: int) -> int:
    """The rows of a strip, 2 + 3 k: as many as possible, for each strip begins with some work that its rows share, but
    the last round of programs should find the multiprocessors full."""

    def rounds(strip: int) -> int:
        return -(-strip_programs(block, images, height, width, strip) // (BACKWARD_AT_ONCE * processors))

    return min(range(2, min(height, 64) + 3, 3), key=lambda strip: rounds(strip) * (strip + 5))


@triton.jit
def reflect(i, n):
    """reflect(-1) = 1, reflect(n) = n - 2; inside for -2, too."""
    return (n - 1) - tl.abs((n - 1) - tl.abs(i))


@triton.jit
def strip_pixels(images, height, width, strip, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The strips of this program, tensors of (ROWS, COLUMNS / 2, 2): index of the image (int64), of the strip in it,
    first row, the lane's two columns, and which of them the strip owns: all but the outer two on either side.

    Then the lanes that hold the columns to the left and to the right, (ROWS, COLUMNS / 2), reflected at the border
    (but for the last column of an odd width, see `load_pairs`)."""
    across, down = tl.cdiv(width, COLUMNS - 4), tl.cdiv(height, strip)
    # Strips of hundreds of pixels: 32 bits count them, and divide in a fraction of the time.
    strips = tl.program_id(0).to(tl.int64).to(tl.int32) * ROWS + tl.arange(0, ROWS)[:, None, None]
    image = strips // (across * down)
    index = strips - image * (across * down)
    image = image.to(tl.int64)
    lane = tl.arange(0, COLUMNS // 2)[None, :, None]
    first = (index % across) * (COLUMNS - 4) - 2
    x = first + 2 * lane + tl.arange(0, 2)[None, None, :]
    owned = (image < images) & (lane > 0) & (lane < COLUMNS // 2 - 1) & (x < width)
    lane = tl.broadcast_to(tl.arange(0, COLUMNS // 2)[None, :], (ROWS, COLUMNS // 2))
    even = tl.reshape(first, (ROWS, 1)) + 2 * lane
    left = tl.where((lane == 0) | (even == 0), lane, lane - 1)
    right = tl.where((lane == COLUMNS // 2 - 1) | (even + 2 == width), lane, lane + 1)
    return image, index, index // across * strip, x, owned, left, right


@triton.jit
def load_pairs(at, mask, ALIGNED: tl.constexpr, OTHER: tl.constexpr = 0):
    """Two columns a lane: in one access where both lie in one word of 8 bytes, else one after the other."""
    if ALIGNED:
        pairs = tl.load(at, mask=mask, other=OTHER)
    else:
        even, odd = tl.split(at)
        in_even, in_odd = tl.split(mask)
        pairs = tl.join(tl.load(even, mask=in_even, other=OTHER), tl.load(odd, mask=in_odd, other=OTHER))
    return pairs


@triton.jit
def store_pairs(at, pairs, mask, ALIGNED: tl.constexpr):
    if ALIGNED:
        tl.store(at, pairs, mask=mask)
    else:
        even, odd = tl.split(at)
        in_even, in_odd = tl.split(mask)
        value_even, value_odd = tl.split(pairs)
        tl.store(even, value_even, mask=in_even)
        tl.store(odd, value_odd, mask=in_odd)


@triton.jit
def load_columns(x, width, ALIGNED: tl.constexpr):
    """Where to load the columns `x` from, and which of them exist: the one behind the last is its reflection."""
    last = width
    if not ALIGNED:
        last += 1
        x = tl.where(x == width, width - 2, x)
    return x, (x >= 0) & (x < last)


@triton.jit
def beside(pairs, left, right):
    """What the columns to the left and to the right hold."""
    even, odd = tl.split(pairs)
    return tl.join(tl.gather(odd, left, 1), even), tl.join(odd, tl.gather(even, right, 1))


@triton.jit
def row_moments(value, left, right):
    """Mean of three neighbours along x, and twice the sum of their squared distances from it."""
    before, after = beside(value, left, right)
    slope = before - after
    bend = tl.fma(value, -2.0, before + after)
    third = bend * _THIRD
    return value + third, tl.fma(slope, slope, bend * third)


@triton.jit
def window_moments(above, here, below):
    """The same of the nine pixels of three rows. A spread is 18 variances."""
    slope = above[0] - below[0]
    bend = tl.fma(here[0], -2.0, above[0] + below[0])
    spread = tl.fma(3 * slope, slope, (above[1] + here[1]) + below[1])
    return tl.fma(bend, number(_THIRD, bend), here[0]), tl.fma(bend, bend, spread)


@triton.jit
def _inverse(value):
    # Two instructions where a division takes eight; no value here is near where single precision ends.
    root = tl.rsqrt(value)
    return root * root


@triton.jit
def ssim_terms(s, d):
    """f, g, mean(x + y), 1 / (P + q), and 1 / (R + w) of the spreads, of the moments of s and d."""
    mean = s[0] + 1
    square = d[0] * d[0]
    by_means = _inverse(tl.fma(mean, mean, square + 2 * _C1))
    by_spreads = _inverse((s[1] + d[1]) + 36 * _C2)
    return square * by_means, d[1] * by_spreads, mean, by_means, by_spreads


@triton.jit
def ssim_distance(s, d):
    """clamp((1 - SSIM) / 2, 0, 1)"""
    terms = ssim_terms(s, d)
    raw = tl.fma(terms[0], tl.fma(terms[1], -2.0, 1.0), terms[1])
    return tl.where(raw < 0, 0.0, tl.where(raw > 1, 1.0, raw))  # NaN stays


@triton.jit
def ssim_derivative(s, d, weight, SCALE: tl.constexpr):
    """The derivative of `weight * SCALE * (1 - SSIM) / 2` of a window by its pixels: a_s + b s_q by s at q, and
    a_d + (b + c) d_q by d. The clamp has none of its own: SSIM lies between -1 and 1."""
    f, g, mean, by_means, by_spreads = ssim_terms(s, d)
    through_spreads = (weight * (4 * SCALE)) * tl.fma(f, -2.0, 1.0) * by_spreads
    through_means = (weight * (2 / 9 * SCALE)) * tl.fma(g, -2.0, 1.0) * by_means
    b = -(through_spreads * g)
    to_s = through_means * f
    a_s = -tl.fma(b, s[0], to_s * mean)
    a_d = ((through_means - to_s) - (through_spreads + b)) * d[0]
    return a_s, a_d, b, through_spreads


@triton.jit
def sign(value):
    return (value > 0).to(value.dtype) - (value < 0).to(value.dtype)


@triton.jit
def add_distances(totals, prediction, target, top, column, exists, left, right, height, width, SSIM, L1, ALIGNED):
    """`totals`, a map a row, plus one channel's share of the photometric distance."""
    STRIP: tl.constexpr = len(totals)
    sums = ()
    s_above, s_here, d_above, d_here = (), (), (), ()
    absolute = totals[0]
    for step in tl.static_range(STRIP + 2):
        y = top + (step - 1)
        here = offset(reflect(y, height), column, width)
        p = load_pairs(prediction + here, exists & (y <= height), ALIGNED)
        t = load_pairs(target + here, exists & (y <= height), ALIGNED)
        d = p - t
        s_below, d_below = row_moments(p + (t - 1), left, right), row_moments(d, left, right)
        if step >= 2:
            distance = ssim_distance(window_moments(s_above, s_here, s_below), window_moments(d_above, d_here, d_below))
            sums = sums + (totals[step - 2] + tl.fma(distance, number(SSIM, distance), L1 * absolute),)
        absolute = tl.abs(d)
        s_above, s_here, d_above, d_here = s_here, s_below, d_here, d_below
    return sums


@triton.jit(do_not_specialize=["images"])
def _forward(
    prediction,  # (B, C, H, W)
    target,  # (B, C, H, W)
    loss,  # (B, 1, H, W)
    images,
    height,
    width,
    CHANNELS: tl.constexpr,
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    STRIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _strip, top, x, owned, left, right = strip_pixels(images, height, width, STRIP, ROWS, COLUMNS)
    plane = plane_size(height, width)
    column, exists = load_columns(x, width, ALIGNED)
    exists = exists & (image < images)
    totals = (tl.zeros((ROWS, COLUMNS // 2, 2), dtype=loss.dtype.element_ty),) * STRIP
    for channel in range(CHANNELS):
        at = (image * CHANNELS + channel) * plane
        totals = add_distances(
            totals,
            prediction + at,
            target + at,
            top,
            column,
            exists,
            left,
            right,
            height,
            width,
            SSIM,
            L1,
            ALIGNED,
        )
    for step in tl.static_range(STRIP):
        y = top + step
        at = loss + image * plane + offset(y, x, width)
        store_pairs(at, totals[step], owned & (y < height), ALIGNED)


@triton.jit(do_not_specialize=["images", "strip"])
def photometric_backward(
    prediction,  # (B, C, H, W), or (B, S, C, H, W)
    target,  # (B, C, H, W)
    grad,  # (B, 1, H, W); or int8, (B, 1, H, W), the index of the source whose gradient is 1, the others' is 0
    grad_prediction,  # (B, C, H, W) or None
    grad_target,  # (B, C, H, W) or None
    images,  # planes of the prediction: an "image" is one channel here
    height,
    width,
    strip,  # rows, 2 + 3 k
    CHANNELS: tl.constexpr,
    SOURCES: tl.constexpr,  # S, or 0 where `grad` is a gradient
    SSIM: tl.constexpr,
    L1: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _strip, top, x, owned, left, right = strip_pixels(images, height, width, strip, ROWS, COLUMNS)
    plane = plane_size(height, width)
    column, exists = load_columns(x, width, ALIGNED)
    exists = exists & (image < images)
    prediction += image * plane
    of_target, source = image // CHANNELS, image * 0
    if SOURCES > 0:
        of_target, source = of_target // SOURCES, of_target % SOURCES
    target += (of_target * CHANNELS + image % CHANNELS) * plane
    grad += of_target * plane
    dtype = prediction.dtype.element_ty
    zero = tl.zeros((ROWS, COLUMNS // 2, 2), dtype=dtype)
    # How often the windows to the left and to the right read a column.
    one, two = number(1.0, zero), number(2.0, zero)
    from_left = tl.where(x == 0, 0.0, tl.where(x == 1, two, one))
    from_right = tl.where(x == width - 1, 0.0, tl.where(x == width - 2, two, one))
    windowed = exists & (x < width)
    s_above, s_here, d_above, d_here = (zero, zero), (zero, zero), (zero, zero), (zero, zero)
    s1, s2, d1, d2 = zero, zero, zero, zero  # one and two rows above
    g1, g2 = zero, zero
    zeros = (zero,) * (2 + (grad_prediction is not None) + (grad_target is not None))
    upper, middle = zeros, zeros  # the derivatives of the windows of two rows, summed along x
    y = top - 2
    bottom = tl.minimum(top + strip, height)
    out = image * plane + offset(y - 2, x, width)
    here = offset(reflect(y, height), column, width)
    p = load_pairs(prediction + here, exists & (y <= height), ALIGNED)
    t = load_pairs(target + here, exists & (y <= height), ALIGNED)
    g = zero
    # Three rows at a time take turns in three sets of registers, so nothing has to be moved; doubles leave no room.
    TURNS: tl.constexpr = 3 if dtype == tl.float32 else 1
    for _ in range(0, strip + 4, TURNS):
        for _ in tl.static_range(TURNS):
            s, d = p + (t - 1), p - t
            g0 = g
            # The next row's loads, well before they are needed.
            here = offset(reflect(y + 1, height), column, width)
            p = load_pairs(prediction + here, exists & (y < height), ALIGNED)
            t = load_pairs(target + here, exists & (y < height), ALIGNED)
            g = load_pairs(grad + here, windowed & (y + 1 >= 0) & (y + 1 < height), ALIGNED, 0 if SOURCES == 0 else -1)
            if SOURCES > 0:
                g = (g == source).to(dtype)
            s_below, d_below = row_moments(s, left, right), row_moments(d, left, right)
            # The window of row y - 1.
            a_s, a_d, b, c = ssim_derivative(
                window_moments(s_above, s_here, s_below), window_moments(d_above, d_here, d_below), g1, SSIM
            )
            terms = (b, c)
            if grad_prediction is not None:
                terms = terms + (a_s + a_d,)
            if grad_target is not None:
                terms = terms + (a_s - a_d,)
            # The gradient of row y - 2. (Windows above and below the image have no weight.)
            row = y - 2
            from_above = tl.where(row == 1, two, one)
            from_below = tl.where(row == height - 2, two, one)
            lower, sums = (), ()
            for k in tl.static_range(len(terms)):
                before, after = beside(terms[k], left, right)
                lower = lower + (tl.fma(after, from_right, tl.fma(before, from_left, terms[k])),)
                sums = sums + (tl.fma(lower[k], from_below, tl.fma(upper[k], from_above, middle[k])),)
            by_d = tl.fma(L1 * g2, sign(d2), sums[1] * d2)
            write = owned & (row >= top) & (row < bottom)
            if grad_prediction is not None:
                store_pairs(grad_prediction + out, tl.fma(sums[0], s2 + d2, sums[2] + by_d), write, ALIGNED)
            if grad_target is not None:
                value = tl.fma(sums[0], s2 - d2, sums[len(terms) - 1] - by_d)
                store_pairs(grad_target + out, value, write, ALIGNED)
            out += width
            s_above, s_here, d_above, d_here = s_here, s_below, d_here, d_below
            s1, s2, d1, d2 = s, s1, d, d1
            g1, g2 = g0, g1
            upper, middle = middle, lower
            y += 1


@_dispatch.implementation("photometric_loss", "triton")
def forward(prediction: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
    batch, channels, height, width = prediction.shape
    loss = prediction.new_empty((batch, 1, height, width))
    strip = FORWARD_STRIP * 4 // prediction.element_size()
    launch(
        _forward,
        strip_programs(FORWARD, batch, height, width, strip),
        FORWARD.warps,
        prediction=prediction,
        target=target,
        loss=loss,
        images=batch,
        height=height,
        width=width,
        CHANNELS=channels,
        SSIM=ssim_weight / channels,
        L1=(1 - ssim_weight) / channels,
        STRIP=strip,
        ALIGNED=width % 16 == 0,
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return loss


@_dispatch.implementation("photometric_loss_backward", "triton")
def backward(
    grad: Tensor, prediction: Tensor, target: Tensor, ssim_weight: float, need_prediction: bool, need_target: bool
) -> tuple[Tensor | None, Tensor | None]:
    by_prediction = prediction.new_empty(prediction.shape) if need_prediction else None
    by_target = target.new_empty(target.shape) if need_target else None
    launch_backward(grad, prediction, target, by_prediction, by_target, ssim_weight)
    return by_prediction, by_target


def launch_backward(
    grad: Tensor,
    prediction: Tensor,
    target: Tensor,
    grad_prediction: Tensor | None,
    grad_target: Tensor | None,
    ssim_weight: float,
) -> None:
    """Launches `photometric_backward`; `prediction` may have sources, (B, S, C, H, W)."""
    channels, height, width = target.shape[1:]
    images = prediction.shape[:-2].numel()
    processors = torch.cuda.get_device_properties(grad.device).multi_processor_count if grad.is_cuda else 1
    strip = _strip(BACKWARD, images, height, width, processors)
    launch(
        photometric_backward,
        strip_programs(BACKWARD, images, height, width, strip),
        BACKWARD.warps,
        prediction=prediction,
        target=target,
        grad=grad,
        grad_prediction=grad_prediction,
        grad_target=grad_target,
        images=images,
        height=height,
        width=width,
        strip=strip,
        CHANNELS=channels,
        SOURCES=prediction.shape[1] if prediction.dim() == 5 else 0,
        SSIM=ssim_weight / channels,
        L1=(1 - ssim_weight) / channels,
        ALIGNED=width % 16 == 0,
        ROWS=BACKWARD.rows,
        COLUMNS=BACKWARD.columns,
    )
