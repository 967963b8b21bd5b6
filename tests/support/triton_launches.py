"""Every launch of the Triton kernels, recorded from the implementations: a signature cannot drift from its call.

The numbers that are compiled into a kernel have no short binary form, so that rounding one to float32 shows.
"""

from typing import Any, NamedTuple

import pytest
import torch
import triton_blocks

from mdepth_fast import _dispatch
from mdepth_fast.kernels import nnconv5 as nnconv5_kernels
from mdepth_fast.ops import (
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
    view_synthesis_loss,
)


def _tensor(*shape, dtype, grad=False):
    return torch.zeros(shape, dtype=dtype, requires_grad=grad)


def _photometric(dtype, everything):
    for width in (32, 33):
        for needs in [(True, False), (True, True), (False, True)][: 3 if everything else 2]:
            images = [_tensor(2, 3, 16, width, dtype=dtype, grad=need) for need in needs]
            photometric_loss(*images, ssim_weight=0.85).sum().backward()


def _warp(dtype, everything):
    all_needs = [(True, True, True), (False, True, True), (True, False, False), (False, True, False)]
    for padding in ("border", "zeros")[: 2 if everything else 1]:
        for needs in [*all_needs[: 4 if everything else 2], "in order"]:
            by_source, by_depth, by_pose = (True, False, False) if needs == "in order" else needs
            source, depth = _tensor(2, 3, 16, 32, dtype=dtype, grad=by_source), torch.ones(2, 1, 16, 32, dtype=dtype)
            camera, pose = torch.eye(3, dtype=dtype).repeat(2, 1, 1), torch.eye(4, dtype=dtype).repeat(2, 1, 1)
            leaves = depth.requires_grad_(by_depth), camera, pose.requires_grad_(by_pose)
            torch.use_deterministic_algorithms(needs == "in order")
            try:
                inverse_warp(source, *leaves, padding=padding)[0].sum().backward()
            finally:
                torch.use_deterministic_algorithms(False)


def _smoothness(dtype, everything):
    for need_grad in (True, False)[: 2 if everything else 1]:
        disparity, image = _tensor(2, 1, 16, 32, dtype=dtype, grad=need_grad), _tensor(2, 3, 16, 32, dtype=dtype)
        for normalize in (True, False)[: 2 if everything else 1]:
            edge_aware_smoothness(disparity, image, normalize=normalize)


def _disparity(dtype, everything):
    for size in ((48, 64), (16, 32))[: 2 if everything else 1]:
        disparity = _tensor(2, 1, 16, 32, dtype=dtype, grad=size == (48, 64))
        depth = disparity_to_depth(disparity, size, min_depth=0.3, max_depth=70.0)
        if depth.requires_grad:
            depth.sum().backward()


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
        target, sources = _tensor(2, 3, 16, width, dtype=dtype), _tensor(2, count, 3, 16, width, dtype=dtype)
        depth = _tensor(2, 1, 16, width, dtype=dtype, grad=need_grad)
        K, T = torch.eye(3, dtype=dtype).repeat(2, 1, 1), torch.eye(4, dtype=dtype).repeat(2, count, 1, 1)
        noise = sources[:, :, 0].contiguous() if noisy else None
        min_reprojection(target, sources, depth, K, T, identity_noise=noise, auto_mask=auto_mask, padding=padding)


def _view(dtype, everything):
    options = [("masked", True, True, True, 32), ("masked", True, True, False, 33)]
    if everything:  # padding, SSIM, gradient, weight, width
        options += [
            ("grey", True, True, True, 33),
            ("grey", False, True, True, 32),
            ("masked", False, True, False, 32),
            ("masked", True, False, True, 32),
            ("grey", False, False, False, 32),
        ]
    for padding, ssim, need_grad, weighted, width in options:
        target, source = _tensor(2, 2, 3, 16, width, dtype=dtype)
        depth = _tensor(2, 1, 16, width, dtype=dtype, grad=need_grad)
        K, T = torch.eye(3, dtype=dtype).repeat(2, 1, 1), torch.eye(4, dtype=dtype).repeat(2, 1, 1)
        weight = _tensor(2, 1, 16, width, dtype=dtype) if weighted else None
        view_synthesis_loss(target, source, depth, K, T, weight=weight, padding=padding, ssim=ssim)


