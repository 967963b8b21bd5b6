"""Reverse Huber loss of Laina et al."""

from typing import Literal

import torch
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks


def berhu_loss(
    prediction: Tensor,
    depth: Tensor,
    *,
    valid: Tensor | Literal["measured"] | None = None,
    threshold: float = 0.2,
    backend: str | None = None,
) -> Tensor:
    """Mean over valid pixels of B(x), x = prediction - depth: |x| up to c, (x^2 + c^2) / (2 c) beyond.

    c is `threshold` times the largest |x| of the valid pixels of the whole batch, found anew in every call and a
    constant to the gradient (Laina et al., arXiv 1606.00373, eq. 2).

    Args:
        prediction: (B, 1, H, W), in the unit of `depth`; gets the gradient.
        depth: (B, 1, H, W); gets no gradient.
        valid: bool (B, 1, H, W), the pixels that count; elsewhere both maps may hold anything. "measured": those whose
            depth is finite and above 0, found in the same pass. None: all.
        threshold: above 0; from 1 on the loss is |x| everywhere.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `prediction` (float32 for half and bfloat16); 0 with a gradient of 0 where no pixel
        counts. An error that is not finite makes it NaN.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    shape = _checks.depth_map(prediction, "prediction")
    _checks.tensor(depth, "depth", shape, "(B, 1, H, W)")
    mask, measured = _checks.counted(valid, shape)
    _checks.same_device(prediction, "prediction", depth=depth, valid=mask)
    _checks.positive(threshold, "threshold")
    dtype = _checks.working_dtype(prediction)
    prediction, depth = prediction.to(dtype), depth.detach().to(dtype)
    if _dispatch.uses_reference("berhu_loss", backend, prediction.device):
        with _dispatch.full_precision(prediction.device):
            return reference(prediction, depth, mask, measured, threshold)
    return torch.ops.mdepth.berhu_loss(prediction, depth, mask, measured, threshold, backend or "")[0]


def reference(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None = None,
    measured: bool = False,
    threshold: float = 0.2,
) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    if prediction.numel() == 0:
        return prediction.sum()
    if measured:
        valid = (depth > 0) & (depth < float("inf"))
    x = prediction - depth
    if valid is not None:
        x = torch.where(valid, x, 0)
    a = x.abs()
    c = threshold * a.detach().amax()
    c = c.clamp(min=torch.finfo(c.dtype).tiny) + (c - c)  # NaN where an error is not finite
    cost = torch.where(a <= c, a, (x.square() + c.square()) / (2 * c))
    if valid is None:
        return cost.mean()
    return torch.where(valid, cost, 0).sum() / valid.sum().clamp(min=1)


@torch.library.custom_op("mdepth::berhu_loss", mutates_args=())
def _op(
    prediction: Tensor, depth: Tensor, valid: Tensor | None, measured: bool, threshold: float, backend: str
) -> tuple[Tensor, Tensor]:
    """The loss, and float64 (2,): the largest error, how many pixels counted."""
    run = _dispatch.select("berhu_loss", backend, prediction.device)
    return run(prediction.contiguous(), depth.contiguous(), _checks.contiguous(valid), measured, threshold)


@torch.library.custom_op("mdepth::berhu_loss_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    state: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    threshold: float,
    backend: str,
) -> Tensor:
    run = _dispatch.select("berhu_loss_backward", backend, prediction.device)
    return run(grad, state, prediction.contiguous(), depth.contiguous(), _checks.contiguous(valid), measured, threshold)


@_op.register_fake
def _(
    prediction: Tensor, depth: Tensor, valid: Tensor | None, measured: bool, threshold: float, backend: str
) -> tuple[Tensor, Tensor]:
    return prediction.new_empty(()), prediction.new_empty((2,), dtype=torch.float64)


@_op_backward.register_fake
def _(
    grad: Tensor,
    state: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    threshold: float,
    backend: str,
) -> Tensor:
    return prediction.new_empty(prediction.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    prediction, depth, valid, ctx.measured, ctx.threshold, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], prediction, depth, valid)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 6
    grad_prediction = torch.ops.mdepth.berhu_loss_backward(
        grad, *ctx.saved_tensors, ctx.measured, ctx.threshold, ctx.backend
    )
    return (grad_prediction, *(None,) * 5)


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("berhu_loss")
def _native_run(
    backend: str, prediction: Tensor, depth: Tensor, valid: Tensor | None, measured: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    device = prediction.device
    loss = torch.empty((), dtype=torch.float64, device=device)
    state = torch.empty((2,), dtype=torch.float64, device=device)
    _native.call(
        "berhu_loss",
        prediction.dtype,
        *_arguments(prediction, depth, valid, measured, threshold, state),
        _native.pointer(loss, "loss", (), torch.float64, device),
        backend=backend,
        device=device,
    )
    return loss.to(prediction.dtype), state


@_dispatch.native_implementation("berhu_loss_backward")
def _native_run_backward(
    backend: str,
    grad: Tensor,
    state: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    threshold: float,
) -> Tensor:
    dtype, device = prediction.dtype, prediction.device
    grad_prediction = torch.empty(prediction.shape, dtype=dtype, device=device)
    _native.call(
        "berhu_loss_backward",
        dtype,
        *_arguments(prediction, depth, valid, measured, threshold, state),
        _native.pointer(grad, "grad", (), dtype, device),
        _native.pointer(grad_prediction, "grad_prediction", tuple(prediction.shape), dtype, device),
        backend=backend,
        device=device,
    )
    return grad_prediction


def _arguments(
    prediction: Tensor, depth: Tensor, valid: Tensor | None, measured: bool, threshold: float, state: Tensor
) -> tuple[tuple[int, ...] | float, ...]:
    dtype, device, shape = prediction.dtype, prediction.device, tuple(prediction.shape)
    return (
        (shape[0], shape[2], shape[3]),
        threshold,
        measured,
        _native.pointer(prediction, "prediction", shape, dtype, device),
        _native.pointer(depth, "depth", shape, dtype, device),
        _native.pointer(valid, "valid", shape, torch.bool, device),
        _native.pointer(state, "state", (2,), torch.float64, device),
    )
