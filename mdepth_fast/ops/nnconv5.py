"""One decoder stage of FastDepth: depthwise 5x5, pointwise, nearest-neighbour doubling, skip."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast.ops import _checks


def nnconv5(
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    *,
    skip: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`relu(pw_scale * pw(relu(dw_scale * dw(x) + dw_shift)) + pw_shift)`, every pixel doubled both ways, `+ skip`.

    NNConv5 of Wofk et al., arXiv 1903.03273, section III-A, with the scale and shift that each batch normalisation is
    when its statistics are fixed: `scale = gamma / sqrt(var + eps)`, `shift = beta - mean * scale`.

    Args:
        x: (B, C, H, W).
        dw_weight: (C, 1, 5, 5), depthwise, zero padding 2.
        dw_scale, dw_shift: (C,).
        pw_weight: (O, C, 1, 1), pointwise.
        pw_scale, pw_shift: (O,).
        skip: (B, O, 2 H, 2 W) or None.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, O, 2 H, 2 W) in the dtype of `x` and in its layout, channels_last or not. Gradients go to every tensor.
        Half and bfloat16 are computed in float32; on a GPU of compute capability 8.0 or more the pointwise product of
        them runs on tensor cores, its factors rounded to that dtype, its sums float32. A product of float32 is rounded
        to TF32 only where `torch.backends.cuda.matmul` allows it, as `torch.set_float32_matmul_precision` does.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
    """
    _checks.tensor(x, "x", (None, None, None, None), "(B, C, H, W)")
    batch, channels, height, width = x.shape
    if 0 in (channels, height, width):
        raise ValueError(f"x: expected C, H and W of at least 1, got shape {tuple(x.shape)}")
    _checks.tensor(dw_weight, "dw_weight", (channels, 1, 5, 5), "(C, 1, 5, 5)")
    _checks.tensor(dw_scale, "dw_scale", (channels,), "(C,)")
    _checks.tensor(dw_shift, "dw_shift", (channels,), "(C,)")
    _checks.tensor(pw_weight, "pw_weight", (None, channels, 1, 1), "(O, C, 1, 1)")
    out = pw_weight.shape[0]
    _checks.tensor(pw_scale, "pw_scale", (out,), "(O,)")
    _checks.tensor(pw_shift, "pw_shift", (out,), "(O,)")
    _checks.same_device(x, "x", dw_weight=dw_weight, dw_scale=dw_scale, dw_shift=dw_shift)
    _checks.same_device(x, "x", pw_weight=pw_weight, pw_scale=pw_scale, pw_shift=pw_shift, skip=skip)
    if skip is not None:
        _checks.tensor(skip, "skip", (batch, out, 2 * height, 2 * width), "(B, O, 2 H, 2 W)")
    dtype = _checks.working_dtype(x)
    reference_runs = _dispatch.uses_reference("nnconv5", backend, x.device)
    stored = x.dtype if x.is_cuda and not reference_runs else dtype
    addend = None if skip is None else skip.to(stored)
    source, matrix = _checks.cast(stored, x, pw_weight)
    depthwise = _checks.cast(dtype, dw_weight, dw_scale, dw_shift)
    affine = _checks.cast(dtype, pw_scale, pw_shift)
    if reference_runs:
        with _dispatch.full_precision(x.device):
            return reference(source, *depthwise, matrix, *affine, addend).to(x.dtype)  # type: ignore[call-arg]
    result: Tensor = torch.ops.mdepth.nnconv5(source, *depthwise, matrix, *affine, addend, backend or "")
    return result if result.dtype == x.dtype else result.to(x.dtype)


