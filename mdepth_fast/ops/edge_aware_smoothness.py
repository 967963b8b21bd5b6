"""Edge-aware first-order smoothness of the mean-normalised disparity."""

import torch
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks

MEAN_EPSILON = 1e-7


def edge_aware_smoothness(disparity: Tensor, image: Tensor, *, backend: str | None = None) -> Tensor:
    """Mean of `|dx d*| exp(-mean_c |dx I|)` plus the same along y, `d* = d / (mean_HW d + 1e-7)`.

    Godard et al., arXiv 1806.01260, eq. 3; the normalisation is of Wang et al., arXiv 1712.00175.

    Args:
        disparity: (B, 1, H, W), H and W at least 2; gets the gradient.
        image: (B, C, H, W), range [0, 1]; gets none.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the inputs' dtype (half and bfloat16 are computed and returned as float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
    """
    _checks.tensor(disparity, "disparity", (None, 1, None, None), "(B, 1, H, W)")
    batch, _, height, width = disparity.shape
    _checks.tensor(image, "image", (batch, None, height, width), "(B, C, H, W)")
    _checks.same_device(disparity, "disparity", image=image)
    if height < 2 or width < 2:
        raise ValueError(f"disparity: expected H and W of at least 2, got {height}x{width}")
    dtype = _checks.working_dtype(disparity, image)
    disparity, image = disparity.to(dtype), image.detach().to(dtype)
    if _dispatch.uses_reference("edge_aware_smoothness", backend, disparity.device):
        with _dispatch.full_precision(disparity.device):
            return reference(disparity, image)
    need_grad = torch.is_grad_enabled() and disparity.requires_grad
    return torch.ops.mdepth.edge_aware_smoothness(disparity, image, need_grad, backend or "")[0]


def reference(disparity: Tensor, image: Tensor) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    image = image.detach()
    d = disparity / (disparity.mean((2, 3), keepdim=True) + MEAN_EPSILON)
    along_x = (d[..., :-1] - d[..., 1:]).abs()
    along_y = (d[..., :-1, :] - d[..., 1:, :]).abs()
    weight_x = torch.exp(-(image[..., :-1] - image[..., 1:]).abs().mean(1, keepdim=True))
    weight_y = torch.exp(-(image[..., :-1, :] - image[..., 1:, :]).abs().mean(1, keepdim=True))
    return (along_x * weight_x).mean() + (along_y * weight_y).mean()


@torch.library.custom_op("mdepth::edge_aware_smoothness", mutates_args=())
def _op(disparity: Tensor, image: Tensor, need_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    run = _dispatch.select("edge_aware_smoothness", backend, disparity.device)
    return run(disparity.contiguous(), image.contiguous(), need_grad)


@_op.register_fake
def _(disparity: Tensor, image: Tensor, need_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    return disparity.new_empty(()), _gradient(disparity, need_grad)


def _gradient(disparity: Tensor, needed: bool) -> Tensor:
    return torch.empty(disparity.shape if needed else (0,), dtype=disparity.dtype, device=disparity.device)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    (grad_disparity,) = ctx.saved_tensors
    return None if grad is None else grad * grad_disparity, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("edge_aware_smoothness")
def _native_run(backend: str, disparity: Tensor, image: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    dtype, device, shape = disparity.dtype, disparity.device, tuple(image.shape)
    loss, grad = torch.empty((), dtype=torch.float64, device=device), _gradient(disparity, need_grad)
    if shape[0] == 0:  # the mean over nothing, as PyTorch has it
        return torch.full((), float("nan"), dtype=dtype, device=device), grad
    map_shape = (shape[0], 1, *shape[2:])
    _native.call(
        "edge_aware_smoothness",
        dtype,
        shape,
        _native.pointer(disparity, "disparity", map_shape, dtype, device),
        _native.pointer(image, "image", shape, dtype, device),
        _native.pointer(loss, "loss", (), torch.float64, device),
        _native.pointer(grad if need_grad else None, "grad_disparity", map_shape, dtype, device),
        backend=backend,
        device=device,
    )
    return loss.to(dtype), grad
