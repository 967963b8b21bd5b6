"""One decoder stage of FastDepth: depthwise 5x5, pointwise, nearest-neighbour doubling, skip."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast._op import Backward, Op, T
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
    """`relu(pw_scale * pw(relu(dw_scale * dw(x) + dw_shift)) + pw_shift)`, every pixel doubled in both directions, `+
    skip`.

    NNConv5 of Wofk et al., arXiv 1903.03273, section III-A, with each batch normalisation of fixed statistics as a
    scale and shift: `scale = gamma / sqrt(var + eps)`, `shift = beta - mean * scale`.

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
        Half and bfloat16 are computed in float32; on a GPU of compute capability 8.0 or more, their pointwise
        product runs on tensor cores, with factors rounded to that dtype and float32 sums. A float32 product is rounded
        to TF32 only if `torch.backends.cuda.matmul` allows it, as `torch.set_float32_matmul_precision` does.

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
    runs_reference = _dispatch.uses_reference("nnconv5", _dispatch.asked(backend), x.device)
    stored = x.dtype if x.is_cuda and not runs_reference else dtype
    addend = None if skip is None else skip.to(stored)
    source, matrix = _checks.cast(stored, x, pw_weight)
    dw_weight, dw_scale, dw_shift, pw_scale, pw_shift = _checks.cast(
        dtype, dw_weight, dw_scale, dw_shift, pw_scale, pw_shift
    )
    result: Tensor = _OP(
        backend,
        x=source,
        dw_weight=dw_weight,
        dw_scale=dw_scale,
        dw_shift=dw_shift,
        pw_weight=matrix,
        pw_scale=pw_scale,
        pw_shift=pw_shift,
        skip=addend,
    )
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
    """The reference in plain PyTorch, which every backend is tested against."""
    inner = F.relu(_affine(_depthwise(x, dw_weight), dw_scale, dw_shift))
    outer = F.relu(_affine(F.conv2d(inner, pw_weight), pw_scale, pw_shift))
    doubled = F.interpolate(outer, scale_factor=2, mode="nearest")
    return doubled if skip is None else doubled + skip


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=2, groups=x.shape[1])


def _layout(x: Tensor) -> torch.memory_format:
    """channels_last if `x` has only that layout: a tensor of one channel or one pixel has both."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


def laid_out(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator of a forward: it gets contiguous tensors, and its result takes the layout of `x`."""

    @functools.wraps(run)
    def forward(x: Tensor, skip: Tensor | None, **weights: Tensor) -> Tensor:
        layout = _layout(x)
        skip = None if skip is None else skip.contiguous(memory_format=layout)
        weights = {name: weight.contiguous() for name, weight in weights.items()}
        out = run(x=x.contiguous(memory_format=layout), skip=skip, **weights)
        return out.contiguous(memory_format=layout)

    return forward


def _fake(x: Tensor, pw_weight: Tensor, **others: Any) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, pw_weight.shape[0], 2 * height, 2 * width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


_WEIGHTS = ("dw_weight", "dw_scale", "dw_shift", "pw_weight", "pw_scale", "pw_shift")

# `x`, `pw_weight` and `skip` have one dtype, which the result has; the others too, or float32 where that is half.
_OP = Op(
    "nnconv5",
    reference,
    inputs={
        "x": T("batch", "channels", "height", "width"),
        "dw_weight": T("channels", 1, 5, 5),
        "dw_scale": T("channels"),
        "dw_shift": T("channels"),
        "pw_weight": T("out_channels", "channels", 1, 1),
        "pw_scale": T("out_channels"),
        "pw_shift": T("out_channels"),
        "skip": T("batch", "out_channels", "2*height", "2*width", optional=True),
    },
    outputs={"out": T("batch", "out_channels", "2*height", "2*width")},
    backward=Backward(takes=("x", *_WEIGHTS), gradients=("x", *_WEIGHTS), same=("skip",)),
    any_layout=True,
    fake=_fake,
)


def _native_run(backend: str, x: Tensor, pw_weight: Tensor, skip: Tensor | None, **weights: Tensor) -> Tensor:
    product, dtype = _product(backend, x), weights["dw_scale"].dtype
    if product == "exact" and x.dtype != dtype:
        wide = None if skip is None else skip.to(dtype)
        return _native_run(backend, x.to(dtype), pw_weight.to(dtype), wide, **weights).to(x.dtype)
    # The GPU kernels read planes.
    layout = _layout(x) if backend == "cpu" else torch.contiguous_format
    x, skip = x.contiguous(memory_format=layout), None if skip is None else skip.contiguous(memory_format=layout)
    if backend != "cpu":
        pw_weight, skip = _native.aligned(pw_weight), None if skip is None else _native.aligned(skip)
    stored, device = x.dtype, x.device
    sizes = _OP.forward.sizes({"x": x, "pw_weight": pw_weight, "skip": skip, **weights})
    if not _checks.some(sizes):
        raise RuntimeError(f"nnconv5: expected sizes of at least 1, got {sizes}")
    out = torch.empty(_OP.forward.outputs["out"].shape(sizes), dtype=stored, device=device, memory_format=layout)
    members: dict[str, Any] = {
        **sizes,
        "dtype": _native.code(dtype),
        "product": _native.code(product),
        "channels_last": layout == torch.channels_last,
        "x": _native.address(x, "x", stored, device, layout),
        "pw_weight": _native.address(pw_weight, "pw_weight", stored, device),
        "skip": 0 if skip is None else _native.address(skip, "skip", stored, device, layout),
        "out": _native.address(out, "out", stored, device, layout),
        **{name: _native.address(weight, name, dtype, device) for name, weight in weights.items()},
    }
    _native.run("nnconv5", backend, members, device)
    return out


