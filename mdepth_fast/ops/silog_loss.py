"""Scale-invariant logarithmic loss of Eigen et al., and its square-root forms."""

from typing import Literal, get_args

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array, total
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
    - "image_mean": the mean of L over the images with a valid pixel.
    - "sqrt": sqrt(mean d^2 - lambda (mean d)^2) over the valid pixels of the whole batch; BTS (arXiv 1907.10326) with
      lambda 0.85 and scale 10.
    - "sqrt_unbiased": sqrt(var d + (1 - lambda) (mean d)^2) over the whole batch, var with n - 1 in its denominator;
      AdaBins (arXiv 2011.14141) with lambda 0.85. If the root is 0, so is its gradient.

    Args:
        prediction: (B, 1, H, W), above 0, in the unit of `depth`; gets the gradient.
        depth: (B, 1, H, W), above 0; gets no gradient.
        valid: bool (B, 1, H, W), the pixels that count; both maps may hold anything elsewhere. "measured": pixels whose
            depth is finite and above 0, found in the same pass. None: all pixels.
        form, variance_focus, scale: see above; `variance_focus` from 0 to 1.
        log_prediction: `prediction` is log(depth), any number.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `prediction` (float32 for half and bfloat16); 0 with a gradient of 0 if no pixel
        counts. A depth or prediction that counts and whose logarithm is not finite makes it NaN.

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
    loss: Tensor = _OP(
        backend,
        prediction=prediction,
        depth=depth,
        valid=mask,
        measured=measured,
        form=form,
        variance_focus=variance_focus,
        scale=scale,
        log_prediction=log_prediction,
    )
    return loss


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
    """The reference in plain PyTorch, which every backend is tested against."""
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
    loss: Tensor,
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None,
    measured: bool,
    log_prediction: bool,
    **_: object,
) -> None:
    """Raises a clear error for a NaN from unmasked pixels, if checking does not stall a device."""
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


_OP = Op(
    "silog_loss",
    reference,
    inputs={
        "prediction": T("batch", 1, "height", "width"),
        "depth": T("batch", 1, "height", "width"),
        "valid": array(torch.bool, "batch", 1, "height", "width", optional=True),
    },
    options={"measured": bool, "form": get_args(Form), "variance_focus": float, "scale": float, "log_prediction": bool},
    outputs={"loss": total()},
    # Of the gradient by the residuals d the slope and shift of each image.
    kept={"coefficients": array(torch.float64, "batch", 2)},
    backward=Backward(
        takes=("prediction", "depth", "valid", "coefficients", "measured", "log_prediction"),
        gradients=("prediction",),
    ),
    after=_explain,
)
