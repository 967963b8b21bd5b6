"""Reverse Huber loss of Laina et al."""

from typing import Literal

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array, total
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

    c is `threshold` times the largest |x| of the valid pixels of the whole batch, recomputed in every call and treated
    as a constant by the gradient (Laina et al., arXiv 1606.00373, eq. 2).

    Args:
        prediction: (B, 1, H, W), in the unit of `depth`; gets the gradient.
        depth: (B, 1, H, W); gets no gradient.
        valid: bool (B, 1, H, W), the pixels that count; both maps may hold anything elsewhere. "measured": pixels whose
            depth is finite and above 0, found in the same pass. None: all pixels.
        threshold: above 0; at 1 and above, the loss is |x| everywhere.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `prediction` (float32 for half and bfloat16); 0 with a gradient of 0 if no pixel
        counts. A residual that is not finite makes it NaN.

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
    loss: Tensor = _OP(backend, prediction=prediction, depth=depth, valid=mask, measured=measured, threshold=threshold)
    return loss


def reference(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor | None = None,
    measured: bool = False,
    threshold: float = 0.2,
) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""
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


_OP = Op(
    "berhu_loss",
    reference,
    inputs={
        "prediction": T("batch", 1, "height", "width"),
        "depth": T("batch", 1, "height", "width"),
        "valid": array(torch.bool, "batch", 1, "height", "width", optional=True),
    },
    options={"measured": bool, "threshold": float},
    outputs={"loss": total()},
    kept={"state": array(torch.float64, 2)},  # the largest error, how many pixels counted
    backward=Backward(
        takes=("prediction", "depth", "valid", "state", "measured", "threshold"), gradients=("prediction",)
    ),
)
