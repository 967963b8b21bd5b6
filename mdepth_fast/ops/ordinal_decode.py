"""Depth from ordinal logits: how many thresholds a pixel is beyond."""

import torch
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks


def ordinal_decode(logits: Tensor, thresholds: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Depth and label of every pixel from pairs of ordinal logits.

    `P_k = softmax(logits[2k], logits[2k + 1])[1]` says "beyond threshold t_k"; the label l is the number of
    `P_k > 0.5`, and depth is the middle of bin l: `(t_l + t_{l+1}) / 2`, l at most K - 1 (Fu et al., arXiv 1806.02446,
    section 3.3; with no shift of the thresholds). A step function: no gradients.

    Args:
        logits: (B, 2K, H, W), pairs interleaved: channel 2k "not beyond t_k", channel 2k + 1 "beyond t_k".
        thresholds: (K + 1,), increasing (checked on the CPU; on a GPU it would stall the stream), in the unit of depth.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        depth: (B, 1, H, W) in the dtype of `logits` (float32 for half and bfloat16); NaN where a logit is.
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
    if _dispatch.uses_reference("ordinal_decode", backend, logits.device):
        with _dispatch.full_precision(logits.device):
            return reference(logits, thresholds)
    return torch.ops.mdepth.ordinal_decode(logits, thresholds, backend or "")


def reference(logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    label = (logits[:, 1::2] > logits[:, ::2]).sum(1, keepdim=True)
    centres = (thresholds[:-1] + thresholds[1:]) / 2
    depth = centres[label.clamp(max=len(centres) - 1)]
    return depth.masked_fill(logits.isnan().any(1, keepdim=True), torch.nan), label


@torch.library.custom_op("mdepth::ordinal_decode", mutates_args=())
def _op(logits: Tensor, thresholds: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    run = _dispatch.select("ordinal_decode", backend, logits.device)
    return run(logits.contiguous(), thresholds.contiguous())


@_op.register_fake
def _(logits: Tensor, thresholds: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    batch, _, height, width = logits.shape
    shape = (batch, 1, height, width)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


_dispatch.register_autocast(_op)


@_dispatch.native_implementation("ordinal_decode")
def _native_run(backend: str, logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    dtype, device, (batch, channels, height, width) = logits.dtype, logits.device, logits.shape
    bins, shape = channels // 2, (batch, 1, height, width)
    depth = torch.empty(shape, dtype=dtype, device=device)
    label = torch.empty(shape, dtype=torch.int64, device=device)
    _native.call(
        "ordinal_decode",
        dtype,
        (batch, bins, height, width),
        _native.pointer(logits, "logits", (batch, channels, height, width), dtype, device),
        _native.pointer(thresholds, "thresholds", (bins + 1,), dtype, device),
        _native.pointer(depth, "depth", shape, dtype, device),
        _native.pointer(label, "label", shape, torch.int64, device),
        backend=backend,
        device=device,
    )
    return depth, label
