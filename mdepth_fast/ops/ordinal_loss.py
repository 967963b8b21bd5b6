"""Ordinal regression loss of DORN."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array, total
from mdepth_fast.ops import _checks


def ordinal_loss(
    logits: Tensor, depth: Tensor, thresholds: Tensor, *, valid: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Mean over valid pixels of `-(sum_{k<l} log P_k + sum_{k>=l} log(1 - P_k))`.

    `P_k = softmax(logits[2k], logits[2k + 1])[1]` says "beyond bin k", depth >= t_(k+1); l is the bin of the depth,
    `t_l <= depth < t_{l+1}`, or the first or last bin for a depth outside all of them (Fu et al., arXiv 1806.02446, eq.
    2-3).

    Args:
        logits: (B, 2K, H, W), pairs interleaved: channel 2k "not beyond bin k", channel 2k + 1 "beyond bin k"; gets the
            gradient.
        depth: (B, 1, H, W), in the unit of the thresholds; gets no gradient.
        thresholds: (K + 1,), increasing (checked on the CPU; on a GPU it would stall the stream).
        valid: bool (B, 1, H, W), the pixels that count. None: pixels whose depth is finite and above 0. A non-finite
            depth at a pixel in this mask makes the loss NaN.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the dtype of `logits` (float32 for half and bfloat16). With no valid pixel, the loss and its
        gradient are 0: a crop without a measurement must not ruin a training run.

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
    loss: Tensor = _OP(backend, logits=logits, depth=depth, thresholds=thresholds, valid=valid)
    return loss


def reference(logits: Tensor, depth: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""
    if valid is None:
        valid = depth.isfinite() & (depth > 0)
    label = torch.bucketize(depth, thresholds[1:-1], right=True)
    beyond = torch.arange(len(thresholds) - 1, device=logits.device).view(-1, 1, 1) < label
    difference = logits[:, 1::2] - logits[:, ::2]
    cost = -F.logsigmoid(torch.where(beyond, difference, -difference)).sum(1, keepdim=True)
    cost = cost + (depth - depth)  # NaN where depth is not finite
    return torch.where(valid, cost, 0).sum() / valid.sum().clamp(min=1)


_OP = Op(
    "ordinal_loss",
    reference,
    inputs={
        "logits": T("batch", "2*bins", "height", "width"),
        "depth": T("batch", 1, "height", "width"),
        "thresholds": T("bins+1"),
        "valid": array(torch.bool, "batch", 1, "height", "width", optional=True),
    },
    sane=lambda sizes: None if sizes["bins"] else "at least 1 bin",
    outputs={"loss": total()},
    kept={"count": array(torch.int64)},  # of valid pixels
    backward=Backward(takes=("logits", "depth", "thresholds", "valid", "count"), gradients=("logits",)),
)
