"""Ordinal regression loss of DORN."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks


def ordinal_loss(
    logits: Tensor, depth: Tensor, thresholds: Tensor, *, valid: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Mean over valid pixels of `-(sum_{k<l} log P_k + sum_{k>=l} log(1 - P_k))`.

    `P_k = softmax(logits[2k], logits[2k + 1])[1]` says "beyond threshold t_k"; l is the bin of the true depth,
    `t_l <= depth < t_{l+1}`, the first or last one for a depth outside all (Fu et al., arXiv 1806.02446, eq. 2-3).

    Args:
        logits: (B, 2K, H, W), pairs interleaved: channel 2k "not beyond t_k", channel 2k + 1 "beyond t_k"; gets the
            gradient.
        depth: (B, 1, H, W), in the unit of the thresholds; gets no gradient.
        thresholds: (K + 1,), increasing (checked on the CPU; on a GPU it would stall the stream).
        valid: bool (B, 1, H, W), the pixels that count. None: those whose depth is finite and above 0. A non-finite
            depth at a pixel that this mask names makes the loss NaN.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `logits` (float32 for half and bfloat16). With no valid pixel it is 0, as is its
        gradient: a crop without a measurement must not undo a training run.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or order.
    """
    _checks.tensor(logits, "logits", (None, None, None, None), "(B, 2K, H, W)")
    bins = _checks.ordinal_bins(logits)
    batch, _, height, width = logits.shape
    _checks.tensor(depth, "depth", (batch, 1, height, width), "(B, 1, H, W)")
    _checks.tensor(thresholds, "thresholds", (bins + 1,), "(K + 1,)")
    _checks.mask(valid, "valid", (batch, 1, height, width), "(B, 1, H, W)")
    _checks.same_device(logits, "logits", depth=depth, thresholds=thresholds, valid=valid)
    _checks.increasing(thresholds, "thresholds")
    dtype = _checks.working_dtype(logits)
    logits, depth, thresholds = logits.to(dtype), depth.detach().to(dtype), thresholds.detach().to(dtype)
    if _dispatch.uses_reference("ordinal_loss", backend, logits.device):
        with _dispatch.full_precision(logits.device):
            return reference(logits, depth, thresholds, valid)
    return torch.ops.mdepth.ordinal_loss(logits, depth, thresholds, valid, backend or "")[0]


def reference(logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    if valid is None:
        valid = depth.isfinite() & (depth > 0)
    label = torch.bucketize(depth, thresholds[1:-1], right=True)
    beyond = torch.arange(len(thresholds) - 1, device=logits.device).view(-1, 1, 1) < label
    difference = logits[:, 1::2] - logits[:, ::2]
    cost = -F.logsigmoid(torch.where(beyond, difference, -difference)).sum(1, keepdim=True)
    cost = cost + (depth - depth)  # NaN where depth is not finite
    return torch.where(valid, cost, 0).sum() / valid.sum().clamp(min=1)


@torch.library.custom_op("mdepth::ordinal_loss", mutates_args=())
def _op(logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """The loss, and how many pixels were valid."""
    run = _dispatch.select("ordinal_loss", backend, logits.device)
    return run(logits.contiguous(), depth.contiguous(), thresholds.contiguous(), _checks.contiguous(valid))


@torch.library.custom_op("mdepth::ordinal_loss_backward", mutates_args=())
def _op_backward(
    grad: Tensor, count: Tensor, logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None, backend: str
) -> Tensor:
    run = _dispatch.select("ordinal_loss_backward", backend, logits.device)
    return run(grad, count, logits.contiguous(), depth.contiguous(), thresholds.contiguous(), _checks.contiguous(valid))


@_op.register_fake
def _(logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty((), dtype=torch.int64)


@_op_backward.register_fake
def _(
    grad: Tensor, count: Tensor, logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None, backend: str
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits, depth, thresholds, valid, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], logits, depth, thresholds, valid)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return None, None, None, None, None
    grad_logits = torch.ops.mdepth.ordinal_loss_backward(grad, *ctx.saved_tensors, ctx.backend)
    return grad_logits, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("ordinal_loss")
def _native_run(
    backend: str, logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    device = logits.device
    loss = torch.empty((), dtype=torch.float64, device=device)
    count = torch.empty((), dtype=torch.int64, device=device)
    _native.call(
        "ordinal_loss",
        logits.dtype,
        *_arguments(count, logits, depth, thresholds, valid),
        _native.pointer(loss, "loss", (), torch.float64, device),
        backend=backend,
        device=device,
    )
    return loss.to(logits.dtype), count


@_dispatch.native_implementation("ordinal_loss_backward")
def _native_run_backward(
    backend: str, grad: Tensor, count: Tensor, logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None
) -> Tensor:
    dtype, device = logits.dtype, logits.device
    grad_logits = torch.empty(logits.shape, dtype=dtype, device=device)
    _native.call(
        "ordinal_loss_backward",
        dtype,
        *_arguments(count, logits, depth, thresholds, valid),
        _native.pointer(grad, "grad", (), dtype, device),
        _native.pointer(grad_logits, "grad_logits", tuple(logits.shape), dtype, device),
        backend=backend,
        device=device,
    )
    return grad_logits


def _arguments(
    count: Tensor, logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None
) -> tuple[tuple[int, ...] | int, ...]:
    dtype, device, (batch, channels, height, width) = logits.dtype, logits.device, logits.shape
    bins, map_shape = channels // 2, (batch, 1, height, width)
    return (
        (batch, bins, height, width),
        _native.pointer(logits, "logits", tuple(logits.shape), dtype, device),
        _native.pointer(depth, "depth", map_shape, dtype, device),
        _native.pointer(thresholds, "thresholds", (bins + 1,), dtype, device),
        _native.pointer(valid, "valid", map_shape, torch.bool, device),
        _native.pointer(count, "count", (), torch.int64, device),
    )
