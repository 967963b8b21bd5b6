"""A depthwise-separable block of MobileNet in inference: depthwise and pointwise convolution, a ReLU after each."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks


def separable_conv(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    *,
    stride: int = 1,
    cap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`clamp(pw(clamp(dw(x) + dw_bias, 0, cap)) + pw_bias, 0, cap)`, with batch normalisation folded into the weights.

    The block of Howard et al., arXiv 1704.04861, section 3.1; `cap=6` is ReLU6. Inference: only the reference has
    gradients, a backward through any other backend raises RuntimeError.

    Args:
        x: (B, C, H, W).
        dw_weight: (C, 1, k, k), depthwise, k 3 or 5, zero padding k // 2.
        dw_bias: (C,).
        pw_weight: (O, C, 1, 1), pointwise.
        pw_bias: (O,).
        stride: of the depthwise convolution, 1 or 2.
        cap: upper bound of both results; None: no bound.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, O, ceil(H / stride), ceil(W / stride)), channels_last in memory, in the dtype of `x` (half and bfloat16 are
        computed in float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
    """
    _checks.tensor(x, "x", (None, None, None, None), "(B, C, H, W)")
    channels, height, width = x.shape[1:]
    if 0 in (channels, height, width):
        raise ValueError(f"x: expected C, H and W of at least 1, got shape {tuple(x.shape)}")
    _checks.tensor(dw_weight, "dw_weight", (channels, 1, None, None), "(C, 1, k, k)")
    if tuple(dw_weight.shape[2:]) not in ((3, 3), (5, 5)):
        raise ValueError(f"dw_weight: expected a kernel of 3x3 or 5x5, got shape {tuple(dw_weight.shape)}")
    _checks.tensor(dw_bias, "dw_bias", (channels,), "(C,)")
    _checks.tensor(pw_weight, "pw_weight", (None, channels, 1, 1), "(O, C, 1, 1)")
    _checks.tensor(pw_bias, "pw_bias", (pw_weight.shape[0],), "(O,)")
    _checks.same_device(x, "x", dw_weight=dw_weight, dw_bias=dw_bias, pw_weight=pw_weight, pw_bias=pw_bias)
    if stride not in (1, 2):
        raise ValueError(f"stride: expected 1 or 2, got {stride!r}")
    bound = math.inf if cap is None else float(cap)
    if not bound > 0:
        raise ValueError(f"cap: expected a number above 0 or None, got {cap!r}")
    dtype = _checks.working_dtype(x)
    dw, pw = (dw_weight.to(dtype), dw_bias.to(dtype)), (pw_weight.to(dtype), pw_bias.to(dtype))
    if _dispatch.uses_reference("separable_conv", backend, x.device):
        with _dispatch.full_precision(x.device):
            return reference(x.to(dtype), *dw, *pw, stride, bound).to(x.dtype)
    return torch.ops.mdepth.separable_conv(x.to(dtype), *dw, *pw, stride, bound, backend or "").to(x.dtype)


def reference(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor, pw_weight: Tensor, pw_bias: Tensor, stride: int, cap: float
) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    x = x.contiguous(memory_format=torch.channels_last)
    inner = F.conv2d(x, dw_weight, dw_bias, stride, dw_weight.shape[-1] // 2, groups=x.shape[1]).clamp(0, cap)
    return F.conv2d(inner, pw_weight, pw_bias).clamp(0, cap).contiguous(memory_format=torch.channels_last)


def _empty_output(x: Tensor, pw_weight: Tensor, stride: int) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, pw_weight.shape[0], (height - 1) // stride + 1, (width - 1) // stride + 1)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("mdepth::separable_conv", mutates_args=())
def _op(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    stride: int,
    cap: float,
    backend: str,
) -> Tensor:
    run = _dispatch.select("separable_conv", backend, x.device)
    weights = (dw_weight, dw_bias, pw_weight, pw_bias)
    x = x.contiguous(memory_format=torch.channels_last)
    out: Tensor = run(x, *(w.contiguous() for w in weights), stride, cap)
    return out


@_op.register_fake
def _(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    stride: int,
    cap: float,
    backend: str,
) -> Tensor:
    return _empty_output(x, pw_weight, stride)


_dispatch.register_autocast(_op)


# On a GPU this is left to cuDNN.
@_dispatch.implementation("separable_conv", "cpu")
def _native_run(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor, pw_weight: Tensor, pw_bias: Tensor, stride: int, cap: float
) -> Tensor:
    dtype, (batch, channels, height, width) = x.dtype, x.shape
    out_channels, kernel = pw_weight.shape[0], dw_weight.shape[-1]
    out = _empty_output(x, pw_weight, stride)
    _native.call(
        "separable_conv",
        dtype,
        (batch, channels, out_channels, height, width),
        kernel,
        stride,
        cap,
        _native.pointer(x, "x", tuple(x.shape), dtype, memory_format=torch.channels_last),
        _native.pointer(dw_weight, "dw_weight", (channels, 1, kernel, kernel), dtype),
        _native.pointer(dw_bias, "dw_bias", (channels,), dtype),
        _native.pointer(pw_weight, "pw_weight", (out_channels, channels, 1, 1), dtype),
        _native.pointer(pw_bias, "pw_bias", (out_channels,), dtype),
        _native.pointer(out, "out", tuple(out.shape), dtype, memory_format=torch.channels_last),
    )
    return out