for _backend in ("cpu", "cuda", "nvrtc"):
    _dispatch.implementation("nnconv5", _backend)(laid_out(functools.partial(_native_run, _backend)))


def _product(backend: str, x: Tensor) -> str:
    """The kind of arithmetic in the pointwise product, see csrc/include/mdepth/params.h."""
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
    **values: Any,
) -> tuple[Tensor | None, ...]:
    """The backward of every backend, given its functions for the gradients of the two weights.

    They take the gradient of the depthwise (pointwise) product and the input of that product. The activations are
    recomputed, so only inputs are saved; PyTorch computes these products, in float32 for half.
    """
    with _dispatch.full_precision(values["x"].device):
        return _backward(depthwise_weight_gradient, pointwise_weight_gradient, values)


def _backward(
    depthwise_weight_gradient: Callable[[Tensor, Tensor], Tensor],
    pointwise_weight_gradient: Callable[[Tensor, Tensor], Tensor],
    values: dict[str, Any],
) -> tuple[Tensor | None, ...]:
    dtype = values["dw_scale"].dtype
    # Detached: which product PyTorch picks for a matmul depends on who wants a gradient, and the last bits with it.
    grad, x, *weights = (values[name].detach().to(dtype).contiguous() for name in ("grad", "x", *_WEIGHTS))
    dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift = weights
    batch, channels, height, width = x.shape
    out_channels = pw_weight.shape[0]
    matrix = pw_weight.view(out_channels, channels)

    # A weight in channels_last, which one of one input channel may be unseen, hands its layout on.
    depthwise = _depthwise(x, dw_weight).contiguous()
    inner = _affine(depthwise, dw_scale, dw_shift)
    active = F.relu(inner)
    pointwise = torch.matmul(matrix, active.flatten(2)).view(batch, out_channels, height, width)

    grad = grad[..., ::2, :] + grad[..., 1::2, :]  # every pixel was written four times
    grad = grad[..., ::2] + grad[..., 1::2]
    grad = torch.ops.aten.threshold_backward(grad, _affine(pointwise, pw_scale, pw_shift), 0)
    grad_pw_shift, grad_pw_scale = grad.sum((0, 2, 3)), (grad * pointwise).sum((0, 2, 3))
    grad_pointwise = grad * pw_scale[:, None, None]
    grad_pw_weight = pointwise_weight_gradient(grad_pointwise, active) if values["need_pw_weight"] else None

    grad = torch.matmul(matrix.T, grad_pointwise.flatten(2)).view(batch, channels, height, width)
    grad = torch.ops.aten.threshold_backward(grad, inner, 0)
    grad_dw_shift, grad_dw_scale = grad.sum((0, 2, 3)), (grad * depthwise).sum((0, 2, 3))
    grad_depthwise = grad * dw_scale[:, None, None]
    grad_dw_weight = depthwise_weight_gradient(grad_depthwise, x) if values["need_dw_weight"] else None
    # A correlation with the turned kernel.
    grad_x = _depthwise(grad_depthwise, dw_weight.flip(2, 3)) if values["need_x"] else None
    grads = grad_x, grad_dw_weight, grad_dw_scale, grad_dw_shift, grad_pw_weight, grad_pw_scale, grad_pw_shift
    return tuple(
        one.to(values[name].dtype) if one is not None and values[f"need_{name}"] else None
        for name, one in zip(("x", *_WEIGHTS), grads)
    )


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
    out = torch.empty((x.shape[1], 1, 5, 5), dtype=x.dtype)
    _cpu_weight_gradients(x, 0, x=x, grad_depthwise=grad, grad_dw_weight=out)
    return out


def _cpu_pointwise_weight_gradient(grad: Tensor, active: Tensor) -> Tensor:
    out = torch.empty((grad.shape[1], active.shape[1], 1, 1), dtype=active.dtype)
    _cpu_weight_gradients(active, grad.shape[1], active=active, grad_pointwise=grad, grad_pw_weight=out)
    return out


def _cpu_weight_gradients(like: Tensor, out_channels: int, **tensors: Tensor) -> None:
    batch, channels, height, width = like.shape
    sizes = {"batch": batch, "channels": channels, "out_channels": out_channels, "height": height, "width": width}
    addresses = {name: _native.address(one, name, like.dtype, like.device) for name, one in tensors.items()}
    _native.run("nnconv5_weight_gradients", "cpu", {**sizes, **addresses, "dtype": _native.code(like.dtype)})


_dispatch.implementation("nnconv5_backward", "cpu")(
    functools.partial(backward, _cpu_depthwise_weight_gradient, _cpu_pointwise_weight_gradient)
)
for _backend in ("cuda", "nvrtc"):
    _dispatch.implementation("nnconv5_backward", _backend)(
        functools.partial(backward, _depthwise_weight_gradient, _pointwise_weight_gradient)
    )
