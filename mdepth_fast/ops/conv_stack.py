"""A stack of mobile-network convolution blocks, run in one call for inference."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast import _dispatch, _native
from mdepth_fast._op import Op, T
from mdepth_fast.ops import _checks
from mdepth_fast.ops.nnconv5 import nnconv5


class ConvBlock(NamedTuple):
    """`clamp(conv(x, weight) + bias, 0, cap)`. A depthwise convolution, clamped the same way, may come first.
    Afterwards the block may double every pixel in both directions, then add the result of another block.

    Args:
        weight: (O, C, k, k), dense, k odd, zero padding k // 2; (O, C, 1, 1) after a depthwise convolution
        bias: (O,)
        dw_weight: (C, 1, k, k), depthwise, k 3 or 5, zero padding k // 2; None: no depthwise convolution
        dw_bias: (C,)
        stride: 1 or 2, stride of the first convolution
        cap: None: no upper bound; 6 is ReLU6
        doubled: nearest x2
        skip: index of an earlier block whose result, of the same shape, is added; None: none
    """

    weight: Tensor
    bias: Tensor
    dw_weight: Tensor | None = None
    dw_bias: Tensor | None = None
    stride: int = 1
    cap: float | None = None
    doubled: bool = False
    skip: int | None = None


def conv_stack(x: Tensor, blocks: Sequence[ConvBlock], *, backend: str | None = None) -> Tensor:
    """Runs blocks one after the other, for inference, with batch normalisation folded into the weights.

    The blocks come from MobileNet (Howard et al., arXiv 1704.04861, section 3.1) and FastDepth's decoder (Wofk et al.,
    arXiv 1903.03273, section III-A). On the CPU a depthwise result stays in the cache. On a GPU, doubling blocks with a
    5x5 convolution run as `nnconv5` and the others as PyTorch's convolutions. Only the reference has gradients: a
    backward through any other backend raises RuntimeError.

    Args:
        x: (B, C, H, W).
        blocks: at least one block.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        The result of the last block, channels_last in memory, in the dtype of `x` (half and bfloat16 are computed in
        float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
    """
    _checks.tensor(x, "x", (None, None, None, None), "(B, C, H, W)")
    if 0 in x.shape[1:]:
        raise ValueError(f"x: expected C, H and W of at least 1, got shape {tuple(x.shape)}")
    _check_blocks(x, blocks)
    dtype = _checks.working_dtype(x)
    weights = _checks.cast(dtype, *(tensor for block in blocks for tensor in block[:4] if tensor is not None))
    out: Tensor = _OP(
        backend,
        x=x.to(dtype),
        weights=weights,
        depthwise=[block.dw_weight is not None for block in blocks],
        strides=[block.stride for block in blocks],
        caps=[math.inf if block.cap is None else float(block.cap) for block in blocks],
        doubled=[block.doubled for block in blocks],
        skips=[-1 if block.skip is None else block.skip for block in blocks],
    )
    return out.to(x.dtype)


def _check_blocks(x: Tensor, blocks: Sequence[ConvBlock]) -> None:
    if not blocks:
        raise ValueError("blocks: expected at least one, got none")
    channels, height, width = x.shape[1:]
    device = x.device
    results: list[tuple[int, int, int]] = []
    for k, (weight, bias, dw_weight, dw_bias, stride, cap, doubled, skip) in enumerate(blocks):
        name = f"blocks[{k}]."
        if stride not in (1, 2):
            raise ValueError(f"{name}stride: expected 1 or 2, got {stride!r}")
        if cap is not None and not cap > 0:
            raise ValueError(f"{name}cap: expected a number above 0 or None, got {cap!r}")
        _checks.tensor(weight, name + "weight", (None, channels, None, None), "(O, C, k, k)")
        outputs, _, kernel, other = weight.shape
        if outputs == 0:
            raise ValueError(f"{name}weight: expected at least 1 output channel, got shape {tuple(weight.shape)}")
        if kernel != other or kernel % 2 == 0 or (dw_weight is not None and kernel != 1):
            side = "k odd" if dw_weight is None else "k = 1 behind a depthwise convolution"
            raise ValueError(f"{name}weight: expected (O, C, k, k), {side}, got shape {tuple(weight.shape)}")
        _checks.tensor(bias, name + "bias", (outputs,), "(O,)")
        if dw_weight is not None:
            _checks.tensor(dw_weight, name + "dw_weight", (channels, 1, None, None), "(C, 1, k, k)")
            if dw_weight.shape[2:] not in ((3, 3), (5, 5)):
                raise ValueError(f"{name}dw_weight: expected 3x3 or 5x5, got shape {tuple(dw_weight.shape)}")
            _checks.tensor(dw_bias, name + "dw_bias", (channels,), "(C,)")
        for tensor in (weight, bias, dw_weight, dw_bias):
            if tensor is not None and tensor.device != device:
                raise ValueError(f"{name}weight: expected device {device}, where x is, got {tensor.device}")
        channels, (height, width) = outputs, _size(height, width, stride, doubled)
        results.append((channels, height, width))
        if skip is not None and (not 0 <= skip < k or results[skip] != results[k]):
            of = f" of {results[skip]}" if 0 <= skip < k else ""
            raise ValueError(
                f"{name}skip: expected the index of a block before it with a result of (C, H, W) = {results[k]}, "
                f"got {skip!r}{of}"
            )


def _size(height: int, width: int, stride: int, doubled: bool) -> tuple[int, int]:
    step = 2 if doubled else 1
    return ((height - 1) // stride + 1) * step, ((width - 1) // stride + 1) * step


def reference(
    x: Tensor,
    weights: Sequence[Tensor],
    depthwise: Sequence[bool],
    strides: Sequence[int],
    caps: Sequence[float],
    doubled: Sequence[bool],
    skips: Sequence[int],
    backend: str = "reference",
) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against.

    With another `backend`, blocks that `nnconv5` supports run there.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    results: list[Tensor] = []
    tensors = iter(weights)
    for has_dw, stride, cap, twice, index in zip(depthwise, strides, caps, doubled, skips):
        weight, bias = next(tensors), next(tensors)
        skip = None if index < 0 else results[index]
        if has_dw:
            dw_weight, dw_bias = next(tensors), next(tensors)
            if backend != "reference" and twice and stride == 1 and cap == math.inf and dw_weight.shape[-1] == 5:
                ones = torch.ones_like(dw_bias), torch.ones_like(bias)
                x = nnconv5(x, dw_weight, ones[0], dw_bias, weight, ones[1], bias, skip=skip, backend=backend)
                results.append(x)
                continue
            x = F.conv2d(x, dw_weight, dw_bias, stride, dw_weight.shape[-1] // 2, groups=x.shape[1]).clamp(0, cap)
            stride = 1
        x = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2).clamp(0, cap)
        if twice:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = x if skip is None else x + skip
        results.append(x)
    return x.contiguous(memory_format=torch.channels_last)


def _empty_output(
    x: Tensor, weights: Sequence[Tensor], depthwise: Sequence[bool], strides: Sequence[int], doubled: Sequence[bool]
) -> Tensor:
    batch, _, height, width = x.shape
    for stride, twice in zip(strides, doubled):
        height, width = _size(height, width, stride, twice)
    channels = weights[-4 if depthwise[-1] else -2].shape[0]
    shape = (batch, channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake(
    x: Tensor,
    weights: Sequence[Tensor],
    depthwise: Sequence[bool],
    strides: Sequence[int],
    doubled: Sequence[bool],
    **_: object,
) -> Tensor:
    return _empty_output(x, weights, depthwise, strides, doubled)


_OP = Op(
    "conv_stack",
    reference,
    # Weight and bias of each block, and dw_weight and dw_bias where it is `depthwise`.
    inputs={"x": T("batch", "channels", "height", "width"), "weights": T("...", many="tensors")},
    options={
        "depthwise": list[bool],
        "strides": list[int],
        "caps": list[float],
        "doubled": list[bool],
        "skips": list[int],
    },
    outputs={"out": T("...")},
    any_layout=True,
    fake=_fake,
)


def _chain(backend: str, x: Tensor, **options: Any) -> Tensor:
    """A GPU's: `nnconv5` for the blocks that it knows, PyTorch for the others."""
    with _dispatch.full_precision(x.device):
        return reference(x=x, **options, backend=backend)


for _backend in ("cuda", "triton", "nvrtc"):
    _dispatch.implementation("conv_stack", _backend)(functools.partial(_chain, _backend))


@_dispatch.implementation("conv_stack", "cpu")
def _native_run(
    x: Tensor,
    weights: Sequence[Tensor],
    depthwise: Sequence[bool],
    strides: Sequence[int],
    caps: Sequence[float],
    doubled: Sequence[bool],
    skips: Sequence[int],
) -> Tensor:
    _OP.forward.sizes({"x": x, "weights": weights})
    lists = (depthwise, strides, caps, doubled, skips)
    if len({len(one) for one in lists}) > 1 or len(weights) != sum(4 if dw else 2 for dw in depthwise) or not weights:
        raise RuntimeError("conv_stack: expected lists of one length, and two or four weights a block")
    shapes: list[tuple[int, int, int]] = [(x.shape[1], x.shape[2], x.shape[3])]
    if min(shapes[0]) < 1:
        raise RuntimeError(f"conv_stack: x: expected C, H and W of at least 1, got shape {tuple(x.shape)}")
    planes = not depthwise[0] and weights[0].shape[-1] > 1 and x.is_contiguous()  # a dense block reads these too
    layout = torch.contiguous_format if planes else torch.channels_last
    x = x.contiguous(memory_format=layout)
    dtype, device, (batch, channels, height, width) = x.dtype, x.device, x.shape
    out = _empty_output(x, weights, depthwise, strides, doubled)
    kept = [tensor.contiguous() for tensor in weights]  # alive until the kernels are through
    tensors, inputs, block = iter(kept), channels, _native.struct_named("conv_stack_block")
    packed: list[bytes] = []

    def address(tensor: Tensor, name: str, *shape: int) -> int:
        if tensor.shape != shape:
            raise RuntimeError(f"conv_stack: {name}: expected shape {shape}, got {tuple(tensor.shape)}")
        return _native.address(tensor, name, dtype, device)

    for has_dw, stride, cap, twice, skip in zip(depthwise, strides, caps, doubled, skips):
        weight, bias = next(tensors), next(tensors)
        outputs, kernel = weight.shape[0], 1 if has_dw else weight.shape[-1]
        members = {"out_channels": outputs, "stride": stride, "doubled": twice, "skip": skip, "cap": cap}
        members["weight"] = address(weight, "weight", outputs, inputs, kernel, kernel)
        members["bias"] = address(bias, "bias", outputs)
        if has_dw:
            dw_weight, dw_bias = next(tensors), next(tensors)
            kernel = dw_weight.shape[-1]
            members["dw_weight"] = address(dw_weight, "dw_weight", inputs, 1, kernel, kernel)
            members["dw_bias"] = address(dw_bias, "dw_bias", inputs)
        if stride not in (1, 2) or (kernel not in (3, 5) if has_dw else kernel % 2 == 0):
            raise RuntimeError(f"conv_stack: block {len(packed)}: expected stride 1 or 2 and a kernel of an odd size")
        _, rows, columns = shapes[-1]
        shapes.append((outputs, *_size(rows, columns, stride, twice)))
        if outputs < 1 or not -1 <= skip < len(packed) or (skip >= 0 and shapes[skip + 1] != shapes[-1]):
            raise RuntimeError(
                f"conv_stack: block {len(packed)}: expected at least 1 output channel, and as skip -1 or a block "
                f"before it with a result of its shape {shapes[-1]}, got {skip}"
            )
        packed.append(block.pack({**members, "kernel": kernel}))
        inputs = outputs
    blocks = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8)
    _native.run(
        "conv_stack",
        "cpu",
        {
            "dtype": _native.code(dtype),
            "batch": batch,
            "channels": channels,
            "height": height,
            "width": width,
            "image_step": channels * height * width,
            "channel_step": height * width if planes else 1,
            "line_step": width if planes else width * channels,
            "pixel_step": 1 if planes else channels,
            "x": _native.address(x, "x", dtype, device, layout),
            "blocks": blocks.data_ptr(),
            "count": len(packed),
            "out": _native.address(out, "out", dtype, device, torch.channels_last),
        },
    )
    return out
