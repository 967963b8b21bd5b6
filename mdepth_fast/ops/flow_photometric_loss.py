"""Robust photometric loss of optical flow."""

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, total
from mdepth_fast.ops import _checks
from mdepth_fast.ops.flow_warp import sample_reference


def flow_photometric_loss(
    target: Tensor,
    source: Tensor,
    flow: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: float = 0.25,
    scale: float = 1.0,
    epsilon: float = 1e-3,
    backend: str | None = None,
) -> Tensor:
    """Mean of `mask * inside * rho(sum_c |target - source(x + flow)|)`, `rho(s) = ((scale s)^2 + epsilon^2)^alpha`.

    The generalised Charbonnier penalty of brightness constancy of Yu et al., arXiv 1608.05842, eq. 2, with the sum over
    channels inside as in the authors' code. `inside`: the flow leads into the source. The mean is over all B * H * W
    pixels, those that do not count included.

    Args:
        target, source: (B, C, H, W); get no gradient.
        flow: (B, 2, H, W), in pixels, from target to source: u to the right, v down; gets the gradient.
        mask: (B, 1, H, W) bool, the pixels that count, or weights; where it is 0, the tensors may hold anything. None:
            all pixels count.
        alpha, scale, epsilon: the penalty's exponent, above 0 and at most 1, scale and smoothing.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the inputs' dtype (half and bfloat16 are computed and returned as float32). NaN where a flow that
        counts is not finite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    _checks.tensor(target, "target", (None, None, None, None), "(B, C, H, W)")
    batch, channels, height, width = target.shape
    _checks.tensor(source, "source", (batch, channels, height, width), "(B, C, H, W)")
    _checks.tensor(flow, "flow", (batch, 2, height, width), "(B, 2, H, W)")
    mask = _checks.weights(mask, "mask", (batch, 1, height, width), "(B, 1, H, W)")
    _checks.same_device(target, "target", source=source, flow=flow, mask=mask)
    if channels == 0 or height == 0 or width == 0:
        raise ValueError(f"target: expected C, H and W of at least 1, got shape {tuple(target.shape)}")
    _checks.charbonnier(alpha, scale, epsilon)
    dtype = _checks.working_dtype(target, source, flow)
    target, source, flow = _checks.cast(dtype, target.detach(), source.detach(), flow)
    loss: Tensor = _OP(
        backend,
        target=target,
        source=source,
        flow=flow,
        mask=None if mask is None else mask.detach().to(dtype),
        alpha=alpha,
        scale=scale,
        epsilon=epsilon,
    )
    return loss


def reference(
    target: Tensor,
    source: Tensor,
    flow: Tensor,
    mask: Tensor | None = None,
    alpha: float = 0.25,
    scale: float = 1.0,
    epsilon: float = 1e-3,
) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""
    warped, poison, counts = sample_reference(source, flow, "border")
    if mask is not None:
        counts = counts & (mask != 0)
        poison = torch.where(mask != 0, poison, 0)
    difference = torch.where(counts, target - warped, 0).abs().sum(1, keepdim=True)
    penalty = ((scale * difference).square() + epsilon**2) ** alpha
    weight = counts.to(flow.dtype) if mask is None else torch.where(counts, mask, 0)
    return (weight * penalty + poison).mean()


def _scaled(grad: Tensor, grad_flow: Tensor, flow: Tensor) -> Tensor:
    """The forward has computed the gradient of the loss."""
    return grad * grad_flow


_OP = Op(
    "flow_photometric_loss",
    reference,
    inputs={
        "target": T("batch", "channels", "height", "width"),
        "source": T("batch", "channels", "height", "width"),
        "flow": T("batch", 2, "height", "width"),
        "mask": T("batch", 1, "height", "width", optional=True),
    },
    options={"alpha": float, "scale": float, "epsilon": float},
    outputs={"loss": total()},
    kept={"grad_flow": T("batch", 2, "height", "width", only_if="need_grad")},
    sane=lambda sizes: None if _checks.some(sizes) else "at least 1 channel, H and W of at least 1",
    backward=Backward(takes=("grad_flow",), gradients=("flow",), function=_scaled),
    of_nothing=float("nan"),  # the mean over nothing, as PyTorch has it
)
