"""Triton kernel of `flow_smoothness_loss`, loss and gradient in one pass; its tiles are added up in a fixed order.

A pixel computes again the penalties of its left and upper neighbours that pull at it: no memory for slopes, one writer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._charbonnier import charbonnier, constants
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, tile_pixels

FORWARD = Block(8, 32, 4)


@triton.jit
def _difference(plane, here, step, on):
    return tl.load(plane + here, mask=on, other=0.0) - tl.load(plane + here + step, mask=on, other=0.0)


@triton.jit
def _signed(value, sign):
    """value * sign(sign); NaN stays"""
    return tl.where(sign > 0, value, tl.where(sign < 0, -value, value * 0))


@triton.jit
def _edge(
    flow, mask, here, step, on, plane,
    ALPHA: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, SCALE: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """The penalties of pixels `here` and `here + step`, and the slopes of u and v; 0 where not `on`."""
    du, dv = _difference(flow, here, step, on), _difference(flow + plane, here, step, on)
    weight = tl.zeros_like(du) + 1
    if mask is not None:
        weight = tl.load(mask + here, mask=on, other=0.0) * tl.load(mask + here + step, mask=on, other=0.0)
        on = on & (weight != 0)
    rho_u, slope_u = charbonnier(du, ALPHA, HIGH, LOW, SCALE, SQUARE)
    rho_v, slope_v = charbonnier(dv, ALPHA, HIGH, LOW, SCALE, SQUARE)
    return (
        tl.where(on, weight * (rho_u + rho_v), 0.0),
        tl.where(on, weight * slope_u, 0.0),
        tl.where(on, weight * slope_v, 0.0),
    )


@triton.jit
def _corner(
    flow, mask, here, on, plane, width,
    ALPHA: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, SCALE: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """The penalty of pixels `here` and their right and lower neighbours, and the slopes of u and v along x and y."""
    ux, vx = _difference(flow, here, 1, on), _difference(flow + plane, here, 1, on)
    uy, vy = _difference(flow, here, width, on), _difference(flow + plane, here, width, on)
    weight = tl.zeros_like(ux) + 1
    if mask is not None:
        weight = tl.load(mask + here, mask=on, other=0.0) * tl.load(mask + here + 1, mask=on, other=0.0)
        weight *= tl.load(mask + here + width, mask=on, other=0.0)
        on = on & (weight != 0)
    s = tl.abs(ux) + tl.abs(vx) + (tl.abs(uy) + tl.abs(vy))
    rho, slope = charbonnier(s, ALPHA, HIGH, LOW, SCALE, SQUARE)
    slope = tl.where(on, weight * slope, 0.0)
    return (
        tl.where(on, weight * rho, 0.0),
        _signed(slope, ux),
        _signed(slope, vx),
        _signed(slope, uy),
        _signed(slope, vy),
    )


@triton.jit
def _forward(
    flow,  # (B, 2, H, W)
    mask,  # (B, 1, H, W) or None
    partial,  # (B, tiles) double
    grad_flow,  # (B, 2, H, W) or None
    pixels,  # of the batch
    height,
    width,
    JOINT: tl.constexpr,
    ALPHA: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    SCALE: tl.constexpr,
    SQUARE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    here = offset(y, x, width)
    flow += image * 2 * plane
    if mask is not None:
        mask += image * plane
    right, below = inside & (x + 1 < width), inside & (y + 1 < height)
    left, above = inside & (x > 0), inside & (y > 0)
    if JOINT:
        total, ux, vx, uy, vy = _corner(flow, mask, here, right & below, plane, width, ALPHA, HIGH, LOW, SCALE, SQUARE)
        by_u, by_v = ux + uy, vx + vy
    else:
        along_x, ux, vx = _edge(flow, mask, here, 1, right, plane, ALPHA, HIGH, LOW, SCALE, SQUARE)
        along_y, uy, vy = _edge(flow, mask, here, width, below, plane, ALPHA, HIGH, LOW, SCALE, SQUARE)
        total, by_u, by_v = along_x + along_y, ux + uy, vx + vy
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    tl.store(partial + image * tiles + tile, tl.sum(total).to(tl.float64))
    if grad_flow is not None:
        if JOINT:
            _left, ux, vx, _uy, _vy = _corner(
                flow, mask, here - 1, left & below, plane, width, ALPHA, HIGH, LOW, SCALE, SQUARE
            )
            _above, _ux, _vx, uy, vy = _corner(
                flow, mask, here - width, above & right, plane, width, ALPHA, HIGH, LOW, SCALE, SQUARE
            )
        else:
            _left, ux, vx = _edge(flow, mask, here - 1, 1, left, plane, ALPHA, HIGH, LOW, SCALE, SQUARE)
            _above, uy, vy = _edge(flow, mask, here - width, width, above, plane, ALPHA, HIGH, LOW, SCALE, SQUARE)
        share = 1 / tl.full((), pixels, dtype=by_u.dtype)
        out = grad_flow + image * 2 * plane + here
        tl.store(out, share * (by_u - ux - uy), mask=inside)
        tl.store(out + plane, share * (by_v - vx - vy), mask=inside)


@_dispatch.implementation("flow_smoothness_loss", "triton")
def forward(
    flow: Tensor, mask: Tensor | None, form: str, alpha: float, scale: float, epsilon: float, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    batch, _, height, width = flow.shape
    grad = torch.empty(flow.shape, dtype=flow.dtype, device=flow.device) if need_grad else None
    if batch == 0:  # the mean over nothing, as PyTorch has it
        return flow.new_full((), torch.nan), grad
    tiles, pixels = FORWARD.tiles(height, width), batch * height * width
    partial = torch.empty((batch, tiles), dtype=torch.float64, device=flow.device)
    launch(
        _forward,
        batch * tiles,
        FORWARD.warps,
        flow=flow,
        mask=mask,
        partial=partial,
        grad_flow=grad,
        pixels=pixels,
        height=height,
        width=width,
        JOINT=form == "joint",
        **constants(alpha, scale, epsilon),
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return (partial.sum() / pixels).to(flow.dtype), grad
