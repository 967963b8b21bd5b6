"""The sums over pixels that determine all depth metrics."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mdepth_fast._op import Op, T, array
from mdepth_fast.ops import _checks

DEPTH_SUMS = (
    "count",  # pixels that count
    "abs_rel",  # |p - g| / g
    "sq_rel",  # (p - g)^2 / g
    "sq_rel_kitti",  # (p - g)^2 / g^2
    "sq_error",  # (p - g)^2
    "sq_log",  # e^2, e = ln p - ln g
    "log",  # e
    "abs_log",  # |e|
    "d1",  # max(p / g, g / p) < 1.25
    "d2",  # < 1.25^2
    "d3",  # < 1.25^3
    "sq_inverse",  # (1 / p - 1 / g)^2
)


def depth_metrics(
    prediction: Tensor,
    ground_truth: Tensor,
    *,
    valid: tuple[float, float] = (1e-3, 80.0),
    clip: tuple[float, float] = (1e-3, 80.0),
    window: tuple[int, int, int, int] | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The sums of `DEPTH_SUMS` per image, from which `mdepth_fast.evaluation.metrics_of` computes all depth metrics.

    They can be added over images, parts of a data set and processes. Predicted depth p and ground truth g are compared
    in float64 for maps of any dtype. The metrics contain step functions, so there are no gradients.

    Args:
        prediction: (B, 1, H, W) or (B, H, W), depth in the unit of the ground truth after `scale` and `shift`.
        ground_truth: same shape; a pixel counts if `valid[0] < g < valid[1]`, so 0 and non-finite values never do.
        valid: the range of ground truth that counts, both ends excluded, as numbers in the dtype of the maps.
        clip: p = min(max(scale * prediction + shift, clip[0]), clip[1]); clip[0] > 0, clip[1] may be infinite.
        window: (top, bottom, left, right), half-open: the pixels that count; None: all.
        scale, shift: (B,), None for 1 and 0.
        inverse: the prediction is inverse depth: p is clipped from 1 / (scale * prediction + shift), or is clip[1]
            where that sum is zero or below.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, 12) float64. A NaN prediction at a pixel that counts makes the sums NaN, except for the number of pixels
        and d1 to d3, where it counts as wrong. Predictions elsewhere do not matter.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or order.
    """
    three = isinstance(prediction, Tensor) and prediction.dim() == 3
    rank = (None, None, None) if three else (None, 1, None, None)
    shape = _checks.tensor(prediction, "prediction", rank, "(B, 1, H, W) or (B, H, W)").shape
    _checks.tensor(ground_truth, "ground_truth", shape, "of prediction")
    scale, shift = _factor(scale, "scale", shape[0]), _factor(shift, "shift", shape[0])
    _checks.same_device(prediction, "prediction", ground_truth=ground_truth, scale=scale, shift=shift)
    if not 0 <= valid[0] < valid[1]:
        raise ValueError(f"valid: expected 0 <= low < high, got {valid}")
    if not 0 < clip[0] < clip[1] or (inverse and clip[1] == math.inf):
        finite = " < infinity, as inverse depth has none" if inverse else ""
        raise ValueError(f"clip: expected 0 < low < high{finite}, got {clip}")
    top, bottom, left, right = window or (0, shape[-2], 0, shape[-1])
    if not (0 <= top <= bottom <= shape[-2] and 0 <= left <= right <= shape[-1]):
        raise ValueError(
            f"window: expected (top, bottom, left, right) within {shape[-2]}x{shape[-1]}, got {tuple(window or ())}"
        )
    dtype = _checks.working_dtype(prediction, ground_truth)
    maps = _plain(prediction, dtype), _plain(ground_truth, dtype)
    sums: Tensor = _OP(
        backend,
        prediction=maps[0] if three else maps[0].squeeze(1),
        ground_truth=maps[1] if three else maps[1].squeeze(1),
        scale=scale,
        shift=shift,
        top=top,
        bottom=bottom,
        left=left,
        right=right,
        min_valid=float(valid[0]),
        max_valid=float(valid[1]),
        min_depth=float(clip[0]),
        max_depth=float(clip[1]),
        inverse=inverse,
    )
    return sums


def _factor(value: Tensor | None, name: str, batch: int) -> Tensor | None:
    return None if value is None else _plain(_checks.tensor(value, name, (batch,), "(B,)"), torch.float64)


def _plain(value: Tensor, dtype: torch.dtype) -> Tensor:
    # One frame takes as long as a few calls of PyTorch: none that does nothing.
    value = value.detach() if value.requires_grad else value
    return value if value.dtype == dtype else value.to(dtype)


def reference(
    prediction: Tensor,
    ground_truth: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    top: int,
    bottom: int,
    left: int,
    right: int,
    min_valid: float,
    max_valid: float,
    min_depth: float,
    max_depth: float,
    inverse: bool,
) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""
    p, g = (value[:, top:bottom, left:right].flatten(1) for value in (prediction, ground_truth))
    on = (g > min_valid) & (g < max_valid)
    p, g = p.double(), torch.where(on, g, 1).double()
    if scale is not None:
        p = p * scale[:, None]
    if shift is not None:
        p = p + shift[:, None]
    if inverse:
        p = torch.where(p <= 0, max_depth, 1 / p)
    p = torch.where(on, p.clamp(min_depth, max_depth), 1)
    error, e, inverse_error = p - g, p.log() - g.log(), 1 / p - 1 / g
    ratio = torch.maximum(p / g, g / p)
    terms = [
        torch.ones_like(p),
        error.abs() / g,
        error**2 / g,
        (error / g) ** 2,
        error**2,
        e**2,
        e,
        e.abs(),
        *(ratio < 1.25**power for power in (1, 2, 3)),
        inverse_error**2,
    ]
    return torch.stack([torch.where(on, term, 0).sum(1, dtype=torch.float64) for term in terms], 1)


def _inside(sizes: Mapping[str, int]) -> str | None:
    rows, columns = (sizes[n] for n in ("top", "bottom")), (sizes[n] for n in ("left", "right"))
    (top, bottom), (left, right) = rows, columns
    inside = 0 <= top <= bottom <= sizes["height"] and 0 <= left <= right <= sizes["width"]
    return None if inside else "a window inside of the images"


_OP = Op(
    "depth_metrics",
    reference,
    inputs={
        "prediction": T("batch", "height", "width"),
        "ground_truth": T("batch", "height", "width"),
        "scale": array(torch.float64, "batch", optional=True),
        "shift": array(torch.float64, "batch", optional=True),
    },
    options={
        **dict.fromkeys(("top", "bottom", "left", "right"), int),
        **dict.fromkeys(("min_valid", "max_valid", "min_depth", "max_depth"), float),
        "inverse": bool,
    },
    sane=_inside,
    outputs={"sums": array(torch.float64, "batch", len(DEPTH_SUMS))},
)
