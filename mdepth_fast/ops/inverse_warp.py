"""Bilinear inverse warping of a source image into the target view."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array
from mdepth_fast.geometry import projection_matrix
from mdepth_fast.ops import _checks

MIN_Z = 1e-6


def inverse_warp(
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T: Tensor,
    *,
    source_K: Tensor | None = None,
    padding: str = "border",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples `source` at the projections of the target's pixels: `p_source ~ K_source (R K^-1 p depth + t)`.

    Zhou et al., arXiv 1704.07813, section 3.2; the sampler is from Jaderberg et al., arXiv 1506.02025. Pixel centres
    lie on integers (`align_corners=True`).

    Args:
        source: (B, C, Hs, Ws).
        depth: (B, 1, H, W), z along the optical axis, in the unit of `T`.
        K: (B, 3, 3), intrinsics of the target, in pixels.
        T: (B, 4, 4), rigid transform from target camera to source camera.
        source_K: (B, 3, 3); None for `K`.
        padding: "border" (clamps coordinates; no gradient where clamped) or "zeros" (pixels outside read 0).
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        warped (B, C, H, W), with gradients to source, depth, K, source_K and T; 0 where the point lies behind the
        camera (z <= 1e-6). valid (B, 1, H, W) bool: z > 1e-6 and the point falls inside the source image.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
    """
    _checks.tensor(source, "source", (None, None, None, None), "(B, C, H, W)")
    batch = source.shape[0]
    _checks.tensor(depth, "depth", (batch, 1, None, None), "(B, 1, H, W)")
    _checks.tensor(K, "K", (batch, 3, 3), "(B, 3, 3)")
    _checks.tensor(T, "T", (batch, 4, 4), "(B, 4, 4)")
    if source_K is not None:
        _checks.tensor(source_K, "source_K", (batch, 3, 3), "(B, 3, 3)")
    _checks.same_device(source, "source", depth=depth, K=K, T=T, source_K=source_K)
    _checks.padding_mode(padding)
    if source.shape[2] == 0 or source.shape[3] == 0:
        raise ValueError(f"source: expected H and W of at least 1, got shape {tuple(source.shape)}")
    dtype = _checks.working_dtype(source, depth)
    source, depth = source.to(dtype), depth.to(dtype)
    projection = projection_matrix(K, T, source_K)
    warped: tuple[Tensor, Tensor] = _OP(backend, source=source, depth=depth, projection=projection, padding=padding)
    return warped


def reference(source: Tensor, depth: Tensor, projection: Tensor, padding: str = "border") -> tuple[Tensor, Tensor]:
    """The reference in plain PyTorch with `grid_sample`, which every backend is tested against.

    `projection` (B, 3, 4) is `geometry.projection_matrix(K, T, source_K)`.
    """
    sampled = sample_reference(source, depth, projection, padding)
    return sampled.warped, sampled.valid


class Sampled(NamedTuple):
    """A warped image; where z > 1e-6, where the point also falls inside the source, where its neighbours do too."""

    warped: Tensor
    seen: Tensor
    valid: Tensor
    between: Tensor


def sample_reference(source: Tensor, depth: Tensor, projection: Tensor, padding: str) -> Sampled:
    batch, _, height, width = depth.shape
    v, u = torch.meshgrid(
        torch.arange(height, dtype=depth.dtype, device=depth.device),
        torch.arange(width, dtype=depth.dtype, device=depth.device),
        indexing="ij",
    )
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    projection = projection.to(depth.dtype)
    uvz = depth.flatten(2) * (projection[:, :, :3] @ pixels) + projection[:, :, 3:]
    uv, z = uvz[:, :2], uvz[:, 2:]
    seen = z > MIN_Z
    uv = torch.where(seen, uv / torch.where(seen, z, torch.ones_like(z)), torch.zeros_like(uv))
    # grid_sample takes NaN and infinite coordinates to finite colours; they must not pass for a measurement.
    poison = (uvz.sum(1, keepdim=True) * 0).detach().view(batch, 1, height, width)
    seen, uv = seen.view(batch, 1, height, width), uv.view(batch, 2, height, width)
    warped, inside = bilinear_reference(source, uv, padding)
    valid = seen & inside
    between = valid & (uv[:, :1] < source.shape[3] - 1) & (uv[:, 1:] < source.shape[2] - 1)
    return Sampled(torch.where(seen, warped, torch.zeros_like(warped)) + poison, seen, valid, between)


def bilinear_reference(source: Tensor, uv: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    """The source at (B, 2, H, W) pixel coordinates, and which of these lie inside it, (B, 1, H, W).

    NaN where a coordinate is not finite.
    """
    # Not new_tensor, which would wait for a GPU.
    size = torch.cat([uv.new_full((1, 1, 1, 1), n) for n in (source.shape[3], source.shape[2])], 1)
    inside = (uv >= 0).all(1, keepdim=True) & (uv <= size - 1).all(1, keepdim=True)
    # grid_sample makes indices of whatever it gets: its backward crashes on coordinates that are not finite.
    poison = (0 * uv).sum(1, keepdim=True)
    uv = torch.where(uv.isfinite(), uv, 0).clamp(-1e9, 1e9)
    # By the outer edges, as grid_sample knows no coordinates but 0 on an axis of one pixel with align_corners=True.
    grid = ((2 * uv + 1) / size - 1).permute(0, 2, 3, 1)
    sampled = F.grid_sample(source, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return sampled + poison, inside


_OP = Op(
    "inverse_warp",
    reference,
    inputs={
        "source": T("batch", "channels", "source_height", "source_width"),
        "depth": T("batch", 1, "height", "width"),
        "projection": array(torch.float64, "batch", 3, 4),
    },
    options={"padding": ("border", "zeros")},
    sane=lambda sizes: None if sizes["source_height"] and sizes["source_width"] else "a source of at least 1x1",
    outputs={
        "warped": T("batch", "channels", "height", "width"),
        "valid": array(torch.bool, "batch", 1, "height", "width"),
    },
    backward=Backward(
        takes=("source", "depth", "projection", "padding"),
        gradients=("source", "depth", "projection"),
        zeroed=("source",),
        # On a GPU the source's gradient is summed by atomics, or in order.
        asks={"ordered": torch.are_deterministic_algorithms_enabled},
    ),
)
