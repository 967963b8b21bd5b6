"""Every launch of the Triton kernels, recorded from the implementations: a signature cannot drift from its call.

The numbers that are compiled into a kernel have no short binary form, so that rounding one to float32 shows.
"""

from typing import Any, NamedTuple

import pytest
import torch
import triton_blocks

from mdepth_fast.kernels import (
    berhu_loss,
    depth_metrics,
    disparity_to_depth,
    edge_aware_smoothness,
    inverse_warp,
    min_reprojection,
    nnconv5,
    ordinal_decode,
    ordinal_loss,
    photometric_loss,
    silog_loss,
)


def _photometric(dtype, everything):
    for width in (32, 33):
        image, grad = torch.zeros(2, 3, 16, width, dtype=dtype), torch.zeros(2, 1, 16, width, dtype=dtype)
        photometric_loss.forward(image, image, 0.85)
        for needs in [(True, False), (True, True), (False, True)][: 3 if everything else 2]:
            photometric_loss.backward(grad, image, image, 0.85, *needs)


def _warp(dtype, everything):
    source, depth = torch.zeros(2, 3, 16, 32, dtype=dtype), torch.zeros(2, 1, 16, 32, dtype=dtype)
    projection = torch.zeros(2, 3, 4, dtype=torch.float64)
    all_needs = [(True, True, True), (False, True, True), (True, False, False), (False, True, False)]
    for padding in ("border", "zeros")[: 2 if everything else 1]:
        inverse_warp.forward(source, depth, projection, padding)
        for needs in all_needs[: 4 if everything else 2]:
            inverse_warp.backward(source, source, depth, projection, padding, *needs)
        torch.use_deterministic_algorithms(True)
        try:
            inverse_warp.backward(source, source, depth, projection, padding, True, False, False)
        finally:
            torch.use_deterministic_algorithms(False)


def _smoothness(dtype, everything):
    disparity, image = torch.zeros(2, 1, 16, 32, dtype=dtype), torch.zeros(2, 3, 16, 32, dtype=dtype)
    for need_grad in (True, False)[: 2 if everything else 1]:
        edge_aware_smoothness.forward(disparity, image, need_grad)


def _disparity(dtype, everything):
    disparity, depth = torch.zeros(2, 1, 16, 32, dtype=dtype), torch.zeros(2, 1, 48, 64, dtype=dtype)
    for size in ((48, 64), (16, 32))[: 2 if everything else 1]:
        disparity_to_depth.forward(disparity, *size, 0.3, 70.0)
    disparity_to_depth.backward(depth, depth, 16, 32, 0.3, 70.0)


def _reprojection(dtype, everything):
    options = [(2, True, False, "border", True, 32), (2, True, False, "border", True, 33)]
    if everything:  # sources, auto-mask, noise, padding, gradient, width
        options += [
            (2, False, False, "zeros", True, 32),
            (2, True, True, "border", False, 33),
            (2, False, False, "zeros", False, 33),
            (1, True, False, "border", True, 32),
            (3, True, True, "border", True, 32),
        ]
    for count, auto_mask, noisy, padding, need_grad, width in options:
        target, depth = torch.zeros(2, 3, 16, width, dtype=dtype), torch.zeros(2, 1, 16, width, dtype=dtype)
        sources = torch.zeros(2, count, 3, 16, width, dtype=dtype)
        noise = sources[:, :, 0].contiguous() if noisy else None
        projection = torch.zeros(2, count, 3, 4, dtype=torch.float64)
        min_reprojection.forward(target, sources, [depth], projection, noise, 0.85, auto_mask, padding, need_grad)


def _ordinal_decode(dtype, everything):
    ordinal_decode.forward(torch.zeros(2, 160, 16, 32, dtype=dtype), torch.zeros(81, dtype=dtype))


def _ordinal_loss(dtype, everything):
    logits, depth = torch.zeros(2, 160, 16, 32, dtype=dtype), torch.zeros(2, 1, 16, 32, dtype=dtype)
    thresholds, one = torch.zeros(81, dtype=dtype), torch.ones((), dtype=dtype)
    for valid in (None, depth > 0)[: 2 if everything else 1]:
        ordinal_loss.forward(logits, depth, thresholds, valid)
        ordinal_loss.backward(one, one.long(), logits, depth, thresholds, valid)


def _depth_metrics(dtype, everything):
    maps, factor = torch.zeros(2, 2, 1, 16, 32, dtype=dtype), torch.zeros(2, dtype=torch.float64)
    depth_metrics.forward(*maps, factor, None, [1, 16, 0, 30], [1e-3, 80.0, 1e-3, 80.0], False)
    if everything:
        depth_metrics.forward(*maps, factor, factor, [0, 16, 0, 32], [0.0, torch.inf, 1e-3, 80.0], True)
        depth_metrics.forward(*maps, None, None, [0, 16, 0, 32], [0.0, 80.0, 1e-3, torch.inf], False)


