"""Triton kernels of `edge_aware_smoothness`, loss and gradient in one call.

`_edges` reads disparity and image once and gives, per tile, the sums of the disparity and of both directions, and per
pixel the gradient of the means as if the disparity needed no normalisation; `_image_sums` adds the tiles up in a fixed
order, and `_normalise`, where there is one, puts the mean into the gradient. Words a pixel: C + 1 in, 1 out, and with
normalisation 1 in and out.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.kernels._launch import Block, launch, number, offset, plane_size, tile_pixels
from mdepth_fast.ops.edge_aware_smoothness import MEAN_EPSILON

EDGES = Block(8, 32, 4)
NORMALISE = Block(8, 128, 4)
SUMS = 512  # tiles that `_image_sums` adds at a time

_MEAN_EPSILON = tl.constexpr(MEAN_EPSILON)


@triton.jit
def _edge(disparity, image, here, step, on, plane, CHANNELS: tl.constexpr):
    """w |a - b| and w sign(a - b) of pixels `here` and `here + step`, w = exp(-mean_c |I(here) - I(here + step)|); 0
    where not `on`."""
    a = tl.load(disparity + here, mask=on, other=0.0)
    b = tl.load(disparity + here + step, mask=on, other=0.0)
    contrast = a * 0
    for channel in range(CHANNELS):
        one = tl.load(image + channel * plane + here, mask=on, other=0.0)
        two = tl.load(image + channel * plane + here + step, mask=on, other=0.0)
        contrast += tl.abs(one - two)
    weight = tl.where(on, tl.exp(contrast * (-1 / CHANNELS)), 0.0)
    return weight * tl.abs(a - b), tl.where(a > b, weight, tl.where(a < b, -weight, 0.0))


@triton.jit
def _edges(
    disparity,  # (B, 1, H, W)
    image,  # (B, C, H, W)
    partial,  # (B, 3, tiles) double: disparity, along x, along y
    grad,  # (B, 1, H, W) or None
    edges_x,  # of the whole batch
    edges_y,
    height,
    width,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch, tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    plane = plane_size(height, width)
    disparity += batch * plane
    image += batch * CHANNELS * plane
    here = offset(y, x, width)
    right, sign_right = _edge(disparity, image, here, 1, inside & (x + 1 < width), plane, CHANNELS)
    below, sign_below = _edge(disparity, image, here, width, inside & (y + 1 < height), plane, CHANNELS)
    d = tl.load(disparity + here, mask=inside, other=0.0)
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    out = partial + batch * 3 * tiles + tile
    tl.store(out, tl.sum(d).to(tl.float64))
    tl.store(out + tiles, tl.sum(right).to(tl.float64))
    tl.store(out + 2 * tiles, tl.sum(below).to(tl.float64))
    if grad is not None:
        _left, sign_left = _edge(disparity, image, here - 1, 1, inside & (x > 0), plane, CHANNELS)
        _above, sign_above = _edge(disparity, image, here - width, width, inside & (y > 0), plane, CHANNELS)
        share_x, share_y = 1 / edges_x.to(d.dtype), 1 / edges_y.to(d.dtype)
        value = share_x * (sign_right - sign_left) + share_y * (sign_below - sign_above)
        tl.store(grad + batch * plane + here, value, mask=inside)


@triton.jit
def _image_sums(
    partial,  # (B, 3, tiles) double
    images,  # out (B, 3) double: share of the loss, scale and shift of the gradient
    batch,
    height,
    width,
    tiles,
    NORMALIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    at = partial + image * 3 * tiles
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    along_x = tl.zeros((BLOCK,), dtype=tl.float64)
    along_y = tl.zeros((BLOCK,), dtype=tl.float64)
    for block in range(BLOCKS):
        tile = block * BLOCK + lane.to(tl.int64)
        total += tl.load(at + tile, mask=tile < tiles, other=0.0)
        along_x += tl.load(at + tiles + tile, mask=tile < tiles, other=0.0)
        along_y += tl.load(at + 2 * tiles + tile, mask=tile < tiles, other=0.0)
    plane = plane_size(height, width)
    rough = (tl.sum(along_x) / (plane - height) + tl.sum(along_y) / (plane - width)) / batch
    if NORMALIZE:
        inverse = 1 / (tl.sum(total) / plane + _MEAN_EPSILON)
    else:
        inverse = number(1.0, total)
    scale = tl.abs(inverse)
    out = images + image * 3
    tl.store(out, scale * rough)
    tl.store(out + 1, scale)
    tl.store(out + 2, -scale * inverse * rough / plane)  # by the mean


@triton.jit
def _normalise(
    grad,  # (B, 1, H, W), in place
    images,  # (B, 3) double
    height,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image, _tile, y, x, inside = tile_pixels(height, width, ROWS, COLUMNS)
    at = grad + image * height * width + offset(y, x, width)
    scale = tl.load(images + image * 3 + 1).to(grad.dtype.element_ty)
    shift = tl.load(images + image * 3 + 2).to(grad.dtype.element_ty)
    tl.store(at, tl.fma(tl.load(at, mask=inside, other=0.0), scale, shift), mask=inside)


@_dispatch.implementation("edge_aware_smoothness", "triton")
def forward(disparity: Tensor, image: Tensor, normalize: bool, need_grad: bool) -> tuple[Tensor, Tensor | None]:
    batch, channels, height, width = image.shape
    grad = torch.empty(disparity.shape, dtype=disparity.dtype, device=disparity.device) if need_grad else None
    if batch == 0:  # the mean over nothing, as PyTorch has it
        return disparity.new_full((), torch.nan), grad
    tiles = EDGES.tiles(height, width)
    partial = torch.empty((batch, 3, tiles), dtype=torch.float64, device=disparity.device)
    images = torch.empty((batch, 3), dtype=torch.float64, device=disparity.device)
    launch(
        _edges,
        batch * tiles,
        EDGES.warps,
        disparity=disparity,
        image=image,
        partial=partial,
        grad=grad,
        edges_x=batch * height * (width - 1),
        edges_y=batch * (height - 1) * width,
        height=height,
        width=width,
        CHANNELS=channels,
        ROWS=EDGES.rows,
        COLUMNS=EDGES.columns,
    )
    launch(
        _image_sums,
        batch,
        4,
        partial=partial,
        images=images,
        batch=batch,
        height=height,
        width=width,
        tiles=tiles,
        NORMALIZE=normalize,
        BLOCKS=triton.cdiv(tiles, SUMS),
        BLOCK=SUMS,
    )
    if grad is not None and normalize:
        launch(
            _normalise,
            batch * NORMALISE.tiles(height, width),
            NORMALISE.warps,
            grad=grad,
            images=images,
            height=height,
            width=width,
            ROWS=NORMALISE.rows,
            COLUMNS=NORMALISE.columns,
        )
    return images[:, 0].sum().to(disparity.dtype), grad