def _ordinal_inputs(dtype, grad):
    return _tensor(2, 160, 16, 32, dtype=dtype, grad=grad), torch.arange(1.0, 82.0, dtype=dtype)


def _ordinal_decode(dtype, everything):
    ordinal_decode(*_ordinal_inputs(dtype, False))


def _ordinal_loss(dtype, everything):
    depth = _tensor(2, 1, 16, 32, dtype=dtype)
    for valid in (None, depth > 0)[: 2 if everything else 1]:
        logits, thresholds = _ordinal_inputs(dtype, True)
        ordinal_loss(logits, depth, thresholds, valid=valid).backward()


def _depth_metrics(dtype, everything):
    maps, factor = _tensor(2, 2, 1, 16, 32, dtype=dtype), torch.zeros(2, dtype=dtype)
    depth_metrics(*maps, scale=factor, window=(1, 16, 0, 30))
    if everything:
        depth_metrics(*maps, scale=factor, shift=factor, valid=(0.0, torch.inf), inverse=True)
        depth_metrics(*maps, valid=(0.0, 80.0), clip=(1e-3, torch.inf))


def _sparse(dtype):
    return torch.ones(8, 1, 16, 32, dtype=dtype, requires_grad=True), torch.ones(8, 1, 16, 32, dtype=dtype)


def _berhu(dtype, everything):
    for masked in (False, True)[: 2 if everything else 1]:
        prediction, depth = _sparse(dtype)
        berhu_loss(prediction, depth, valid=depth > 0 if masked else "measured").backward()


def _silog(dtype, everything):
    for masked, form in ((False, "eigen"), (True, "sqrt_unbiased"))[: 2 if everything else 1]:
        prediction, depth = _sparse(dtype)
        options = {"form": form, "variance_focus": 0.85, "scale": 0.3, "log_prediction": masked}
        silog_loss(prediction, depth, valid=depth > 0 if masked else "measured", **options).backward()


def _nnconv5(dtype, everything):
    """`many` images, of which no part is made; fewer output channels; tensor cores."""

    def run(images, out_channels=48, skip=True, stored=dtype, grad=False):
        tensors = {
            "x": _tensor(images, 64, 16, 32, dtype=stored, grad=grad),
            "dw_weight": _tensor(64, 1, 5, 5, dtype=dtype, grad=grad),
            "dw_scale": _tensor(64, dtype=dtype),
            "dw_shift": _tensor(64, dtype=dtype),
            "pw_weight": _tensor(out_channels, 64, 1, 1, dtype=stored, grad=grad),
            "pw_scale": _tensor(out_channels, dtype=dtype),
            "pw_shift": _tensor(out_channels, dtype=dtype),
            "skip": _tensor(images, out_channels, 32, 64, dtype=stored) if skip else None,
        }
        out = torch.ops.mdepth.nnconv5(*tensors.values(), "triton") if stored != dtype else nnconv5(**tensors)
        if grad:
            out.sum().backward()

    for images, skip in ((2, True), (80, True), (2, False), (80, False))[: 4 if everything else 2]:
        run(images, skip=skip, grad=images == 2 and skip)
    run(80, 32, skip=False)
    if everything and dtype == torch.float32:  # on tensor cores
        for half in (torch.float16, torch.bfloat16):
            run(2, stored=half)
            run(80, stored=half)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nnconv5_kernels, "_product", lambda backend, x: "tf32")
            run(2)
            run(80)


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
    "view_synthesis_loss": _view,
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
        patch.setattr(_dispatch, "why_not", lambda op, backend, device: None)
        _dispatch.resolve.cache_clear()
        with _dispatch.use_backend("triton"):
            for op in ops:
                RUNS[op](dtype, everything)
    _dispatch.resolve.cache_clear()
    return found
