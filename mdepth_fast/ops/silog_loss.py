"""Scale-invariant logarithmic loss of Eigen et al., and its square-root forms."""

from typing import Literal, get_args

import torch
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks

Form = Literal["eigen", "image_mean", "sqrt", "sqrt_unbiased"]


def silog_loss(
    prediction: Tensor,
    depth: Tensor,
    *,
    valid: Tensor | Literal["measured"] | None = None,
    form: Form = "eigen",
    variance_focus: float = 0.5,
    scale: float = 1.0,
    log_prediction: bool = False,
    backend: str | None = None,
) -> Tensor:
    """`scale` times a mean of squared log residuals less `variance_focus` times their squared mean.

    With d = log(prediction) - log(depth), n valid pixels in an image, lambda = `variance_focus`:

    - "eigen": the loss L = (1/n) sum d^2 - (lambda / n^2) (sum d)^2 of each image, weighted with n^2: the batch form
      of the release, `sum_b [n sum d^2 - lambda (sum d)^2] / sum_b n^2` (Eigen et al., arXiv 1406.2283, eq. 4).
    - "image_mean": the mean of L over the images that have a valid pixel.
    - "sqrt": sqrt(mean d^2 - lambda (mean d)^2) over the valid pixels of the whole batch; BTS (arXiv 1907.10326) with
      lambda 0.85 and scale 10.
    - "sqrt_unbiased": sqrt(var d + (1 - lambda) (mean d)^2) over the whole batch, var with n - 1 in its denominator;
      AdaBins (arXiv 2011.14141) with lambda 0.85. Where the root is 0 so is its gradient.

    Args:
        prediction: (B, 1, H, W), above 0, in the unit of `depth`; gets the gradient.
        depth: (B, 1, H, W), above 0; gets no gradient.
        valid: bool (B, 1, H, W), the pixels that count; elsewhere both maps may hold anything. "measured": those whose
            depth is finite and above 0, found in the same pass. None: all.
        form, variance_focus, scale: see above; `variance_focus` from 0 to 1.
        log_prediction: `prediction` is log(depth), any number.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `prediction` (float32 for half and bfloat16); 0 with a gradient of 0 where no pixel
        counts. A depth, or prediction, at a pixel that counts whose logarithm is not finite makes it NaN.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; or, on the CPU without
        `valid`, a depth or prediction is 0 or below.
    """
    shape = _checks.depth_map(prediction, "prediction")
    _checks.tensor(depth, "depth", shape, "(B, 1, H, W)")
    mask, measured = _checks.counted(valid, shape)
    _checks.same_device(prediction, "prediction", depth=depth, valid=mask)
    if form not in get_args(Form):
        raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
    _checks.fraction(variance_focus, "variance_focus")
    _checks.positive(scale, "scale")
    dtype = _checks.working_dtype(prediction)
    prediction, depth = prediction.to(dtype), depth.detach().to(dtype)
    if _dispatch.uses_reference("silog_loss", backend, prediction.device):
        with _dispatch.full_precision(prediction.device):
            loss = reference(prediction, depth, mask, measured, form, variance_focus, scale, log_prediction)
        if not torch.compiler.is_compiling():
            _explain(loss, prediction, depth, mask, measured, log_prediction)
        return loss
    return torch.ops.mdepth.silog_loss(
        prediction, depth, mask, measured, form, variance_focus, scale, log_prediction, backend or ""
    )[0]


def reference(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None = None,
    measured: bool = False,
    form: Form = "eigen",
    variance_focus: float = 0.5,
    scale: float = 1.0,
    log_prediction: bool = False,
) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    if measured:
        valid = (depth > 0) & (depth < float("inf"))
    if valid is not None:
        prediction = torch.where(valid, prediction, 0 if log_prediction else 1)
        depth = torch.where(valid, depth, 1)
    d = (prediction if log_prediction else torch.log(prediction)) - torch.log(depth)
    whole_batch = form in ("sqrt", "sqrt_unbiased")
    over = (0, 1, 2, 3) if whole_batch else (1, 2, 3)
    n = (torch.ones_like(depth) if valid is None else valid).sum(over, dtype=d.dtype)
    total, squares = d.sum(over), d.square().sum(over)
    squares = squares + (total - total).detach()  # NaN where a logarithm is infinite
    mean = total / n.clamp(min=1)
    if whole_batch:
        share = n.clamp(min=1) if form == "sqrt" else (n - 1).clamp(min=1)
        value = (squares - total * mean) / share + (1 - variance_focus) * mean.square()
        still = value <= 0  # no deviation, but for rounding
        return scale * torch.where(still, 0, torch.where(still, 1, value).sqrt())
    spread = squares - variance_focus * total * mean  # n L
    if form == "eigen":
        return scale * (n * spread).sum() / n.square().sum().clamp(min=1)
    return scale * (spread / n.clamp(min=1)).sum() / (n > 0).sum().clamp(min=1)


