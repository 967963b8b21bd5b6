"""Random but plausible inputs of the geometric ops, and the asserts that they need."""

import math

import torch
import torch.nn.functional as F

from mdepth_fast.geometry import pose_matrix

# Odd and prime sizes, one row of windows, vector lengths and tile edges (32 x 252) plus and minus one.
SIZES = [(2, 2), (3, 5), (7, 13), (17, 33), (31, 64), (33, 65), (5, 129), (2, 251), (34, 253), (65, 17)]


def images(batch, height, width, count, dtype=torch.float32, generator=None):
    """A target (B,3,H,W) and `count` sources (B,S,3,H,W) that resemble it."""
    coarse = torch.rand(batch, 3, height // 4 + 2, width // 4 + 2, generator=generator, dtype=torch.float64)
    target = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0.02, 0.98)
    sources = [
        0.97 * torch.roll(target, s + 1, -1) + 0.02 * torch.rand(target.shape, generator=generator, dtype=torch.float64)
        for s in range(count)
    ]
    return target.to(dtype), torch.stack(sources, 1).to(dtype)


def scene(batch=2, height=7, width=13, count=2, scales=1, dtype=torch.float32, seed=0, motion=0.05):
    """target, sources, depths, K, T, source_K as `min_reprojection` takes them."""
    generator = torch.Generator().manual_seed(seed)
    target, sources = images(batch, height, width, count, dtype, generator)
    depths = [
        (2 + 4 * torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(scales)
    ]
    K = torch.tensor([[0.8 * width, 0.0, (width - 1) / 2], [0.0, 0.9 * width, (height - 1) / 2], [0.0, 0.0, 1.0]])
    K = K.to(torch.float64).repeat(batch, 1, 1)
    vectors = torch.randn(batch, count, 6, generator=generator, dtype=torch.float64)
    T = pose_matrix(0.3 * motion * vectors[..., :3], motion * math.sqrt(10) * vectors[..., 3:])
    source_K = K[:, None].repeat(1, count, 1, 1)
    source_K[..., 0, 2] += 0.4
    return target, sources, depths, K.to(dtype), T.to(dtype), source_K.to(dtype)


def awkward_layouts(tensor):
    """The same values in memory that is not contiguous, by name."""
    padded = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), torch.nan, dtype=tensor.dtype)
    padded[..., 1 : 1 + 2 * tensor.shape[-1] : 2] = tensor
    layouts = {"strided": padded[..., 1 : 1 + 2 * tensor.shape[-1] : 2]}
    if tensor.dim() > 1:
        layouts["transposed"] = tensor.mT.contiguous().mT
    if tensor.dim() == 4:
        layouts["channels_last"] = tensor.contiguous(memory_format=torch.channels_last)
    return layouts


def relative_error(got, want):
    """L2 error of a list of tensors, relative to the norm of all of `want`, in double; 0 for no tensors at all."""
    if not want and not got:
        return 0.0
    got, want = (torch.cat([t.detach().double().flatten() for t in list_]) for list_ in (got, want))
    assert torch.isfinite(want).all() and torch.isfinite(got).all()
    return float((got - want).norm() / want.norm().clamp_min(1e-300))
