"""Depth of a sigmoid map at the size of the images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks


def disparity_to_depth(
    disparity: Tensor,
    size: Sequence[int] | None = None,
    *,
    min_depth: float = 0.1,
    max_depth: float = 100.0,
    backend: str | None = None,
) -> Tensor:
    """`1 / (1/max_depth + (1/min_depth - 1/max_depth) * d)`, d being the sigmoid map resized bilinearly.

    Monodepth2, arXiv 1806.01260, section 3. Resizing is that of `F.interpolate(mode="bilinear", align_corners=False)`,
    up or down by any ratio, without antialiasing.

    Args:
        disparity: (B, 1, h, w) in [0, 1]: 0 is `max_depth`, 1 is `min_depth`; gets the gradient.
        size: (H, W) of the depth; None: that of the map.
        min_depth, max_depth: 0 < `min_depth` < `max_depth`.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        Depth (B, 1, H, W) in the map's dtype (float32 for half and bfloat16).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or range.
    """
    _, _, *own = _checks.depth_map(disparity, "disparity")
    if min(own) < 1:
        raise ValueError(f"disparity: expected H and W of at least 1, got shape {tuple(disparity.shape)}")
    height, width = _checks.image_size(own if size is None else size, "size")
    if not 0 < min_depth < max_depth:
        raise ValueError(f"min_depth, max_depth: expected 0 < min_depth < max_depth, got {min_depth} and {max_depth}")
    (disparity,) = _checks.cast(_checks.working_dtype(disparity), disparity)
    if _dispatch.uses_reference("disparity_to_depth", backend, disparity.device):
        with _dispatch.full_precision(disparity.device):
            return reference(disparity, height, width, min_depth, max_depth)
    return torch.ops.mdepth.disparity_to_depth(disparity, height, width, min_depth, max_depth, backend or "")


def reference(disparity: Tensor, height: int, width: int, min_depth: float, max_depth: float) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    if disparity.shape[2:] != (height, width):
        disparity = F.interpolate(disparity, size=(height, width), mode="bilinear", align_corners=False)
    far = 1.0 / max_depth
    return (far + (1.0 / min_depth - far) * disparity).reciprocal()


@torch.library.custom_op("mdepth::disparity_to_depth", mutates_args=())
def _op(disparity: Tensor, height: int, width: int, min_depth: float, max_depth: float, backend: str) -> Tensor:
    run = _dispatch.select("disparity_to_depth", backend, disparity.device)
    return run(disparity.contiguous(), height, width, min_depth, max_depth)


@torch.library.custom_op("mdepth::disparity_to_depth_backward", mutates_args=())
def _op_backward(
    grad: Tensor, depth: Tensor, height: int, width: int, min_depth: float, max_depth: float, backend: str
) -> Tensor:
    """`height` and `width` are the map's."""
    run = _dispatch.select("disparity_to_depth_backward", backend, depth.device)
    return run(grad.contiguous(), depth.contiguous(), height, width, min_depth, max_depth)


@_op.register_fake
def _(disparity: Tensor, height: int, width: int, min_depth: float, max_depth: float, backend: str) -> Tensor:
    return disparity.new_empty((disparity.shape[0], 1, height, width))


@_op_backward.register_fake
def _(grad: Tensor, depth: Tensor, height: int, width: int, min_depth: float, max_depth: float, backend: str) -> Tensor:
    return depth.new_empty((depth.shape[0], 1, height, width))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    disparity, _, _, *ctx.options = inputs
    ctx.size = disparity.shape[2:]
    ctx.save_for_backward(output)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    (depth,) = ctx.saved_tensors
    grad_disparity = torch.ops.mdepth.disparity_to_depth_backward(grad, depth, *ctx.size, *ctx.options)
    return grad_disparity, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("disparity_to_depth")
def _native_run(backend: str, disparity: Tensor, height: int, width: int, min_depth: float, max_depth: float) -> Tensor:
    dtype, device, shape = disparity.dtype, disparity.device, tuple(disparity.shape)
    depth = torch.empty((shape[0], 1, height, width), dtype=dtype, device=device)
    _native.call(
        "disparity_to_depth",
        dtype,
        (shape[0], height, width),
        shape[2:],
        min_depth,
        max_depth,
        _native.pointer(depth, "depth", (shape[0], 1, height, width), dtype, device),
        _native.pointer(disparity, "disparity", shape, dtype, device),
        backend=backend,
        device=device,
    )
    return depth


@_dispatch.native_implementation("disparity_to_depth_backward")
def _native_run_backward(
    backend: str, grad: Tensor, depth: Tensor, height: int, width: int, min_depth: float, max_depth: float
) -> Tensor:
    dtype, device, shape = depth.dtype, depth.device, tuple(depth.shape)
    map_shape = (shape[0], 1, height, width)
    grad_disparity = torch.empty(map_shape, dtype=dtype, device=device)
    _native.call(
        "disparity_to_depth_backward",
        dtype,
        (shape[0], *shape[2:]),
        (height, width),
        min_depth,
        max_depth,
        _native.pointer(depth, "depth", shape, dtype, device),
        _native.pointer(grad, "grad", shape, dtype, device),
        _native.pointer(grad_disparity, "grad_disparity", map_shape, dtype, device),
        backend=backend,
        device=device,
    )
    return grad_disparity
