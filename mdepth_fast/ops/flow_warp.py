"""Bilinear warping of an image by optical flow."""

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array
from mdepth_fast.ops import _checks
from mdepth_fast.ops.inverse_warp import bilinear_reference


def flow_warp(
    source: Tensor, flow: Tensor, *, padding: str = "border", backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Samples `source` where the flow leads: `warped(x, y) = source(x + u, y + v)`.

    The backward warping of Yu et al., arXiv 1608.05842, section 3.1; the sampler is from Jaderberg et al., arXiv
    1506.02025. A rectified stereo pair of disparity d is the flow (-d, 0) from the left image to the right one.

    Args:
        source: (B, C, Hs, Ws).
        flow: (B, 2, H, W), in pixels of the source: u to the right, v down. Pixel centres lie on integers.
        padding: "border" (clamps coordinates; no gradient where clamped) or "zeros" (pixels outside read 0).
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        warped (B, C, H, W), with gradients to source and flow; NaN where the flow is not finite. valid (B, 1, H, W)
        bool: the point falls inside the source, `0 <= x + u <= Ws - 1` and `0 <= y + v <= Hs - 1`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
    """
    _checks.tensor(source, "source", (None, None, None, None), "(B, C, H, W)")
    _checks.tensor(flow, "flow", (source.shape[0], 2, None, None), "(B, 2, H, W)")
    _checks.same_device(source, "source", flow=flow)
    _checks.padding_mode(padding)
    if source.shape[2] == 0 or source.shape[3] == 0:
        raise ValueError(f"source: expected H and W of at least 1, got shape {tuple(source.shape)}")
    dtype = _checks.working_dtype(source, flow)
    source, flow = _checks.cast(dtype, source, flow)
    warped: tuple[Tensor, Tensor] = _OP(backend, source=source, flow=flow, padding=padding)
    return warped


def reference(source: Tensor, flow: Tensor, padding: str = "border") -> tuple[Tensor, Tensor]:
    """The reference in plain PyTorch with `grid_sample`, which every backend is tested against."""
    warped, poison, valid = sample_reference(source, flow, padding)
    return warped + poison, valid


def sample_reference(source: Tensor, flow: Tensor, padding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Warped image, 0 where the flow is not finite; 0, or NaN there; and where the point falls inside the source."""
    height, width = flow.shape[2:]
    v, u = torch.meshgrid(
        torch.arange(height, dtype=flow.dtype, device=flow.device),
        torch.arange(width, dtype=flow.dtype, device=flow.device),
        indexing="ij",
    )
    poison = flow.detach().sum(1, keepdim=True) * 0
    finite = poison == 0
    uv = torch.stack([u, v]) + torch.where(finite, flow, torch.zeros_like(flow))
    warped, inside = bilinear_reference(source, uv, padding)
    return torch.where(finite, warped, torch.zeros_like(warped)), poison, finite & inside


_OP = Op(
    "flow_warp",
    reference,
    inputs={
        "source": T("batch", "channels", "source_height", "source_width"),
        "flow": T("batch", 2, "height", "width"),
    },
    options={"padding": ("border", "zeros")},
    sane=lambda sizes: None if sizes["source_height"] and sizes["source_width"] else "a source of at least 1x1",
    outputs={
        "warped": T("batch", "channels", "height", "width"),
        "valid": array(torch.bool, "batch", 1, "height", "width"),
    },
    backward=Backward(
        takes=("source", "flow", "padding"),
        gradients=("source", "flow"),
        zeroed=("source",),
        # On a GPU the source's gradient is summed by atomics, or in order.
        asks={"ordered": torch.are_deterministic_algorithms_enabled},
    ),
)