def reference(
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    skip: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch, as it is usually written: the oracle of every backend."""
    inner = F.relu(_affine(_depthwise(x, dw_weight), dw_scale, dw_shift))
    outer = F.relu(_affine(F.conv2d(inner, pw_weight), pw_scale, pw_shift))
    doubled = F.interpolate(outer, scale_factor=2, mode="nearest")
    return doubled if skip is None else doubled + skip


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=2, groups=x.shape[1])


def _layout(x: Tensor) -> torch.memory_format:
    """channels_last where `x` is that alone: a tensor of one channel or one pixel is both."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


@torch.library.custom_op("mdepth::nnconv5", mutates_args=())
def _op(
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    skip: Tensor | None,
    backend: str,
) -> Tensor:
    """`x`, `pw_weight` and `skip` of one dtype, which the result has; the others too, or float32 where that is half."""
    run, layout = _dispatch.select("nnconv5", backend, x.device), _layout(x)
    weights = (dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift)
    addend = None if skip is None else skip.contiguous(memory_format=layout)
    out: Tensor = run(x.contiguous(memory_format=layout), *(w.contiguous() for w in weights), addend)
    return out.contiguous(memory_format=layout)


@torch.library.custom_op("mdepth::nnconv5_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    need_x: bool,
    need_dw_weight: bool,
    need_pw_weight: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of the first seven inputs of the forward; empty where a product would be made that nobody needs."""
    run = _dispatch.select("nnconv5_backward", backend, x.device)
    weights = (dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift)
    return run(
        grad.contiguous(), x.contiguous(), *(w.contiguous() for w in weights), need_x, need_dw_weight, need_pw_weight
    )


@_op.register_fake
def _(
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    skip: Tensor | None,
    backend: str,
) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, pw_weight.shape[0], 2 * height, 2 * width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


@_op_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    need_x: bool,
    need_dw_weight: bool,
    need_pw_weight: bool,
    backend: str,
) -> list[Tensor]:
    tensors = (x, dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift)
    needs = (need_x, need_dw_weight, True, True, need_pw_weight, True, True)
    return [t.new_empty(t.shape if need else (0,)) for t, need in zip(tensors, needs)]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    skip = grad if needs[7] else None
    if not any(needs[:7]):
        return *[None] * 7, skip, None
    wanted = (needs[0], needs[1], needs[4])
    tensors = ctx.saved_tensors
    dtype = tensors[2].dtype  # of the scales: the backward of half is computed in float32
    grads = torch.ops.mdepth.nnconv5_backward(grad.to(dtype), *(t.to(dtype) for t in tensors), *wanted, ctx.backend)
    return *(g.to(t.dtype) if need else None for g, t, need in zip(grads, tensors, needs)), skip, None


_op.register_autograd(_backward, setup_context=_setup_context)
_dispatch.register_autocast(_op)


@_dispatch.native_implementation("nnconv5")
def _native_run(
    backend: str,
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    skip: Tensor | None,
) -> Tensor:
    product = _product(backend, x)
    if product == "exact" and x.dtype != dw_scale.dtype:
        dtype = dw_scale.dtype
        wide = None if skip is None else skip.to(dtype)
        weights = dw_weight, dw_scale, dw_shift, pw_weight.to(dtype), pw_scale, pw_shift
        return _native_run(backend, x.to(dtype), *weights, wide).to(x.dtype)
    # The GPU kernels read planes.
    layout = _layout(x) if backend == "cpu" else torch.contiguous_format
    x, skip = x.contiguous(memory_format=layout), None if skip is None else skip.contiguous(memory_format=layout)
    if backend != "cpu":
        pw_weight, skip = _native.aligned(pw_weight), None if skip is None else _native.aligned(skip)
    stored, dtype, device, (batch, channels, height, width) = x.dtype, dw_scale.dtype, x.device, x.shape
    out_channels = pw_weight.shape[0]
    shape = (batch, out_channels, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=stored, device=device, memory_format=layout)
    _native.call(
        "nnconv5",
        dtype,
        (batch, channels, out_channels, height, width),
        layout == torch.channels_last,
        _native.pointer(x, "x", (batch, channels, height, width), stored, device, layout),
        _native.pointer(dw_weight, "dw_weight", (channels, 1, 5, 5), dtype, device),
        _native.pointer(dw_scale, "dw_scale", (channels,), dtype, device),
        _native.pointer(dw_shift, "dw_shift", (channels,), dtype, device),
        _native.pointer(pw_weight, "pw_weight", (out_channels, channels, 1, 1), stored, device),
        _native.pointer(pw_scale, "pw_scale", (out_channels,), dtype, device),
        _native.pointer(pw_shift, "pw_shift", (out_channels,), dtype, device),
        _native.pointer(skip, "skip", shape, stored, device, layout),
        _native.pointer(out, "out", shape, stored, device, layout),
        _native.module().enums[product],
        backend=backend,
        device=device,
    )
    return out


def _product(backend: str, x: Tensor) -> str:
    """What the pointwise product is made of, see csrc/include/mdepth/params.h."""
    if backend == "cpu" or x.dtype == torch.float64 or not _has_tensor_cores(x.device):
        return "exact"
    if x.dtype == torch.float32:
        return "tf32" if _allows_tf32() else "exact"
    return "float16" if x.dtype == torch.float16 else "bfloat16"


def _allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9, where the older name is an error once this one has been set
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)


@functools.cache
def _has_tensor_cores(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def backward(
    depthwise_weight_gradient: Callable[[Tensor, Tensor], Tensor],
    pointwise_weight_gradient: Callable[[Tensor, Tensor], Tensor],
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_scale: Tensor,
    dw_shift: Tensor,
    pw_weight: Tensor,
    pw_scale: Tensor,
    pw_shift: Tensor,
    need_x: bool,
    need_dw_weight: bool,
    need_pw_weight: bool,
) -> list[Tensor]:
    """The backward of every backend, given its gradients of the two weights.

    Those are functions of the gradient by the depthwise (pointwise) product and of the input of that product. The
    activations are computed again, so that nothing but inputs is kept; these products are PyTorch's.
    """
    batch, channels, height, width = x.shape
    out_channels = pw_weight.shape[0]
    matrix = pw_weight.view(out_channels, channels)

    depthwise = _depthwise(x, dw_weight)
    inner = _affine(depthwise, dw_scale, dw_shift)
    active = F.relu(inner)
    pointwise = torch.matmul(matrix, active.flatten(2)).view(batch, out_channels, height, width)

    grad = grad[..., ::2, :] + grad[..., 1::2, :]  # every pixel was written four times
    grad = grad[..., ::2] + grad[..., 1::2]
    grad = torch.ops.aten.threshold_backward(grad, _affine(pointwise, pw_scale, pw_shift), 0)
    grad_pw_shift, grad_pw_scale = grad.sum((0, 2, 3)), (grad * pointwise).sum((0, 2, 3))
    grad_pointwise = grad * pw_scale[:, None, None]
    grad_pw_weight = pointwise_weight_gradient(grad_pointwise, active) if need_pw_weight else x.new_empty((0,))

    grad = torch.matmul(matrix.T, grad_pointwise.flatten(2)).view(batch, channels, height, width)
    grad = torch.ops.aten.threshold_backward(grad, inner, 0)
    grad_dw_shift, grad_dw_scale = grad.sum((0, 2, 3)), (grad * depthwise).sum((0, 2, 3))
    grad_depthwise = grad * dw_scale[:, None, None]
    grad_dw_weight = depthwise_weight_gradient(grad_depthwise, x) if need_dw_weight else x.new_empty((0,))
    # A correlation with the turned kernel.
    grad_x = _depthwise(grad_depthwise, dw_weight.flip(2, 3)) if need_x else x.new_empty((0,))
    return [grad_x, grad_dw_weight, grad_dw_scale, grad_dw_shift, grad_pw_weight, grad_pw_scale, grad_pw_shift]


@_dispatch.native_implementation("nnconv5_backward")
def _native_run_backward(backend: str, *arguments: Any) -> list[Tensor]:
    if backend == "cpu":
        return backward(_cpu_depthwise_weight_gradient, _cpu_pointwise_weight_gradient, *arguments)
    return backward(_depthwise_weight_gradient, _pointwise_weight_gradient, *arguments)


def _depthwise_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    channels = x.shape[1]
    geometry = [1, 1], [2, 2], [1, 1], False, [0, 0], channels
    weight = x.new_empty((channels, 1, 5, 5))  # only its shape is read
    gradient: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [False, True, False])[1]
    return gradient


def _pointwise_weight_gradient(grad: Tensor, active: Tensor) -> Tensor:
    return torch.matmul(grad.flatten(2), active.flatten(2).mT).sum(0)[..., None, None]


# In native code, with the same bits for any number of threads, which PyTorch's do not have on the CPU.
def _cpu_depthwise_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    dtype, sizes, (batch, channels, height, width) = x.dtype, tuple(x.shape), x.shape
    out = torch.empty((channels, 1, 5, 5), dtype=dtype)
    _native.call(
        "nnconv5_weight_gradients",
        dtype,
        (batch, channels, 0, height, width),
        _native.pointer(x, "x", sizes, dtype),
        0,
        _native.pointer(grad, "grad", sizes, dtype),
        0,
        _native.pointer(out, "out", (channels, 1, 5, 5), dtype),
        0,
    )
    return out


def _cpu_pointwise_weight_gradient(grad: Tensor, active: Tensor) -> Tensor:
    dtype, (batch, channels, height, width), out_channels = active.dtype, active.shape, grad.shape[1]
    out = torch.empty((out_channels, channels, 1, 1), dtype=dtype)
    _native.call(
        "nnconv5_weight_gradients",
        dtype,
        (batch, channels, out_channels, height, width),
        0,
        _native.pointer(active, "active", (batch, channels, height, width), dtype),
        0,
        _native.pointer(grad, "grad", (batch, out_channels, height, width), dtype),
        0,
        _native.pointer(out, "out", (out_channels, channels, 1, 1), dtype),
    )
    return out
