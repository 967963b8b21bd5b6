"""Depth from ordinal logits: the number of thresholds that a pixel lies beyond."""

import torch
from torch import Tensor

from mdepth_fast._op import Op, T, array
from mdepth_fast.ops import _checks


def ordinal_decode(logits: Tensor, thresholds: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Depth and label of every pixel from pairs of ordinal logits.

    `P_k = softmax(logits[2k], logits[2k + 1])[1]` says "beyond bin k", depth >= t_(k+1); the label l is the number of
    `P_k > 0.5`, and depth is the middle of bin l: `(t_l + t_{l+1}) / 2`, l at most K - 1 (Fu et al., arXiv 1806.02446,
    section 3.3; with no shift of the thresholds). A step function: no gradients.

    Args:
        logits: (B, 2K, H, W), pairs interleaved: channel 2k "not beyond bin k", channel 2k + 1 "beyond bin k".
        thresholds: (K + 1,), increasing (checked on the CPU; on a GPU it would stall the stream), in the unit of depth.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        depth: (B, 1, H, W) in the dtype of `logits` (float32 for half and bfloat16); NaN where a logit is NaN.
        label: int64 (B, 1, H, W), 0 to K.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or order.
    """
    _checks.tensor(logits, "logits", (None, None, None, None), "(B, 2K, H, W)")
    bins = _checks.ordinal_bins(logits)
    _checks.tensor(thresholds, "thresholds", (bins + 1,), "(K + 1,)")
    _checks.same_device(logits, "logits", thresholds=thresholds)
    _checks.increasing(thresholds, "thresholds")
    dtype = _checks.working_dtype(logits)
    logits, thresholds = logits.detach().to(dtype), thresholds.detach().to(dtype)
    decoded: tuple[Tensor, Tensor] = _OP(backend, logits=logits, thresholds=thresholds)
    return decoded


def reference(logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The reference in plain PyTorch, which every backend is tested against."""
    label = (logits[:, 1::2] > logits[:, ::2]).sum(1, keepdim=True)
    centres = (thresholds[:-1] + thresholds[1:]) / 2
    depth = centres[label.clamp(max=len(centres) - 1)]
    return depth.masked_fill(logits.isnan().any(1, keepdim=True), torch.nan), label


_OP = Op(
    "ordinal_decode",
    reference,
    inputs={"logits": T("batch", "2*bins", "height", "width"), "thresholds": T("bins+1")},
    sane=lambda sizes: None if sizes["bins"] else "at least 1 bin",
    outputs={
        "depth": T("batch", 1, "height", "width"),
        "label": array(torch.int64, "batch", 1, "height", "width"),
    },
)
