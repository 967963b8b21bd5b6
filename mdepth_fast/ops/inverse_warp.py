"""Bilinear inverse warping of a source image into the target view."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
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
    """Samples `source` where the target's pixels fall in it: `p_source ~ K_source (R K^-1 p depth + t)`.

    Zhou et al., arXiv 1704.07813, section 3.2; Jaderberg et al., arXiv 1506.02025, for the sampler. Pixel centres lie
    on integers (`align_corners=True`).

    Args:
        source: (B, C, Hs, Ws).
        depth: (B, 1, H, W), z along the optical axis, in the unit of `T`.
        K: (B, 3, 3) of the target, in pixels.
        T: (B, 4, 4) rigid, target camera to source camera.
        source_K: (B, 3, 3), `K` where None.
        padding: "border" (coordinates clamped, no gradient where clamped) or "zeros" (outside reads 0).
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
    if _dispatch.uses_reference("inverse_warp", backend, source.device):
        with _dispatch.full_precision(source.device):
            return reference(source, depth, projection, padding)
    return torch.ops.mdepth.inverse_warp(source, depth, projection, padding, backend or "")


def reference(source: Tensor, depth: Tensor, projection: Tensor, padding: str = "border") -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch around `grid_sample`, as it is usually written: the oracle of every backend.

    `projection` (B, 3, 4) is `geometry.projection_matrix(K, T, source_K)`.
    """
    warped, _, valid = sample_reference(source, depth, projection, padding)
    return warped, valid


def sample_reference(source: Tensor, depth: Tensor, projection: Tensor, padding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Warped image, where z > 1e-6, and where the point also falls inside the source."""
    batch, _, height, width = depth.shape
    source_height, source_width = source.shape[2:]
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
    uv = uv / torch.where(seen, z, torch.ones_like(z))
    # Not new_tensor, which would wait for a GPU.
    last = torch.cat([uv.new_full((1, 1, 1), size - 1) for size in (source_width, source_height)], 1)
    valid = seen & (uv >= 0).all(1, keepdim=True) & (uv <= last).all(1, keepdim=True)
    # grid_sample takes NaN and infinite coordinates to finite colours; they must not pass for a measurement.
    poison = (uvz.sum(1, keepdim=True) * 0).detach().view(batch, 1, height, width)
    grid = (
        torch.where(seen, uv / last.clamp_min(1) * 2 - 1, torch.zeros_like(uv))
        .transpose(1, 2)
        .view(batch, height, width, 2)
    )
    warped = F.grid_sample(source, grid, mode="bilinear", padding_mode=padding, align_corners=True)
    seen, valid = (mask.view(batch, 1, height, width) for mask in (seen, valid))
    return torch.where(seen, warped, torch.zeros_like(warped)) + poison, seen, valid


@torch.library.custom_op("mdepth::inverse_warp", mutates_args=())
def _op(source: Tensor, depth: Tensor, projection: Tensor, padding: str, backend: str) -> tuple[Tensor, Tensor]:
    run = _dispatch.select("inverse_warp", backend, source.device)
    return run(source.contiguous(), depth.contiguous(), projection.contiguous(), padding)


@torch.library.custom_op("mdepth::inverse_warp_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    source: Tensor,
    depth: Tensor,
    projection: Tensor,
    padding: str,
    need_source: bool,
    need_depth: bool,
    need_projection: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    run = _dispatch.select("inverse_warp_backward", backend, source.device)
    needs = need_source, need_depth, need_projection
    return run(grad.contiguous(), source.contiguous(), depth.contiguous(), projection.contiguous(), padding, *needs)


@_op.register_fake
def _(source: Tensor, depth: Tensor, projection: Tensor, padding: str, backend: str) -> tuple[Tensor, Tensor]:
    shape = (source.shape[0], source.shape[1], depth.shape[2], depth.shape[3])
    return source.new_empty(shape), depth.new_empty(depth.shape, dtype=torch.bool)


@_op_backward.register_fake
def _(
    grad: Tensor,
    source: Tensor,
    depth: Tensor,
    projection: Tensor,
    padding: str,
    need_source: bool,
    need_depth: bool,
    need_projection: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(source, depth, projection, need_source, need_depth, need_projection)


def _gradients(
    source: Tensor, depth: Tensor, projection: Tensor, need_source: bool, need_depth: bool, need_projection: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients, empty where nobody needs one. The source's is summed into, so it starts at 0."""
    return (
        torch.zeros(source.shape if need_source else (0,), dtype=source.dtype, device=source.device),
        torch.empty(depth.shape if need_depth else (0,), dtype=depth.dtype, device=depth.device),
        torch.empty(projection.shape if need_projection else (0,), dtype=projection.dtype, device=projection.device),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    source, depth, projection, ctx.padding, ctx.backend = inputs
    ctx.save_for_backward(source, depth, projection)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad[:3]
    grads = torch.ops.mdepth.inverse_warp_backward(grad, *ctx.saved_tensors, ctx.padding, *needs, ctx.backend)
    return *(g if need else None for g, need in zip(grads, needs)), None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


def _sizes(source: Tensor, depth: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of source, depth and warped."""
    return tuple(source.shape), tuple(depth.shape), (source.shape[0], source.shape[1], depth.shape[2], depth.shape[3])


@_dispatch.native_implementation("inverse_warp")
def _native_run(backend: str, source: Tensor, depth: Tensor, projection: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    dtype, device, (source_shape, depth_shape, warped_shape) = source.dtype, source.device, _sizes(source, depth)
    warped = torch.empty(warped_shape, dtype=dtype, device=device)
    valid = torch.empty(depth_shape, dtype=torch.bool, device=device)
    _native.call(
        "inverse_warp",
        dtype,
        depth_shape[2:],
        source_shape,
        _native.pointer(source, "source", source_shape, dtype, device),
        _native.pointer(depth, "depth", depth_shape, dtype, device),
        _native.pointer(projection, "projection", (source_shape[0], 3, 4), torch.float64, device),
        _native.pointer(warped, "warped", warped_shape, dtype, device),
        _native.pointer(valid, "valid", depth_shape, torch.bool, device),
        padding=padding,
        backend=backend,
        device=device,
    )
    return warped, valid


@_dispatch.native_implementation("inverse_warp_backward")
def _native_run_backward(
    backend: str,
    grad: Tensor,
    source: Tensor,
    depth: Tensor,
    projection: Tensor,
    padding: str,
    need_source: bool,
    need_depth: bool,
    need_projection: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, device, (source_shape, depth_shape, warped_shape) = source.dtype, source.device, _sizes(source, depth)
    projection_shape = (source_shape[0], 3, 4)
    grads = _gradients(source, depth, projection, need_source, need_depth, need_projection)
    _native.call(
        "inverse_warp_backward",
        dtype,
        depth_shape[2:],
        source_shape,
        _native.pointer(source, "source", source_shape, dtype, device),
        _native.pointer(depth, "depth", depth_shape, dtype, device),
        _native.pointer(projection, "projection", projection_shape, torch.float64, device),
        _native.pointer(grad, "grad", warped_shape, dtype, device),
        _native.pointer(grads[0] if need_source else None, "grad_source", source_shape, dtype, device),
        _native.pointer(grads[1] if need_depth else None, "grad_depth", depth_shape, dtype, device),
        _native.pointer(
            grads[2] if need_projection else None, "grad_projection", projection_shape, torch.float64, device
        ),
        torch.are_deterministic_algorithms_enabled(),  # the GPU's gradient by the source without atomics
        padding=padding,
        backend=backend,
        device=device,
    )
    return grads
