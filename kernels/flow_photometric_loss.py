"""Triton kernel of `flow_photometric_loss`, loss and gradient in one pass; its tiles are added up in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._charbonnier import charbonnier, constants
from mdepth_fast.kernels._launch import Block, launch, offset, plane_size, tile_pixels
from mdepth_fast.kernels.flow_warp import follow
from mdepth_fast.kernels.inverse_warp import sample

FORWARD = Block(8, 32, 4)


@triton.jit
def _forward(
    target,  # (B, C, H, W)
    source,  # (B, C, H, W)
    flow,  # (B, 2, H, W)
    mask,  # (B, 1, H, W) or None
    partial,  # (B, tiles) double
    grad_flow,  # (B, 2, H, W) or None
    pixels,  # of the batch
    height,
    width,
    CHANNELS: tl.constexpr,
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
    u, v, _seen, poison, counts = follow(flow + image * 2 * plane, y, x, inside, height, width, height, width, False)
    weight = tl.zeros_like(poison) + 1
    if mask is not None:
        weight = tl.load(mask + image * plane + here, mask=inside, other=0.0)
        counts = counts & (weight != 0)
        poison = tl.where(weight != 0, poison, 0.0)
    distance = tl.zeros((ROWS, COLUMNS), dtype=poison.dtype)
    gu = tl.zeros((ROWS, COLUMNS), dtype=poison.dtype)
    gv = tl.zeros((ROWS, COLUMNS), dtype=poison.dtype)
    for channel in range(CHANNELS):
        at = (image * CHANNELS + channel) * plane
        value, du, dv = sample(source + at, u, v, width, counts)
        difference = tl.load(target + at + here, mask=counts, other=0.0) - value
        distance += tl.abs(difference)
        gu += tl.where(difference < 0, du, tl.where(difference > 0, -du, 0.0))
        gv += tl.where(difference < 0, dv, tl.where(difference > 0, -dv, 0.0))
    rho, slope = charbonnier(distance, ALPHA, HIGH, LOW, SCALE, SQUARE)
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    total = tl.where(counts, weight * rho, 0.0) + tl.where(inside, poison, 0.0)
    tl.store(partial + image * tiles + tile, tl.sum(total).to(tl.float64))
    if grad_flow is not None:
        factor = weight * slope * (1 / tl.full((), pixels, dtype=poison.dtype))
        out = grad_flow + image * 2 * plane + here
        tl.store(out, tl.where(counts, factor * gu, 0.0), mask=inside)
        tl.store(out + plane, tl.where(counts, factor * gv, 0.0), mask=inside)


@_dispatch.implementation("flow_photometric_loss", "triton")
def forward(
    target: Tensor,
    source: Tensor,
    flow: Tensor,
    mask: Tensor | None,
    alpha: float,
    scale: float,
    epsilon: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, channels, height, width = target.shape
    grad = torch.empty(flow.shape, dtype=flow.dtype, device=flow.device) if need_grad else None
    if batch == 0:  # the mean over nothing, as PyTorch has it
        return flow.new_full((), torch.nan), grad
    tiles, pixels = FORWARD.tiles(height, width), batch * height * width
    partial = torch.empty((batch, tiles), dtype=torch.float64, device=flow.device)
    launch(
        _forward,
        batch * tiles,
        FORWARD.warps,
        target=target,
        source=source,
        flow=flow,
        mask=mask,
        partial=partial,
        grad_flow=grad,
        pixels=pixels,
        height=height,
        width=width,
        CHANNELS=channels,
        **constants(alpha, scale, epsilon),
        ROWS=FORWARD.rows,
        COLUMNS=FORWARD.columns,
    )
    return (partial.sum() / pixels).to(flow.dtype), grad
