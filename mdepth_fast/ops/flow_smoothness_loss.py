"""Robust first-order smoothness of optical flow."""

from typing import Literal, get_args

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, total
from mdepth_fast.ops import _checks

Form = Literal["separate", "joint"]


def flow_smoothness_loss(
    flow: Tensor,
    *,
    mask: Tensor | None = None,
    form: Form = "separate",
    alpha: float = 0.37,
    scale: float = 1.0,
    epsilon: float = 1e-3,
    backend: str | None = None,
) -> Tensor:
    """Generalised Charbonnier penalty of the flow's forward differences, `rho(s) = ((scale s)^2 + epsilon^2)^alpha`.

    - "separate": `rho(dx u) + rho(dx v) + rho(dy u) + rho(dy v)` (Yu et al., arXiv 1608.05842, eq. 3), over the
      differences that exist: none leads out of the image.
    - "joint": `rho(|dx u| + |dx v| + |dy u| + |dy v|)`, as in the authors' later code, over the pixels with a right and
      a lower neighbour.

    The sum is divided by all B * H * W pixels, as `flow_photometric_loss` is, so the paper's weight between the two
    sums holds.

    Args:
        flow: (B, 2, H, W), in pixels; gets the gradient.
        mask: (B, 1, H, W) bool, the pixels that count, or weights: a term counts with the product of the mask at the
            pixels that it compares. Where it is 0, the flow may hold anything. None: all pixels count.
        form: see above.
        alpha, scale, epsilon: the penalty's exponent, above 0 and at most 1, scale and smoothing.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `flow` (half and bfloat16 are computed and returned as float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    _checks.tensor(flow, "flow", (None, 2, None, None), "(B, 2, H, W)")
    batch, _, height, width = flow.shape
    mask = _checks.weights(mask, "mask", (batch, 1, height, width), "(B, 1, H, W)")
    _checks.same_device(flow, "flow", mask=mask)
    if height == 0 or width == 0:
        raise ValueError(f"flow: expected H and W of at least 1, got shape {tuple(flow.shape)}")
    if form not in get_args(Form):
        raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
    _checks.charbonnier(alpha, scale, epsilon)
    dtype = _checks.working_dtype(flow)
    loss: Tensor = _OP(
        backend,
        flow=flow.to(dtype),
        mask=None if mask is None else mask.detach().to(dtype),
        form=form,
        alpha=alpha,
        scale=scale,
        epsilon=epsilon,
    )
    return loss


def reference(
    flow: Tensor,
    mask: Tensor | None = None,
    form: Form = "separate",
    alpha: float = 0.37,
    scale: float = 1.0,
    epsilon: float = 1e-3,
) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""

    def hidden(difference: Tensor, weight: Tensor | None) -> Tensor:
        return difference if weight is None else torch.where(weight != 0, difference, 0)

    def total(s: Tensor, weight: Tensor | None) -> Tensor:
        penalty = ((scale * s).square() + epsilon**2) ** alpha
        return (penalty if weight is None else weight * penalty).sum()

    pixels = flow[:, :1].numel()
    along_x, along_y = flow[..., :-1] - flow[..., 1:], flow[..., :-1, :] - flow[..., 1:, :]
    weight_x = None if mask is None else mask[..., :-1] * mask[..., 1:]
    if form == "joint":
        weight = None if mask is None or weight_x is None else weight_x[..., :-1, :] * mask[..., 1:, :-1]
        along_x, along_y = hidden(along_x[..., :-1, :], weight), hidden(along_y[..., :-1], weight)
        return total((along_x.abs() + along_y.abs()).sum(1, keepdim=True), weight) / pixels
    weight_y = None if mask is None else mask[..., :-1, :] * mask[..., 1:, :]
    along_x, along_y = hidden(along_x, weight_x), hidden(along_y, weight_y)
    return (total(along_x, weight_x) + total(along_y, weight_y)) / pixels


def _scaled(grad: Tensor, grad_flow: Tensor, flow: Tensor) -> Tensor:
    """The forward has computed the gradient of the loss."""
    return grad * grad_flow


_OP = Op(
    "flow_smoothness_loss",
    reference,
    inputs={
        "flow": T("batch", 2, "height", "width"),
        "mask": T("batch", 1, "height", "width", optional=True),
    },
    options={"form": get_args(Form), "alpha": float, "scale": float, "epsilon": float},
    outputs={"loss": total()},
    kept={"grad_flow": T("batch", 2, "height", "width", only_if="need_grad")},
    sane=lambda sizes: None if _checks.some(sizes) else "H and W of at least 1",
    backward=Backward(takes=("grad_flow",), gradients=("flow",), function=_scaled),
    of_nothing=float("nan"),  # the mean over nothing, as PyTorch has it
)
