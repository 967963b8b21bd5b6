"""Per-pixel photometric distance: weighted SSIM and L1 of two images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks

C1, C2 = 1e-4, 9e-4


def photometric_loss(
    prediction: Tensor, target: Tensor, *, ssim_weight: float = 0.85, backend: str | None = None
) -> Tensor:
    """Weighted SSIM and L1 distance of two images at every pixel.

    `ssim_weight * mean_c clamp((1 - SSIM) / 2, 0, 1) + (1 - ssim_weight) * mean_c |prediction - target|`, with SSIM
    over 3x3 boxes, reflection at the border, C1 = 0.01^2, C2 = 0.03^2 (Godard et al., arXiv 1806.01260, eq. 2-3).

    Args:
        prediction, target: (B, C, H, W), H and W at least 2, range [0, 1]. Gradients go to both.
        ssim_weight: share of SSIM, 0 to 1.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, 1, H, W) in the inputs' dtype (half and bfloat16 are computed and returned as float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    _checks.tensor(prediction, "prediction", (None, None, None, None), "(B, C, H, W)")
    _checks.tensor(target, "target", tuple(prediction.shape), "(B, C, H, W)")
    _checks.same_device(prediction, "prediction", target=target)
    _checks.window_fits(prediction, "prediction")
    if prediction.shape[1] == 0:
        raise ValueError(f"prediction: expected at least 1 channel, got shape {tuple(prediction.shape)}")
    _checks.fraction(ssim_weight, "ssim_weight")
    dtype = _checks.working_dtype(prediction, target)
    prediction, target = prediction.to(dtype), target.to(dtype)
    if _dispatch.uses_reference("photometric_loss", backend, prediction.device):
        with _dispatch.full_precision(prediction.device):
            return reference(prediction, target, ssim_weight)
    return torch.ops.mdepth.photometric_loss(prediction, target, ssim_weight, backend or "")


def reference(prediction: Tensor, target: Tensor, ssim_weight: float = 0.85) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1)

    x, y = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (prediction, target))
    mean_x, mean_y = mean(x), mean(y)
    variance_x = mean(x * x) - mean_x * mean_x
    variance_y = mean(y * y) - mean_y * mean_y
    covariance = mean(x * y) - mean_x * mean_y
    ssim = ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)) / (
        (mean_x * mean_x + mean_y * mean_y + C1) * (variance_x + variance_y + C2)
    )
    distance = ((1 - ssim) / 2).clamp(0, 1).mean(1, keepdim=True)
    absolute = (prediction - target).abs().mean(1, keepdim=True)
    return ssim_weight * distance + (1 - ssim_weight) * absolute


@torch.library.custom_op("mdepth::photometric_loss", mutates_args=())
def _op(prediction: Tensor, target: Tensor, ssim_weight: float, backend: str) -> Tensor:
    run = _dispatch.select("photometric_loss", backend, prediction.device)
    return run(prediction.contiguous(), target.contiguous(), ssim_weight)


@torch.library.custom_op("mdepth::photometric_loss_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    prediction: Tensor,
    target: Tensor,
    ssim_weight: float,
    need_prediction: bool,
    need_target: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = _dispatch.select("photometric_loss_backward", backend, prediction.device)
    return run(
        grad.contiguous(), prediction.contiguous(), target.contiguous(), ssim_weight, need_prediction, need_target
    )


@_op.register_fake
def _(prediction: Tensor, target: Tensor, ssim_weight: float, backend: str) -> Tensor:
    batch, _, height, width = prediction.shape
    return prediction.new_empty((batch, 1, height, width))


@_op_backward.register_fake
def _(
    grad: Tensor,
    prediction: Tensor,
    target: Tensor,
    ssim_weight: float,
    need_prediction: bool,
    need_target: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _gradient(prediction, need_prediction), _gradient(target, need_target)


def _gradient(like: Tensor, needed: bool) -> Tensor:
    """Room for a gradient; an empty tensor where nobody needs it."""
    return torch.empty(like.shape if needed else (0,), dtype=like.dtype, device=like.device)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    prediction, target, ctx.ssim_weight, ctx.backend = inputs
    ctx.save_for_backward(prediction, target)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    prediction, target = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.mdepth.photometric_loss_backward(grad, prediction, target, ctx.ssim_weight, *needs, ctx.backend)
    return *(g if need else None for g, need in zip(grads, needs)), None, None


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("photometric_loss")
def _native_run(backend: str, prediction: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
    dtype, device, shape = prediction.dtype, prediction.device, tuple(prediction.shape)
    out_shape = (shape[0], 1, *shape[2:])
    loss = torch.empty(out_shape, dtype=dtype, device=device)
    _native.call(
        "photometric_loss",
        dtype,
        shape,
        ssim_weight,
        _native.pointer(prediction, "prediction", shape, dtype, device),
        _native.pointer(target, "target", shape, dtype, device),
        _native.pointer(loss, "loss", out_shape, dtype, device),
        backend=backend,
        device=device,
    )
    return loss


@_dispatch.native_implementation("photometric_loss_backward")
def _native_run_backward(
    backend: str,
    grad: Tensor,
    prediction: Tensor,
    target: Tensor,
    ssim_weight: float,
    need_prediction: bool,
    need_target: bool,
) -> tuple[Tensor, Tensor]:
    dtype, device, shape = prediction.dtype, prediction.device, tuple(prediction.shape)
    grads = _gradient(prediction, need_prediction), _gradient(target, need_target)
    _native.call(
        "photometric_loss_backward",
        dtype,
        shape,
        ssim_weight,
        _native.pointer(prediction, "prediction", shape, dtype, device),
        _native.pointer(target, "target", shape, dtype, device),
        _native.pointer(grad, "grad", (shape[0], 1, *shape[2:]), dtype, device),
        _native.pointer(grads[0] if need_prediction else None, "grad_prediction", shape, dtype, device),
        _native.pointer(grads[1] if need_target else None, "grad_target", shape, dtype, device),
        backend=backend,
        device=device,
    )
    return grads