def _berhu(dtype, everything):
    depth, one = torch.ones(8, 1, 16, 32, dtype=dtype), torch.ones((), dtype=dtype)
    state = torch.ones(2, dtype=torch.float64)
    for valid in (None, depth > 0)[: 2 if everything else 1]:
        berhu_loss.forward(depth, depth, valid, valid is None, 0.2)
        berhu_loss.backward(one, state, depth, depth, valid, valid is None, 0.2)


def _silog(dtype, everything):
    depth, one = torch.ones(8, 1, 16, 32, dtype=dtype), torch.ones((), dtype=dtype)
    coefficients = torch.zeros(8, 2, dtype=torch.float64)
    for valid, form in ((None, "eigen"), (depth > 0, "sqrt_unbiased"))[: 2 if everything else 1]:
        measured, log_prediction = valid is None, valid is not None
        silog_loss.forward(depth, depth, valid, measured, form, 0.85, 0.3, log_prediction)
        silog_loss.backward(one, coefficients, depth, depth, valid, measured, log_prediction)


def _nnconv5(dtype, everything):
    x, grad = torch.zeros(2, 64, 16, 32, dtype=dtype), torch.zeros(2, 48, 32, 64, dtype=dtype)
    channels, out_channels = torch.zeros(64, dtype=dtype), torch.zeros(48, dtype=dtype)
    depthwise, pointwise = torch.zeros(64, 1, 5, 5, dtype=dtype), torch.zeros(48, 64, 1, 1, dtype=dtype)
    weights = depthwise, channels, channels, pointwise, out_channels, out_channels
    many = torch.zeros(80, 64, 16, 32, dtype=dtype)  # of which no part is made
    skips = torch.zeros(80, 48, 32, 64, dtype=dtype)
    for images, skip in ((x, grad), (many, skips), (x, None), (many, None))[: 4 if everything else 2]:
        nnconv5.forward(images, *weights, skip)
    few = torch.zeros(32, dtype=dtype)  # output channels
    nnconv5.forward(many, *weights[:3], pointwise[:32], few, few, None)
    if everything and dtype == torch.float32:  # on tensor cores
        for half in (torch.float16, torch.bfloat16):
            nnconv5.forward(x.to(half), *weights[:3], pointwise.to(half), *weights[4:], grad.to(half))
            nnconv5.forward(many.to(half), *weights[:3], pointwise.to(half), *weights[4:], skips.to(half))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nnconv5, "_product", lambda backend, x: "tf32")
            nnconv5.forward(x, *weights, grad)
            nnconv5.forward(many, *weights, skips)
    nnconv5.backward(grad, x, *weights, True, True, True)


def _dtype(arguments):
    """What the first tensor is made of."""
    return str(next(value.dtype for value in arguments.values() if isinstance(value, torch.Tensor)))[6:]


RUNS = {
    "inverse_warp": _warp,
    "photometric_loss": _photometric,
    "min_reprojection": _reprojection,
    "edge_aware_smoothness": _smoothness,
    "disparity_to_depth": _disparity,
    "ordinal_decode": _ordinal_decode,
    "ordinal_loss": _ordinal_loss,
    "depth_metrics": _depth_metrics,
    "silog_loss": _silog,
    "berhu_loss": _berhu,
    "nnconv5": _nnconv5,
}


class Launch(NamedTuple):
    kernel: Any
    warps: int
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        kernel = getattr(self.kernel, "fn", self.kernel)
        return f"{kernel.__module__.split('.')[-1]}.{kernel.__name__}"

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {value.dtype for value in self.arguments.values() if isinstance(value, torch.Tensor)}

    @property
    def label(self) -> str:
        """Tells it from every launch that is compiled to other code."""
        constants = {name: value for name, value in self.arguments.items() if name.isupper()}
        notes = [f"{name}={v if isinstance(v, str) else format(v, '.4g')}" for name, v in constants.items()]
        notes += [f"no {name}" for name, value in self.arguments.items() if value is None]
        return f"{self.name} {_dtype(self.arguments)} {' '.join(notes)}"

    @property
    def tile(self) -> tuple[Any, ...]:
        """What a program works on: kernel, warps, and the sizes that are compiled in."""
        return self.name, self.warps, *((k, v) for k, v in self.arguments.items() if k in _TILE)


_TILE = ("ROWS", "COLUMNS", "STRIP", "BLOCK", "STEPS", "OUT", "INNER")


def _dtype(arguments):
    """What the first tensor is made of."""
    return str(next(value.dtype for value in arguments.values() if isinstance(value, torch.Tensor)))[6:]


def launches(dtype, everything, ops=RUNS):
    """Label -> every launch that differs from the others; none runs."""
    found = {}

    def record(kernel, programs, warps, **arguments):
        assert programs > 0
        for value in arguments.values():
            if isinstance(value, torch.Tensor):
                value.zero_()  # what PyTorch does with it next must not meet rubbish
        launch = Launch(kernel, warps, arguments)
        found[launch.label] = launch

    with pytest.MonkeyPatch.context() as patch:
        for module in triton_blocks.MODULES:
            patch.setattr(module, "launch", record)
        for op in ops:
            RUNS[op](dtype, everything)
    return found