def _explain(
    loss: Tensor, prediction: Tensor, depth: Tensor, valid: Tensor | None, measured: bool, log_prediction: bool
) -> None:
    """A NaN of what nobody masked is an error with a name, where looking does not stall a device."""
    if depth.device.type != "cpu" or valid is not None or measured or not bool(loss.detach().isnan()):
        return
    if bool((depth <= 0).any()):
        raise ValueError(
            f"depth: expected numbers above 0, as every pixel counts without valid, got {float(depth.min()):g}; "
            "pass valid=depth > 0"
        )
    if not log_prediction and bool((prediction <= 0).any()):
        raise ValueError(
            f"prediction: expected numbers above 0, got {float(prediction.min()):g}; a log loss needs a network whose "
            "output is above 0, or log_prediction=True where it is log(depth)"
        )


@torch.library.custom_op("mdepth::silog_loss", mutates_args=())
def _op(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    form: str,
    variance_focus: float,
    scale: float,
    log_prediction: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and of its gradient by the residuals d the slope and shift of each image, float64 (B, 2)."""
    run = _dispatch.select("silog_loss", backend, prediction.device)
    loss, coefficients = run(
        prediction.contiguous(),
        depth.contiguous(),
        _checks.contiguous(valid),
        measured,
        form,
        variance_focus,
        scale,
        log_prediction,
    )
    _explain(loss, prediction, depth, valid, measured, log_prediction)
    return loss, coefficients


@torch.library.custom_op("mdepth::silog_loss_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    coefficients: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    log_prediction: bool,
    backend: str,
) -> Tensor:
    run = _dispatch.select("silog_loss_backward", backend, prediction.device)
    return run(
        grad,
        coefficients,
        prediction.contiguous(),
        depth.contiguous(),
        _checks.contiguous(valid),
        measured,
        log_prediction,
    )


@_op.register_fake
def _(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    form: str,
    variance_focus: float,
    scale: float,
    log_prediction: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return prediction.new_empty(()), prediction.new_empty((prediction.shape[0], 2), dtype=torch.float64)


@_op_backward.register_fake
def _(
    grad: Tensor,
    coefficients: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    log_prediction: bool,
    backend: str,
) -> Tensor:
    return prediction.new_empty(prediction.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    prediction, depth, valid, ctx.measured, _, _, _, ctx.log_prediction, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], prediction, depth, valid)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 9
    grad_prediction = torch.ops.mdepth.silog_loss_backward(
        grad, *ctx.saved_tensors, ctx.measured, ctx.log_prediction, ctx.backend
    )
    return (grad_prediction, *(None,) * 8)


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("silog_loss")
def _native_run(
    backend: str,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    form: str,
    variance_focus: float,
    scale: float,
    log_prediction: bool,
) -> tuple[Tensor, Tensor]:
    device = prediction.device
    loss = torch.empty((), dtype=torch.float64, device=device)
    coefficients = torch.empty((prediction.shape[0], 2), dtype=torch.float64, device=device)
    _native.call(
        "silog_loss",
        prediction.dtype,
        *_arguments(prediction, depth, valid, measured, log_prediction, coefficients),
        _native.module().enums[form],
        variance_focus,
        scale,
        _native.pointer(loss, "loss", (), torch.float64, device),
        backend=backend,
        device=device,
    )
    return loss.to(prediction.dtype), coefficients


@_dispatch.native_implementation("silog_loss_backward")
def _native_run_backward(
    backend: str,
    grad: Tensor,
    coefficients: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    log_prediction: bool,
) -> Tensor:
    dtype, device = prediction.dtype, prediction.device
    grad_prediction = torch.empty(prediction.shape, dtype=dtype, device=device)
    _native.call(
        "silog_loss_backward",
        dtype,
        *_arguments(prediction, depth, valid, measured, log_prediction, coefficients),
        _native.pointer(grad, "grad", (), dtype, device),
        _native.pointer(grad_prediction, "grad_prediction", tuple(prediction.shape), dtype, device),
        backend=backend,
        device=device,
    )
    return grad_prediction


def _arguments(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    log_prediction: bool,
    coefficients: Tensor,
) -> tuple[tuple[int, ...] | int, ...]:
    dtype, device, shape = prediction.dtype, prediction.device, tuple(prediction.shape)
    return (
        (shape[0], shape[2], shape[3]),
        log_prediction,
        measured,
        _native.pointer(prediction, "prediction", shape, dtype, device),
        _native.pointer(depth, "depth", shape, dtype, device),
        _native.pointer(valid, "valid", shape, torch.bool, device),
        _native.pointer(coefficients, "coefficients", (shape[0], 2), torch.float64, device),
    )
