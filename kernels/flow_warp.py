"""Triton kernels of `flow_warp`, and the motion that `flow_photometric_loss` shares; `inverse_warp` has the sampling.

The flow's gradient has one writer a pixel; the source's is a scatter, by atomics unless
`torch.use_deterministic_algorithms(True)` asks for an ordered sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, tile_pixels
from mdepth_fast.kernels.inverse_warp import sample, sample_axis, scatter, scatter_in_order, store_taps

FORWARD = Block(8, 32, 4)
BACKWARD = Block(4, 32, 4)  # a pixel a lane: two of double would not fit the registers


@triton.jit
def follow(flow, y, x, inside, height, width, source_height, source_width, ZEROS: tl.constexpr):
    """Where an image's flow leads: both axes of the sample, whether it is finite, the poison (0, or NaN), and whether
    it leads into the source."""
    here = offset(y, x, width)
    shift_u = tl.load(flow + here, mask=inside, other=0.0)
    shift_v = tl.load(flow + plane_size(height, width) + here, mask=inside, other=0.0)
    poison = (shift_u + shift_v) * 0
    seen = inside & (poison == 0)
    u = sample_axis(x, shift_u, source_width, ZEROS)
    v = sample_axis(y, shift_v, source_height, ZEROS)
    at_u, at_v = x.to(shift_u.dtype) + shift_u, y.to(shift_u.dtype) + shift_v
    valid = seen & (at_u >= 0) & (at_u <= source_width - 1) & (at_v >= 0) & (at_v <= source_height - 1)
    return u, v, seen, poison, valid


@triton.jit
def _forward(
    source,  # (B, C, Hs, Ws)
    flow,  # (B, 2, H, W)
    warped,  # (B, C, H, W)
    valid,  # (B, 1, H, W)
    height,
    width,
    source_height,
    source_width,
    CHANNELS: tl.constexpr,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane, source_plane = plane_size(height, width), plane_size(source_height, source_width)
    here = offset(y, x, width)
    u, v, seen, poison, falls_inside = follow(
        flow + image * 2 * plane, y, x, inside, height, width, source_height, source_width, ZEROS
    )
    for channel in range(CHANNELS):
        at = image * CHANNELS + channel
        value = sample(source + at * source_plane, u, v, source_width, seen)[0]
        tl.store(warped + at * plane + here, value + poison, mask=inside)
    tl.store(valid + image * plane + here, falls_inside, mask=inside)


@triton.jit
def _backward(
    grad,  # (B, C, H, W)
    source,  # (B, C, Hs, Ws)
    flow,  # (B, 2, H, W)
    grad_source,  # (B, C, Hs, Ws), zeroed, or None
    grad_flow,  # (B, 2, H, W) or None
    height,
    width,
    source_height,
    source_width,
    CHANNELS: tl.constexpr,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane, source_plane = plane_size(height, width), plane_size(source_height, source_width)
    here = offset(y, x, width)
    u, v, seen, poison, _valid = follow(
        flow + image * 2 * plane, y, x, inside, height, width, source_height, source_width, ZEROS
    )
    gu = tl.zeros((ROWS, COLUMNS), dtype=poison.dtype)
    gv = tl.zeros((ROWS, COLUMNS), dtype=poison.dtype)
    for channel in range(CHANNELS):
        at = image * CHANNELS + channel
        g = tl.load(grad + at * plane + here, mask=inside, other=0.0)
        if grad_flow is not None:
            _value, du, dv = sample(source + at * source_plane, u, v, source_width, seen)
            gu += g * du
            gv += g * dv
        if grad_source is not None:
            scatter(grad_source + at * source_plane, g, u, v, source_width, seen)
    if grad_flow is not None:
        out = grad_flow + image * 2 * plane + here
        tl.store(out, tl.where(seen, gu, 0.0), mask=inside)
        tl.store(out + plane, tl.where(seen, gv, 0.0), mask=inside)


@triton.jit
def _taps(
    flow,  # (B, 2, H, W)
    index,  # out (B, H, W, 4) int64, of a pixel of the whole batch of sources
    weight,  # out (B, H, W, 4)
    height,
    width,
    source_height,
    source_width,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    u, v, seen, _poison, _valid = follow(
        flow + image * 2 * plane, y, x, inside, height, width, source_height, source_width, ZEROS
    )
    here = image * plane + offset(y, x, width)
    store_taps(index, weight, here, image, u, v, source_height, source_width, seen, inside)


@_dispatch.implementation("flow_warp", "triton")
def forward(source: Tensor, flow: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    batch, channels, source_height, source_width = source.shape
    height, width = flow.shape[2:]
    warped = source.new_empty((batch, channels, height, width))
    valid = torch.empty((batch, 1, height, width), dtype=torch.bool, device=flow.device)
    launch(
        _forward,
        batch * FORWARD.tiles(height, width),
        FORWARD.warps,
        source=source,
        flow=flow,
        warped=warped,
        valid=valid,
        height=height,
        width=width,
        source_height=source_height,
        source_width=source_width,
        CHANNELS=channels,
        ZEROS=padding == "zeros",
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return warped, valid


@_dispatch.implementation("flow_warp_backward", "triton")
def backward(
    grad: Tensor, source: Tensor, flow: Tensor, padding: str, need_source: bool, need_flow: bool
) -> tuple[Tensor | None, Tensor | None]:
    by_source = torch.zeros(source.shape, dtype=source.dtype, device=source.device) if need_source else None
    by_flow = torch.empty(flow.shape, dtype=flow.dtype, device=flow.device) if need_flow else None
    batch, channels = source.shape[:2]
    height, width = flow.shape[2:]
    ordered = need_source and torch.are_deterministic_algorithms_enabled()
    sizes = dict(height=height, width=width, source_height=source.shape[2], source_width=source.shape[3])
    if need_flow or not ordered:
        launch(
            _backward,
            batch * BACKWARD.tiles(height, width),
            BACKWARD.warps,
            grad=grad,
            source=source,
            flow=flow,
            grad_source=None if ordered else by_source,
            grad_flow=by_flow,
            **sizes,
            CHANNELS=channels,
            ZEROS=padding == "zeros",
            ROWS=BACKWARD.rows,
            COLUMNS=BACKWARD.columns,
        )
    if by_source is not None and ordered:
        scatter_in_order(_taps, grad, by_source, padding == "zeros", flow=flow)
    return by_source, by_flow
